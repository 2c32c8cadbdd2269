"""Recorded readings on disk: arrays of one material, written whole, with the form that they are in."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.formats import FORMAT, KEY, NewerFormat, check_format, first_line, format_of
from pipeline.errors import BadData

_MATERIAL = "material"


def save_table(path: Path, material: str, **arrays: npt.NDArray[np.generic]) -> None:
    """Write arrays of a material (its fingerprint; empty: not known) to an npz file, whole or not at all."""
    part = path.with_suffix(".part.npz")
    notes = {_MATERIAL: np.array(material), KEY: np.array(FORMAT)}
    np.savez_compressed(part, **arrays, **notes)  # type: ignore[arg-type]
    os.replace(part, path)


def load_table(path: Path, material: str) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of a file of `save_table`; BadData where both it and `material` say whose they are, and differ.
    NewerFormat for a file of a later version."""
    try:
        with np.load(path) as packed:
            check_format(format_of(packed), path)
            told = str(packed[_MATERIAL])
            arrays = {name: packed[name] for name in packed.files if name not in (_MATERIAL, KEY)}
    except NewerFormat:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, AttributeError) as error:
        # numpy's advice for what is no archive is to unpickle it
        why = "no archive of arrays" if "pickle" in str(error) else first_line(error)
        raise BadData(f"{path} holds no recorded readings ({why}); copy it again, or remove it") from None
    if material and told and told != material:
        raise BadData(
            f"{path}: readings of material {told}, this is {material}; give the readings that were made with it, "
            "or another --out"
        )
    return arrays
