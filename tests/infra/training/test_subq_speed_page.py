"""The page of a speed run says what a token costs by length, and how it grows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.training import subq_speed_page


def _row(length: int, ms: float) -> dict[str, float]:
    held = {
        "landmarks_bytes": length * 8,
        "device_bytes": length * 512,
        "host_bytes": 0,
        "ids_bytes": length * 4,
    }
    return {
        "length": length, "read_tokens_a_second": 430_000, "ask_ms": 2 * ms, "token_ms": 3 * ms,
        "token_ms_median": ms, "token_ms_slowest_64th": 50 * ms, "state_bytes": 9_145_344,
        "peak_bytes": 10**9, **held,
    }  # fmt: skip


def test_page_has_every_length_and_growth_from_shortest_to_longest(tmp_path: Path) -> None:
    """Median and mean stand apart; the memory's bytes are added over its places."""
    found = {
        "bench": "subq-speed", "device": "H200", "model": {"seed": 1, "steps": 6_556, "tokens": 429_654_016},
        "rows": [_row(16_384, 10.0), _row(1 << 20, 11.0), _row(1 << 24, 12.5)], "ratios": {},
    }  # fmt: skip
    (tmp_path / "speed.json").write_text(json.dumps(found))
    subq_speed_page.main(
        ["--found", str(tmp_path / "speed.json"), "--bench", str(tmp_path / "page"), "--note", "Alone."]
    )
    text, made = (tmp_path / "page.md").read_text(), json.loads((tmp_path / "page.json").read_text())
    assert "| 16m | 430,000 | 25.0 | 12.5 | 37.5 | 625.0 |" in text and text.endswith("\nAlone.\n")
    assert "| keys and values, device | 8,388,608 | 536,870,912 | 8,589,934,592 |" in text
    assert made["ratios"]["subq_token_ms_median_longest_over_shortest"] == 1.25
    assert made["ratios"]["subq_state_bytes_longest_over_shortest"] == 1.0
    assert made["ratios"]["subq_memory_bytes_longest_over_shortest"] == 1024.0
    assert made["ratios"]["subq_memory_bytes_a_token"] == 524.0


def test_a_run_without_rows_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that was cut off before its first length makes no page."""
    (tmp_path / "speed.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(SystemExit):
        subq_speed_page.main(["--found", str(tmp_path / "speed.json"), "--bench", str(tmp_path / "page")])
    assert "has no rows" in capsys.readouterr().err and not (tmp_path / "page.md").exists()
