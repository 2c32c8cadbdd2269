"""What one article costs each part of an ingest, measured in this process on one core."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson

from infra.bench.local import news
from infra.bench.vectors import DIM, clustered
from models.embed import load_tokenizer
from pipeline.article import Article, BadRecord, parse_article, parse_record
from pipeline.chunker import chunk_articles
from pipeline.near_duplicates import Fingerprint, Fingerprinter, NearDuplicateConfig, NearDuplicateIndex
from pipeline.store.config import StoreConfig
from pipeline.store.records import Chunk, Coordinate, SearchRequest, StoreRecord, Upsert
from pipeline.store.shard import Shard

BATCH = 500
_GROUP = 128
"""Articles that an ingester works on together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Seconds on one core, and bytes."""

    prepare_s: float = field(
        metadata={"help": "an ingester's work on one article: parse, chunk, fingerprint"}
    )
    judge_s: float = field(metadata={"help": "the near-duplicate index's work on one article"})
    append_s: float = field(metadata={"help": "a shard's work on one article, keyword index included"})
    flush_s: float = field(metadata={"help": "a shard's fixed cost of one append: log, flush"})
    chunks: float = field(metadata={"help": "chunks of one article"})
    embed_s: float = field(metadata={"help": "embedding one chunk on one embedder"})
    other_s: float = field(
        default=9e-5,
        metadata={
            "help": "processor time of one article outside these parts: consumer, packing, Ray (assumed: what a "
            "whole ingest took beyond its parts, results/2026-11-29_ingest_cpu.md)"
        },
    )
    batch_s: float = field(default=0.005, metadata={"help": "calls between actors for one batch (assumed)"})
    index_bytes: float = field(default=0.0, metadata={"help": "memory of one chunk in a shard"})
    disk_bytes: float = field(default=0.0, metadata={"help": "files of one chunk in a shard"})
    search_s: float = field(default=0.0, metadata={"help": "one search of a shard of the measured size"})
    searched_chunks: int = field(default=0, metadata={"help": "chunks of that shard"})


def measure(articles: int = 1_500, embed_s: float = 1 / 1_400) -> Costs:
    """Unit costs of newswire articles; `embed_s` from docs/notes (1,400 passages a second: static, one CPU)."""
    values = [value for _, value, _ in news(articles, seed=11) if value is not None]
    tokenizer, fingerprinter = load_tokenizer("none"), Fingerprinter(NearDuplicateConfig())
    fingerprinter.fingerprints([parse_article(orjson.loads(value)) for value in values[:50]])
    parsed: list[Article] = []
    cut: list[list[Chunk]] = []
    prints: list[Fingerprint] = []
    started = time.process_time()  # of the processor: the machine may have other work
    for begin in range(0, len(values), _GROUP):
        group = [parse_record(None, value) for value in values[begin : begin + _GROUP]]
        found = [value for value in group if isinstance(value, Article)]
        parsed += found
        cut += [one[0] for one in chunk_articles(found, tokenizer) if not isinstance(one, BadRecord)]
        prints += fingerprinter.fingerprints(found)
    prepare_s = (time.process_time() - started) / len(values)
    index = NearDuplicateIndex(NearDuplicateConfig())
    started = time.process_time()
    for begin in range(0, len(prints), BATCH):
        some = prints[begin : begin + BATCH]
        for one, keys in zip(some, index.keys_of(some), strict=True):
            if index.match(one, keys) is None:
                index.add(one, keys)
    judge_s = (time.process_time() - started) / len(values)
    vectors = clustered(sum(len(chunks) for chunks in cut), 1)
    with tempfile.TemporaryDirectory(prefix="dysra-scaling-") as folder:
        shard = Shard.open(Path(folder), StoreConfig(), 0, 1, "synthetic", DIM)
        empty_bytes = shard.stats()["index_bytes"]
        records: list[StoreRecord] = []
        at = 0
        for offset, (article, chunks) in enumerate(zip(parsed, cut, strict=True)):
            part = vectors[at : at + len(chunks)]
            at += len(chunks)
            coordinate = Coordinate("news", 0, offset, 1)
            records.append(Upsert(coordinate=coordinate, article=article, chunks=chunks, vectors=part))
        half = len(records) // 2
        started = time.process_time()
        shard.append(records[:half], {("news", 0): half}, 1)
        shard.maintain(0)  # words are indexed beside the appends: wait for them
        large_s = time.process_time() - started
        small: list[float] = []
        for begin in range(half, min(half + 40, len(records))):
            started = time.perf_counter()
            shard.append(records[begin : begin + 1], {("news", 0): begin + 1}, 1)
            small.append(time.perf_counter() - started)
        append_s = large_s / half
        flush_s = max(1e-4, float(np.median(small)) - append_s)
        shard.append(records[half + 40 :], {("news", 0): len(records)}, 1)
        question = vectors[:1].astype(np.float32)
        shard.candidates(SearchRequest(mode="dense", k=10, vectors=question))
        started = time.perf_counter()
        for _ in range(50):
            shard.candidates(SearchRequest(mode="dense", k=10, vectors=question))
        search_s = (time.perf_counter() - started) / 50
        shard.seal()
        stats = shard.stats()
        shard.close()
    num_chunks = len(vectors)
    return Costs(
        prepare_s=prepare_s,
        judge_s=judge_s,
        append_s=append_s,
        flush_s=flush_s,
        chunks=num_chunks / len(values),
        embed_s=embed_s,
        index_bytes=(stats["index_bytes"] - empty_bytes) / num_chunks,
        disk_bytes=stats["disk_bytes"] / num_chunks,
        search_s=search_s,
        searched_chunks=num_chunks,
    )
