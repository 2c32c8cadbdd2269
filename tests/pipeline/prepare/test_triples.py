"""pipeline/prepare/triples.py: contexts of every kind, with targets that fit what they tell."""

from __future__ import annotations

import pytest

from pipeline.prepare.triples import TripleConfig, TripleMaker, make_judged, make_training
from pipeline.session.prompts import GIVEN_UP
from pipeline.tasks.contexts import WordWeights
from pipeline.tasks.qa import Question, SourceText
from pipeline.tasks.scores import holds_answer

TEXTS = {
    text.text_id: text
    for text in (
        SourceText(
            text_id=f"p{at}",
            title=f"Tower {at}",
            text=f"Tower {at} stands in town {at}. It was built in {1900 + at} by Ada Stone. "
            f"It is {50 + at} metres high.",
        )
        for at in range(30)
    )
}


def maker(**config: object) -> TripleMaker:
    """A maker whose pool is all texts in their order."""
    weights = WordWeights(text.text for text in TEXTS.values())
    return TripleMaker(
        TEXTS,
        weights,
        lambda _: list(TEXTS.values()),
        lambda text: len(text.split()),
        TripleConfig(**config),  # type: ignore[arg-type]
    )


def asked(split: str = "train", **more: object) -> Question:
    """When tower 7 was built."""
    fields = {
        "question_id": "q7",
        "dataset": "nq",
        "text": "When was tower 7 built?",
        "answers": ("1907",),
        "answerable": True,
        "gold_ids": ("p7",),
        "split": split,
    } | more
    return Question(**fields)  # type: ignore[arg-type]


def test_the_target_answers_exactly_where_the_sentences_tell() -> None:
    """Every triple's target is the answer where its sentences hold it, and the giving up elsewhere."""
    triples = list(maker().training(asked()))
    assert {triple.kind for triple in triples} >= {
        "oracle",
        "oracle+",
        "sentences32",
        "gold",
        "gold+",
        "silent",
    }
    for triple in triples:
        held = any(holds_answer(text, ["1907"]) for _, _, text in triple.sentences)
        assert triple.tells == held
        assert triple.target == (" 1907" if held else GIVEN_UP)


def test_the_oracle_reads_one_sentence_and_distractors_come_with_plus() -> None:
    """The oracle is the telling sentence alone; with distractors it is still among them."""
    by_kind = {triple.kind: triple for triple in maker().training(asked())}
    assert [text for _, _, text in by_kind["oracle"].sentences] == ["It was built in 1907 by Ada Stone."]
    assert set(by_kind["oracle"].sentences) < set(by_kind["oracle+"].sentences)
    assert 2 <= len(by_kind["gold+"].sentences) <= 5


def test_an_unanswerable_question_is_never_answered() -> None:
    """All contexts of a question that its own passage does not tell have the giving up as target."""
    triples = list(maker().training(asked(answers=(), answerable=False)))
    assert triples
    assert {triple.target for triple in triples} == {GIVEN_UP}
    assert "oracle" not in {triple.kind for triple in triples}


def test_a_question_without_golds_is_read_only_where_the_answer_string_is_found() -> None:
    """Distant reading needs the answer string; comparison and yes-or-no questions are left out."""
    found = list(maker().training(asked(gold_ids=())))
    assert [triple.kind for triple in found] == ["distant"]
    assert not list(maker().training(asked(gold_ids=(), answers=("nowhere",))))
    assert not list(maker().training(asked(gold_ids=(), answers=("yes",))))
    assert not list(maker().training(asked(gold_ids=(), kind="comparison")))


def test_the_same_seed_gives_the_same_triples_and_another_gives_others() -> None:
    """Triples are a function of questions, texts and seed."""
    one, same, other = (list(maker(seed=seed).training(asked())) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_training_reads_no_test_question_and_judging_only_those() -> None:
    """Splits part the questions."""
    questions = [asked(), asked("test", question_id="t"), asked("dropped", question_id="d")]
    assert {triple.question_id for triple in make_training(maker(), questions)} == {"q7"}
    judged = list(make_judged(maker(), questions))
    assert {triple.question_id for triple in judged} == {"t"}
    kinds = [triple.kind for triple in judged]
    assert len(kinds) == len(set(kinds))
    assert {"none", "oracle", "sentences128", "gold", "full20", "silent128"} <= set(kinds)
    assert len(next(t for t in judged if t.kind == "full20").sentences) == 20


def test_dated_texts_are_read_oldest_first() -> None:
    """Where texts have dates, every context is in order of time."""
    dated = {
        at: SourceText(text_id=at, title=text.title, text=text.text, date=f"2024-01-{31 - int(at[1:]):02d}")
        for at, text in TEXTS.items()
    }
    weights = WordWeights(text.text for text in dated.values())
    made = TripleMaker(
        dated, weights, lambda _: list(dated.values()), lambda t: len(t.split()), TripleConfig()
    )
    for triple in made.training(asked()):
        dates = [date for _, date, _ in triple.sentences]
        assert dates == sorted(dates)


@pytest.mark.parametrize(
    "wrong", [{"budgets": ()}, {"budgets": (4,)}, {"most_distractors": 0}, {"most_distractors": 20}]
)
def test_a_wrong_configuration_names_its_field(wrong: dict[str, object]) -> None:
    """The error names the field, what was given and what is allowed."""
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}: given .*allowed"):
        TripleConfig(**wrong)  # type: ignore[arg-type]
