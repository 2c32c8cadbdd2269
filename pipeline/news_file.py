"""Reads a news file: JSON lines, JSON lines under zstd, or Parquet, told apart by their first bytes.

A line is an article, the withdrawal of one (`{"id": …, "deleted": true, "stream": …}`), an article without a
date, or bad. Nothing here guesses: a bad line comes with its number and what is wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson
import zstandard

from pipeline.article import Article, ArticleLimits, BadRecord, default_stream, parse_article, to_ms
from pipeline.errors import BadData, UsageError

_READ_BYTES = 1 << 20
_MAX_LINE_BYTES = 256 << 20
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_PARQUET_MAGIC = b"PAR1"
_PARQUET_ROWS = 1_000

Line = tuple[int, bytes]
"""Number of the line (or Parquet row) from 1, and its JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What one pass over the file found. `in_order` is false if a line lies before an earlier one in time."""

    num_lines: int
    num_undated: int
    in_order: bool
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line, ready to be published; `value` None is a withdrawal. For other kinds `detail` says why."""

    number: int
    kind: Literal["article", "deletion", "undated", "bad"]
    time_ms: int | None
    key: bytes | None
    value: bytes | None
    stream: str
    detail: str = ""
    article_id: str = ""


def survey(path: Path) -> Survey:
    """Read the file once: its length, its digest, and whether it is in time order."""
    previous, in_order, num_lines, num_undated = None, True, 0, 0
    for _, line in read_lines(path):
        num_lines += 1
        moment = line_time_ms(line)
        if moment is None:
            num_undated += 1
            continue
        if previous is not None and moment < previous:
            in_order = False
        previous = moment
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    return Survey(num_lines=num_lines, num_undated=num_undated, in_order=in_order, digest=digest)


def lines_in_time_order(path: Path, found: Survey) -> Iterator[Line]:
    """The file's lines by version time; a line without one stays behind all lines before it.

    A file that is in order is streamed; another is held in memory, and lines of equal time keep their order.
    """
    if found.in_order:
        yield from read_lines(path)
        return
    keyed: list[tuple[int, Line]] = []
    latest = -(1 << 62)
    for number, line in read_lines(path):
        moment = line_time_ms(line)
        latest = latest if moment is None else max(latest, moment)
        keyed.append((latest if moment is None else moment, (number, line)))
    keyed.sort(key=lambda pair: pair[0])
    for _, pair in keyed:
        yield pair


def line_time_ms(line: bytes) -> int | None:
    """When the line became known: its `updated`, else its `published`, ms since the epoch; None if neither."""
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(fields, dict):
        return None
    for name in ("updated", "published"):
        if isinstance(fields.get(name), str):
            try:
                moment = datetime.fromisoformat(fields[name])
                return to_ms(moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment)
            except (ValueError, OverflowError):
                continue
    return None


def parse_line(
    number: int,
    line: bytes,
    limits: ArticleLimits,
    *,
    stream: str | None = None,
    undated: datetime | None = None,
) -> Entry:
    """What a line is. `stream` replaces the line's own; `undated` is the date given to articles without one."""
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _bad(number, line, f"not JSON: {error}", stream)
    if not isinstance(fields, dict):
        return _bad(number, line, "not a JSON object", stream)
    if fields.get("deleted") is True:
        return _deletion(number, line, fields, stream)
    dated = fields.get("published") is not None
    if not dated:
        fields["published"] = fields.get("updated") or (undated or datetime.now(UTC)).isoformat()
    if stream is not None:
        fields["stream"] = stream
    try:
        article = parse_article(fields, limits)
    except BadRecord as error:
        return _bad(number, line, str(error), stream)
    if not dated and undated is None:
        return Entry(number=number, kind="undated", time_ms=None, key=None, value=line, stream=article.stream)
    value = article.to_json()
    if len(value) > limits.max_record_bytes:
        return _bad(number, line, f"too_large: {len(value)} bytes; at most {limits.max_record_bytes}", stream)
    return _entry(number, article, value)


def read_lines(path: Path) -> Iterator[Line]:
    """Every line that is not blank. UsageError for no file, BadData for one that is cut off or damaged."""
    if not path.is_file():
        raise UsageError(f"{path} is a folder" if path.is_dir() else f"there is no file {path}")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if magic == _PARQUET_MAGIC:
        yield from _parquet_rows(path)
        return
    blocks = _zstd_blocks(path) if magic == _ZSTD_MAGIC else _plain_blocks(path)
    number, rest = 0, b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            raise BadData(f"{path} line {number + len(whole) + 1} is longer than {_MAX_LINE_BYTES:,} bytes")
        for line in whole:
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line
    if rest.strip():
        yield number + 1, rest.removeprefix(b"\xef\xbb\xbf") if number == 0 else rest


def _plain_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            yield block


def _zstd_blocks(path: Path) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = decompressor.decompressobj()
    whole = True
    try:
        for block in _plain_blocks(path):
            while block:
                yield frame.decompress(block)
                whole = frame.eof
                block = frame.unused_data if whole else b""
                if whole:
                    frame = decompressor.decompressobj()
    except zstandard.ZstdError as error:
        raise BadData(f"{path} is damaged: {error}") from None
    if not whole:
        raise BadData(f"{path} is cut off in the middle of its zstd data; copy it again")


def _parquet_rows(path: Path) -> Iterator[Line]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, orjson.dumps(row, default=str, option=orjson.OPT_NAIVE_UTC)
    except (pa.ArrowException, OSError, orjson.JSONEncodeError) as error:
        raise BadData(f"{path} cannot be read as Parquet after row {number}: {error}") from None


def _entry(number: int, article: Article, value: bytes) -> Entry:
    return Entry(
        number=number,
        kind="article",
        time_ms=article.version_ms,
        key=article.id.encode(),
        value=value,
        stream=article.stream,
        article_id=article.id,
    )


def _deletion(number: int, line: bytes, fields: dict[str, Any], stream: str | None) -> Entry:
    article_id, source = fields.get("id"), fields.get("source")
    chosen = stream or fields.get("stream") or (default_stream(source) if isinstance(source, str) else None)
    if not isinstance(article_id, str) or not article_id.strip():
        return _bad(number, line, "missing_field: a withdrawal needs 'id'", stream)
    if not isinstance(chosen, str):
        return _bad(number, line, "missing_field: a withdrawal needs 'stream' or 'source'", stream)
    return Entry(
        number=number,
        kind="deletion",
        time_ms=line_time_ms(line),
        key=article_id.encode(errors="replace"),
        value=None,
        stream=chosen,
        article_id=article_id,
    )


def _bad(number: int, line: bytes, detail: str, stream: str | None) -> Entry:
    return Entry(
        number=number,
        kind="bad",
        time_ms=None,
        key=None,
        value=line,
        stream=stream or "unnamed",
        detail=f"line {number}: {detail}",
    )
