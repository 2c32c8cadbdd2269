"""pipeline/prepare/near_misses.py: contexts that mislead, exchanged answers, and what is to be avoided."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pipeline.prepare.near_misses import (
    AnswerPool,
    Misleading,
    NearMissConfig,
    NearMisses,
    exchange,
    kind_of_answer,
)
from pipeline.session.prompts import GIVEN_UP
from pipeline.tasks.contexts import candidates, text_of
from pipeline.tasks.qa import Question, SourceText
from pipeline.tasks.scores import holds_answer

GOLD = SourceText(
    text_id="g", title="Mill Bridge", text="The bridge was opened by Ines Falk. It is of steel."
)
OTHERS = [
    SourceText(text_id=f"o{at}", title=title, text=text)
    for at, (title, text) in enumerate(
        [
            ("Lock Bridge", "Lock Bridge was opened by Tomas Reyn. It is of stone."),
            ("Old Bridge", "The old bridge was closed by Anna Moor. Boats pass below it."),
            ("Ferry", "The ferry was opened by Karl Voss. It runs at night."),
            ("Tower", "A tower stands by the river. It was built by masons."),
        ]
    )
]
QUESTION = Question(
    question_id="q1",
    dataset="nq",
    text="Who opened Mill Bridge?",
    answers=("Ines Falk",),
    answerable=True,
    gold_ids=("g",),
    titles=("Mill Bridge",),
)
POOL = AnswerPool(["Ines Falk", "Mara Lind", "Otto Brandt", "1987"])


def contexts(question: Question = QUESTION, **settings: int | float) -> NearMisses:
    """The question's contexts where two rankings put the wrong bridge first."""
    choices = candidates([*OTHERS, GOLD])
    orders = {"words": list(range(len(choices))), "dense": list(reversed(range(len(choices))))}
    return NearMisses(
        question, choices, orders, [GOLD], lambda text: len(text.split()), NearMissConfig(**settings)
    )


def drawn(misled: str = "", **settings: int | float) -> list[Misleading]:
    """All training contexts."""
    return list(contexts(**settings).training(POOL, misled))


def test_no_context_comes_twice_and_each_answer_is_right() -> None:
    """All contexts differ; the target is the answer where the text holds it and the giving up where it does not."""
    found = drawn(near=12, found=12, silent=4, exchanged=0.5)
    read = [each.triple.sentences for each in found]
    assert len(set(read)) == len(read) > 12
    for each in found:
        triple = each.triple
        assert triple.tells == holds_answer(text_of(triple.sentences), triple.answers)
        assert triple.target == (f" {triple.answers[0]}" if triple.tells else GIVEN_UP)


def test_near_contexts_hold_what_tells_and_something_that_does_not() -> None:
    """The telling sentence stands in each, at different places, beside at most six near misses."""
    near = [each.triple for each in drawn(near=20, exchanged=0) if each.triple.kind == "near"]
    places = set()
    for triple in near:
        texts = [text for _, _, text in triple.sentences]
        assert "The bridge was opened by Ines Falk." in texts
        assert 2 <= len(texts) <= 7
        places.add(texts.index("The bridge was opened by Ines Falk."))
    assert len(places) > 2


def test_silent_contexts_hold_no_answer() -> None:
    """Near misses alone want the giving up."""
    silent = [each.triple for each in drawn(silent=6, exchanged=0) if each.triple.kind == "silent"]
    assert silent
    assert all(triple.target == GIVEN_UP for triple in silent)


def test_an_exchanged_context_holds_the_other_answer_and_not_the_first() -> None:
    """Wherever the answer stood stands another of its kind, and the first one is to be avoided."""
    found = [each for each in drawn(exchanged=1.0) if each.triple.kind.endswith("~")]
    assert found
    for each in found:
        text = text_of(each.triple.sentences)
        assert "Ines Falk" not in text
        assert each.triple.answers[0] in ("Mara Lind", "Otto Brandt")
        assert each.triple.answers[0] in text
        assert each.avoid == "Ines Falk"


def test_a_misleading_answer_is_avoided_only_where_it_stands() -> None:
    """What the reader says of near misses alone counts in contexts that hold it beside the right answer."""
    found = [each for each in drawn("Tomas Reyn", near=20, exchanged=0) if each.triple.tells]
    for each in found:
        assert bool(each.avoid) == ("Tomas Reyn" in text_of(each.triple.sentences))
    assert any(each.avoid for each in found)
    assert not any(each.avoid for each in drawn("ines falk", near=20, exchanged=0))


def test_an_unanswerable_question_is_never_told() -> None:
    """Every context of it wants the giving up, its own gold passage's too."""
    question = replace(QUESTION, answerable=False, answers=())
    found = list(contexts(question).training(POOL))
    assert {"gold", "found"} <= {each.triple.kind for each in found}
    assert all(each.triple.target == GIVEN_UP and not each.triple.answers for each in found)


def test_the_same_seed_gives_the_same_contexts() -> None:
    """Two makings agree, another seed differs."""
    assert drawn() == drawn()
    assert drawn() != drawn(seed=1)


def test_judged_contexts_are_one_of_each_kind() -> None:
    """A near context, and two rankings within their budgets; hybrid only where that ranking is given."""
    choices = candidates([*OTHERS, GOLD])
    orders = {"hybrid": list(range(len(choices))), "dense": list(reversed(range(len(choices))))}
    made = NearMisses(QUESTION, choices, orders, [GOLD], lambda t: len(t.split()), NearMissConfig())
    kinds = [triple.kind for triple in made.judged((16, 64))]
    assert kinds == ["near", "hybrid16", "hybrid64", "dense16", "dense64"]


def test_part_of_an_answer_left_elsewhere_forbids_the_exchange() -> None:
    """A surname that stays would contradict the exchanged name."""
    sentences = [("T", "", "It was opened by Ines Falk."), ("U", "", "Falk spoke first.")]
    assert exchange(sentences, "Ines Falk", "Mara Lind") is None
    assert exchange(sentences[:1], "Ines Falk", "Mara Lind") == (("T", "", "It was opened by Mara Lind."),)
    assert exchange(sentences, "Otto Brandt", "Mara Lind") is None


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("1987", "year"),
        ("4 May 1987", "date"),
        ("12,000", "number"),
        ("$3.5", "number"),
        ("Ines Falk", "name2"),
        ("University of Leeds", "name3"),
        ("made of steel", ""),
        ("yes", ""),
    ],
)
def test_answers_are_exchanged_only_for_their_kind(answer: str, kind: str) -> None:
    """Years for years, names of like length for names; what is neither stays."""
    assert kind_of_answer(answer) == kind


def test_a_pool_never_gives_the_answer_itself() -> None:
    """Nothing where its kind has no other."""
    chance = random.Random(0)
    assert {POOL.like("1987", chance) for _ in range(5)} == {""}
    assert all(POOL.like("Ines Falk", chance) != "Ines Falk" for _ in range(20))


def test_wrong_settings_are_named() -> None:
    """The error tells what was given and what is allowed."""
    with pytest.raises(ValueError, match="exchanged: given 2; allowed: 0 to 1"):
        NearMissConfig(exchanged=2)
