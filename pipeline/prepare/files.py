"""Triples on disk: sharded Parquet with a manifest that is written last, so a folder with one is whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from models.formats import FORMAT, KEY, NewerFormat, check_format, first_line
from pipeline.errors import BadData, UsageError
from pipeline.prepare.triples import Triple
from pipeline.shared_files import replace_file

MANIFEST = "manifest.json"
_SENTENCE = pa.struct([("title", pa.string()), ("date", pa.string()), ("text", pa.string())])
SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("kind", pa.string()),
        ("question", pa.string()),
        ("sentences", pa.list_(_SENTENCE)),
        ("answers", pa.list_(pa.string())),
        ("tells", pa.bool_()),
        ("target", pa.string()),
    ]
)


def write_triples(
    triples: Iterable[Triple], folder: Path, made_from: dict[str, Any], rows_per_shard: int = 20_000
) -> dict[str, Any]:
    """Write the triples and their manifest; a folder whose manifest was `made_from` the same is left as it is.

    Returns the manifest: `made_from`, `rows`, and name, rows and sha256 of every shard.
    """
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard: given {rows_per_shard}; allowed: 1 or more")
    if (folder / MANIFEST).exists():
        manifest = _manifest(folder)
        if manifest["made_from"] == orjson.loads(orjson.dumps(made_from)):
            return manifest
        raise UsageError(
            f"{folder} holds triples made otherwise ({manifest['made_from']}); give another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    rows = iter(triples)
    shards: list[dict[str, Any]] = []
    while batch := list(islice(rows, rows_per_shard)):
        name = f"triples-{len(shards):05d}.parquet"
        temporary = folder / f".{name}.partial"
        pq.write_table(table_of(batch), temporary, compression="zstd")
        temporary.rename(folder / name)
        shards.append({"name": name, "rows": len(batch), "sha256": _sha256(folder / name)})
    manifest = {
        KEY: FORMAT,
        "made_from": made_from,
        "rows": sum(shard["rows"] for shard in shards),
        "shards": shards,
    }
    replace_file(folder / MANIFEST, orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
    return manifest


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; NewerFormat, or BadData where it is damaged."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = orjson.loads(path.read_bytes())
        check_format(manifest, path)
        if {type(shard[name]) for shard in manifest["shards"] for name in ("name", "sha256")} - {str}:
            raise TypeError("a shard's name or checksum is no text")
        manifest["made_from"]
    except NewerFormat:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(
            f"{path} cannot be read ({first_line(error)}); remove the folder and make the triples again"
        ) from None
    return manifest


def read_triples(folder: Path) -> Iterator[Triple]:
    """The triples of a folder in their order; raises UsageError, BadData where it is not whole."""
    if not (folder / MANIFEST).exists():
        raise UsageError(
            f"{folder} holds no {MANIFEST}: it is not a folder of triples, or its writing was not finished"
        )
    for shard in _manifest(folder)["shards"]:
        path = folder / shard["name"]
        if not path.exists() or _sha256(path) != shard["sha256"]:
            raise BadData(f"{path} is missing or differs from its checksum; make the triples again")
        for row in pq.read_table(path).to_pylist():
            yield Triple(
                **{
                    **row,
                    "sentences": tuple((s["title"], s["date"], s["text"]) for s in row["sentences"]),
                    "answers": tuple(row["answers"]),
                }
            )


def table_of(triples: list[Triple]) -> pa.Table:
    """The triples as a table of SCHEMA."""
    rows = [
        {name: getattr(triple, name) for name in SCHEMA.names}
        | {"sentences": [dict(zip(("title", "date", "text"), s, strict=True)) for s in triple.sentences]}
        for triple in triples
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
