"""A session's cache over many tokens, in miniature."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.bench import session_bytes
from tests.models import tiny


def test_bytes_stay_and_evictions_are_priced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes at every length; every length told; an eviction's share follows from its figures."""
    monkeypatch.setattr(session_bytes, "FIRST", 128)
    monkeypatch.setattr(session_bytes, "LAST", 2048)
    monkeypatch.setattr(session_bytes, "EVICTIONS", 3)
    backbone = tiny.backbone()
    result = session_bytes.read_through(
        backbone,
        tiny.budgets(),
        tiny.ids(200),
        2048,
        tmp_path / "out",
        seconds=120,
        read_block=64,
        decoded=20,
    )
    assert [row["tokens"] for row in result["rows"]] == [128, 512, 2048]
    assert {row["cache_bytes"] for row in result["rows"]} == {result["created_bytes"]}
    assert all(row["decode_with_eviction_ms"] and row["decoded"] == 20 for row in result["rows"])
    found = result["ratios"]
    assert found["session_bytes_16m_over_16k"] == 1.0
    wanted = result["eviction_ms"] / (tiny.budgets().evict_block * result["session"]["decode_ms"])
    assert found["eviction_share_of_decode"] == pytest.approx(wanted, abs=1e-4)
    assert (tmp_path / "out.json").exists() and "`session_bytes_16m_over_16k`" in (
        tmp_path / "out.md"
    ).read_text()


def test_pairs_without_a_decoder_leave_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every part; nothing is said about speed."""
    monkeypatch.setattr(session_bytes, "FIRST", 128)
    monkeypatch.setattr(session_bytes, "LAST", 512)
    result = session_bytes.feed_pairs(
        tiny.backbone(), tiny.budgets(), 512, tmp_path / "out", seconds=60, read_block=64
    )
    assert [row["tokens"] for row in result["rows"]] == [128, 512]
    assert {row["cache_bytes"] for row in result["rows"]} == {result["created_bytes"]}
    assert result["ratios"] == {"session_bytes_16m_over_16k": 1.0, "session_bytes_16m_over_created": 1.0}
    assert "random pairs, no decoder" in (tmp_path / "out.md").read_text()


def test_a_run_that_is_cut_short_claims_no_ratio(tmp_path: Path) -> None:
    """Bytes over 16M tokens are told only where 16M tokens were read."""
    result = session_bytes.read_through(
        tiny.backbone(),
        tiny.budgets(),
        tiny.ids(64),
        256,
        tmp_path / "out",
        seconds=60,
        read_block=8,
        decoded=2,
    )
    assert "session_bytes_16m_over_16k" not in result["ratios"]


def test_reading_in_larger_steps_leaves_the_budgets() -> None:
    """Only the ring grows, by the larger step's need."""
    given = tiny.budgets()
    made = session_bytes.reading_config(given, 64)
    assert (made.read_block, made.ring) == (64, given.ring + 64 - given.read_block)
    assert (made.rank, made.latent_blocks, made.sinks) == (given.rank, given.latent_blocks, given.sinks)
