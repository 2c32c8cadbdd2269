"""pipeline/tasks/contexts.py: sentences, their ranking, and contexts within a budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.session.sentences import split_sentences
from pipeline.tasks.contexts import (
    WordWeights,
    as_sentences,
    candidates,
    oracle_sentences,
    rank_sentences,
    tells,
    within_budget,
)
from pipeline.tasks.qa import Question, SourceText


def source(text_id: str, title: str, text: str, date: str = "") -> SourceText:
    """A text with its fields in place."""
    return SourceText(text_id=text_id, title=title, text=text, date=date)


TEXTS = [
    source("a", "Falcon", "The falcon is a bird. It dives at 300 km/h. Dr. J. Smith measured it in 1999."),
    source("b", "River", "The river is long. Boats sail on it."),
    source("c", "Smith", "Smith was born in Leeds. He studied birds."),
]
WEIGHTS = WordWeights(text.text for text in TEXTS)


def question(text: str, *answers: str, **more: object) -> Question:
    """An answerable question."""
    return Question(question_id="q", dataset="nq", text=text, answers=answers, answerable=True, **more)  # type: ignore[arg-type]


def count(text: str) -> int:
    """Tokens of a text, for these tests: its words."""
    return len(text.split())


def test_the_sentence_with_the_rare_words_ranks_first() -> None:
    """BM25 finds the sentence that shares the question's words."""
    ranked = rank_sentences("Who measured the falcon in 1999?", candidates(TEXTS), WEIGHTS)
    assert "1999" in ranked[0].text


@given(st.integers(min_value=1, max_value=60))
def test_the_budget_is_kept_beyond_the_first_sentence(budget: int) -> None:
    """Chosen sentences with their titles fit the budget; one is chosen even where none fits."""
    chosen = within_budget(rank_sentences("falcon bird", candidates(TEXTS), WEIGHTS), budget, count)
    assert chosen
    heads = {choice.place[0]: count(choice.source.title) + 2 for choice in chosen}
    cost = sum(count(choice.text) for choice in chosen) + sum(heads.values())
    assert len(chosen) == 1 or cost <= budget


def test_chosen_sentences_stand_in_reading_order_inside_their_text() -> None:
    """Texts keep the order of choice; sentences of one text stand as they were written."""
    ranked = rank_sentences("1999 falcon river", candidates(TEXTS), WEIGHTS)
    places = [choice.place for choice in ranked]
    read = as_sentences(ranked)
    first = [title for title, _, _ in read]
    assert first == sorted(first, key=first.index)
    falcon = [text for title, _, text in read if title == "Falcon"]
    assert falcon == split_sentences(TEXTS[0].text)
    assert len(read) == len(places)


def test_the_oracle_is_the_gold_sentence_that_holds_the_answer() -> None:
    """One sentence is enough, and it is the one that tells."""
    asked = question("How fast does it dive?", "300 km/h")
    found = oracle_sentences(asked, [TEXTS[0]], WEIGHTS)
    assert found == (("Falcon", "", "It dives at 300 km/h."),)
    assert oracle_sentences(question("Where?", "Paris"), [TEXTS[0]], WEIGHTS) is None


def test_a_text_tells_only_if_it_holds_the_answer_or_all_support_of_a_yes_or_no() -> None:
    """Answer strings tell; yes and no need every supporting text; unanswerable questions are never told."""
    falcon, smith = ("Falcon", "", "A bird."), ("Smith", "", "Born in Leeds.")
    assert tells(question("Where was he born?", "Leeds"), [smith])
    assert not tells(question("Where was he born?", "Leeds"), [falcon])
    both = question("Are both alive?", "yes", support=(("Falcon", "A bird."), ("Smith", "Born in Leeds.")))
    assert tells(both, [falcon, smith])
    assert not tells(both, [falcon])
    none = Question(question_id="n", dataset="squad", text="?", answers=(), answerable=False)
    assert not tells(none, [falcon])
