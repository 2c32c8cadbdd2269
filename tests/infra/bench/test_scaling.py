"""The simulation of queues: it obeys what is known of queues, and bends where the arithmetic says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infra.bench.scaling import (
    HostReading,
    System,
    bend,
    bursts,
    hosts,
    on_cores,
    reading_bend,
    simulate,
    sized,
)
from infra.bench.scaling_costs import Costs

COSTS = Costs(
    prepare_s=5e-4, judge_s=1e-4, append_s=4e-4, flush_s=2e-3, chunks=2.0, embed_s=5e-4, index_bytes=1_000.0,
    disk_bytes=2_000.0,
)  # fmt: skip
ONE = System(ingesters=1, embedders=1, shards=1)


def test_arrivals_have_the_rate_that_was_asked_for() -> None:
    """Bursts move articles together; they do not add any."""
    arrived = bursts(500.0, 60.0, seed=1)
    assert len(arrived) == pytest.approx(30_000, rel=0.1)
    assert (np.diff(arrived) >= 0).all() and arrived[-1] < 60


def test_waiting_grows_with_the_rate_and_shrinks_with_the_parts() -> None:
    """More articles wait longer; twice the parts wait less."""
    slow, fast = (simulate(COSTS, ONE, rate, 20.0)["p99_s"] for rate in (100.0, 900.0))
    twice = simulate(COSTS, System(ingesters=2, embedders=2, shards=2), 900.0, 20.0)["p99_s"]
    assert 0 < slow < fast and twice < fast


def test_a_system_bends_where_its_busiest_part_is_full() -> None:
    """One embedder of a millisecond an article carries under 1,000 a second, and more than half of it."""
    assert 500 < bend(COSTS, ONE) < 1_250
    assert simulate(COSTS, ONE, 900.0, 20.0)["busiest"] == "embedders"


def test_sizing_keeps_every_part_under_its_load() -> None:
    """The parts that are counted carry the rate; a near-duplicate index that is not divided is full first."""
    single, divided = sized(COSTS, 20_000, divided=False), sized(COSTS, 20_000)
    assert single.keepers == 1 and divided.keepers > 1
    assert simulate(COSTS, single, 20_000, 10.0)["busiest"] == "near-duplicates"
    assert simulate(COSTS, divided, 20_000, 10.0)["p99_s"] < 2.0


@pytest.mark.slow
def test_a_machine_is_full_when_its_parts_or_its_cores_are() -> None:
    """Few cores are the limit of many parts, few parts the limit of many cores."""
    many = System(ingesters=64, embedders=0, shards=64, keepers=16)
    work_s = COSTS.prepare_s + COSTS.judge_s + COSTS.append_s + COSTS.other_s
    assert on_cores(COSTS, many, 2) == pytest.approx(2 / work_s)
    one = System(ingesters=1, embedders=0, shards=1)
    assert on_cores(COSTS, one, 1_000) == pytest.approx(bend(COSTS, one), rel=0.05)


def test_hosts_follow_from_bytes_and_tokens() -> None:
    """Twice the streams need twice the memory, and reading follows the articles, not the streams."""
    one, two = hosts(COSTS, streams=100_000), hosts(COSTS, streams=200_000)
    assert two["session_hosts_for_memory"] == pytest.approx(2 * one["session_hosts_for_memory"], abs=1)
    assert two["session_hosts_for_reading"] == one["session_hosts_for_reading"]
    assert one["session_hosts_for_reading_16_together"] < one["session_hosts_for_reading"]


def test_a_session_host_bends_where_its_passes_are_all_taken() -> None:
    """One article a pass is bound by passes, not by tokens; reading several together moves the bend."""
    reading = HostReading(pass_s=0.01, token_s=1e-6, tokens=400.0, block=128)
    single = reading_bend(reading, 1)
    assert 0.4 / reading.article_s < single < 1 / reading.article_s
    assert reading_bend(replace(reading, together=8), 1) > 3 * single
    assert reading_bend(reading, 4) > 2.5 * single
