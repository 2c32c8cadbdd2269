"""Contexts that mislead: the sentence that tells among those that a search ranks beside or above it.

A question is read many times, never twice with the same context. In some of them the answer is exchanged for
another of its kind wherever it stands (arXiv 2109.05052), so that a reader cannot know it by heart and must read.
The same question, candidates and seed give the same contexts.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from models.retriever.table import GOLD
from pipeline.prepare.triples import Triple
from pipeline.session.prompts import Sentence, target_text
from pipeline.tasks.choices import label_of
from pipeline.tasks.contexts import (
    Candidate,
    CountTokens,
    as_sentences,
    tells,
    text_of,
    whole,
    within_budget,
)
from pipeline.tasks.qa import Question, SourceText
from pipeline.tasks.scores import holds_answer

_MONTH = re.compile(
    r"\b(January|February|March|April|May|June|July|August|September|October|November|December)\b"
)
_NAME = re.compile(r"^[A-Z][\w.'’&-]*( (of|the|de|la|and|von|van|in|[A-Z0-9][\w.'’&-]*))*$")


@dataclass(frozen=True, kw_only=True, slots=True)
class NearMissConfig:
    """How many contexts a question gets, and how they are drawn."""

    seed: int = field(default=0, metadata={"help": "the same seed gives the same contexts"})
    near: int = field(default=6, metadata={"help": "contexts of the telling sentence among near misses"})
    found: int = field(default=6, metadata={"help": "contexts as rankings give them within a budget"})
    silent: int = field(default=2, metadata={"help": "contexts of near misses alone"})
    exchanged: float = field(default=0.5, metadata={"help": "share of telling contexts, answer exchanged"})
    most_near: int = field(default=6, metadata={"help": "near misses beside what tells, at most"})
    reach: int = field(default=14, metadata={"help": "best near misses of a ranking that are drawn from"})
    budgets: tuple[int, ...] = field(
        default=(48, 64, 96, 128, 192, 256), metadata={"help": "tokens of contexts that rankings give"}
    )

    def __post_init__(self) -> None:
        for name in ("near", "found", "silent"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 0 or more")
        for name in ("most_near", "reach"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        if not 0 <= self.exchanged <= 1:
            raise ValueError(f"exchanged: given {self.exchanged}; allowed: 0 to 1")


@dataclass(frozen=True, slots=True)
class Misleading:
    """One reading, and what it might be misled to say: empty where nothing is known."""

    triple: Triple
    avoid: str = ""


def kind_of_answer(answer: str) -> str:
    """Year, date, number or name: what may be exchanged for its like; empty for everything else."""
    if re.fullmatch(r"1\d{3}|20\d{2}", answer):
        return "year"
    if _MONTH.search(answer) and re.search(r"\d", answer):
        return "date"
    if re.fullmatch(r"[$€£]?\d[\d,.]*( ?%| [a-z]+)?", answer):
        return "number"
    if _NAME.match(answer) and len(answer) > 3 and answer.lower() not in ("yes", "no"):
        return f"name{min(3, len(answer.split()))}"
    return ""


class AnswerPool:
    """Answers by their kind, for exchange."""

    def __init__(self, answers: Iterable[str]) -> None:
        kinds: dict[str, set[str]] = defaultdict(set)
        for answer in answers:
            kinds[kind_of_answer(answer)].add(answer)
        self._kinds = {kind: sorted(found) for kind, found in kinds.items() if kind}

    def like(self, answer: str, chance: random.Random) -> str:
        """Another answer of the same kind; empty where there is none."""
        found = self._kinds.get(kind_of_answer(answer), [])
        other = chance.choice(found) if found else ""
        return "" if other.lower() == answer.lower() else other


def exchange(sentences: Sequence[Sentence], answer: str, other: str) -> tuple[Sentence, ...] | None:
    """The sentences with `answer` exchanged for `other` wherever it stands as words; None where it stands nowhere.

    None also where a part of it stands alone elsewhere, such as a surname: the text would contradict itself.
    """
    pattern = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)")
    if not any(pattern.search(text) for _, _, text in sentences):
        return None
    made = tuple(
        (pattern.sub(lambda _: other, title), date, pattern.sub(lambda _: other, text))
        for title, date, text in sentences
    )
    left = set(re.findall(r"\w+", " ".join(f"{title} {text}" for title, _, text in made)))
    parts = [word for word in re.findall(r"\w+", answer) if len(word) > 3 and word[0].isupper()]
    return None if left & set(parts) - set(re.findall(r"\w+", other)) else made


class NearMisses:
    """One question's contexts, from its candidates and the orders in which rankings put them."""

    def __init__(
        self,
        question: Question,
        choices: Sequence[Candidate],
        orders: Mapping[str, Sequence[int]],
        golds: Sequence[SourceText],
        count_tokens: CountTokens,
        config: NearMissConfig,
    ) -> None:
        if not orders:
            raise ValueError("orders: given none; allowed: one ranking of the candidates or more")
        self._question, self._choices, self._orders = question, choices, orders
        self._golds, self._count, self._config = golds, count_tokens, config
        self._labels = [label_of(question, choice) for choice in choices]
        self._quiet = [
            not label and not holds_answer(f"{choice.source.title} {choice.text}", question.answers)
            for label, choice in zip(self._labels, choices, strict=True)
        ]

    def oracle(self) -> tuple[Sentence, ...] | None:
        """The sentences that tell: those the file names, else the first gold one of the first ranking."""
        if not self._question.answerable or self._question.dataset == "musique":
            return None
        if self._question.support:
            return tuple((title, "", text) for title, text in self._question.support)
        order = next(iter(self._orders.values()))
        best = next((at for at in order if self._labels[at] == GOLD), None)
        return None if best is None else as_sentences([self._choices[best]])

    def near(self, chance: random.Random, least: int = 1) -> tuple[Sentence, ...] | None:
        """What tells among near misses of a ranking drawn at random, texts in random order; None without either."""
        oracle = self.oracle()
        extra = self._near_misses(chance, chance.randint(least, self._config.most_near))
        if oracle is None or not extra:
            return None
        told = {text for _, _, text in oracle}
        return _mixed([*oracle, *(s for s in as_sentences(extra) if s[2] not in told)], chance)

    def silent(self, chance: random.Random, least: int = 1) -> tuple[Sentence, ...]:
        """Near misses alone; empty where there are none."""
        extra = self._near_misses(chance, chance.randint(least, self._config.most_near))
        return _mixed(as_sentences(extra), chance)

    def found(self, ranking: str, budget: int, chance: random.Random | None) -> tuple[Sentence, ...]:
        """What a ranking gives within a budget; texts mixed as in `near` (without `chance`: as ranked)."""
        ranked = [self._choices[at] for at in self._orders[ranking]]
        sentences = as_sentences(within_budget(ranked, budget, self._count))
        return sentences if chance is None else _mixed(sentences, chance)

    def training(self, pool: AnswerPool, misled: str = "") -> Iterator[Misleading]:
        """The training contexts; `misled` is what a reader says when it reads near misses alone."""
        chance = random.Random(f"{self._config.seed}:near:{self._question.question_id}")
        seen: set[tuple[Sentence, ...]] = set()
        for kind, sentences in self._drawn(chance):
            if not sentences or sentences in seen:
                continue
            seen.add(sentences)
            told = tells(self._question, sentences)
            if kind == "silent" and told:
                continue
            # an answer string outside the gold texts may answer something else: such contexts are left out
            if told and kind.startswith("found") and not self._told_by_gold(sentences):
                continue
            yield Misleading(self._triple(kind, sentences, told), self._avoid(sentences, misled, told))
            if told and chance.random() < self._config.exchanged:
                yield from self._exchanged(kind, sentences, pool, chance)

    def judged(self, budgets: Sequence[int] = (128, 256)) -> Iterator[Triple]:
        """One context of each kind that the reader is judged by."""
        chance = random.Random(f"{self._config.seed}:judged:{self._question.question_id}")
        near = self.near(chance, least=3)
        if near is not None:
            yield self._triple("near", near, tells(self._question, near))
        for ranking in ("hybrid", "dense"):
            for budget in budgets if ranking in self._orders else ():
                sentences = self.found(ranking, budget, chance)
                yield self._triple(f"{ranking}{budget}", sentences, tells(self._question, sentences))

    def _drawn(self, chance: random.Random) -> Iterator[tuple[str, tuple[Sentence, ...] | None]]:
        question, config, rankings = self._question, self._config, list(self._orders)
        if question.answerable and self._golds:
            yield "oracle", self.oracle()
            for _ in range(config.near):
                yield "near", self.near(chance)
        if self._golds:
            yield "gold", whole(self._golds)
            yield "gold+", self._gold_among(chance)
        rounds = config.found if self._golds or not question.answerable else 1
        for _ in range(rounds):
            budget = chance.choice(config.budgets) if self._golds else max(config.budgets)
            name = "found" if self._golds or not question.answerable else "distant"
            yield name, self.found(chance.choice(rankings), budget, chance)
        for _ in range(config.silent if self._golds else 0):
            yield "silent", self.silent(chance)

    def _gold_among(self, chance: random.Random) -> tuple[Sentence, ...]:
        others = [c.source for c in self._choices if c.source.text_id not in self._question.gold_ids]
        texts = list({text.text_id: text for text in others}.values())[:8]
        extra = chance.sample(texts, min(len(texts), chance.randint(1, 3)))
        return _mixed(whole([*self._golds, *extra]), chance)

    def _near_misses(self, chance: random.Random, most: int) -> list[Candidate]:
        order = self._orders[chance.choice(list(self._orders))]
        quiet = [at for at in order if self._quiet[at]][: self._config.reach]
        # the best near misses are the most misleading ones: they are drawn twice as often as the last
        drawn = sorted(quiet, key=lambda at: chance.random() ** (1 + quiet.index(at) / len(quiet)))
        return [self._choices[at] for at in drawn[-most:]]

    def _told_by_gold(self, sentences: Sequence[Sentence]) -> bool:
        if {answer.lower() for answer in self._question.answers} <= {"yes", "no"}:
            return True
        told = [text for _, _, text in sentences if holds_answer(text, self._question.answers)]
        return any(text in gold.text for text in told for gold in self._golds)

    def _avoid(self, sentences: Sequence[Sentence], misled: str, told: bool) -> str:
        wrong = misled and not holds_answer(misled, self._question.answers)
        return misled if told and wrong and holds_answer(text_of(sentences), [misled]) else ""

    def _exchanged(
        self, kind: str, sentences: tuple[Sentence, ...], pool: AnswerPool, chance: random.Random
    ) -> Iterator[Misleading]:
        answer = self._answer(sentences)
        other = pool.like(answer, chance)
        if not other or holds_answer(f"{self._question.text} {text_of(sentences)}", [other]):
            return
        if holds_answer(self._question.text, [answer]):
            return
        made = exchange(sentences, answer, other)
        if made is not None and not holds_answer(text_of(made), self._question.answers):
            triple = self._triple(f"{kind}~", made, True, answers=(other,))
            yield Misleading(triple, answer)

    def _answer(self, sentences: Sequence[Sentence]) -> str:
        """The answer in the form in which the text tells it, the first of the golds where none is found."""
        text = text_of(sentences)
        answers = self._question.answers
        return next((answer for answer in answers if holds_answer(text, [answer])), answers[0])

    def _triple(
        self, kind: str, sentences: Sequence[Sentence], told: bool, answers: tuple[str, ...] = ()
    ) -> Triple:
        question = self._question
        right = answers[0] if answers else (self._answer(sentences) if told else None)
        return Triple(
            question_id=question.question_id,
            dataset=question.dataset,
            split=question.split,
            kind=kind,
            question=question.text,
            sentences=tuple(sentences),
            answers=answers or (question.answers if question.answerable else ()),
            tells=told,
            target=target_text(right),
        )


def _mixed(sentences: Iterable[Sentence], chance: random.Random) -> tuple[Sentence, ...]:
    """Texts in random order, dated ones oldest first as sessions give them; sentences of a text together."""
    groups: dict[tuple[str, str], list[Sentence]] = {}
    for sentence in sentences:
        groups.setdefault((sentence[0], sentence[1]), []).append(sentence)
    order = list(groups.values())
    chance.shuffle(order)
    return tuple(sentence for group in sorted(order, key=lambda g: g[0][1]) for sentence in group)
