"""infra/training/reader_held.py: what fold readers are stopped by, and what the shipped reader does not know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infra.training.reader_held import BUDGET, folds_of, held_back, held_rows, keys_of, unknown_to_shipped
from models.retriever.table import GOLD, TableBatch
from pipeline.tasks.material import Material
from pipeline.tasks.qa import Question
from tests.infra.training.test_policy_gpu import questions_with_features


def question(at: int, *titles: str, text: str = "", dataset: str = "nq") -> Question:
    """A question with its gold titles."""
    return Question(
        question_id=f"q{at}", dataset=dataset, text=text or f"who built house {at}?", answers=("x",),
        answerable=True, titles=titles,
    )  # fmt: skip


@pytest.mark.parametrize("num", [2, 4])
def test_what_shares_a_title_or_its_words_is_of_one_fold_and_each_set_is_shared_evenly(num: int) -> None:
    """Through chains of titles, however spelled, and through the same words under two titles."""
    chained = [question(at, f"Town {at}", f"town_{at + 1} (city)") for at in range(20)]
    twins = [question(30, "Alpha", text="Who came?"), question(31, "Beta", text="who came")]
    alone = [question(40 + at, f"Lake {at}") for at in range(90)]
    found = folds_of([*chained, *twins, *alone], num)
    assert len({found[each.question_id] for each in chained}) == 1
    assert found["q30"] == found["q31"]
    counts = [sum(fold == at for fold in found.values()) for at in range(num)]
    assert max(counts) - min(counts) <= 2 and sum(counts) == 112
    assert found == folds_of([*alone, *twins, *chained][::-1], num)


def test_one_fold_is_no_cross_fitting() -> None:
    """A reader would know what it reads."""
    with pytest.raises(ValueError, match="given 1; allowed: 2 or more"):
        folds_of([question(0, "A")], 1)


def test_what_is_kept_back_shares_nothing_with_what_is_left() -> None:
    """Groups whole, a tenth of a set at most, none that is too large; what the material lacks counts nothing."""
    pairs = [question(at, f"House {at // 2}") for at in range(200)]
    article = [question(300 + at, "Great House", dataset="squad") for at in range(90)]
    others = [question(500 + at, f"Hall {at}", dataset="squad") for at in range(60)]
    every = [*pairs, *article, *others]
    known = {each.question_id for each in every} - {"q0"}
    found = held_back(every, known, {"nq": 12, "squad": 50})
    sets = [each.dataset for each in found]
    assert 10 <= sets.count("nq") <= 13 and sets.count("squad") == 15
    left = {key for each in every if each not in found for key in keys_of(each)}
    assert not left & {key for each in found for key in keys_of(each)}
    assert not [each for each in found if each in article]
    assert held_back(every, known, {"nq": 12, "squad": 50}, seed=1) != found
    assert not held_back(every, set(), {"nq": 12})


def renamed(made: Material, at: int, **changes: object) -> Material:
    """A material with one question changed."""
    asked = list(made.questions)
    asked[at] = replace(asked[at], **changes)  # type: ignore[arg-type]
    return Material(tuple(asked), made.tables)


def test_the_shipped_reader_reads_only_what_it_provably_does_not_know() -> None:
    """Not by id, words, title of what tells, or world; never a test question, nor a set that was not asked for."""
    made = questions_with_features()
    asked = [
        replace(q, dataset="rtqa" if at < 6 else "newswire", question_id=f"r{at}" if at < 6 else f"1101:{at}")
        for at, q in enumerate(made.questions)
    ]
    made = Material(tuple(asked), made.tables)
    sets = ("rtqa", "newswire")
    trained = [q.question_id for q in made.questions if q.split != "test"]
    assert unknown_to_shipped(made, [], sets) == trained
    assert unknown_to_shipped(made, [], ("rtqa",)) == [f"r{at}" for at in range(6)]
    assert "r1" not in unknown_to_shipped(made, [replace(question(0, "T"), question_id="r1")], sets)
    assert "r1" not in unknown_to_shipped(made, [question(0, "T", text="Question 1!")], sets)
    gold = int(np.flatnonzero(made.tables.labels[2] == GOLD)[0])
    title = made.questions[2].sentences[gold][0]
    assert "r2" not in unknown_to_shipped(made, [question(0, title)], sets)
    other = renamed(made, 7, question_id="1004:7")
    assert "1004:7" not in unknown_to_shipped(other, [], sets)
    assert "1101:8" in unknown_to_shipped(other, [], sets)


def test_readings_that_stop_a_reader_tell_as_the_materials_labels_do() -> None:
    """What tells alone, then among others that do not; dev questions beside them as many as are wanted."""
    made = questions_with_features()
    asked = [
        replace(q, dataset="rtqa", split="dev") if at in (3, 4, 5) else q
        for at, q in enumerate(made.questions)
    ]
    asked[6] = replace(asked[6], answers=())
    made = Material(tuple(asked), made.tables)
    found = [each.triple for each in held_rows(made, {"q0", "q6"}, {"q3", "q4", "q5", "q1"}, {"rtqa": 2})]
    assert {each.question_id for each in found} == {"q0", "q3", "q4", "q6"}
    for each in found:
        row = int(each.question_id[1:])
        size = len(made.questions[row].sentences)
        labels = {made.questions[row].sentences[at]: int(made.tables.labels[row, at]) for at in range(size)}
        golds = [s for s in each.sentences if labels[s] == GOLD]
        assert each.tells == bool(golds) if each.answers else not each.tells
        if each.kind == "oracle":
            assert list(each.sentences) == golds and each.target.strip() == each.answers[0]
        if each.kind == "among4":
            assert len(each.sentences) == 4 and len(golds) == 1
    assert [each.kind for each in found if each.question_id == "q6"] == [f"hybrid{BUDGET}"]
    assert "unknown" in next(each.target for each in found if each.question_id == "q6")


def test_several_hops_are_told_by_all_their_sentences() -> None:
    """Half of what tells is no telling: such a context is not read."""
    made = questions_with_features()
    labels = made.tables.labels.copy()
    labels[0, :2] = GOLD
    every = np.ones(len(made), bool)
    tables = TableBatch(**(made.tables.arrays() | {"labels": labels, "needs_all": every}))
    found = [each.triple for each in held_rows(Material(made.questions, tables), {"q0"}, set())]
    assert found and all(
        {f"s0 {at}" for at in np.flatnonzero(labels[0] == GOLD)} <= {s[2] for s in each.sentences}
        for each in found
    )
