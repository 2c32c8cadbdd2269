"""Bench `cache`, speed: floor, our time, the peer's and the ratios, for real on a tiny decoder."""

from __future__ import annotations

import pytest

from infra import bench
from infra.bench import cache, cache_speed
from tests.models import tiny


def test_each_way_has_its_time_spread_and_floor_and_the_ratios_follow() -> None:
    """The peer beside ours; nothing is under its floor; the page shows the spread."""
    backbone = tiny.backbone()
    ids = [*backbone.bos, *tiny.ids(299)]
    config = tiny.budgets(ring=264, evict_block=8, read_block=128)
    found = list(cache_speed.rows(backbone, ids, {cache_speed.PEER: None, "svd": config}))
    assert [row["way"] for row in found] == [cache_speed.PEER, "svd"]
    for row in found:
        for name in ("step", "decode"):
            assert (
                0
                < row[f"{name}_floor_ms"]
                <= row[f"{name}_low_ms"]
                <= row[f"{name}_ms"]
                <= row[f"{name}_high_ms"]
            )
    ratios = cache.ratios([{"part": "speed", **row} for row in found])
    assert set(ratios) == {
        "prefill_over_floor", "prefill_speedup_over_dynamic_cache", "decode_over_floor",
        "decode_speedup_over_dynamic_cache", "eviction_share_of_prefill",
    }  # fmt: skip
    assert ratios["decode_over_floor"] == pytest.approx(
        found[1]["decode_ms"] / found[1]["decode_floor_ms"], abs=1e-3
    )
    page = bench.page({"bench": "cache", "rows": found, "ratios": ratios})
    assert "step_floor_ms" in page and f"({found[1]['decode_low_ms']:.4g}-" in page


def test_a_floor_is_the_slower_of_bytes_and_products() -> None:
    """At an endless rate of products the bytes count, the cache's with them; the other way round the products."""
    backbone = tiny.backbone()
    weights = sum(p.numel() for p in backbone.model.parameters())  # the head is the embedding
    _, by_bytes = cache_speed.floors(backbone, 1_000, (1e6, 1e30))
    assert by_bytes == pytest.approx((4 * weights + 1_000) / 1e6 * 1e3)
    step, by_products = cache_speed.floors(backbone, 1_000, (1e30, 1e6))
    assert by_products == pytest.approx(2 * weights / 1e6 * 1e3) and step > by_products
