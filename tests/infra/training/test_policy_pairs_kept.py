"""infra/training/policy_pairs_kept.py: scores of pair readers kept small, and put under a run of another day."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.training.policy_pairs import FOLDS, PAIRS_BOTH, PLACES, fold_rows, scores_in
from infra.training.policy_pairs_kept import keep, put
from models.retriever.pair_base import NEXT_CANDIDATES, pair_columns
from models.retriever.table import TableBatch
from pipeline.tasks.material import Material
from tests.infra.training.test_policy_gpu import questions_with_features

KINDS = ("mpnet", "e5_dual")


def told_apart() -> Material:
    """The toy's questions, no two candidates with the same text."""
    made = questions_with_features()
    asked = [
        replace(q, sentences=tuple((f"t{row}", "", f"{row} says {at}") for at in range(len(q.sentences))))
        for row, q in enumerate(made.questions)
    ]
    return Material(tuple(asked), made.tables)


def write_scores(made: Material, out: Path) -> None:
    """Scores of both passes by chance, as the stage pairs leaves them."""
    chance = np.random.default_rng(0)
    for kind in KINDS:
        for fold in FOLDS:
            rows = fold_rows(made, fold)[1]
            columns = np.zeros((len(rows), made.tables.num_candidates, 6), np.float32)
            for at, row in enumerate(rows.tolist()):
                here = np.flatnonzero(made.tables.present[row])
                first = chance.normal(0, 3, len(here)).astype(np.float32)
                second = chance.normal(0, 3, len(here)).astype(np.float32)
                order = np.argsort(-first, kind="stable")
                second[[order[0], *order[NEXT_CANDIDATES:]]] = np.nan
                columns[at, here] = pair_columns(first, second)
            (out / PLACES[kind] / fold).mkdir(parents=True)
            np.savez(out / PLACES[kind] / fold / "scores.npz", rows=rows, columns=columns)


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Material, Path, Path]:
    """Material, the folder of the run that scored it, and the file."""
    made, run, file = told_apart(), tmp_path / "run", tmp_path / "scores.npz"
    write_scores(made, run)
    assert keep(made, run, KINDS, file) == file.stat().st_size
    return made, run, file


def test_scores_come_back_as_they_were_to_a_64th(kept: tuple[Material, Path, Path], tmp_path: Path) -> None:
    """Both passes' features, each question by the fold that scored it; and a weighted sum."""
    made, run, file = kept
    told = put(file, made, tmp_path / "next", both=True)
    assert (told["moved"], told["new_candidates"]) == (0, 0) and set(told["hit_1"]) == {*KINDS, "both"}
    for kind in KINDS:
        before, after = (scores_in(made, home / PLACES[kind]) for home in (run, tmp_path / "next"))
        np.testing.assert_allclose(after, before, atol=0.02)
        np.testing.assert_array_equal(after[..., 2], before[..., 2])
        for fold in FOLDS:
            with np.load(tmp_path / "next" / PLACES[kind] / fold / "scores.npz") as packed:
                np.testing.assert_array_equal(packed["rows"], fold_rows(made, fold)[1])
    both = scores_in(made, tmp_path / "next" / PAIRS_BOTH)
    firsts = [scores_in(made, run / PLACES[kind])[..., 0] for kind in KINDS]
    weights = [told["weights"][kind] for kind in KINDS]
    wanted = weights[0] * firsts[0] + weights[1] * firsts[1]
    np.testing.assert_allclose(
        both[..., 0], np.where(made.tables.present, np.clip(wanted, -2, 2), 0), atol=0.01
    )


def test_a_candidate_in_another_place_keeps_its_score_and_a_new_one_is_told(
    kept: tuple[Material, Path, Path], tmp_path: Path
) -> None:
    """Material made anew: one question's candidates turned round, another's first one exchanged."""
    made, run, file = kept
    turned, changed = 0, 1
    count = len(made.questions[turned].sentences)
    order = np.arange(made.tables.num_candidates)
    order[:count] = order[:count][::-1]
    asked = list(made.questions)
    asked[turned] = replace(
        asked[turned], sentences=asked[turned].sentences[::-1], places=asked[turned].places[::-1]
    )
    asked[changed] = replace(asked[changed], sentences=(("new", "", "text"), *asked[changed].sentences[1:]))
    arrays = {name: each.copy() for name, each in made.tables.arrays().items()}
    for name in ("present", "labels", "tokens", "groups", "heads"):
        arrays[name][turned] = arrays[name][turned][order]
    now = Material(tuple(asked), TableBatch(**arrays))
    told = put(file, now, tmp_path / "next")
    assert (told["moved"], told["new_candidates"]) == (2, 1)
    before, after = (scores_in(made, run / "pairs_mpnet"), scores_in(now, tmp_path / "next" / "pairs_mpnet"))
    np.testing.assert_allclose(after[turned, :count, 0], before[turned, :count, 0][::-1], atol=0.01)
    others = slice(1, len(asked[changed].sentences))
    np.testing.assert_allclose(after[changed, others, 0], before[changed, others, 0], atol=0.01)
    least = before[changed, : len(asked[changed].sentences), 0].min()
    assert after[changed, 0, 0] == pytest.approx(least, abs=0.01)


def test_other_questions_are_refused(kept: tuple[Material, Path, Path], tmp_path: Path) -> None:
    made, _, file = kept
    other = Material((replace(made.questions[0], question_id="another"), *made.questions[1:]), made.tables)
    with pytest.raises(ValueError, match="no scores for 1 of 20 questions"):
        put(file, other, tmp_path / "next")
