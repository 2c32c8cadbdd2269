"""What a reader is given for a question: sentences of its gold texts and of distracting ones, within a budget.

A context is a list of sentences (`pipeline.session.prompts.Sentence`), grouped by text in the order given and in
reading order inside a text. Token counts come from the caller, so that budgets are those of its own tokenizer.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import Stemmer

from pipeline.session.prompts import Sentence, article_head
from pipeline.session.sentences import split_sentences
from pipeline.tasks.qa import Question, SourceText
from pipeline.tasks.scores import holds_answer

_WORD = re.compile(r"\w+")
_STOP_WORDS = frozenset(
    _WORD.findall(
        """
        a an and are as at be by did do does for from had has have how in is it its of on or that the their this to
        was were what when where which who whom whose why will with
        """
    )
)

CountTokens = Callable[[str], int]


@functools.lru_cache(maxsize=1)
def _stemmer() -> Stemmer.Stemmer:
    return Stemmer.Stemmer("english")


def words(text: str) -> list[str]:
    """Stemmed lower-case words of `text` without stop words: what lexical search compares."""
    found = [word for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS]
    return list(_stemmer().stemWords(found))


class WordWeights:
    """Inverse document frequencies (BM25's) of the words of a corpus; an unseen word weighs most."""

    def __init__(self, texts: Iterable[str] = (), *, bags: Iterable[Iterable[str]] = ()) -> None:
        """Of texts, or of their words (`bags`) where those are there already."""
        self._frequency: Counter[str] = Counter()
        self._num_texts = 0
        for bag in itertools.chain(map(words, texts), bags):
            self._frequency.update(set(bag))
            self._num_texts += 1

    def __getitem__(self, word: str) -> float:
        frequency = self._frequency[word]
        return math.log(1 + (self._num_texts - frequency + 0.5) / (frequency + 0.5))


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sentence of a text with its place: (index of the text, index of the sentence)."""

    source: SourceText
    text: str
    place: tuple[int, int]


def candidates(texts: Sequence[SourceText]) -> list[Candidate]:
    """All sentences of the texts, each with its place."""
    return [
        Candidate(source, sentence, (at, index))
        for at, source in enumerate(texts)
        for index, sentence in enumerate(_sentences_of(source))
    ]


@functools.lru_cache(maxsize=200_000)
def _sentences_of(source: SourceText) -> tuple[str, ...]:
    return tuple(split_sentences(source.text))


def rank_sentences(question: str, choices: Sequence[Candidate], weights: WordWeights) -> list[Candidate]:
    """The candidates, best BM25 score first (k1 1.2, b 0.75; the title counts as part of the sentence)."""
    asked = set(words(question))
    bags = [_bag(f"{choice.source.title} {choice.text}") for choice in choices]
    mean = sum(map(len, bags)) / max(1, len(bags))
    scored = []
    for at, bag in enumerate(bags):
        norm = 1.2 * (0.25 + 0.75 * len(bag) / max(1.0, mean))
        counts = Counter(word for word in bag if word in asked)
        score = sum(weights[word] * count * 2.2 / (count + norm) for word, count in counts.items())
        scored.append((-score, at))
    return [choices[at] for _, at in sorted(scored)]


@functools.lru_cache(maxsize=200_000)
def _bag(text: str) -> tuple[str, ...]:
    return tuple(words(text))


def within_budget(ranked: Sequence[Candidate], budget: int, count_tokens: CountTokens) -> list[Candidate]:
    """The best candidates that fit `budget` tokens, titles counted once a text; at least the best one.

    A candidate that does not fit is passed over for a shorter one further down.
    """
    chosen: list[Candidate] = []
    left = budget
    heads: set[int] = set()
    for choice in ranked:
        cost = count_tokens(f" {choice.text}")
        if choice.place[0] not in heads:
            cost += count_tokens(article_head(choice.source.title, choice.source.date)) + 2
        if not chosen or cost <= left:
            chosen.append(choice)
            heads.add(choice.place[0])
            left -= cost
        if left < 8:
            break
    return chosen


def as_sentences(chosen: Iterable[Candidate]) -> tuple[Sentence, ...]:
    """The prompt's sentences: texts in the order in which they first appear, reading order inside each."""
    chosen = list(chosen)
    order: dict[str, int] = {}
    for choice in chosen:
        order.setdefault(choice.source.text_id, len(order))
    chosen.sort(key=lambda choice: (order[choice.source.text_id], choice.place[1]))
    return tuple((choice.source.title, choice.source.date, choice.text) for choice in chosen)


def whole(texts: Iterable[SourceText]) -> tuple[Sentence, ...]:
    """The prompt's sentences for whole texts in the order given."""
    return tuple((text.title, text.date, text.text) for text in texts)


def text_of(sentences: Iterable[Sentence]) -> str:
    """The words that a reader sees of a context, titles and dates included."""
    return "\n".join(f"{article_head(title, date)}: {text}" for title, date, text in sentences)


def oracle_sentences(
    question: Question, golds: Sequence[SourceText], weights: WordWeights
) -> tuple[Sentence, ...] | None:
    """The sentences that tell: those the file names, else the best-ranked gold sentence that holds an answer.

    None where no gold sentence holds an answer string.
    """
    if question.dataset == "musique":
        return None  # its golds name passages, and one sentence does not make the chain
    if question.support:
        return tuple((title, "", sentence) for title, sentence in question.support)
    ranked = rank_sentences(question.text, candidates(golds), weights)
    for choice in ranked:
        if holds_answer(choice.text, question.answers):
            return as_sentences([choice])
    return None


def tells(question: Question, sentences: Sequence[Sentence]) -> bool:
    """Whether the text holds what the question asks for.

    By answer string; a yes-or-no question needs one sentence of every text that supports it.
    """
    if not question.answerable:
        return False
    if {answer.lower() for answer in question.answers} <= {"yes", "no"}:
        read = {title for title, _, _ in sentences}
        wanted = {title for title, _ in question.support} or set(question.titles)
        return bool(wanted) and wanted <= read
    return holds_answer(text_of(sentences), question.answers)


def gold_texts(question: Question, texts: Mapping[str, SourceText]) -> list[SourceText]:
    """The gold texts that the corpus holds."""
    return [texts[gold] for gold in question.gold_ids if gold in texts]
