"""Files of a saved model, each written beside its place and renamed: a reader never sees half of one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor


def put_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Tensors on the CPU as a safetensors file."""
    part = path.with_name(f"{path.name}.part")
    save_file(dict(state), part, metadata={"format": "pt"})
    os.replace(part, path)


def put_json(body: Mapping[str, Any], path: Path, indent: int | None = 2) -> None:
    """A JSON file; what is no JSON type is written as text."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(body, indent=indent, default=str) + "\n", encoding="utf-8")
    os.replace(part, path)
