"""Which of the made questions are kept: plain filters, each a reason, and the round trip through the reader.

A question is kept whose answer is a span of its sentence and no part of itself, that is no copy and no repetition,
says what it is about, and that the adapted reader, given that one sentence, answers back without giving up.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from infra.training.made_generator import BETWEEN
from infra.training.made_sources import Source, span_in
from models.reader_decoding import greedy_answers
from pipeline.session.prompts import GIVEN_UP, one_line, parse_answer, reader_prompt
from pipeline.tasks.contexts import words
from pipeline.tasks.reading import STOP, Voice
from pipeline.tasks.scores import answer_f1, holds_answer, normalize_answer

LEAST_WORDS, MOST_WORDS = 4, 25
MOST_ANSWER_WORDS = 8
COPIED = 0.8
"""A question of whose words so many stand in one run in its sentence is a copy."""
_POINTING = re.compile(r"\b(he|she|his|him|they|their|them|it|its|this)\b")
REASONS = ("form", "span", "long", "length", "copy", "tells", "vague", "repeated")


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
    if not LEAST_WORDS <= len(made.question.split()) <= MOST_WORDS:
        return "length"
    if copied(made.question, source.sentence):
        return "copy"
    if holds_answer(made.question, [made.answer]):
        return "tells"
    if vague(made.question, source):
        return "vague"
    return ""


def copied(question: str, sentence: str) -> bool:
    """Whether a run of words of the sentence makes up most of the question."""
    asked, told = normalize_answer(question).split(), normalize_answer(sentence).split()
    run = difflib.SequenceMatcher(None, asked, told, autojunk=False).find_longest_match()
    return run.size >= COPIED * max(1, len(asked))


def vague(question: str, source: Source) -> bool:
    """Whether only who has the sentence before them can tell what is asked about.

    It shares too few words with title and sentence, or points ("he", "it") and names nothing of the title.
    """
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
    """The round trip: whether the reader, given the one sentence, answers each with the F1 wanted, not giving up.

    It must answer; its margin for giving up may be `most_margin` nats at most. Also: how many failed, by what.
    """
    prompts = [
        [
            *voice.begin,
            *voice.encode(
                reader_prompt([(each.source.title, "", each.source.sentence)], each.question, voice.form)
            ),
        ]
        for each in made
    ]
    said = greedy_answers(
        voice.model,
        prompts,
        stop_id=voice.encode(STOP)[0],
        give_up_id=voice.encode(GIVEN_UP)[0],
        may_give_up=False,
        max_new_tokens=voice.max_new_tokens,
        tokens_per_batch=voice.tokens_per_batch,
        device=voice.device,
    )
    found, counts = [], {"gave_up": 0, "other_answer": 0}
    for each, answer in zip(made, said, strict=True):
        text = parse_answer(voice.decode(answer.ids)).text
        gave_up = answer.margin > most_margin
        right = answer_f1(text, [each.answer]) >= least_f1
        found.append(right and not gave_up)
        if gave_up:
            counts["gave_up"] += 1
        elif not right:
            counts["other_answer"] += 1
    return found, counts
