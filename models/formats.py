"""Which form a file has that this code writes: a later one is refused by name, one that says nothing is the first.

For what is trained and kept: configurations of policies and models, cards beside weights, metadata of safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

KEY = "dysra_format"
"""Where a file says it, beside its other fields (in metadata of safetensors as text)."""
FORMAT = 1


class NewerFormat(ValueError):
    """A file of a later version of DySRA: whole, and not to be read as if it held what this one knows."""


def first_line(error: BaseException) -> str:
    """What an error says in one line, its kind where it says nothing."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def format_of(arrays: Mapping[str, object]) -> dict[str, object]:
    """What an npz file states in KEY, for `check_format`; nothing where it states nothing."""
    return {KEY: int(str(arrays[KEY]))} if KEY in arrays else {}


def check_format(body: object, path: Path, newest: int = FORMAT) -> int:
    """The form that a file's content states in KEY, 1 where it states none (as it was before this was kept);
    NewerFormat for a later one, ValueError for what is no number. What is no mapping is its reader's to refuse."""
    found = body.get(KEY) if isinstance(body, Mapping) else None
    if found is None:
        return 1
    number = int(found) if isinstance(found, int | str) and str(found).isdecimal() else 0
    if number > newest:
        raise NewerFormat(
            f"{path} has format {number}; this DySRA reads up to {newest}: upgrade DySRA, or make the file again"
        )
    if number < 1:
        raise ValueError(f"{path} has format {found!r}; allowed: 1 to {newest}; copy the file again")
    return number
