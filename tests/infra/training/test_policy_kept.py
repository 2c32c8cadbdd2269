"""infra/training/policy_kept.py: policies over kept scores, trained, chosen and read on a CPU by one command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infra.training import policy_kept
from infra.training.policy_evaluation import Curves
from infra.training.policy_kept import READ, main, narrowed, only_best
from infra.training.policy_kept_page import ONE, OWN, closed, ways_of
from infra.training.policy_pairs_kept import keep
from models.retriever.table import GOLD
from pipeline.errors import BadData
from pipeline.tasks.material import Material
from rl.episodes import Outcome, Readings, Request
from tests.infra.training.test_policy_pairs_kept import KINDS, told_apart, write_scores

SHOWN = "budget 128, bias -4"


class Counting:
    """Reads best where what tells is alone (F1 that half precision keeps); counts what it is asked."""

    def __init__(self, material: Material) -> None:
        self._labels, self.asked = material.tables.labels, 0

    def outcomes(self, requests: Sequence[Request]) -> list[tuple[float, float, float]]:
        self.asked += len(requests)
        held = [any(self._labels[row, at] == GOLD for at in picks) for row, picks in requests]
        return [
            (one * 0.5 ** len(picks), float("nan"), -1.0)
            for one, (_, picks) in zip(held, requests, strict=True)
        ]


def with_dev() -> Material:
    """The toy: ten training, four dev, six test questions."""
    made = told_apart()
    splits = ["train"] * 10 + ["dev"] * 4 + ["test"] * 6
    return Material(
        tuple(replace(q, split=split) for q, split in zip(made.questions, splits, strict=True)), made.tables
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Material, kept scores and folds in a folder, the arguments of the command, and its reader."""
    made = with_dev()
    made.save(tmp_path / "material", {})
    write_scores(made, tmp_path / "run")
    keep(made, tmp_path / "run", KINDS, tmp_path / "scores.npz")
    folds = {q.question_id: at % 2 for at, q in enumerate(made.questions) if q.split != "test"}
    (tmp_path / "folds.json").write_text(json.dumps(folds))
    reader = Counting(made)
    monkeypatch.setattr(policy_kept, "open_readers", lambda who, material: lambda want_loss: reader)
    arguments = [
        "--kept", str(tmp_path / "scores.npz"), "--material", str(tmp_path / "material"),
        "--folds", str(tmp_path), "--out", str(tmp_path / "out"), "--bench", str(tmp_path / "result"),
        "--sets", "toy", "--seeds", "0", "1", "--steps", "20", "--width", "16", "--layers", "1",
        "--candidates", "4", "--budgets", "40", "128", "--biases", "-4", "0",
    ]  # fmt: skip
    return SimpleNamespace(made=made, reader=reader, arguments=arguments, home=tmp_path)


def result(run: Any) -> dict[str, Any]:
    return dict(json.loads((run.home / "result.json").read_text()))


def test_the_command_goes_to_its_page_and_a_second_call_reads_nothing(run: SimpleNamespace) -> None:
    """Seeds trained, dev and test read by what dev names; again: the same figures, no reading, no training."""
    main(run.arguments)
    first, asked = result(run), run.reader.asked
    found = first["sets"]["toy"]
    assert asked == first["readings_done"] > 0 and first["dev_points_known"] == 8
    assert found["questions"] == 6 and found["dev_questions"] == 4
    assert SHOWN in found["ways"] and len(found["ways"][SHOWN]["seeds"]) == 2
    told = found["ways"][SHOWN]
    assert told["f1"] == pytest.approx(100 * np.mean(told["each"]), abs=0.1)
    assert "| each seed's own, by dev |" in (run.home / "result.md").read_text() or OWN not in found["ways"]
    policies = {path: path.stat().st_mtime_ns for path in run.home.glob("out/policies/*/record.json")}
    main(run.arguments)
    second = result(run)
    assert run.reader.asked == asked and second["readings_done"] == 0
    assert second["sets"] == first["sets"]
    assert {path: path.stat().st_mtime_ns for path in policies} == policies


def test_no_more_is_read_than_may_be_and_a_point_that_was_not_read_whole_is_not_chosen(
    run: SimpleNamespace,
) -> None:
    """Bounded; the next call goes on from what was read."""
    main(run.arguments)
    whole, all_of_it = run.reader.asked, result(run)
    for path in (run.home / "out" / READ, run.home / "result.json"):
        path.unlink()
    run.reader.asked = 0
    most = whole - 12
    main([*run.arguments, "--most", str(most)])
    assert 0 < run.reader.asked <= most and result(run)["readings_done"] == run.reader.asked
    before = run.reader.asked
    assert len(result(run)["sets"]["toy"]["dev"]) < len(all_of_it["sets"]["toy"]["dev"])
    main(run.arguments)
    assert run.reader.asked - before < whole and result(run)["sets"] == all_of_it["sets"]
    with pytest.raises(SystemExit, match="oracle sentence is not read whole"):
        (run.home / "out" / READ).unlink()
        main([*run.arguments, "--most", "0"])


def test_what_another_run_read_is_not_read_again_and_of_other_readers_it_is_refused(
    run: SimpleNamespace,
) -> None:
    main(run.arguments)
    whole = run.reader.asked
    known = run.home / "known"
    known.mkdir()
    (run.home / "out" / READ).rename(known / READ)
    main([*run.arguments, "--known", str(known)])
    assert run.reader.asked == whole and result(run)["readings_done"] == 0
    others = Readings(None, "another")
    others.add([0], [1], [Outcome(1.0, 0.0, 0.0)])
    others.save(known / "readings-other.npz")
    with pytest.raises(BadData):
        main([*run.arguments, "--known", str(known)])


def test_narrowed_tables_hold_the_best_and_what_tells_in_their_order() -> None:
    made = with_dev()
    scores = np.random.default_rng(0).random(made.tables.present.shape).astype(np.float32)
    small = narrowed(made, scores, 3).tables
    for row in range(len(made)):
        here = np.flatnonzero(made.tables.present[row])
        gold = np.flatnonzero(made.tables.labels[row] == GOLD)
        order = [*gold, *(at for at in here[np.argsort(-scores[row, here])] if at not in gold)][:3]
        np.testing.assert_array_equal(small.tokens[row], made.tables.tokens[row, order])
        np.testing.assert_array_equal(small.features[row], made.tables.features[row, order])
        np.testing.assert_array_equal(small.vectors[row], made.tables.vectors[row, order])
        assert (small.labels[row] == GOLD).sum() == len(gold)
    assert small.num_candidates == 3 and small.words.shape[1] == 4


def test_what_is_not_among_the_best_cannot_be_chosen_and_places_stay() -> None:
    made = with_dev()
    scores = np.random.default_rng(0).random(made.tables.present.shape).astype(np.float32)
    best = only_best(made, scores, 2).tables
    np.testing.assert_array_equal(best.tokens, made.tables.tokens)
    for row in range(len(made)):
        here = np.flatnonzero(made.tables.present[row])
        assert set(np.flatnonzero(best.present[row])) == set(here[np.argsort(-scores[row, here])[:2]])


def curves() -> Curves:
    """Two seeds at three places; dev questions name budget 64 for seed 0, 96 for seed 1, 64 for both together."""
    found = Curves()
    dev = {
        ("bm25", 96): (100, 0.2), ("s-0", 64): (50, 0.6), ("s-0", 96): (80, 0.4), ("s-0", 192): (150, 0.9),
        ("s-1", 64): (52, 0.5), ("s-1", 96): (82, 0.6), ("s-1", 192): (150, 0.9),
    }  # fmt: skip
    test = {
        ("bm25", 96): (100, 0.3), ("oracle", 96): (40, 0.8), ("s-0", 64): (50, 0.5), ("s-0", 96): (80, 0.4),
        ("s-0", 192): (150, 0.9), ("s-1", 64): (52, 0.6), ("s-1", 96): (82, 0.4), ("s-1", 192): (150, 0.9),
    }  # fmt: skip
    for split, points in (("dev", dev), ("test", test)):
        for (name, budget), (tokens, f1) in points.items():
            told = {
                "name": name, "budget": budget, "stop_bias": 0.0, "tokens": tokens, "forced_f1": 100 * f1,
                "f1": 100 * f1, "sentences": 1.0, "gold": 50.0, "n": 4,
            }  # fmt: skip
            found.add("toy", split, told, np.full(4, f1))
    return found


def test_dev_questions_name_a_point_for_each_seed_or_one_for_all_at_no_more_tokens() -> None:
    ways = ways_of(curves(), "toy", (192, 0.0))
    assert [(p["name"], p["budget"]) for p in ways[OWN]] == [("s-0", 64), ("s-1", 96)]
    assert [(p["name"], p["budget"]) for p in ways[ONE]] == [("s-0", 64), ("s-1", 64)]
    assert [p["budget"] for p in ways["budget 192, bias 0"]] == [192, 192]


def test_the_share_of_the_gap_is_that_of_the_seeds_mean() -> None:
    found = curves()
    each = found.scores["test", "toy"]
    points = ways_of(found, "toy", (192, 0.0))[ONE]
    told = closed(points, each, [np.full(4, 0.3), np.full(4, 0.8)])
    assert told["f1"] == pytest.approx(55.0) and told["over_simple"] == pytest.approx(25.0)
    assert told["gap_closed"] == pytest.approx(0.5) and told["gap_closed_between"] == [0.5, 0.5]
