"""Which adapter a configuration means: the shipped one, none, or a folder."""

from __future__ import annotations

import os
from pathlib import Path

from models.hf.config import HfConfig
from models.shipped import READER_LORA

SHIPPED = "shipped"
NONE = "none"
_SHIPPED_FOR = "gemma-3-270m"


def adapter_folder(config: HfConfig) -> Path | None:
    """The folder of the adapter, or None where the model is read as it is.

    The shipped adapter belongs to gemma-3-270m only. It is looked for beside the code and, for a job whose
    uploaded working directory leaves weights out, under $DYSRA_CACHE/weights (`make weights` copies it there).
    """
    if config.adapter in (None, "", NONE):
        return None
    if config.adapter != SHIPPED:
        return Path(str(config.adapter))
    if config.model != _SHIPPED_FOR:
        return None
    cache = Path(os.environ.get("DYSRA_CACHE") or Path.home() / ".cache" / "dysra")
    for folder in (READER_LORA, cache / "weights" / READER_LORA.name):
        if (folder / "adapter_model.safetensors").is_file():
            return folder
    return None
