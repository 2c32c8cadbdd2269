"""Answer scores as SQuAD defines them (arXiv 1606.05250): exact match and token F1, best over the gold answers."""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golds: Iterable[str]) -> float:
    """1.0 if the normalized answer equals one of the golds; an empty list of golds wants an empty answer."""
    given = normalize_answer(answer)
    return float(any(given == normalize_answer(gold) for gold in list(golds) or [""]))


def answer_f1(answer: str, golds: Iterable[str]) -> float:
    """Token F1 in [0, 1] against the best gold; an empty list of golds wants an empty answer."""
    return max(
        _f1(normalize_answer(answer).split(), normalize_answer(gold).split()) for gold in list(golds) or [""]
    )


def holds_answer(text: str, golds: Iterable[str]) -> bool:
    """Whether the normalized text holds one of the normalized golds as whole words."""
    hay = f" {normalize_answer(text)} "
    return any(f" {needle} " in hay for needle in map(normalize_answer, golds) if needle)


def _f1(given: list[str], gold: list[str]) -> float:
    if not given or not gold:
        return float(given == gold)
    common = sum((Counter(given) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(given), common / len(gold)
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a reader said of one question over one context.

    `tells`: the context holds the answer. `forced`: what it says when it may not give up (its answer otherwise).
    """

    answer: str
    given_up: bool
    golds: tuple[str, ...]
    tells: bool
    forced: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadingScores:
    """Mean scores in percent; a rate over no question is None.

    `em`, `f1` are over the readings of questions that have an answer, giving up counted 0; `forced_em` and
    `forced_f1` replace it by what the reader says when it must answer. `gave_up_wrongly` is over readings whose
    text tells, `gave_up_rightly` over the others. `f1_interval` is the 95% bootstrap interval of `f1`.
    """

    n: int
    em: float | None
    f1: float | None
    f1_interval: tuple[float, float] | None
    forced_em: float | None
    forced_f1: float | None
    num_silent: int
    gave_up_wrongly: float | None
    gave_up_rightly: float | None


def score_readings(readings: Sequence[Reading], seed: int = 0) -> ReadingScores:
    """Scores over readings; the same seed gives the same interval."""
    asked = [reading for reading in readings if reading.golds]
    f1s = [0.0 if reading.given_up else answer_f1(reading.answer, reading.golds) for reading in asked]
    forced = [(reading.forced if reading.given_up else reading.answer, reading.golds) for reading in asked]
    return ReadingScores(
        n=len(readings),
        em=_percent([0.0 if r.given_up else exact_match(r.answer, r.golds) for r in asked]),
        f1=_percent(f1s),
        f1_interval=bootstrap_interval(f1s, seed) if f1s else None,
        forced_em=_percent([exact_match(answer, golds) for answer, golds in forced]),
        forced_f1=_percent([answer_f1(answer, golds) for answer, golds in forced]),
        num_silent=sum(not reading.tells for reading in readings),
        gave_up_wrongly=_percent([float(reading.given_up) for reading in readings if reading.tells]),
        gave_up_rightly=_percent([float(reading.given_up) for reading in readings if not reading.tells]),
    )


def bootstrap_interval(values: Sequence[float], seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean, in percent; the same seed gives the same interval."""
    chance = random.Random(seed)
    means = sorted(sum(chance.choices(values, k=len(values))) / len(values) for _ in range(draws))
    return round(100 * means[int(0.025 * draws)], 2), round(100 * means[int(0.975 * draws) - 1], 2)


def _percent(values: Sequence[float]) -> float | None:
    return round(100 * sum(values) / len(values), 2) if values else None
