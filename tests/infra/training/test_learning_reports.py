"""Kept pages of reading latents and of two GPUs: every figure has its place; what ships is decided by rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.training import latents_report, two_gpus_report
from infra.training.train_two_gpus import COMPARED, compare

CELLS = ("full", "golds", "latents_0.1", "hitters_0.1")


def run(nats: dict[str, float], steps: int) -> dict[str, Any]:
    """A judged run with so many nats by cell."""
    about = {"steps": steps, "accumulate": 4, "seconds": 9.0, "seed": 0, "data": "/tmp/there/data"}
    judged = {
        cell: {"nats_all": value, "right_all": 0.5, "nats_nq": value + 1, "right_nq": 0.25}
        for cell, value in nats.items()
    }
    return {"about": about, "judged": judged, "curve": []}


def found(**ours: float) -> dict[str, Any]:
    """Start, control and a trained run that is better everywhere, but for `ours`."""
    better = dict.fromkeys(CELLS, 1.0) | {"full": 0.5, "golds": 0.5}
    return {
        "start": run(dict.fromkeys(CELLS, 2.0) | {"full": 0.5, "golds": 0.5}, 0),
        "latents": run(better | ours, 7),
        "full": run(dict.fromkeys(CELLS, 1.5) | {"full": 0.4, "golds": 0.4}, 7),
    }


def test_page_has_every_form_and_the_gain_on_the_start(tmp_path: Path) -> None:
    """Nats, tokens right and gains by set; no path of the host."""
    (tmp_path / "latents.json").write_text(json.dumps(found()))
    latents_report.main(["--found", str(tmp_path / "latents.json"), "--bench", str(tmp_path / "page")])
    text = (tmp_path / "page.md").read_text()
    assert "| latents 0.1 | 2.000 (50%) | 1.000 (50%), +1.000 | 1.500 (50%), +0.500 |" in text
    assert "| latents 0.1 | 3.000 (25%) | 2.000 (25%), +1.000 | 2.500 (25%), +0.500 |" in text
    assert text.endswith("May ship: better in every compressed form, no worse in full.\n")
    kept = json.loads((tmp_path / "page.json").read_text())
    assert kept["ships"] is True and "/tmp/there" not in json.dumps(kept)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"latents_0.1": 1.495}, "latents_0.1 it gains 0.005 nats on `full`"),
        ({"hitters_0.1": 2.1}, "hitters_0.1 it gains -0.100 nats on `start`"),
        ({"full": 0.6}, "full it loses 0.100 nats on `start`"),
    ],
)
def test_nothing_ships_that_is_not_better_everywhere(changed: dict[str, float], why: str) -> None:
    """One form that gains less than the control, or full contexts that lose, forbid it, and are named."""
    good, told = latents_report.ships(found(**changed))
    assert not good and why in told
    assert latents_report.ships({"start": run({}, 0)})[0] is False


def test_two_gpu_page_has_differences_and_efficiency(tmp_path: Path) -> None:
    """Relative differences by term and step; tokens a second of both; the efficiency."""

    def rows(apart: float, rate: float) -> list[dict[str, float]]:
        shown = {"tokens_per_s": rate, "peak_share": 0.2, "peak_bytes": 3e9}
        return [
            dict.fromkeys(COMPARED, 2.0 * (1 + apart * step)) | shown | {"step": step} for step in range(4)
        ]

    figures = compare(rows(0.0, 100.0), rows(1e-3, 180.0), 2, skip=1)
    figures |= {
        "launcher": "spawn", "ray_failed": "", "device": "H200", "workers": 2, "skipped": 1, "accumulate": 2,
        "eager": False, "torch": "2.11", "seconds": {"whole_1": 50.0, "whole_2": 30.0},
        "kept": [1], "around_steps_s": {"1": 12.9, "2": 14.0}, "first_step_s": {"1": 46.2, "2": 40.0},
    }  # fmt: skip
    (tmp_path / "two.json").write_text(json.dumps(figures))
    two_gpus_report.main(["--found", str(tmp_path / "two.json"), "--bench", str(tmp_path / "page")])
    text = (tmp_path / "page.md").read_text()
    assert "| loss | 0.0e+00 | 3.0e-03 | 1.5e-03 | 3.0e-03 |" in text
    assert "| 100 | 180 |" in text and "Scaling efficiency 0.900" in text
    assert "| of that the first step, s | 46 | 40 |" in text
    assert "The run of 1 worker(s) was made in an earlier call" in text
