"""One function a parser: takes any bytes and raises only where the parser broke its promise."""

from __future__ import annotations

import contextlib
import gzip
import tempfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import lz4.frame
import numpy as np
import orjson
import zstandard
from kafka.record.default_records import DefaultRecordBatch

from infra.bench.hostile_records import Maker
from models.embed.none import WordTokenizer
from pipeline.article import Article, ArticleLimits, BadRecord, parse_article, parse_record
from pipeline.bounded_batches import UNPACKING, TooLarge, unpack
from pipeline.chunker import ChunkConfig, chunk_article
from pipeline.errors import BadData, UsageError
from pipeline.feed_document import Fetched, NotAFeed, read_entries
from pipeline.html_text import html_to_text
from pipeline.news_file import parse_line, read_lines
from pipeline.session.snapshot import CorruptSnapshot, Snapshot
from pipeline.session.state import ReadArticle, SessionState
from pipeline.store import Chunk, Coordinate
from pipeline.store.codec import Batch, CountOp, DeleteOp, StoreOp, pack_batch, unpack_batch
from pipeline.store.errors import StoreCorrupt, StoreTooNew
from pipeline.store.files import read_json, write_json
from pipeline.store.wal import Position, Wal

_NOW = datetime(2026, 11, 22, tzinfo=UTC)
_LIMITS = ArticleLimits(max_record_bytes=200_000)
_TOKENIZER = WordTokenizer()
_CHUNKS = ChunkConfig(max_tokens=32, max_title_tokens=8, max_chunks=500)


def article(data: bytes) -> None:
    """A record is an article that survives its own JSON, or a BadRecord; its chunks give its text back."""
    try:
        value = parse_record(b"key", data, (), _LIMITS, _NOW)
        assert isinstance(value, Article)
        again = parse_record(b"key", value.to_json(), (), ArticleLimits(max_record_bytes=10**9), _NOW)
        assert again == value, "an article differs from what its own JSON says"
        chunks, _ = chunk_article(value, _TOKENIZER, _CHUNKS)
        assert "".join(chunk.text for chunk in chunks) == value.text
    except BadRecord as error:
        assert error.reason and error.detail


def deletion(data: bytes) -> None:
    """A null value deletes what its key or header names, or is a BadRecord."""
    for key, headers in ((data, ()), (None, (("article-id", data),)), (b"k", (("article-id", data),))):
        try:
            parse_record(key, None, headers, _LIMITS, _NOW)
        except BadRecord as error:
            assert error.reason


def feed(data: bytes) -> None:
    """A feed's document gives entries in plain text, or is NotAFeed."""
    kinds = ("application/rss+xml", "text/html; charset=utf-7", "")
    fetched = Fetched(
        outcome="document", body=data, content_type=kinds[len(data) % 3], location="http://feeds.example/"
    )
    try:
        for entry in read_entries(fetched, "http://feeds.example/rss"):
            entry.text.encode("utf-8")
    except NotAFeed:
        pass


def html(data: bytes) -> None:
    """Any markup becomes text without tags that a browser would run."""
    text = html_to_text(data.decode("utf-8", "replace"))
    text.encode("utf-8")


def news_file(data: bytes) -> None:
    """A line of a news file is an entry of some kind; a file is lines, or an error that says why not."""
    entry = parse_line(1, data, _LIMITS, undated=_NOW)
    assert entry.kind in ("article", "deletion", "undated", "bad")
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".jsonl", ".jsonl.zst", ".parquet"):
            path = Path(folder) / f"news{suffix}"
            path.write_bytes(data)
            try:
                for _ in read_lines(path):
                    pass
            except (BadData, UsageError):
                continue


def wal(data: bytes) -> None:
    """A log file of any bytes is replayed up to its damage, cut off, or refused with its file and byte."""
    with tempfile.TemporaryDirectory() as folder:
        log = Wal(Path(folder), max_bytes=1 << 20, compress=False)
        log.create()
        log.append(b"one")
        start = Position(1, log.position.byte)
        log.append(b"two")
        log.close()
        path = next(Path(folder).glob("*.wal"))
        path.write_bytes(path.read_bytes()[: start.byte] + data)
        opened = Wal(Path(folder), max_bytes=1 << 20, compress=False)
        try:
            for _, payload in opened.replay(start):
                assert isinstance(payload, bytes)
            opened.append(b"three")
        except (StoreCorrupt, StoreTooNew) as error:
            assert path.name in str(error)
        finally:
            opened.close()


def codec(data: bytes) -> None:
    """A batch that passed its checksum is unpacked, or fails with an error of decoding: nothing is run, nothing
    hangs."""
    with contextlib.suppress(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
        unpack_batch(data, 4)  # msgpack's own errors are ValueErrors


def unpack_bytes(data: bytes) -> None:
    """A compressed batch of any bytes gives no more than it may, or one of the errors that reading puts aside."""
    if not data:
        return
    kind, limit = KINDS[data[0] % len(KINDS)], 50_000
    try:
        assert len(unpack(memoryview(data[1:]), kind, limit)) <= limit
    except (TooLarge, *UNPACKING):
        pass


def snapshot(data: bytes) -> None:
    """A session's snapshot of any bytes is one that comes out as it went in, or CorruptSnapshot."""
    try:
        found = Snapshot.from_bytes(data)
        assert Snapshot.from_bytes(found.to_bytes()) == found
    except CorruptSnapshot:
        pass


def state(data: bytes) -> None:
    """A session's state of any bytes is one that comes out as it went in, or a ValueError."""
    try:
        found = SessionState.from_json(data)
    except ValueError:
        return
    assert SessionState.from_json(found.to_json()) == found


def manifest(data: bytes) -> None:
    """A manifest of any bytes has the checksum and version of one, or its file is named as damaged or too new."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.json"
        path.write_bytes(data)
        try:
            assert isinstance(read_json(path), dict)
        except (StoreCorrupt, StoreTooNew) as error:
            assert path.name in str(error)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "article": article,
    "deletion": deletion,
    "feed": feed,
    "html": html,
    "news_file": news_file,
    "wal": wal,
    "codec": codec,
    "unpack": unpack_bytes,
    "snapshot": snapshot,
    "state": state,
    "manifest": manifest,
}
KINDS = (
    DefaultRecordBatch.CODEC_GZIP,
    DefaultRecordBatch.CODEC_LZ4,
    DefaultRecordBatch.CODEC_ZSTD,
    DefaultRecordBatch.CODEC_SNAPPY,
)

_RSS = (
    b'<?xml version="1.0"?><rss version="2.0"><channel><title>Wire</title><item><guid>1</guid><title>A</title>'
    b"<pubDate>Mon, 01 Jan 2024 08:00:00 GMT</pubDate><description>&lt;b&gt;text&lt;/b&gt;</description></item>"
    b"</channel></rss>"
)
_ATOM = (
    b'<feed xmlns="http://www.w3.org/2005/Atom"><title>Wire</title><entry><id>1</id><title>A</title>'
    b"<updated>2024-01-01T08:00:00Z</updated><content type='html'>text</content></entry></feed>"
)
_ENTITIES = b'<!DOCTYPE r [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;"><!ENTITY x SYSTEM "file:///etc/passwd">]>'


def seeds(name: str) -> Iterable[bytes]:
    """Examples to start from: well-formed ones and hostile ones."""
    records = [r.value for r, _ in zip(Maker(5), range(200), strict=False) if r.value is not None]
    if name in ("feed", "html"):
        return [
            b"",
            b'<![DOc":><title>a</title>',
            _RSS,
            _ATOM,
            _ENTITIES + _RSS,
            # found by coverage: the loose parser, which takes what is no XML, raises over this character
            b"<feed><title>Wire</title><entry><id>1</id><title>&#x110000;</title>\xdc</entry></feed>",
            b"<b>x<script>y</script></b>",
            b"&#x110000;&#0;&bogus;",
        ]
    if name == "codec":
        value = parse_article(
            {"id": "a", "published": "2024-01-01T00:00:00Z", "source": "s", "title": "t", "text": "x"}
        )
        at = Coordinate("news", 0, 1, 1)
        vectors = np.zeros((1, 4), dtype=np.float16)
        ops = [StoreOp(at, value, [Chunk(0, "x", 1, 0, 1)], vectors, b"", None), DeleteOp(at, "a", 1)]
        return [pack_batch(Batch([*ops, CountOp(at, "older")], {("news", 0): 2}, 1))]
    if name == "wal":
        with tempfile.TemporaryDirectory() as folder:
            log = Wal(Path(folder), max_bytes=1 << 20, compress=False)
            log.create()
            begin = log.position.byte
            log.append(b"payload one")
            log.append(b"payload two" * 20)
            log.close()
            return [next(Path(folder).glob("*.wal")).read_bytes()[begin:], b""]
    if name == "unpack":
        plain = b"news " * 400
        packed = (gzip.compress(plain), lz4.frame.compress(plain), zstandard.ZstdCompressor().compress(plain))
        framed = b"\x82SNAPPY\x00" + b"\x00\x00\x00\x01" * 2 + b"\x00\x00\x00\x06\x04\x0cnews"
        bomb = zstandard.ZstdCompressor().compress(bytes(2_000_000))
        return [*(bytes([at]) + one for at, one in enumerate(packed)), b"\x03" + framed, b"\x02" + bomb]
    if name == "snapshot":
        return [Snapshot(b"cache" * 9, b'{"version":2}').to_bytes(), Snapshot(b"", b"").to_bytes(), b""]
    if name == "state":
        known = SessionState(model="m", seed=1, offsets={0: 7})
        known.remember("a", ReadArticle(1, 4, 9, "t"), 9)
        return [known.to_json(), b"[]", b'{"version": 3}', b'{"version": 1}']
    if name == "manifest":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m"
            write_json(path, {"a": 1, "b": ["c"]})
            return [path.read_bytes(), b"{}", b"[]", b'{"schema_version": 9, "body": {}, "crc32c": 1}']
    if name == "deletion":
        return [b"article-1", b"", b"\xff", b"../../x"]
    return [*records, orjson.dumps({"id": "a", "deleted": True})]
