"""Every question can be answered from what stands at its time, and nothing that stands speaks against it."""

from __future__ import annotations

import itertools
import re

import pytest

from pipeline.newswire import KINDS, NewsEvent, Question, Truth, gather, generate, questions, split_of
from pipeline.newswire.values import DAY_S, from_iso, number_words
from tests.pipeline.newswire.replay import Reader, holds, in_time_order

SEED, ARTICLES = 11, 2_000


@pytest.fixture(scope="module")
def events() -> list[NewsEvent]:
    return list(generate(SEED, ARTICLES))


@pytest.fixture(scope="module")
def truth(events: list[NewsEvent]) -> Truth:
    return gather(events)


@pytest.fixture(scope="module")
def asked(truth: Truth) -> list[Question]:
    return questions(SEED, ARTICLES, 800, asked="spread", truth=truth)


def of_kind(asked: list[Question], *kinds: str) -> list[Question]:
    chosen = in_time_order(q for q in asked if q.kind in kinds)
    assert len(chosen) >= 40 * len(kinds), "too few questions of this kind to prove anything"
    return chosen


def test_every_kind_is_asked_in_equal_numbers(asked: list[Question]) -> None:
    """800 questions over two weeks of news hold every kind, none under two fifths of an even share."""
    counts = {kind: sum(q.kind == kind for q in asked) for kind in KINDS}
    assert min(counts.values()) >= 40, counts
    assert len({q.question for q in asked}) == len(asked)
    assert len({q.id for q in asked}) == len(asked)


@pytest.mark.parametrize("kind", ["now", "as_of", "changed", "two_hop", "three_hop", "corrected"])
def test_the_gold_articles_hold_the_answer_in_their_standing_form(
    events: list[NewsEvent], asked: list[Question], kind: str
) -> None:
    """Each hop's articles stand at the time asked, hold the hop's value, and the evidence is in their text."""
    reader = Reader(events)
    for question in of_kind(asked, kind):
        reader.read_until(from_iso(question.asked))
        assert question.answerable and question.answers and question.hops
        assert question.answers[0] == question.hops[-1].value
        assert set(question.gold_article_ids) == {a for hop in question.hops for a in hop.article_ids}
        for hop, evidence in zip(question.hops, question.evidence, strict=True):
            assert evidence in reader.text(hop.article_ids[0])
            assert all(reader.text(article) for article in hop.article_ids), "a gold article does not stand"
        last = question.hops[-1]
        assert holds(last.evidence, question.answers), (question.question, last.evidence)
        assert all(holds(reader.text(article), question.answers) for article in last.article_ids)


@pytest.mark.parametrize("kind", ["now", "as_of", "changed", "two_hop", "three_hop", "corrected"])
def test_no_standing_article_speaks_against_the_answer(
    events: list[NewsEvent], truth: Truth, asked: list[Question], kind: str
) -> None:
    """No sentence that names the subject and was published after the gold one gives another value in its place.

    The rivals are all values that the same thing ever has in the whole run, and the wrong value of a
    correction; a sentence that gives both the answer and a rival (a change, told) is no contradiction.
    """
    reader = Reader(events)
    for question in of_kind(asked, kind):
        reader.read_until(from_iso(question.asked))
        for hop in question.hops:
            known = truth.known[hop.fact]
            if known.fact.kind == "before":
                continue
            same_key = truth.by_key[known.fact.key]
            rivals = {k.fact.value.accepted[0] for k in same_key if k is not known}
            rivals |= {k.wrong for k in same_key if k.wrong}
            rivals -= set(known.fact.value.accepted)
            first = min(t.start for t in known.tellings if not t.false)
            tellers = {t.sentence for k in same_key for t in k.tellings}
            against = [
                sentence
                for sentence in tellers
                if any(rival and holds(sentence, [rival]) for rival in rivals)
                and not holds(sentence, known.fact.value.accepted)
            ]
            for article, record in reader.live.items():
                if reader.version(article) > first and known.fact.subject in record["text"]:
                    assert not [each for each in against if each in record["text"]], question.question


def test_a_count_is_the_number_of_events_that_stand_told(
    events: list[NewsEvent], truth: Truth, asked: list[Question]
) -> None:
    """Each counted event has its own standing evidence, and the truth knows no other of the period."""
    reader = Reader(events)
    for question in of_kind(asked, "count"):
        reader.read_until(from_iso(question.asked))
        number = int(question.answers[0])
        assert number == len(question.hops) == len({hop.fact for hop in question.hops})
        assert number_words(number) in question.answers
        for hop in question.hops:
            assert hop.evidence in reader.text(hop.article_ids[0])
        attr = question.relation.removeprefix("count ")
        days = sorted(truth.known[hop.fact].fact.since // DAY_S for hop in question.hops)
        between = [
            known
            for known in truth.known.values()
            if known.fact.attr == attr
            and known.fact.subject == question.entity
            and days[0] <= known.fact.since // DAY_S <= days[-1]
        ]
        assert len(between) == number


def test_what_is_not_answerable_is_told_nowhere(events: list[NewsEvent], asked: list[Question]) -> None:
    """No standing sentence holds the subject beside the thing that would answer."""
    reader = Reader(events)
    relations = set()
    for question in of_kind(asked, "unanswerable"):
        reader.read_until(from_iso(question.asked))
        relations.add(question.relation)
        assert not question.answerable and not question.answers and not question.gold_article_ids
        for record in reader.live.values():
            text = record["text"]
            if question.relation == "never told":
                assert not re.search(rf"\b{question.absent}s?\b", text.lower()), question.question
            elif question.entity in text:
                for sentence in re.split(r"\. |\n| — | - ", text):
                    if question.entity not in sentence or not holds(sentence, [question.absent]):
                        continue
                    if question.relation == "withdrawn":
                        assert " talks " not in sentence and " offer " not in sentence, sentence
                    elif question.relation == "unreported":
                        assert "revenue" not in sentence and "profit" not in sentence, sentence
                    else:
                        told = re.search(r"\b(closed at|closing price|session|settled|bell)\b", sentence)
                        assert told is None, sentence
    assert relations == {"never told", "withdrawn", "unreported", "no report"}


def test_the_subject_of_an_unanswerable_question_is_in_the_news(
    events: list[NewsEvent], asked: list[Question]
) -> None:
    """A question that the news does not answer still asks about something that the news names."""
    text = "\n".join(e.record["text"] for e in events if "text" in e.record)
    assert all(q.entity in text for q in asked if q.kind == "unanswerable")


def test_the_wrong_value_of_a_correction_is_never_accepted(asked: list[Question]) -> None:
    """Corrected questions carry the first form's wrong value, and no accepted answer equals it."""
    for question in of_kind(asked, "corrected"):
        assert question.wrong and question.wrong not in question.answers
        assert not holds(question.wrong, question.answers)


def test_a_false_first_form_is_never_gold_before_its_correction(
    events: list[NewsEvent], asked: list[Question]
) -> None:
    """While a false form stands, no question rests on a sentence of it."""
    reader = Reader(events)
    false: dict[str, set[str]] = {}
    for event in events:
        if event.kind == "article" and event.wrong:
            false[event.record["id"]] = {s.text for s in event.sentences if event.wrong_slot in s.slots}
    for question in in_time_order(asked):
        reader.read_until(from_iso(question.asked))
        for hop in question.hops:
            for article in hop.article_ids:
                if "updated" not in reader.live[article]:
                    assert hop.evidence not in false.get(article, set())


def test_splits_share_neither_entity_nor_wording(truth: Truth) -> None:
    """Train, validation and test ask about other entities, in other words."""
    sets = {
        s: questions(SEED, ARTICLES, 240, asked="spread", split=s, truth=truth)
        for s in ("train", "validation", "test")
    }
    for name, found in sets.items():
        assert len(found) >= 200
        assert all(split_of(q.entity) == q.split == name for q in found)
    for a, b in itertools.combinations(sets.values(), 2):
        assert not {q.entity for q in a} & {q.entity for q in b}
        assert not {(q.relation, q.wording) for q in a} & {(q.relation, q.wording) for q in b}


def test_questions_are_the_same_for_the_same_seed(truth: Truth) -> None:
    """Drawing twice gives equal questions; another seed gives others."""
    first = questions(SEED, ARTICLES, 60, asked="spread", truth=truth)
    assert first == questions(SEED, ARTICLES, 60, asked="spread", truth=truth)
    assert first != questions(SEED + 1, ARTICLES, 60, asked="spread", truth=truth)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"kinds": ("when",)}, "kinds"), ({"asked": "later"}, "asked"), ({"split": "dev"}, "split")],
)
def test_wrong_words_are_named(arguments: dict[str, object], message: str) -> None:
    """A kind, time or split that does not exist raises ValueError that names the argument."""
    with pytest.raises(ValueError, match=message):
        questions(SEED, 10, 5, **arguments)  # type: ignore[arg-type]
