"""infra/training/policy_learned.py: one score of all that is kept of a candidate, learned under folds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.training.policy_learned import (
    PAIRS_LEARNED,
    LearnedConfig,
    beside_of,
    learned_scores,
    put_learned,
)
from infra.training.policy_pairs import PAIRS_BOTH, fold_of, scores_in
from infra.training.policy_pairs_kept import keep, put
from models.retriever.table import GOLD, CandidateTable, TableBatch
from pipeline.tasks.material import ChoiceQuestion, Material
from tests.infra.training.test_policy_pairs_kept import KINDS, told_apart, write_scores

QUICK = LearnedConfig(steps=60, questions=32, hidden=8, networks=1, best=5)
COUNT, WIDTH = 120, 6


def asked(sentences: list[tuple[str, str, str]], places: list[tuple[int, int]], text: str) -> ChoiceQuestion:
    return ChoiceQuestion(
        question_id="q", dataset="nq", split="train", text=text, answers=("x",), kind="",
        sentences=tuple(sentences), places=tuple(places),
    )  # fmt: skip


def test_neighbours_texts_and_names_that_other_texts_share_stand_beside_a_candidate() -> None:
    """Two texts, the first of two sentences; both name Paris, which the question does not, and Rome."""
    question = asked(
        [("one", "", "Rome met Paris"), ("one", "", "it slept"), ("two", "", "Paris won in Rome")],
        [(0, 0), (0, 1), (1, 0)],
        "who beat Rome?",
    )
    found = beside_of(question, np.array([2.0, 0.0, 1.0], np.float32))
    share = np.exp([2.0, 0.0, 1.0]) / np.exp([2.0, 0.0, 1.0]).sum()
    before, after, in_text, best = found[:, :4].T
    np.testing.assert_allclose(before, [0, 2, 0])
    np.testing.assert_allclose(after, [0, 0, 0])
    np.testing.assert_allclose(in_text, [0, 2, 0])
    np.testing.assert_allclose(best, [1, 0, 1])
    np.testing.assert_allclose(found[[0, 2], 4], [share[2], share[0]], rtol=1e-5)
    assert found[1, 4] == 0 and found[0, 6] > found[1, 6], "its title alone against a name and its title"


def two_sets() -> tuple[Material, np.ndarray, np.ndarray]:
    """Questions of nq and toy whose telling candidate a column shows and the sum does not; titles of their own."""
    chance = np.random.default_rng(0)
    tables, questions = [], []
    columns = np.zeros((COUNT, WIDTH, 2), np.float32)
    for row in range(COUNT):
        gold = int(chance.integers(WIDTH))
        columns[row] = chance.normal(0, 0.3, (WIDTH, 2))
        columns[row, gold, 1] += 2
        tables.append(
            CandidateTable(
                query=np.zeros(2, np.float16), vectors=np.zeros((WIDTH, 2), np.float16),
                features=np.zeros((WIDTH, 15), np.float32), tokens=np.full(WIDTH, 9), groups=np.arange(WIDTH),
                heads=np.full(WIDTH, 3), labels=np.array([GOLD * (at == gold) for at in range(WIDTH)], np.int8),
            )
        )  # fmt: skip
        questions.append(
            replace(
                asked([(f"{row}", "", "s")] * WIDTH, [(at, 0) for at in range(WIDTH)], "?"),
                question_id=f"q{row}", dataset="toy" if row % 6 == 0 else "nq",
                split="dev" if row % 6 == 1 else "test" if row % 6 == 2 else "train",
            )
        )  # fmt: skip
    made = Material(tuple(questions), TableBatch.stack(tables, WIDTH))
    return made, chance.normal(0, 1, (COUNT, WIDTH)).astype(np.float32), columns


def hit(made: Material, rows: np.ndarray, scores: np.ndarray) -> float:
    return float((made.tables.labels[rows, scores[rows].argmax(1)] == GOLD).mean())


def test_what_a_column_shows_is_learned_for_the_sets_that_are_named_alone() -> None:
    made, base, columns = two_sets()
    scores = learned_scores(made, base, columns, ["nq"], replace(QUICK, best=WIDTH, steps=200))
    for split in ("train", "dev", "test"):
        rows = made.rows(split, "nq")
        assert hit(made, rows, base) < 0.4 and hit(made, rows, scores) > 0.8
    others = made.rows(dataset="toy")
    np.testing.assert_array_equal(scores[others], base[others])


def test_no_question_is_scored_by_a_network_that_was_taught_by_it() -> None:
    """Another label of one training question moves scores of the other fold, and of dev, not of its own fold."""
    made, base, columns = two_sets()
    before = learned_scores(made, base, columns, ["nq"], QUICK)
    row = int(made.rows("train", "nq")[0])
    labels = made.tables.labels.copy()
    labels[row] = np.roll(labels[row], 1)
    other = Material(made.questions, replace(made.tables, labels=labels))
    after = learned_scores(other, base, columns, ["nq"], QUICK)
    moved = np.abs(after - before).max(1) > 1e-6
    mine = fold_of(made, row)
    for each in made.rows("train", "nq").tolist():
        assert moved[each] == (fold_of(made, each) != mine), each
    assert moved[made.rows("dev", "nq")].all()


def test_candidates_behind_the_best_stay_behind_them() -> None:
    made, base, columns = two_sets()
    scores = learned_scores(made, base, columns, ["nq"], replace(QUICK, best=3))
    for row in made.rows(dataset="nq").tolist():
        best = set(np.argsort(-base[row])[:3].tolist())
        assert set(np.argsort(-scores[row])[:3].tolist()) == best
        last = [at for at in np.argsort(-base[row]).tolist() if at not in best]
        np.testing.assert_array_equal(np.argsort(-scores[row])[3:], last)


def test_features_are_written_as_the_stage_pairs_leaves_them(tmp_path: Path) -> None:
    """Every question's features by its fold; hits of the sum and of what was learned are told."""
    made = told_apart()
    write_scores(made, tmp_path / "run")
    keep(made, tmp_path / "run", KINDS, tmp_path / "scores.npz")
    put(tmp_path / "scores.npz", made, tmp_path / "out", both=True)
    told = put_learned(made, tmp_path / "out", KINDS, ["toy"], QUICK)
    assert set(told) == {"train toy", "dev toy", "test toy"} and set(told["test toy"]) == {"sum", "learned"}
    first, both = (scores_in(made, tmp_path / "out" / place) for place in (PAIRS_LEARNED, PAIRS_BOTH))
    assert np.abs(first[..., 0] - both[..., 0]).max() > 0.01
    np.testing.assert_allclose(first[..., 3], both[..., 3], atol=1e-5)


def test_settings_are_checked_by_name() -> None:
    with pytest.raises(ValueError, match="hidden: given 0; allowed: 1 or more"):
        LearnedConfig(hidden=0)
