"""What one ingester, shard and session host carry, measured here, and a simulation that shows where a system bends.

Unit costs are measured in this process (one core; `measure`), the simulation is of queues in a row: articles
come in bursts to partitions, ingesters take what has come (a fixed cost a batch, and one an article), shards
append (likewise, with the flush), and an article is searchable when its shard has appended it. Embedders stand
between, as many as are named. What the simulation does not know: the network, the broker's own limits, garbage,
noisy neighbours.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from infra.bench.local import news
from infra.bench.measure import commit, environment
from infra.bench.vectors import DIM, clustered
from models.embed import load_tokenizer
from pipeline.article import Article, BadRecord, parse_article, parse_record
from pipeline.chunker import chunk_articles
from pipeline.near_duplicates import Fingerprint, Fingerprinter, NearDuplicateConfig, NearDuplicateIndex
from pipeline.store.records import Chunk, Coordinate, SearchRequest, StoreConfig, StoreRecord, Upsert
from pipeline.store.shard import Shard

_BATCH = 500
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
    for begin in range(0, len(prints), _BATCH):
        some = prints[begin : begin + _BATCH]
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


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """How many of each part there are."""

    ingesters: int
    embedders: int
    shards: int
    keepers: int = 1
    """Of the near-duplicate index; today there is one. Duplicates are sought within a stream: it can be divided."""


def bursts(
    rate: float, seconds: float, seed: int, share: float = 0.3, spread_s: float = 2.0
) -> NDArray[np.float64]:
    """Times of arrival: most as a Poisson process, a share in bursts of 50 around an event."""
    generator = np.random.default_rng(seed)
    plain = generator.uniform(0, seconds, generator.poisson(rate * seconds * (1 - share)))
    events = generator.uniform(0, seconds, generator.poisson(rate * seconds * share / 50))
    crowd = (events[:, None] + generator.exponential(spread_s, (len(events), 50))).ravel()
    return np.sort(np.concatenate((plain, crowd[crowd < seconds])))


def _station(arrivals: NDArray[np.float64], fixed_s: float, each_s: float, most: int) -> NDArray[np.float64]:
    """When one server is done with each arrival, if it always takes all that has come, at most `most`."""
    done = np.empty(len(arrivals))
    free, at = 0.0, 0
    while at < len(arrivals):
        begin = max(free, arrivals[at])
        upto = min(int(np.searchsorted(arrivals, begin, side="right")), at + most)
        upto = max(upto, at + 1)
        free = begin + fixed_s + each_s * (upto - at)
        done[at:upto] = free
        at = upto
    return done


def _spread(
    times: NDArray[np.float64], servers: int, fixed_s: float, each_s: float, most: int, seed: int
) -> NDArray[np.float64]:
    """The same over several servers, each arrival dealt to one of them for good (a partition, a shard)."""
    owner = np.random.default_rng(seed).integers(0, servers, len(times))
    done = np.empty(len(times))
    for server in range(servers):
        mine = np.flatnonzero(owner == server)
        order = mine[np.argsort(times[mine], kind="stable")]
        done[order] = _station(times[order], fixed_s, each_s, most)
    return done


def simulate(
    costs: Costs, system: System, rate: float, seconds: float = 60.0, seed: int = 1
) -> dict[str, float]:
    """Seconds from arrival to searchable at a rate: p50 and p99 of what arrived after the first fifth, and the
    share of its time that the busiest part works."""
    arrived = bursts(rate, seconds, seed)
    prepared = _spread(arrived, system.ingesters, costs.batch_s, costs.prepare_s, _BATCH, seed)
    judged = _spread(prepared, system.keepers, costs.batch_s / 5, costs.judge_s, _BATCH, seed)
    embedded = judged
    if system.embedders:
        each_s = costs.embed_s * costs.chunks
        embedded = _spread(judged, system.embedders, costs.batch_s, each_s, _BATCH, seed + 1)
    done = _spread(
        embedded, system.shards, costs.batch_s + costs.flush_s, costs.append_s, 16 * _BATCH, seed + 2
    )
    late = (done - arrived)[arrived > seconds / 5]
    loads = {
        "ingesters": rate * costs.prepare_s / system.ingesters,
        "near-duplicates": rate * costs.judge_s / system.keepers,
        "embedders": rate * costs.embed_s * costs.chunks / system.embedders if system.embedders else 0.0,
        "shards": rate * costs.append_s / system.shards,
    }
    busiest = max(loads, key=lambda name: loads[name])
    return {
        "p50_s": float(np.percentile(late, 50)),
        "p99_s": float(np.percentile(late, 99)),
        "busiest_share": loads[busiest],
        "busiest": busiest,  # type: ignore[dict-item]
    }


def bend(costs: Costs, system: System, limit_s: float = 2.0, top: float = 65_536.0) -> float:
    """The largest rate (articles a second, within 3%) whose p99 stays under `limit_s`."""
    low, high = 1.0, top
    while high / low > 1.03:
        middle = math.sqrt(low * high)
        seconds = min(60.0, max(10.0, 200_000 / middle))
        if simulate(costs, system, middle, seconds)["p99_s"] <= limit_s:
            low = middle
        else:
            high = middle
    return low


def sized(costs: Costs, rate: float, load: float = 0.6, *, divided: bool = False) -> System:
    """As many parts as keep each at `load` of its time; the near-duplicate index too where it is `divided`."""

    def count(each_s: float) -> int:
        return max(1, math.ceil(rate * each_s / load))

    return System(
        ingesters=count(costs.prepare_s),
        embedders=count(costs.embed_s * costs.chunks),
        shards=count(costs.append_s),
        keepers=count(costs.judge_s) if divided else 1,
    )


def hosts(
    costs: Costs,
    *,
    streams: int = 100_000,
    rate: float = 10_000.0,
    tokens_per_article: float = 400.0,
    session_bytes: float = 26.8e6,
    prefill_per_s: float = 440_000.0,
    host_bytes: float = 110e9,
    days: float = 30.0,
) -> dict[str, Any]:
    """The arithmetic of sessions and of what is kept: hosts for memory, for reading, and the store's bytes.

    Session bytes are those of the default cache on Gemma-3-270M (results/2026-11-22_cache_cpu.md); tokens an
    article are a quarter of its bytes; the prefill rate of a GPU is an estimate (0.54 GFLOP a token at 30% of
    790 TFLOP/s), not a measurement; `host_bytes` is what one GPU of 139 GiB has left for caches.
    """
    chunks = rate * 86_400 * days * costs.chunks
    return {
        "what": f"{streams:,} streams, {rate:,.0f} articles/s, {days:g} days kept",
        "session_hosts_for_memory": math.ceil(streams * session_bytes / host_bytes),
        "session_hosts_for_reading": math.ceil(rate * tokens_per_article / prefill_per_s),
        "tokens_read_per_s": rate * tokens_per_article,
        "chunks_kept": chunks,
        "index_tb": chunks * costs.index_bytes / 1e12,
        "disk_tb": chunks * costs.disk_bytes / 1e12,
    }


def run(articles: int = 1_500, embed_per_s: float = 1_400.0) -> dict[str, Any]:
    """Measure, then simulate: one of each, then sizes for 200 to 10,000 articles a second."""
    costs = measure(articles, 1 / embed_per_s)
    rows: list[dict[str, Any]] = [
        {
            "what": "unit costs, one core",
            "prepare_us": round(costs.prepare_s * 1e6, 1),
            "judge_us": round(costs.judge_s * 1e6, 1),
            "append_us": round(costs.append_s * 1e6, 1),
            "flush_us": round(costs.flush_s * 1e6, 1),
            "chunks_per_article": round(costs.chunks, 2),
            "index_bytes_per_chunk": round(costs.index_bytes),
            "disk_bytes_per_chunk": round(costs.disk_bytes),
            "search_ms": round(costs.search_s * 1e3, 3),
            "searched_chunks": costs.searched_chunks,
        }
    ]
    one = System(ingesters=1, embedders=1, shards=1)
    without = System(ingesters=1, embedders=0, shards=1)
    ratios: dict[str, float] = {}
    cases: list[tuple[str, System]] = [("one of each", one), ("one of each, no embedding", without)]
    cases += [(f"sized for {rate:,}/s", sized(costs, rate)) for rate in (200, 1_000, 10_000)]
    cases.append(
        ("sized for 10,000/s, near-duplicates divided by stream", sized(costs, 10_000, divided=True))
    )
    scale: Callable[[System, float], dict[str, float]] = lambda s, r: simulate(costs, s, r, min(60, 2e5 / r))  # noqa: E731
    for name, system in cases:
        rate = bend(costs, system)
        at = scale(system, rate * 0.6)
        rows.append(
            {
                "what": name,
                "ingesters": system.ingesters,
                "embedders": system.embedders,
                "shards": system.shards,
                "keepers": system.keepers,
                "bends_at_per_s": round(rate),
                "p99_s_at_60_percent": round(at["p99_s"], 3),
                "busiest": scale(system, rate)["busiest"],
            }
        )
        ratios[f"bends_at_per_s: {name}"] = round(rate)
    rows.append(hosts(costs))
    return {
        "bench": "scaling",
        "device": environment()["device"],
        "commit": commit(),
        "rows": rows,
        "ratios": ratios,
    }
