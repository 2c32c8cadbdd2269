"""Who answers a cell: a transformers decoder (hf) or a sub-quadratic model (subq), as `--model` says.

`--model` is `hf` (gemma-3-270m), `subq` (the shipped checkpoint), a name that transformers knows, or a folder: one
that holds a subq checkpoint is told by its config.json.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from models.shipped import SUBQ
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from models.subq import SubqBackbone

Kind = Literal["hf", "subq"]
HF_DEFAULT = "gemma-3-270m"


def kind_of(model: str) -> Kind:
    """Which implementation reads `model`."""
    if model in ("hf", "subq"):
        return "hf" if model == "hf" else "subq"
    return "subq" if _is_subq(Path(model)) else "hf"


def hf_name(model: str) -> str:
    """The transformers model that `model` means."""
    return HF_DEFAULT if model == "hf" else model


def subq_folder(model: str) -> Path:
    """The checkpoint's folder; raises UsageError where `subq` is asked for and none is shipped."""
    if model != "subq":
        return Path(model)
    home = Path(os.environ.get("DYSRA_CACHE") or Path.home() / ".cache" / "dysra")
    places = (SUBQ, home / "weights" / "subq")
    found = next((place for place in places if _is_subq(place)), None)
    if found is None:
        raise UsageError(
            "--model subq: no checkpoint at "
            + " or ".join(map(str, places))
            + "; train one (dysra train-backbone) "
            "and give its folder: --model FOLDER"
        )
    return found


def load_subq(model: str, device: str) -> SubqBackbone:
    """The sub-quadratic model that `model` means; raises UsageError for a damaged checkpoint."""
    from models.hf.loading import pick_device
    from models.subq import SubqBackbone

    folder = subq_folder(model)
    try:
        return SubqBackbone.load(folder, device=str(pick_device(device)))
    except ValueError as error:
        raise UsageError(f"--model {model}: {error}") from error


def _is_subq(folder: Path) -> bool:
    path = folder / "config.json"
    if not path.is_file():
        return False
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and "config" in described and "storage" in described
