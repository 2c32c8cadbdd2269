"""(question, context, target) triples: what a reader is trained on and judged by.

Every question is read with several contexts, from the one sentence that tells to many passages; where the context
does not tell, the target is the giving up. The same questions, texts and seed give the same triples.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pipeline.session.prompts import Sentence, target_text
from pipeline.tasks.contexts import (
    Candidate,
    CountTokens,
    WordWeights,
    as_sentences,
    candidates,
    gold_texts,
    oracle_sentences,
    rank_sentences,
    tells,
    text_of,
    whole,
    within_budget,
)
from pipeline.tasks.qa import Question, SourceText
from pipeline.tasks.scores import holds_answer

_Item = TypeVar("_Item")

Pool = Callable[[Question], list[SourceText]]
"""Texts that compete with the gold ones for a question, best first; may hold the gold ones too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TripleConfig:
    """How contexts are drawn."""

    seed: int = field(default=0, metadata={"help": "the same seed gives the same triples"})
    budgets: tuple[int, ...] = field(
        default=(32, 64, 128, 256), metadata={"help": "tokens of the contexts of chosen sentences"}
    )
    most_distractors: int = field(default=4, metadata={"help": "passages beside the gold one, at most"})
    full_passages: int = field(default=20, metadata={"help": "passages of the longest judged context"})
    test_budgets: tuple[int, ...] = field(
        default=(64, 128, 256), metadata={"help": "tokens of the judged contexts of chosen sentences"}
    )

    def __post_init__(self) -> None:
        for name in ("budgets", "test_budgets"):
            if not getattr(self, name) or min(getattr(self, name)) < 8:
                raise ValueError(
                    f"{name}: given {getattr(self, name)}; allowed: one or more token counts of at least 8"
                )
        if not 1 <= self.most_distractors < self.full_passages:
            raise ValueError(
                f"most_distractors: given {self.most_distractors}; allowed: 1 to full_passages - 1 "
                f"({self.full_passages - 1})"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Triple:
    """One reading: `tells` says whether the sentences hold the answer, `target` is what the reader should write."""

    question_id: str
    dataset: str
    split: str
    kind: str
    question: str
    sentences: tuple[Sentence, ...]
    answers: tuple[str, ...]
    tells: bool
    target: str


class TripleMaker:
    """Draws the contexts of questions over one corpus."""

    def __init__(
        self,
        texts: Mapping[str, SourceText],
        weights: WordWeights,
        pool: Pool,
        count_tokens: CountTokens,
        config: TripleConfig,
    ) -> None:
        self._texts, self._weights, self._pool, self._count = texts, weights, pool, count_tokens
        self._config = config

    def training(self, question: Question) -> Iterator[Triple]:
        """The training triples of a question; none where the corpus holds nothing to tell it."""
        chance = random.Random(f"{self._config.seed}:{question.question_id}")
        golds = gold_texts(question, self._texts)
        pool = self._pool(question)
        others = [text for text in pool if text.text_id not in question.gold_ids]
        if not golds:
            yield from self._distant(question, pool, chance)
            return
        oracle = oracle_sentences(question, golds, self._weights) if question.answerable else None
        if oracle is not None:
            yield self._triple(question, "oracle", oracle)
            yield self._triple(question, "oracle+", self._disturbed(question, oracle, others, chance))
        ranked = self._ranked(question, golds, others)
        for budget in self._config.budgets:
            triple = self._triple(question, f"sentences{budget}", self._chosen(ranked, budget, chance))
            if not triple.tells or _told_by_gold(question, triple.sentences, golds):
                yield triple
        yield self._triple(question, "gold", whole(golds))
        near = others[: 2 * self._config.most_distractors]
        extra = chance.sample(near, min(len(near), chance.randint(1, self._config.most_distractors)))
        yield self._triple(question, "gold+", whole(_in_time(_shuffled([*golds, *extra], chance))))
        silent = self._silent(question, others, chance.choice(self._config.budgets), chance)
        if silent:
            yield self._triple(question, "silent", silent)

    def judged(self, question: Question) -> Iterator[Triple]:
        """The readings that a question is judged by: one a kind of context."""
        chance = random.Random(f"{self._config.seed}:{question.question_id}")
        golds = gold_texts(question, self._texts)
        pool = self._pool(question)
        others = [text for text in pool if text.text_id not in question.gold_ids]
        if question.answerable:
            yield self._triple(question, "none", ())
            oracle = oracle_sentences(question, golds, self._weights)
            if oracle is not None:
                yield self._triple(question, "oracle", oracle)
            silent = self._silent(question, others, 128, chance)
            if silent:
                yield self._triple(question, "silent128", silent)
        found = (
            [*pool, *(gold for gold in golds if gold not in pool)] if question.dataset == "timeqa" else pool
        )
        ranked = rank_sentences(question.text, candidates(found), self._weights)
        for budget in self._config.test_budgets:
            yield self._triple(question, f"sentences{budget}", self._chosen(ranked, budget, chance))
        if golds:
            yield self._triple(question, "gold", whole(golds))
            full = [*golds, *others][: self._config.full_passages]
            yield self._triple(
                question, f"full{self._config.full_passages}", whole(_in_time(_shuffled(full, chance)))
            )

    def _triple(self, question: Question, kind: str, sentences: Sequence[Sentence]) -> Triple:
        told = tells(question, sentences)
        return Triple(
            question_id=question.question_id,
            dataset=question.dataset,
            split=question.split,
            kind=kind,
            question=question.text,
            sentences=tuple(sentences),
            answers=question.answers,
            tells=told,
            target=target_text(_told_answer(question, sentences) if told else None),
        )

    def _ranked(
        self, question: Question, golds: Sequence[SourceText], others: Sequence[SourceText]
    ) -> list[Candidate]:
        texts = [*golds, *others[: self._config.full_passages - len(golds)]]
        return rank_sentences(question.text, candidates(texts), self._weights)

    def _chosen(
        self, ranked: Sequence[Candidate], budget: int, chance: random.Random
    ) -> tuple[Sentence, ...]:
        chosen = within_budget(ranked, budget, self._count)
        places = _shuffled(sorted({choice.place[0] for choice in chosen}), chance)
        # Dated texts are read oldest first, as sessions give them; others in random order.
        return as_sentences(
            sorted(chosen, key=lambda choice: (choice.source.date, places.index(choice.place[0])))
        )

    def _disturbed(
        self,
        question: Question,
        oracle: Sequence[Sentence],
        others: Sequence[SourceText],
        chance: random.Random,
    ) -> tuple[Sentence, ...]:
        """The telling sentences among one to six that nearly tell, texts in random order."""
        near = rank_sentences(question.text, candidates(others), self._weights)[:24]
        extra = as_sentences(chance.sample(near, min(len(near), chance.randint(1, 6))))
        groups: dict[tuple[str, str], list[Sentence]] = {}
        for sentence in [*oracle, *extra]:
            groups.setdefault((sentence[0], sentence[1]), []).append(sentence)
        mixed = sorted(_shuffled(list(groups.values()), chance), key=lambda group: group[0][1])
        return tuple(sentence for group in mixed for sentence in group)

    def _silent(
        self, question: Question, others: Sequence[SourceText], budget: int, chance: random.Random
    ) -> tuple[Sentence, ...]:
        """Sentences that look like telling but hold no answer string; empty where there are none."""
        quiet = [
            choice
            for choice in rank_sentences(question.text, candidates(others), self._weights)[:60]
            if not holds_answer(f"{choice.source.title} {choice.text}", question.answers)
        ]
        return self._chosen(quiet, budget, chance) if quiet else ()

    def _distant(
        self, question: Question, pool: Sequence[SourceText], chance: random.Random
    ) -> Iterator[Triple]:
        """One reading of found texts for a question without known golds.

        If it has an answer, only where they hold its string; if it has none, as sentences that do not tell.
        """
        if not question.answerable and pool:
            silent = self._silent(question, pool, chance.choice(self._config.budgets), chance)
            yield self._triple(question, "silent", silent)
            return
        if question.kind == "comparison" or not question.answers or not pool:
            return
        if all(len(answer) < 3 or answer.lower() in ("yes", "no") for answer in question.answers):
            return
        ranked = rank_sentences(question.text, candidates(pool), self._weights)
        triple = self._triple(question, "distant", self._chosen(ranked, 256, chance))
        if triple.tells:
            yield triple


def make_training(maker: TripleMaker, questions: Iterable[Question]) -> Iterator[Triple]:
    """The triples of the training and dev questions, in their order."""
    for question in questions:
        if question.split in ("train", "dev"):
            yield from maker.training(question)


def make_judged(maker: TripleMaker, questions: Iterable[Question]) -> Iterator[Triple]:
    """The readings of the test questions, in their order."""
    for question in questions:
        if question.split == "test":
            yield from maker.judged(question)


def _told_by_gold(question: Question, sentences: Sequence[Sentence], golds: Sequence[SourceText]) -> bool:
    """Whether a sentence of a gold text tells; an answer string elsewhere may answer something else."""
    if {answer.lower() for answer in question.answers} <= {"yes", "no"}:
        return True
    told = [text for _, _, text in sentences if holds_answer(text, question.answers)]
    return any(text in gold.text for text in told for gold in golds)


def _told_answer(question: Question, sentences: Sequence[Sentence]) -> str:
    """The answer in the form in which the text tells it, the first of the golds where none is found."""
    text = text_of(sentences)
    for answer in question.answers:
        if holds_answer(text, [answer]):
            return answer
    return question.answers[0]


def _in_time(texts: list[SourceText]) -> list[SourceText]:
    """Oldest first; texts without a date keep their order."""
    return sorted(texts, key=lambda text: text.date)


def _shuffled(items: list[_Item], chance: random.Random) -> list[_Item]:
    chance.shuffle(items)
    return items
