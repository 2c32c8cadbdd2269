"""Shards of prepared data: each written whole or not at all, known by its checksum, made again only where needed.

A shard is a Parquet file; beside all of them, in `.made/`, lies a note a shard with rows and checksum. A folder of
shards is finished by a manifest, which is written last.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from models.formats import FORMAT, KEY
from pipeline.errors import BadData, UsageError
from pipeline.shared_files import replace_file

MANIFEST = "manifest.json"
MADE = ".made"


def write_shard(folder: Path, name: str, table: pa.Table) -> dict[str, Any]:
    """Write a shard and its note; returns the note: name, rows, sha256."""
    (folder / MADE).mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}.partial"
    pq.write_table(table, temporary, compression="zstd")
    note = {"name": name, "rows": table.num_rows, "sha256": digest(temporary)}
    os.replace(temporary, folder / name)
    _write(folder / MADE / f"{name}.json", note)
    return note


def note_of(folder: Path, name: str) -> dict[str, Any] | None:
    """The note of a shard that is there and whole, else None."""
    try:
        note: dict[str, Any] = orjson.loads((folder / MADE / f"{name}.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    path = folder / name
    return note if path.is_file() and digest(path) == note["sha256"] else None


def finish(folder: Path, made_from: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Write the manifest of a folder whose shards are all there: `made_from`, `rows`, and the notes in order."""
    notes = [note for name in names if (note := note_of(folder, name)) is not None]
    if len(notes) != len(names):
        missing = sorted(set(names) - {note["name"] for note in notes})
        raise UsageError(f"{folder} lacks {', '.join(missing[:5])}; run the same command again")
    manifest = {
        KEY: FORMAT,
        "made_from": dict(made_from),
        "rows": sum(note["rows"] for note in notes),
        "shards": notes,
    }
    _write(folder / MANIFEST, manifest)
    return manifest


def begin(folder: Path, made_from: Mapping[str, Any]) -> None:
    """Note what a folder is made from; UsageError where it was begun from something else."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MADE / "made_from.json"
    wanted = orjson.loads(orjson.dumps(dict(made_from), default=str))
    if path.exists():
        try:
            kept = orjson.loads(path.read_bytes())
        except orjson.JSONDecodeError:
            raise BadData(
                f"{path} is damaged, so what {folder} was made from is not known; give another folder, or remove it"
            ) from None
        if kept != wanted:
            raise UsageError(
                f"{folder} was begun with other settings or files; give another folder, or remove it"
            )
        return
    if (folder / MANIFEST).exists():
        raise UsageError(f"{folder} holds something else ({MANIFEST}); give another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, wanted)


def digest(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(path: Path, body: Any) -> None:
    replace_file(path, orjson.dumps(body, option=orjson.OPT_INDENT_2, default=str))
