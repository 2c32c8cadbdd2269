"""Answers of several readings of one question joined into one: the ways compared, over rows of `apart_rows`.

A *voter* is a reading with what is known of it; voters with the same answer add up. What a voter weighs is exp of a
few weights times its inputs (`INPUTS`), fitted by the F1 that is expected of the answer. Ways:

* together: the one reading of all that was chosen (today's)
* pair, margin: apart, the answer of the sentence with the best pair score; of the reading furthest from giving up
* joined: every sentence alone is a voter; both: and so is the reading together
* two: and so are the first sentences by two, where more than one sentence was chosen
* crossed: p(answer) = sum over sentences of p(sentence) p(answer | sentence), each answer weighed under each
  sentence (RAG-Sequence, arXiv 2005.11401), where rows hold that (`apart_rows.weighed`)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Row = Mapping[str, Any]
Floats = npt.NDArray[np.float64]
PLAIN, FITTED, CROSSED = ("together", "pair", "margin"), ("joined", "both", "two"), "crossed"
WAYS = (*PLAIN, *FITTED, CROSSED)
INPUTS = (
    "pair",  # the pair reader's score by 8, of a single sentence; 0 of others
    "whole",  # log-probability of the answer with its line end, giving up counted as lost, by 4
    "mean",  # the same a token
    "margin",  # by which another first token is likelier than giving up, by 4
    "together",  # 1 for the reading together
    "together_whole",
    "together_margin",
    "two",  # 1 for two sentences
    "two_whole",
    "two_margin",
)


@dataclass(frozen=True, slots=True)
class Voter:
    """A reading that has a say: its answer, that answer's F1, its inputs in the order of INPUTS."""

    answer: str
    f1: float
    inputs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """A reading as a row has it."""

    answer: str
    f1: float
    margin: float
    logp: float
    count: int

    @property
    def whole(self) -> float:
        """Log-probability of the answer with what giving up takes off its first token."""
        return self.logp


def said_of(row: Row) -> dict[tuple[int, ...], Said]:
    """The readings of a row by their picks; giving up counts as lost in their log-probability."""
    found = {}
    for picks, answer, f1, margin, logp, first, count in row["read"]:
        # margin is against the best other token, whose log-probability without giving up is `first`
        lost = math.log1p(math.exp(min(40.0, margin + first)))
        found[tuple(picks)] = Said(answer, f1, margin, logp - lost, count)
    return found


def voters(row: Row, said: Mapping[tuple[int, ...], Said], picks: Sequence[int], way: str) -> list[Voter]:
    """Who has a say over a choice in one of the fitted ways; the reading without text where nothing is chosen."""
    if len(picks) < 2:
        return [_voter(said[tuple(picks)], 0.0, "")]
    pair = row["features"].get("pair", [0.0] * len(row["tokens"]))
    found = [_voter(said[(pick,)], pair[pick], "") for pick in picks]
    whole = tuple(sorted(picks))
    if way in ("both", "two"):
        found.append(_voter(said[whole], 0.0, "together"))
    if way == "two" and len(picks) > 2:
        chosen = set(picks)
        found += [
            _voter(one, 0.0, "two") for key, one in said.items() if len(key) == 2 and chosen.issuperset(key)
        ]
    return found


def _voter(one: Said, pair: float, kind: str) -> Voter:
    whole, margin = max(-5.0, one.whole / 4), min(4.0, max(-4.0, -one.margin / 4))
    mean = max(-5.0, one.whole / max(1, one.count))
    inputs = [0.0] * len(INPUTS)
    if kind:
        at = INPUTS.index(kind)
        inputs[at : at + 3] = [1.0, whole, margin]
    else:
        inputs[:4] = [pair, whole, mean, margin]
    return Voter(one.answer, one.f1, tuple(inputs))


def winner(votes: Sequence[Voter], weights: Sequence[float]) -> Voter:
    """The strongest voter of the answer that weighs most."""
    logits = np.array([each.inputs for each in votes]) @ np.asarray(weights)
    strength = np.exp(logits - logits.max())
    sums: dict[str, float] = {}
    for each, weight in zip(votes, strength.tolist(), strict=True):
        sums[each.answer] = sums.get(each.answer, 0.0) + weight
    best = max(sums, key=lambda answer: sums[answer])
    of_best = [at for at, each in enumerate(votes) if each.answer == best]
    return votes[max(of_best, key=lambda at: float(strength[at]))]


def fit(asked: Sequence[Sequence[Voter]], *, ridge: float = 1e-3, steps: int = 500) -> list[float]:
    """The weights under which the F1 that is expected of the answers is greatest, in logarithm, over questions.

    Full-batch Adam from weights that trust a reading's own probability. ValueError without a question that has two
    different answers: nothing could be learned.
    """
    asked = [votes for votes in asked if len({each.answer for each in votes}) > 1]
    if not asked:
        raise ValueError("asked: given no question with two answers; allowed: one at least")
    width = max(map(len, asked))
    inputs = np.zeros((len(asked), width, len(INPUTS)), np.float32)
    right = np.zeros((len(asked), width), np.float32)
    there = np.zeros((len(asked), width), bool)
    for at, votes in enumerate(asked):
        inputs[at, : len(votes)] = [each.inputs for each in votes]
        right[at, : len(votes)] = [each.f1 for each in votes]
        there[at, : len(votes)] = True
    given, scores, mask = torch.from_numpy(inputs), torch.from_numpy(right), torch.from_numpy(there)
    used = (given.abs().sum((0, 1)) > 0).float()
    weights = torch.zeros(len(INPUTS))
    weights[[INPUTS.index(name) for name in INPUTS if name.endswith("whole")]] = 2.0
    weights[INPUTS.index("pair")] = 4.0
    weights = (weights * used).requires_grad_(True)
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for _ in range(steps):
        logits = (given @ weights).masked_fill(~mask, -1e4)
        expected = (logits.softmax(1) * scores).sum(1)
        loss = -(expected + 0.05).log().mean() + ridge * weights.square().sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return [round(float(each), 4) for each in (weights.detach() * used)]


def answered(
    row: Row, said: Mapping[tuple[int, ...], Said], picks: Sequence[int], way: str,
    weights: Sequence[float] | None = None,
) -> float:  # fmt: skip
    """The F1 of the answer that a way gives over a choice; NaN where the row lacks what `crossed` wants."""
    if way == "together" or len(picks) < 2:
        return said[tuple(sorted(picks))].f1
    if way == "pair":
        pair = row["features"]["pair"]
        return said[(max(picks, key=lambda pick: pair[pick]),)].f1
    if way == "margin":
        return min((said[(pick,)] for pick in picks), key=lambda one: one.margin).f1
    if weights is None:
        raise ValueError(f"weights: given none; the way {way} needs them")
    if way == CROSSED:
        return crossed(row, said, picks, weights)
    return winner(voters(row, said, picks, way), weights).f1


def crossed(
    row: Row, said: Mapping[tuple[int, ...], Said], picks: Sequence[int], weights: Sequence[float]
) -> float:
    """RAG-Sequence over a choice: weights are of the pair score, of log p(answer | sentence), of it without text
    (taken off), and of the answer under the sentences together (added)."""
    known: dict[tuple[int, ...], dict[str, float]] = {
        tuple(each): {} for each, _, _ in row.get("crossed", ())
    }
    for each, answer, logp in row.get("crossed", ()):
        known[tuple(each)][answer] = logp
    if any((pick,) not in known for pick in picks):
        return math.nan
    pair = row["features"]["pair"]
    sharp, of_sentence, of_none, of_all = weights
    prior = np.array([8 * sharp * pair[pick] for pick in picks])
    prior -= np.logaddexp.reduce(prior)
    answers = {said[(pick,)].answer: said[(pick,)].f1 for pick in picks}
    whole = known.get(tuple(sorted(picks)), {})

    def score(answer: str) -> float:
        under = np.array([of_sentence * known[(pick,)][answer] for pick in picks])
        together = whole.get(answer, 0.0)
        return float(np.logaddexp.reduce(prior + under)) - of_none * known[()][answer] + of_all * together

    best: float = answers[max(answers, key=score)]
    return best


def cost(row: Row, picks: Sequence[int], way: str) -> tuple[int, int]:
    """Tokens that the reader is given: of text with heads, every time that it is read; and of repeated prompts."""
    tokens, heads, groups = row["tokens"], row["heads"], row["groups"]
    together = sum(tokens[pick] for pick in picks) + sum(
        {groups[pick]: heads[pick] for pick in picks}.values()
    )
    alone = sum(tokens[pick] + heads[pick] for pick in picks)
    prompt = int(row["prompt"])
    if way == "together" or len(picks) < 2:
        return together, 0
    if way == "pair":
        best = max(picks, key=lambda pick: row["features"]["pair"][pick])
        return tokens[best] + heads[best], 0
    if way == "both":
        return alone + together, len(picks) * prompt
    if way == "two":
        twos = min(10, len(picks) * (len(picks) - 1) // 2) if len(picks) > 2 else 0
        return alone + together + round(twos * 2 * alone / len(picks)), (len(picks) + twos) * prompt
    return alone, (len(picks) - 1) * prompt
