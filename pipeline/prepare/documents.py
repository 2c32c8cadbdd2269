"""Texts of files in time order, and their tokens as sequential chunks: what a stream is read as, and trained on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BadData
from pipeline.tasks.qa import read_lines

_SLUG = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One text of a stream; `published` is empty where the file names no time."""

    doc_id: str
    stream: str
    published: str
    text: str
    line: int


def read_documents(path: Path) -> Iterator[Document]:
    """The texts of a JSON Lines file in its order, title before text; BadData names a line that lacks its text."""
    name = path.name.split(".")[0]
    for line, row in enumerate(read_lines(path)):
        if row.get("deleted"):
            continue
        text = row.get("text")
        if not isinstance(text, str) or not isinstance(row.get("id", ""), str):
            raise BadData(
                f"{path}, line {line + 1} lacks its text (fields id, text; optional title, published)"
            )
        title = row.get("title") or ""
        yield Document(
            doc_id=row.get("id") or f"{name}-{line}",
            stream=str(row.get("stream") or _slug(row.get("source") or name)),
            published=str(row.get("published") or ""),
            text=f"{title}\n{text}" if title else text,
            line=line,
        )


@dataclass(frozen=True, slots=True)
class Order:
    """The lines of a file by stream and time, and which of them are held out: the newest share of each stream."""

    lines: tuple[int, ...]
    held_out: frozenset[int]


def in_order(documents: Iterable[Document], test_share: float) -> Order:
    """Streams one after another, each by time; texts without a time keep their order."""
    keys = sorted((each.stream, each.published, each.line) for each in documents)
    streams: dict[str, list[int]] = {}
    for stream, _, line in keys:
        streams.setdefault(stream, []).append(line)
    held_out = [
        line for lines in streams.values() for line in lines[len(lines) - int(test_share * len(lines)) :]
    ]
    return Order(tuple(line for _, _, line in keys), frozenset(held_out))


def sequential_chunks(
    documents: Sequence[Document],
    ids: Sequence[Sequence[int]],
    end_id: int,
    chunk_tokens: int,
    held_out: frozenset[int] = frozenset(),
) -> Iterator[dict[str, Any]]:
    """Chunks of `chunk_tokens` ids, text after text; none joins two streams, or trained and held-out text.

    Every text ends in `end_id`; the last chunk before such a border may be shorter. Rows: stream, split, ordinal,
    first and last (times), ids.
    """
    held: list[int] = []
    times: list[str] = []
    border: tuple[str, str] | None = None
    ordinal = 0

    def row(count: int) -> dict[str, Any]:
        assert border is not None
        return {
            "stream": border[0], "split": border[1], "ordinal": ordinal, "first": times[0], "last": times[-1],
            "ids": held[:count],
        }  # fmt: skip

    for document, found in zip(documents, ids, strict=True):
        here = (document.stream, "test" if document.line in held_out else "train")
        if border is not None and here != border and held:
            yield row(len(held))
            ordinal, held, times = ordinal + 1, [], []
        border = here
        held += [*found, end_id]
        times.append(document.published)
        while len(held) >= chunk_tokens:
            yield row(chunk_tokens)
            ordinal, held, times = ordinal + 1, held[chunk_tokens:], [document.published]
    if held:
        yield row(len(held))


def _slug(source: str) -> str:
    return _SLUG.sub("-", source.lower()).strip("-") or "unnamed"
