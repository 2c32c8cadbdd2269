"""Result pages of the sub-quadratic backbone: needles of its runs, and the comparison of language models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.training.subq_report import main


def _needles(folder: Path) -> None:
    folder.mkdir()
    train = {
        "steps": 5, "seconds": 1.0, "tokens": 10, "parameters": [1, 1], "peak_bytes": 0, "curve": [],
        "made_from": {"stream": {"real": 0.1}, "model": {"scale_max": 60.0, "neighbours": False, "rerank": True}},
    }  # fmt: skip
    rows = [
        {"what": "trials", "cell": cell, "length": 16_384, "n": 4, "exact": exact, "recall": 100.0}
        for cell, exact in (("known-5", 75.0), ("heldout-forms-5", 50.0), ("known-16", 25.0))
    ]
    (folder / "train-subq-0.json").write_text(json.dumps(train))
    judged = {"device": "cpu", "rows": rows, "language": {"with_retrieval": 3.0, "without": 3.5}}
    (folder / "needles-subq-0-int8.json").write_text(json.dumps(judged))


def test_the_weights_that_ship_are_a_run_of_their_own(tmp_path: Path) -> None:
    """Needles of the 8-bit copy are joined with their training; the named figures count only the named cells."""
    _needles(tmp_path / "runs")
    main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "result")])
    result = json.loads((tmp_path / "result.json").read_text())
    assert [run["run"] for run in result["runs"]] == ["subq-0-int8"]
    assert result["ratios"] == {
        "needle_exact_known_16k": 75.0, "needle_exact_heldout_forms_16k": 50.0, "lm_loss_gain_of_reading": 0.5,
        "lm_loss_gain_of_reading_least": 0.5,
    }  # fmt: skip
    assert "| known-16 (4) | 25.0 / 100.0 |" in (tmp_path / "result.md").read_text()


def test_the_comparison_shows_every_run_and_the_means_by_position(tmp_path: Path) -> None:
    """A line for each run, one for each method and way of reading, and every figure that there is."""
    runs = [
        {"method": "subq", "seed": seed, "tokens": 20, "parameters": [9, 1], "loss": 4.0 + seed, "perplexity": 54.6,
         "train_seconds": 3.0, "peak_bytes": 2e9, "curve": [[at, 5.0] for at in range(25)],
         "judged": {way: {"loss": loss, "by_position": {"512": 4.0 + seed, "1024": 3.0}}
                    for way, loss in (("with_retrieval", 4.0), ("without", 4.25))}}
        for seed in (0, 1)
    ]  # fmt: skip
    summary = {
        "device": "cpu",
        "jobs": 2,
        "runs": runs,
        "ratios": {"ppl_subq": 60.0, "loss_spread_subq": None},
    }
    source = tmp_path / "compare.json"
    source.write_text(json.dumps(summary))
    main(["--compare", str(source), "--out", str(tmp_path / "lm")])
    page = (tmp_path / "lm.md").read_text()
    assert "| subq | 1 | 9 | 5.0 | 54.6 | 4.25 | 3.0 | 2.0 |" in page
    assert "| subq | 4.5000 | 3.0000 |" in page and "| subq, reading switched off | 4.5000 | 3.0000 |" in page
    assert "| ppl_subq | 60.0 |" in page and "None" not in page
    result = json.loads((tmp_path / "lm.json").read_text())
    assert len(result["runs"][0]["curve"]) == 4
    assert result["ratios"]["lm_loss_gain_of_reading_small_subq"] == 0.25
    _needles(tmp_path / "runs")
    main(["--runs", str(tmp_path / "runs"), "--compare", str(source), "--out", str(tmp_path / "both")])
    both = json.loads((tmp_path / "both.json").read_text())
    assert both["ratios"]["ppl_subq"] == 60.0 and both["ratios"]["needle_exact_known_16k"] == 75.0
    assert (tmp_path / "both.md").read_text().endswith(page)


def test_one_source_is_asked_for(tmp_path: Path) -> None:
    """Neither is an error."""
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "x")])
