"""Which of the made questions are kept: plain filters, each a reason, and the round trip through the reader.

A question is kept whose answer is a span of its sentence and no part of itself, that is no copy and no repetition,
says what it is about, and that the adapted reader, given that one sentence, answers back without giving up. One of
two sentences must not name what the first leads to, and the reader must answer by both as it does by neither alone.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from infra.training.made_generator import BETWEEN
from infra.training.made_hops import names
from infra.training.made_sources import Source, span_in
from models.reader_decoding import greedy_answers
from pipeline.session.prompts import giving_up_token, one_line, parse_answer, reader_prompt
from pipeline.tasks.contexts import words
from pipeline.tasks.reading import STOP, Voice
from pipeline.tasks.scores import answer_f1, holds_answer, normalize_answer

LEAST_WORDS, MOST_WORDS = 4, 25
MOST_WORDS_OF_TWO = 36
MOST_ANSWER_WORDS = 8
GAIN = 1.0
"""Nats by which both sentences must move the reader from giving up, over either alone that also has it right."""
COPIED = 0.8
"""A question of whose words so many stand in one run in its sentence is a copy."""
_POINTING = re.compile(r"\b(he|she|his|him|they|their|them|it|its|this)\b")
REASONS = ("form", "span", "long", "length", "copy", "tells", "vague", "names", "repeated")
FAILED = ("gave_up", "other_answer", "first_tells", "second_tells")
"""Ways to fail the round trip; the last two are those of two sentences of which one alone is enough."""


@dataclass(frozen=True, slots=True)
class Made:
    """A question that was made, with its answer as its sentence spells it."""

    source: Source
    answer: str
    question: str


def parsed(source: Source, said: str) -> Made | None:
    """What the maker wrote as a question and its answer; None where it is not of that form."""
    answer, between, question = one_line(said).partition(BETWEEN)
    if not between or not answer.strip() or not question.strip():
        return None
    return Made(source, answer.strip(), question.strip())


def refused(made: Made) -> str:
    """Why a question is not kept, one of REASONS; '' where nothing but repetition may stand against it."""
    source = made.source
    if not span_in(source.sentence, [made.answer]):
        return "span"
    if len(made.answer.split()) > MOST_ANSWER_WORDS:
        return "long"
    most = MOST_WORDS_OF_TWO if source.via else MOST_WORDS
    if not LEAST_WORDS <= len(made.question.split()) <= most:
        return "length"
    if any(copied(made.question, each.sentence) for each in (*source.via, source)):
        return "copy"
    if holds_answer(made.question, [made.answer]):
        return "tells"
    if vague(made.question, source):
        return "vague"
    if source.via and names(made.question, source.title, source.via[-1].title):
        return "names"
    return ""


def copied(question: str, sentence: str) -> bool:
    """Whether a run of words of the sentence makes up most of the question."""
    asked, told = normalize_answer(question).split(), normalize_answer(sentence).split()
    run = difflib.SequenceMatcher(None, asked, told, autojunk=False).find_longest_match()
    return run.size >= COPIED * max(1, len(asked))


def vague(question: str, source: Source) -> bool:
    """Whether only who has the sentence before them can tell what is asked about.

    It shares too few words with title and sentence, or points ("he", "it") and names nothing of the title. Of two
    sentences this is asked of the first, where the way begins.
    """
    source = source.via[0] if source.via else source
    asked, title = set(words(question)), set(words(source.title))
    if len(asked & (title | set(words(source.sentence)))) < 2:
        return True
    return bool(_POINTING.search(question.lower())) and not asked & title


def sifted(
    sources: Sequence[Source], said: Sequence[str], known: Sequence[str] = ()
) -> tuple[list[Made], dict[str, int]]:
    """Those that the plain filters keep, in order, and how many each took; what is `known` counts as repeated."""
    seen = {normalize_answer(text) for text in known}
    counts: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
    kept = []
    for source, text in zip(sources, said, strict=True):
        made = parsed(source, text)
        reason = "form" if made is None else refused(made)
        if made is not None and not reason:
            key = normalize_answer(made.question)
            reason = "repeated" if key in seen else ""
            seen.add(key)
        if reason or made is None:
            counts[reason] += 1
        else:
            answer = span_in(made.source.sentence, [made.answer])
            kept.append(Made(source, answer, made.question))
    return kept, dict(counts)


def answered_back(
    voice: Voice, made: Sequence[Made], least_f1: float, most_margin: float
) -> tuple[list[bool], dict[str, int]]:
    """The round trip: whether the reader, given what the question was made of, answers with the F1 wanted.

    It must not give up: its margin for that may be `most_margin` nats at most. Of two sentences neither may do
    alone: it answers otherwise or gives up there, or leans GAIN nats more to giving up. Also: how many failed, by
    FAILED.
    """
    ways = FAILED if any(each.source.via for each in made) else FAILED[:2]
    found, counts = [False] * len(made), dict.fromkeys(ways, 0)
    good: list[tuple[int, float]] = []
    read = _read(voice, [(each, (*each.source.via, each.source)) for each in made], least_f1)
    for at, (right, margin) in enumerate(read):
        if margin > most_margin:
            counts["gave_up"] += 1
        elif not right:
            counts["other_answer"] += 1
        else:
            found[at] = True
            good.append((at, margin))
    good = [(at, margin) for at, margin in good if made[at].source.via]
    for reason, of in (
        ("first_tells", lambda source: source.via),
        ("second_tells", lambda source: (source,)),
    ):
        alone = _read(voice, [(made[at], of(made[at].source)) for at, _ in good], least_f1)
        for (at, both), (right, margin) in zip(good, alone, strict=True):
            if found[at] and right and margin <= most_margin and margin < both + GAIN:
                found[at] = False
                counts[reason] += 1
    return found, counts


def _read(
    voice: Voice, asked: Sequence[tuple[Made, Sequence[Source]]], least_f1: float
) -> list[tuple[bool, float]]:
    """Whether each is answered rightly by these sentences, and the reader's margin for giving up."""
    if not asked:
        return []
    prompts = [
        [
            *voice.begin,
            *voice.encode(
                reader_prompt([(s.title, "", s.sentence) for s in sources], each.question, voice.form)
            ),
        ]
        for each, sources in asked
    ]
    said = greedy_answers(
        voice.model,
        prompts,
        stop_id=voice.encode(STOP)[0],
        give_up_id=giving_up_token(voice.encode),
        may_give_up=False,
        max_new_tokens=voice.max_new_tokens,
        tokens_per_batch=voice.tokens_per_batch,
        device=voice.device,
    )
    texts = [parse_answer(voice.decode(answer.ids)).text for answer in said]
    return [
        (answer_f1(text, [each.answer]) >= least_f1, answer.margin)
        for (each, _), text, answer in zip(asked, texts, said, strict=True)
    ]
