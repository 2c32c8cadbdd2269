"""Result pages of the sub-quadratic backbone: needles of its runs, and the comparison of language models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.training.subq_compare import ratios_of
from infra.training.subq_misses import counted, kind_of, misses_lines
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


def test_wrong_answers_are_counted_by_what_was_wrong() -> None:
    """The first kind that is true; answers are kept where all should be right, elsewhere their number."""
    whole = {"straddles": False, "told_by": [], "read": [[0, 1, 0.9], [1, 0, 0.1]]}
    misses = [
        whole, whole | {"read": [[1, 0, 0.9], [0, 1, 0.1]]}, whole | {"told_by": [1]}, whole | {"straddles": True},
        whole | {"read": [[-1, 0, 1.0]]}, whole | {"read": [[0, 0, 1.0]], "told_by": [1]},
    ]  # fmt: skip
    assert list(map(kind_of, misses)) == ["copied", "weighed", "other", "half", "unread", "unread"]
    row = {"what": "trials", "run": "r", "cell": "known-5", "length": 16_384, "n": 9, "misses": misses}
    known, heldout = counted(row), counted(row | {"cell": "heldout-5"})
    assert known["misses"] == misses and "misses" not in heldout
    lines = misses_lines([known, heldout | {"search": "k16"}, counted(row | {"misses": []})])
    assert lines[-1] == "| r | known-5 | 16,384 | 6 of 9 | 2 | 1 | 1 | 1 | 1 |" and len(lines) == 6
    assert misses_lines([{"what": "trials", "run": "r", "cell": "known-5"}]) == []


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


def _summary(folder: Path, name: str, text: str, losses: dict[tuple[str, int], float]) -> str:
    runs = [
        {"method": method, "seed": seed, "tokens": 20, "parameters": [9, 1], "loss": loss, "perplexity": 54.6,
         "train_seconds": 3.0, "peak_bytes": 2e9, "curve": [[1, 5.0]],
         "judged": {"with_retrieval": {"loss": loss, "by_position": {"512": loss + 0.5, "1024": loss - 0.5}}}}
        for (method, seed), loss in losses.items()
    ]  # fmt: skip
    summary = {"device": "cpu", "jobs": 2, "text": text, "runs": runs, "ratios": ratios_of(runs)}
    (folder / name).write_text(json.dumps(summary))
    return str(folder / name)


def test_pairs_are_shown_seed_by_seed_and_texts_apart(tmp_path: Path) -> None:
    """Summaries over one text are one, the later run counts; gains and figures say which text they are of."""
    plain = {("no-retrieval", 0): 4.0, ("no-retrieval", 1): 4.2, ("subq-lean", 0): 9.0}
    files = [
        _summary(tmp_path, "a.json", "books", plain),
        _summary(tmp_path, "b.json", "books", {("subq-lean", 0): 4.1, ("subq-lean", 1): 4.1}),
        _summary(tmp_path, "c.json", "news", {("no-retrieval", 0): 3.0, ("subq-lean", 0): 2.75}),
    ]
    main(["--compare", *files, "--out", str(tmp_path / "lm")])
    page = (tmp_path / "lm.md").read_text()
    assert "| 0 | -0.1000 | -0.1000 | -0.1000 |" in page and "| 1 | 0.1000 | 0.1000 | 0.1000 |" in page
    assert "| mean | 0.0000 | 0.0000 | 0.0000 |" in page and "| spread | 0.1414 | 0.1414 | 0.1414 |" in page
    # two differences of -0.1 and 0.1: their mean is known to 12.7 times 0.1
    assert "| 95% from | -1.2706 |" in page and "| 95% to | 1.2706 |" in page
    assert "| 0 | 0.2500 | 0.2500 | 0.2500 |" in page
    ratios = json.loads((tmp_path / "lm.json").read_text())["ratios"]
    assert ratios["lm_loss_gain_of_retrieval_lean_news"] == 0.25
    assert ratios["lm_loss_gain_of_retrieval_lean_books"] == pytest.approx(0.0, abs=1e-9)


def test_another_search_of_the_same_run_has_figures_of_its_own(tmp_path: Path) -> None:
    """Rows that read more chunks stand apart from those that count, in the figures and on the page."""
    folder = tmp_path / "runs"
    _needles(folder)
    path = folder / "needles-subq-0-int8.json"
    judged = json.loads(path.read_text())
    judged["rows"].append(judged["rows"][0] | {"exact": 100.0, "search": "k16"})
    path.write_text(json.dumps(judged))
    main(["--runs", str(folder), "--out", str(tmp_path / "result")])
    ratios = json.loads((tmp_path / "result.json").read_text())["ratios"]
    assert (ratios["needle_exact_known_16k"], ratios["needle_exact_known_16k_k16"]) == (75.0, 100.0)
    assert "## subq-0-int8, searched k16" in (tmp_path / "result.md").read_text()


def test_one_source_is_asked_for(tmp_path: Path) -> None:
    """Neither is an error."""
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "x")])


def test_earlier_results_are_joined_with_new_runs_and_new_lengths(tmp_path: Path) -> None:
    """A kept run keeps its rows, gains those of other lengths without its training, and means are over all runs."""
    _needles(tmp_path / "first")
    main(["--runs", str(tmp_path / "first"), "--out", str(tmp_path / "kept")])
    kept = ["--kept", str(tmp_path / "kept.json")]
    _needles(tmp_path / "second")
    second = tmp_path / "second"
    far = {"what": "trials", "cell": "known-5", "length": 1 << 26, "n": 2, "exact": 50.0, "recall": 50.0}
    judged = json.loads((second / "needles-subq-0-int8.json").read_text())
    new = [{**row, "exact": row["exact"] + 20.0} for row in judged["rows"]]
    (second / "train-subq-0.json").rename(second / "train-subq-2.json")
    (second / "needles-subq-2-int8.json").write_text(json.dumps(judged | {"rows": new}))
    (second / "needles-subq-0-int8.json").write_text(json.dumps({"device": "cpu", "rows": [far]}))
    (second / "needles-stranger.json").write_text(json.dumps({"device": "cpu", "rows": [far]}))
    note = tmp_path / "note.md"
    note.write_text("Three seeds.\n")
    main(["--runs", str(second), *kept, "--note", str(note), "--out", str(tmp_path / "both")])
    result = json.loads((tmp_path / "both.json").read_text())
    assert [run["run"] for run in result["runs"]] == ["subq-0-int8", "subq-2-int8"]
    assert len(result["rows"]) == 7
    assert (
        result["ratios"]["needle_exact_known_16k"] == 85.0
        and result["ratios"]["needle_exact_known_64m"] == 50.0
    )
    page = (tmp_path / "both.md").read_text()
    assert "Three seeds." in page and "| known | 60.0 (25, 4) | 50.0 (50, 1) |" in page
    (second / "train-subq-2.json").unlink()
    with pytest.raises(SystemExit):
        main(["--runs", str(second), "--out", str(tmp_path / "none")])


def test_needles_find_their_training_in_another_folder(tmp_path: Path) -> None:
    """A lent host brings training, needles and far needles home in folders of their own: one run, all its rows."""
    _needles(tmp_path / "train")
    judged = json.loads((tmp_path / "train" / "needles-subq-0-int8.json").read_text())
    (tmp_path / "train" / "needles-subq-0-int8.json").unlink()
    for folder, length in (("near", 16_384), ("far", 1_048_576)):
        (tmp_path / folder).mkdir()
        rows = [row | {"length": length} for row in judged["rows"]]
        (tmp_path / folder / "needles-subq-0-int8.json").write_text(json.dumps(judged | {"rows": rows}))
    folders = [str(tmp_path / name) for name in ("train", "near", "far")]
    main(["--runs", *folders, "--out", str(tmp_path / "result")])
    result = json.loads((tmp_path / "result.json").read_text())
    assert [run["run"] for run in result["runs"]] == ["subq-0-int8"] and len(result["rows"]) == 6
    assert result["ratios"]["needle_exact_known_1m"] == result["ratios"]["needle_exact_known_16k"] == 75.0
