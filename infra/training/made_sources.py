"""What questions are made from, and what their maker learns from: sentences, and pairs of training questions.

Nothing under a gold title of any question (train, dev or test) is a source, so neither folds nor tests can leak
into what is made. The maker learns from the policy's training questions alone, never from those of dev or test.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.training.policy_carry import CORPUS, SETS
from infra.training.policy_material import HostMaterialConfig, picked, with_hops
from pipeline.session.prompts import one_line
from pipeline.session.sentences import split_sentences
from pipeline.tasks.contexts import words
from pipeline.tasks.qa import (
    Question,
    SourceText,
    assign_splits,
    read_lines,
    read_passages,
    read_questions,
    title_key,
)
from pipeline.tasks.scores import holds_answer

STYLES = {"nq": 0.5, "squad": 0.3, "hops": 0.2}
"""Ways of asking, each a word in the maker's prompt, and their shares of what is made."""
STYLE_OF = {"nq": "nq", "squad": "squad", "hotpot": "hops", "musique": "hops"}
LEAST_SHARED, SEVERAL_SHARED = 0.3, 0.5
"""So many of a question's words must be of the sentence that stands for it: one that tells; one hop of several."""


@dataclass(frozen=True, slots=True)
class Source:
    """A sentence that a question is to be made of, in a way of asking."""

    style: str
    text_id: str
    title: str
    sentence: str
    via: tuple[Source, ...] = ()
    """What is read before it, of a question that needs both: the sentence that leads here."""


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """What the maker learns: of this source, ask this question with this answer, a span of the sentence."""

    source: Source
    answer: str
    question: str


@dataclass(frozen=True, slots=True)
class Carried:
    """The carried questions and passages."""

    texts: Mapping[str, SourceText]
    every: tuple[Question, ...]
    """All questions with their splits, several-hop ones with their supports."""
    hops: tuple[TrainingPair, ...]
    """The single hops that MuSiQue's training questions are made of."""
    training: tuple[Question, ...]
    """Those that the maker may learn from."""

    @property
    def gold_titles(self) -> frozenset[str]:
        """The keys of all gold titles, whatever the split."""
        return frozenset(title_key(title) for question in self.every for title in question.titles)

    def open_texts(self) -> list[SourceText]:
        """The passages under no gold title, in their order."""
        closed = self.gold_titles
        return [text for text in self.texts.values() if title_key(text.title) not in closed]


def read_carried(carried: Path) -> Carried:
    """Read what `policy_carry` brought and part what may be learned from what may not."""
    texts = read_passages(carried / "corpus" / f"{CORPUS}.jsonl.zst")
    every = [q for name in SETS for q in read_questions(carried / "qa" / f"{name}.jsonl.zst")]
    musique = carried / "qa" / "musique.jsonl.zst"
    every = with_hops(assign_splits(every, texts), texts, musique)
    # what the policy keeps for choosing is dev here too, by its own rule
    training = [question for question in picked(every, HostMaterialConfig()) if question.split == "train"]
    allowed = {question.question_id: question for question in training}
    hops = [
        pair
        for row in read_lines(musique)
        if row["id"] in allowed
        for pair in _single_hops(row, [texts[at] for at in allowed[row["id"]].gold_ids if at in texts])
    ]
    return Carried(texts, tuple(every), tuple(hops), tuple(training))


def training_pairs(carried: Carried) -> list[TrainingPair]:
    """One pair a question that a single sentence tells, in the order of the files; MuSiQue's hops last."""
    found = [pair for question in carried.training if (pair := pair_of(question, carried.texts))]
    return [*found, *carried.hops]


def pair_of(question: Question, texts: Mapping[str, SourceText]) -> TrainingPair | None:
    """The question with the gold sentence that shares most of its words; None where no one sentence tells it."""
    several = len(question.support) > 1
    if question.support:
        told = list(question.support)
    else:
        golds = [texts[name] for name in question.gold_ids if name in texts]
        told = [(text.title, sentence) for text in golds for sentence in split_sentences(text.text)]
    asked = set(words(question.text))
    best: tuple[float, str, str, str] | None = None
    for title, sentence in told:
        answer = span_in(sentence, question.answers)
        if not answer or len(sentence.split()) > 80:
            continue
        shared = len(asked & set(words(f"{title} {sentence}"))) / max(1, len(asked))
        if best is None or shared > best[0]:
            best = shared, title, sentence, answer
    if best is None or best[0] < (SEVERAL_SHARED if several else LEAST_SHARED):
        return None
    _, title, sentence, answer = best
    ids = {texts[name].title: name for name in question.gold_ids if name in texts}
    source = Source(STYLE_OF[question.dataset], ids.get(title, ""), one_line(title), one_line(sentence))
    return TrainingPair(source, answer, one_line(question.text))


def span_in(sentence: str, answers: Iterable[str]) -> str:
    """The first of the answers that stands in the sentence as whole words, as the sentence spells it; else ''."""
    lower = sentence.lower()
    for answer in map(one_line, answers):
        at = lower.find(answer.lower()) if answer else -1
        if at >= 0 and holds_answer(sentence, [answer]):
            return sentence[at : at + len(answer)]
    return ""


def draw_sources(
    texts: Sequence[SourceText], count: int, seed: int, least: int = 8, most: int = 60
) -> list[Source]:
    """`count` sentences of `least` to `most` words of these texts, drawn by the seed, each with a style."""
    chance = random.Random(seed)
    whole = [
        (text, sentence)
        for text in texts
        for sentence in split_sentences(text.text)
        if least <= len(sentence.split()) <= most
    ]
    drawn = chance.sample(whole, min(count, len(whole)))
    styles = chance.choices(list(STYLES), list(STYLES.values()), k=len(drawn))
    return [
        Source(style, text.text_id, one_line(text.title), sentence)
        for style, (text, sentence) in zip(styles, drawn, strict=True)
    ]


def _single_hops(row: Mapping[str, object], golds: Sequence[SourceText]) -> list[TrainingPair]:
    """The hops of a MuSiQue question that are questions of their own (no "#1", no "x >> y")."""
    found = []
    hops = row["decomposition"]
    assert isinstance(hops, list)
    for at, hop in enumerate(hops):
        if "#" in hop["question"] or ">>" in hop["question"]:
            continue
        for text in [*golds[at : at + 1], *golds]:
            sentence = next((s for s in split_sentences(text.text) if span_in(s, [hop["answer"]])), "")
            if sentence:
                source = Source("hops", text.text_id, one_line(text.title), sentence)
                found.append(
                    TrainingPair(source, span_in(sentence, [hop["answer"]]), one_line(hop["question"]))
                )
                break
    return found
