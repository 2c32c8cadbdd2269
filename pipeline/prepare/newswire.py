"""Triples over the newswire: what sentences tell is known exactly, fact by fact.

News is read as a session reads it: the newest form of every article that was not withdrawn, sentences cut as
sessions cut them, oldest article first. Training uses the newswire's train split (entities and wordings apart).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.newswire import KINDS, NewsEvent, Question, Truth, generate, questions
from pipeline.prepare.pools import TextIndex, pieces
from pipeline.prepare.triples import Triple
from pipeline.session.prompts import Sentence, one_line, target_text
from pipeline.tasks.contexts import (
    Candidate,
    CountTokens,
    WordWeights,
    as_sentences,
    candidates,
    rank_sentences,
    text_of,
    within_budget,
)
from pipeline.tasks.qa import SourceText
from pipeline.tasks.scores import holds_answer

POOL = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class NewswireConfig:
    """One simulated world and its questions."""

    seed: int = field(metadata={"help": "of the world and its questions"})
    num_articles: int = field(default=1500, metadata={"help": "articles of the world"})
    num_questions: int = field(default=300, metadata={"help": "questions, the kinds in turn"})
    split: str = field(default="train", metadata={"help": "train, validation, test, or empty for all"})
    name: str = field(default="newswire", metadata={"help": "what the set is called"})
    budgets: tuple[int, ...] = field(default=(64, 128, 256), metadata={"help": "tokens of chosen sentences"})

    def __post_init__(self) -> None:
        for name in ("num_articles", "num_questions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        if not self.budgets or min(self.budgets) < 8:
            raise ValueError(f"budgets: given {self.budgets}; allowed: one or more counts of at least 8")


def newswire_triples(config: NewswireConfig, count_tokens: CountTokens) -> Iterator[Triple]:
    """The triples of a world's questions, all asked at its end."""
    truth, newest = Truth(), dict[str, NewsEvent]()
    for event in generate(config.seed, config.num_articles):
        truth.add(event)
        if event.kind == "withdrawal":
            newest.pop(event.record["id"], None)
        else:
            newest[event.record["id"]] = event
    world = _World(newest.values(), config, count_tokens)
    drawn = questions(
        config.seed, config.num_articles, config.num_questions, KINDS, split=config.split, truth=truth
    )
    for question in drawn:
        yield from world.triples(question)


class _World:
    """The news as it stands at the end, searchable, with the facts that each sentence tells."""

    def __init__(
        self, newest: Iterable[NewsEvent], config: NewswireConfig, count_tokens: CountTokens
    ) -> None:
        self._config, self._count = config, count_tokens
        self._told: dict[str, list[tuple[str, frozenset[str]]]] = {}
        self._pieces: dict[str, list[SourceText]] = {}
        streams: dict[str | None, list[SourceText]] = {None: []}
        for event in newest:
            record = event.record
            article = SourceText(
                text_id=record["id"],
                title=record["title"],
                text=record["text"],
                date=record["published"][:10],
            )
            self._told[article.text_id] = [
                (one_line(sentence.text), frozenset(fact.id for fact in sentence.facts))
                for sentence in event.sentences
                if sentence.facts
            ]
            cut = self._pieces[article.text_id] = pieces(article)
            streams[None] += cut
            streams.setdefault(record["stream"], []).extend(cut)
        self._weights = WordWeights(text.text for text in streams[None])
        self._indexes = {stream: TextIndex(texts) for stream, texts in streams.items() if texts}

    def triples(self, question: Question) -> Iterator[Triple]:
        """The readings of one question; contexts that tell it in part, or tell an older state, are left out."""
        chance = random.Random(f"{self._config.seed}:{question.id}")
        pool = self._indexes.get(question.stream, self._indexes[None]).top(question.question, POOL)
        ranked = rank_sentences(question.question, candidates(pool), self._weights)
        wanted = [hop.fact for hop in question.hops]
        telling = [self._telling(hop.fact, hop.article_ids) for hop in question.hops]
        if question.answerable and all(telling):
            chosen = list(dict.fromkeys(chance.choice(options) for options in telling))
            yield self._triple(question, "oracle", chosen, True)
            near = [choice for choice in ranked[:30] if choice.text not in {c.text for c in chosen}]
            extra = chance.sample(near, min(len(near), chance.randint(1, 6)))
            yield self._triple(question, "oracle+", [*chosen, *extra], True)
            texts = list(dict.fromkeys(choice.source for choice in chosen))
            if len(texts) <= 4:
                yield self._triple(question, "gold", _as_wholes(texts), True)
                more = [text for text in pool[:8] if text not in texts]
                drawn = chance.sample(more, min(len(more), chance.randint(1, 4)))
                yield self._triple(question, "gold+", _as_wholes([*texts, *drawn]), True)
        for budget in self._config.budgets:
            chosen = within_budget(ranked, budget, self._count)
            told = self._judge(question, wanted, chosen)
            if told is not None:
                yield self._triple(question, f"sentences{budget}", chosen, told)
        if question.answerable:
            quiet = [choice for choice in ranked[:60] if self._judge(question, wanted, [choice]) is False]
            chosen = within_budget(quiet, chance.choice(self._config.budgets), self._count)
            if chosen and self._judge(question, wanted, chosen) is False:
                yield self._triple(question, "silent", chosen, False)

    def _judge(self, question: Question, wanted: Sequence[str], chosen: Sequence[Candidate]) -> bool | None:
        """Whether the sentences tell all that is asked; None where they tell a part or another state of it."""
        if not question.answerable:
            return False
        facts = {fact for choice in chosen for fact in self._facts(choice)}
        if set(wanted) <= facts:
            return True
        keys = {fact.rsplit("|", 1)[0] for fact in facts}
        if any(fact.rsplit("|", 1)[0] in keys for fact in wanted):
            return None
        return None if holds_answer(text_of(as_sentences(chosen)), question.answers) else False

    def _facts(self, choice: Candidate) -> set[str]:
        article = choice.source.text_id.rsplit("#", 1)[0]
        return {fact for text, facts in self._told[article] if text in choice.text for fact in facts}

    def _telling(self, fact: str, articles: Sequence[str]) -> list[Candidate]:
        """Every sentence that tells a fact."""
        return [
            choice
            for article in articles
            for choice in candidates(self._pieces.get(article, ()))
            if fact in self._facts(choice)
        ]

    def _triple(self, question: Question, kind: str, chosen: Sequence[Candidate], told: bool) -> Triple:
        ordered = sorted(chosen, key=lambda choice: (choice.source.date, choice.source.text_id))
        sentences = as_sentences(ordered)
        return Triple(
            question_id=f"{self._config.name}-{self._config.seed}-{question.id}",
            dataset=self._config.name,
            split="train" if self._config.split == "train" else "test",
            kind=f"{question.kind}:{kind}",
            question=question.question,
            sentences=sentences,
            answers=question.answers,
            tells=told,
            target=target_text(_form(question, sentences) if told else None),
        )


def _as_wholes(texts: Sequence[SourceText]) -> list[Candidate]:
    return [Candidate(text, text.text, (at, 0)) for at, text in enumerate(texts)]


def _form(question: Question, sentences: Sequence[Sentence]) -> str:
    """The answer in the form that the text uses; a count, which no text states, in digits."""
    if question.kind == "count":
        return question.answers[0]
    text = text_of(sentences)
    return next((answer for answer in question.answers if holds_answer(text, [answer])), question.answers[0])
