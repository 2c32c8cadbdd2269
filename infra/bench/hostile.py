"""Hostile records by the million: through the validator, and through a real broker and the real ingest.

The validator must answer each with an article, a deletion or a BadRecord, and nothing else; accepted articles are
also cut into chunks and fingerprinted. Ingest must account for each record exactly: read = stored + deleted +
dead-lettered + duplicates = published, as many dead letters on their topic as were counted and as the validator
foretold, and an article published last must be found by a search. Among them is a compressed batch that unpacks to
more than it may: its record is a dead letter that was never unpacked.

The part through the broker is cut into pieces, each with a topic and a store of its own. With a folder (`work`)
every piece's row is kept the moment it is known, and a run that was ended goes on behind the last one.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from infra.bench.hostile_records import Maker
from infra.bench.local import Local, local, until
from infra.bench.measure import commit
from models.embed import load_tokenizer
from pipeline.article import Article, BadRecord, parse_record
from pipeline.chunker import chunk_article
from pipeline.kafka import KafkaConfig, producer, topic_partitions
from pipeline.near_duplicates import Fingerprinter, NearDuplicateConfig
from pipeline.publisher import Publisher
from pipeline.source import RecordSource, SourceConfig

_LIMIT_S = 3_600.0
_SEARCH_S = 60.0
"""Whether it is found counts here, not how soon: the store's 2 s are few on a crowded machine."""
_LAST = {
    "id": "the-last", "published": "2026-01-01T00:00:00Z", "source": "Wire", "title": "The lighthouse reopens",
    "text": "After four years of repairs the lighthouse of Quillhaven reopens on Saturday, its keeper said.",
}  # fmt: skip


def validate(records: int, seed: int = 1, *, huge_every: int = 50_000) -> dict[str, Any]:
    """Every record to the validator; counts by outcome, and whatever it raised that it must not."""
    tokenizer = load_tokenizer("none")
    fingerprinter = Fingerprinter(NearDuplicateConfig())
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    unexpected: list[str] = []
    slowest, slowest_kind = 0.0, ""
    begun = time.perf_counter()
    for record, _ in zip(Maker(seed, huge_every=huge_every), range(records), strict=False):
        started = time.perf_counter()
        try:
            value = parse_record(record.key, record.value, record.headers)
            if isinstance(value, Article):
                chunks, _texts = chunk_article(value, tokenizer)
                fingerprinter.fingerprint(value)
                if "".join(chunk.text for chunk in chunks) != value.text:
                    unexpected.append(f"{record.kind}: chunks do not cover the text")
                outcomes["article"] += 1
            else:
                outcomes["deletion"] += 1
        except BadRecord as error:
            outcomes[error.reason] += 1
        except Exception as error:
            outcomes["unexpected"] += 1
            unexpected.append(f"{record.kind}: {type(error).__name__}: {error}"[:200])
        kinds[record.kind] += 1
        spent = time.perf_counter() - started
        if spent > slowest:
            slowest, slowest_kind = spent, record.kind
    return {
        "stage": "validator",
        "records": records,
        "accounted": sum(outcomes.values()),
        "unexpected": outcomes["unexpected"],
        "accepted": outcomes["article"] + outcomes["deletion"],
        "dead_letters": records - outcomes["article"] - outcomes["deletion"] - outcomes["unexpected"],
        "seconds": round(time.perf_counter() - begun, 1),
        "slowest_ms": round(slowest * 1e3, 1),
        "slowest_kind": slowest_kind,
        "outcomes": dict(outcomes.most_common()),
        "kinds": dict(kinds.most_common()),
        "first_unexpected": unexpected[:5],
    }


def through_broker(system: Local, records: int, seed: int = 2, *, huge_every: int = 20_000) -> dict[str, Any]:
    """Publish, ingest, and compare every count."""
    kafka = system.topic()
    foretold: Counter[str] = Counter({"unreadable": 1})
    begun = time.perf_counter()
    _publish_bomb(kafka)
    with Publisher(kafka) as publisher:
        for number, record in zip(range(records), Maker(seed, huge_every=huge_every), strict=False):
            # The client refuses a record of neither key nor value before any broker sees it.
            key = b"" if record.key is None and record.value is None else record.key
            publisher.publish_raw(
                key, record.value, headers=record.headers, partition=number % publisher.num_partitions
            )
            try:
                value = parse_record(record.key, record.value, record.headers)
                if isinstance(value, Article):
                    chunk_article(value, load_tokenizer("none"))
            except BadRecord as error:
                foretold[error.reason] += 1
        publisher.publish_raw(b"the-last", orjson.dumps(_LAST), partition=0)
        publisher.flush()
    published = records + 2
    publish_s = time.perf_counter() - begun
    started = time.perf_counter()
    with system.running(system.spec(kafka)) as job:
        until(
            lambda: bool(job.progress()) and job.ledger().read >= published,
            _LIMIT_S,
            f"{published} records read",
        )
        done = job.ledger()
        asked = ["lighthouse of Quillhaven reopens"]
        found = job.client.search(texts=asked, k=3, deadline_s=_SEARCH_S).passages[0]
        stored = sum(int(row["live_articles"]) for row in job.client.stats())
        job.stop()
    partitions = topic_partitions(kafka, kafka.dead_letter_topic)
    with RecordSource(
        kafka, dict.fromkeys(partitions), SourceConfig(), topic=kafka.dead_letter_topic
    ) as source:
        letters = sum(source.end_offsets().values())
    accounted = done.stored + done.deleted + done.dead_lettered + done.duplicates
    return {
        "stage": "broker and ingest",
        "seed": seed,
        "records": published,
        "accounted": accounted,
        "unexpected": published - accounted,
        "read": done.read,
        "stored": done.stored,
        "deleted": done.deleted,
        "dead_lettered": done.dead_lettered,
        "duplicates": done.duplicates,
        "live_articles": stored,
        "dead_letters": sum(foretold.values()),
        "on_dead_letter_topic": letters,
        "dead_letter_partitions": len(partitions),
        "last_article_found": any(p.article_id == "the-last" for p in found),
        "seconds": round(time.perf_counter() - started, 1),
        "publish_s": round(publish_s, 1),
        "outcomes": dict(foretold.most_common()),
    }


def _publish_bomb(kafka: KafkaConfig) -> None:
    """One record of a few kilobytes that unpacks to more than a batch may."""
    size = kafka.max_batch_bytes + 1_000_000
    client = producer(kafka, max_request_size=2 * size, buffer_memory=2 * size, compression_type="zstd")
    try:
        client.send(kafka.topic, key=b"bomb", value=bytes(size), partition=0).get(timeout=120)
    finally:
        client.close()


def run(
    records: int = 1_000_000,
    through: int = -1,
    seed: int = 1,
    previous: str = "",
    piece: int = 20_000,
    work: str = "",
    minutes: float = 0.0,
) -> dict[str, Any]:
    """`records` through the validator and a tenth of them (or `through`) through a broker of its own.

    `previous`: a result of the validator alone, whose row is kept and not made again. After `minutes` (0: no limit)
    no further piece is begun; the ratios say how many records went through.
    """
    ends = time.monotonic() + 60 * minutes if minutes else float("inf")
    kept = _Kept(Path(work) if work else None)
    if previous:
        rows = orjson.loads(Path(previous).read_bytes())["rows"]
        validated = next(row for row in rows if row["stage"] == "validator")
    else:
        validated = kept.get("validator", seed, records) or kept.add(validate(records, seed), seed, records)
    through = records // 10 if through < 0 else through
    sizes = [min(piece, through - at) for at in range(0, through, piece)]
    pieces: list[dict[str, Any]] = []
    with contextlib.ExitStack() as cleanup:
        system: Local | None = None
        for number, size in enumerate(sizes, start=1):
            row = kept.get("broker and ingest", seed + number, size)
            if row is None and time.monotonic() < ends:
                system = system or cleanup.enter_context(local())
                row = kept.add(through_broker(system, size, seed + number), seed + number, size)
            if row is not None:
                pieces.append(row)
    ratios = {"hostile_validated": validated["records"], "hostile_unexpected": validated["unexpected"]}
    if through:
        told = [(row["dead_lettered"], row["on_dead_letter_topic"], row["dead_letters"]) for row in pieces]
        ratios |= {
            "hostile_through_broker": sum(row["records"] for row in pieces),
            "hostile_unaccounted": sum(abs(row["unexpected"]) for row in pieces),
            "dead_letters_differing": sum(max(counts) - min(counts) for counts in told),
            "last_articles_not_found": sum(not row["last_article_found"] for row in pieces),
            "pieces_not_run": len(sizes) - len(pieces),
        }
    return {
        "bench": "hostile",
        "device": "cpu",
        "commit": commit(),
        "rows": [validated, *pieces],
        "ratios": ratios,
    }


class _Kept:
    """Rows of an earlier run in a folder, by stage, seed and size; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else folder / "hostile.jsonl"
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        lines = [] if self._file is None or not self._file.exists() else self._file.read_bytes().splitlines()
        self._rows = [orjson.loads(line) for line in lines]

    def get(self, stage: str, seed: int, size: int) -> dict[str, Any] | None:
        """The row of such a piece, None if it was not run."""
        for kept in self._rows:
            if (kept["row"]["stage"], kept["seed"], kept["size"]) == (stage, seed, size):
                return dict(kept["row"])
        return None

    def add(self, row: dict[str, Any], seed: int, size: int) -> dict[str, Any]:
        """Keep a row; it is given back."""
        if self._file is not None:
            with self._file.open("ab") as file:
                file.write(orjson.dumps({"seed": seed, "size": size, "row": row}) + b"\n")
        return row
