"""The folder that a run of training writes: one process at a time, and never another run's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import BadData, UsageError
from pipeline.shared_files import locked, replace_file

_LIMIT_S = 1.0


class FolderInUse(UsageError):
    """Another process writes the folder."""


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Inside, no other process that asks so writes `out`; FolderInUse where one does. The lock lies beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.parent / f".{out.name}.lock", _LIMIT_S, FolderInUse, out):
        yield


def same_run(note: Path, made_from: Mapping[str, Any]) -> None:
    """Keep what a run is made from in the file `note`, or hold it against what is kept there.

    Raises UsageError that names what differs, BadData where the note is damaged.
    """
    wanted = json.loads(json.dumps(dict(made_from), default=str))
    if not note.exists():
        note.parent.mkdir(parents=True, exist_ok=True)
        replace_file(note, json.dumps(wanted, indent=1).encode())
        return
    refuse_other(note.parent, read_note(note), wanted)


def read_note(note: Path) -> dict[str, Any]:
    """What a folder's note holds; BadData where it is damaged."""
    try:
        return dict(json.loads(note.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise BadData(
            f"{note} is damaged, so whose run {note.parent} holds is not known; give another folder, or remove it"
        ) from None


def refuse_other(folder: Path, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """UsageError where a setting that both know differs; names the first three."""
    other = [name for name in wanted if name in kept and kept[name] != wanted[name]]
    if other:
        told = ", ".join(f"{name} was {kept[name]}, is {wanted[name]}" for name in other[:3])
        raise UsageError(
            f"{folder} holds a run of other settings ({told}); give another --out, or remove the folder"
        )
