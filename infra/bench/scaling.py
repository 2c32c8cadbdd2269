"""What one ingester, shard and session host carry, measured here, and a simulation that shows where a system bends.

Unit costs are measured in this process (one core; infra/bench/scaling_costs.py), the simulation is of queues in a
row: articles come in bursts to partitions, ingesters take what has come (a fixed cost a batch, and one an article),
shards append (likewise, with the flush), and an article is searchable when its shard has appended it. Embedders
stand between, as many as are named. On one machine all parts share its cores (`on_cores`). What the simulation does
not know: the network, the broker's own limits, garbage, noisy neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.bench.measure import commit, environment
from infra.bench.scaling_costs import BATCH, Costs, measure


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """How many of each part there are."""

    ingesters: int
    embedders: int
    shards: int
    keepers: int = 1
    """Over which the near-duplicate index is divided (`ingest.near_duplicate_shards`)."""


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
    prepared = _spread(arrived, system.ingesters, costs.batch_s, costs.prepare_s, BATCH, seed)
    judged = _spread(prepared, system.keepers, costs.batch_s / 5, costs.judge_s, BATCH, seed)
    embedded = judged
    if system.embedders:
        each_s = costs.embed_s * costs.chunks
        embedded = _spread(judged, system.embedders, costs.batch_s, each_s, BATCH, seed + 1)
    done = _spread(
        embedded, system.shards, costs.batch_s + costs.flush_s, costs.append_s, 16 * BATCH, seed + 2
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
    return _largest(lambda rate, seconds: simulate(costs, system, rate, seconds)["p99_s"] <= limit_s, top)


def _largest(holds: Callable[[float, float], bool], top: float) -> float:
    """The largest rate, within 3%, that `holds(rate, seconds)`."""
    low, high = 1.0, top
    while high / low > 1.03:
        middle = math.sqrt(low * high)
        if holds(middle, min(60.0, max(10.0, 200_000 / middle))):
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, kw_only=True, slots=True)
class HostReading:
    """What a session host pays for reading: Gemma-3-270M, one H200 (2026-11-30_session_bytes_16m_h200.md)."""

    pass_s: float = 0.0247
    """One pass over the model, however few tokens: the quickest eager one seen (2026-11-29), bound by a core."""
    token_s: float = 1 / 217_909
    """One token more, in long passes."""
    tokens: float = 400.0
    """Tokens of an article: a quarter of its bytes."""
    block: int = 128
    """Tokens of a pass (`cache.read_block`); a remainder waits for the next article."""
    together: int = 1
    """Articles of different streams read in one pass. Sessions read one."""

    @property
    def passes_s(self) -> float:
        """The passes of one article."""
        return self.pass_s * self.tokens / self.block

    @property
    def article_s(self) -> float:
        """One article's share of a host."""
        return self.passes_s / self.together + self.tokens * self.token_s


def reading_bend(reading: HostReading, hosts: int, limit_s: float = 2.0, top: float = 262_144.0) -> float:
    """The largest rate at which `hosts` session hosts read an article within `limit_s` of its arrival (p99)."""

    def holds(rate: float, seconds: float) -> bool:
        arrived = bursts(rate, seconds, 1)
        each_s = reading.tokens * reading.token_s
        done = _spread(arrived, hosts, reading.passes_s, each_s, reading.together, 3)
        late = (done - arrived)[arrived > seconds / 5]
        return bool(np.percentile(late, 99) <= limit_s)

    return _largest(holds, top)


def on_cores(costs: Costs, system: System, cores: float) -> float:
    """The largest rate of a system without embedders on one machine: its own bend, or all its cores busy."""
    work_s = costs.prepare_s + costs.judge_s + costs.append_s + costs.other_s
    return min(bend(costs, system, top=262_144.0), cores / work_s)


def sized(costs: Costs, rate: float, load: float = 0.6, *, divided: bool = True) -> System:
    """As many parts as keep each at `load` of its time; one near-duplicate index where it is not `divided`."""

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
    reading: HostReading = HostReading(),
    load: float = 0.6,
    session_bytes: float = 26.8e6,
    host_bytes: float = 110e9,
    days: float = 30.0,
) -> dict[str, Any]:
    """The arithmetic of sessions and of what is kept: hosts for memory, for reading, and the store's bytes.

    Session bytes are those of the default cache on Gemma-3-270M (results/2026-11-22_cache_cpu.md); `host_bytes` is
    what one GPU of 139 GiB has left for caches. Reading: as sessions do it, each article in passes of its own; and
    with articles of 16 streams in one pass, which the cache can (batches of unequal streams) and sessions do not.
    """
    chunks = rate * 86_400 * days * costs.chunks
    return {
        "what": f"{streams:,} streams, {rate:,.0f} articles/s, {days:g} days kept",
        "session_hosts_for_memory": math.ceil(streams * session_bytes / host_bytes),
        "session_hosts_for_reading": math.ceil(rate * reading.article_s / load),
        "session_hosts_for_reading_16_together": math.ceil(
            rate * replace(reading, together=16).article_s / load
        ),
        "tokens_read_per_s": rate * reading.tokens,
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
    many = System(ingesters=16, embedders=0, shards=16, keepers=4)
    cases.append(
        ("16 ingesters, 16 shards, no embedding, one near-duplicate index", replace(many, keepers=1))
    )
    cases.append(("16 ingesters, 16 shards, no embedding, 4 near-duplicate actors", many))
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
    for cores in (2, 16, 40, 64):
        system = without if cores == 2 else many
        rate = on_cores(costs, system, cores)
        parts = {"ingesters": system.ingesters, "embedders": 0, "shards": system.shards}
        what = f"no embedding, on {cores} cores"
        rows.append({"what": what, **parts, "keepers": system.keepers, "bends_at_per_s": round(rate)})
        ratios[f"bends_at_per_s: no embedding, on {cores} cores"] = round(rate)
    for together in (1, 16):
        rate = reading_bend(HostReading(together=together), 1)
        what = f"one session host, {together} articles a pass"
        rows.append({"what": what, "bends_at_per_s": round(rate, 1), "busiest": "reading"})
        ratios[f"bends_at_per_s: {what}"] = round(rate, 1)
    rows.append(hosts(costs))
    return {
        "bench": "scaling",
        "device": environment()["device"],
        "commit": commit(),
        "rows": rows,
        "ratios": ratios,
    }
