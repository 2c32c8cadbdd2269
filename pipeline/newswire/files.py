"""Newswire to files: JSON lines, plain or under zstd, with the checksum of what was written before compression."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import orjson
import zstandard

from pipeline.newswire.questions import Question
from pipeline.newswire.simulate import NewsEvent
from pipeline.newswire.values import iso

ZSTD_LEVEL = 9
TOKENS_A_WORD_PERCENT = 155
"""Tokens of Gemma's vocabulary to a hundred words, measured on 300 articles (invented names cost)."""


def line_of(record: dict[str, Any]) -> bytes:
    """A record as a line of a news file."""
    return orjson.dumps(record) + b"\n"


class LineFile:
    """Lines to a file, compressed where its name ends in .zst; `sha256` is of the lines, not of the file.

    Written under a temporary name and renamed when it closes well, so that no half file keeps the name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self._hash = hashlib.sha256()
        self._part = path.with_name(path.name + ".part")
        self._file: BinaryIO = self._part.open("wb")
        self._zstd: Any = None
        if path.suffix == ".zst":
            self._zstd = zstandard.ZstdCompressor(level=ZSTD_LEVEL, threads=0).stream_writer(
                self._file, closefd=False
            )

    @property
    def sha256(self) -> str:
        """The checksum of the lines so far."""
        return self._hash.hexdigest()

    def write(self, line: bytes) -> None:
        """Append one line, its newline included."""
        self._hash.update(line)
        self.lines += 1
        if self._zstd is not None:
            self._zstd.write(line)
        else:
            self._file.write(line)

    def close(self, *, keep: bool = True) -> None:
        """Finish the file; without `keep` nothing of it stays."""
        if self._file.closed:
            return
        if self._zstd is not None:
            self._zstd.close()
        self._file.close()
        if keep:
            self._part.replace(self.path)
        else:
            self._part.unlink()

    def __enter__(self) -> LineFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(keep=kind is None)


@dataclass(slots=True)
class Tally:
    """Figures of a run over news events; `sha256` is over the lines of all records in order."""

    kinds: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    words: int = 0
    first: int = 0
    last: int = 0
    _hash: Any = field(default_factory=hashlib.sha256)

    def add(self, event: NewsEvent, line: bytes) -> None:
        """Count one event and its line."""
        self.kinds[event.kind] += 1
        self._hash.update(line)
        self.first = self.first or event.time
        self.last = event.time
        if "text" in event.record:
            self.streams[event.record["stream"]] += 1
            self.words += len(event.record["text"].split())

    def figures(self) -> dict[str, Any]:
        """What `dysra newswire --json` prints; `articles` counts ids, copies included."""
        return {
            "articles": self.kinds["article"] + self.kinds["copy"],
            "updates": self.kinds["update"],
            "corrections": self.kinds["correction"],
            "deletions": self.kinds["withdrawal"],
            "copies": self.kinds["copy"],
            "words": self.words,
            "tokens_estimate": self.words * TOKENS_A_WORD_PERCENT // 100,
            "streams": dict(sorted(self.streams.items())),
            "first_published": iso(self.first) if self.first else None,
            "last_published": iso(self.last) if self.last else None,
            "sha256": self._hash.hexdigest(),
        }


def write_news(
    events: Iterable[NewsEvent],
    path: Path | None,
    tally: Tally,
    on_event: Callable[[NewsEvent], None] | None = None,
) -> None:
    """Write records in order to `path` (None: only count); each event is handed to `on_event` as well."""
    if path is None:
        for event in events:
            tally.add(event, line_of(event.record))
            if on_event is not None:
                on_event(event)
        return
    with LineFile(path) as out:
        for event in events:
            line = line_of(event.record)
            out.write(line)
            tally.add(event, line)
            if on_event is not None:
                on_event(event)


def write_questions(found: Iterable[Question], path: Path) -> str:
    """Write questions as JSON lines; returns the checksum of the lines."""
    with LineFile(path) as out:
        for question in found:
            out.write(line_of(question.to_dict()))
    return out.sha256
