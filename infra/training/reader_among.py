"""The fold readers' long contexts: the sentences that tell among as many others as policies and rankings choose.

What is chosen from is what policies choose from: the candidates of the policy's material where it has the question
(`Offered`), else sentences of BM25's best passages; near misses are drawn from the best of each ranking. In half of
the telling contexts the answer is exchanged (pipeline/prepare/near_misses.py), lest a question be known by heart.
Blanked sentences of Wikipedia passages are read so too: their variety does not end with half of the questions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.retriever.table import FEATURES
from pipeline.prepare.near_misses import AnswerPool, Misleading, NearMissConfig, NearMisses
from pipeline.prepare.triples import Triple
from pipeline.session.prompts import Sentence
from pipeline.tasks.contexts import (
    Candidate,
    CountTokens,
    WordWeights,
    as_sentences,
    candidates,
    rank_sentences,
)
from pipeline.tasks.material import Material
from pipeline.tasks.qa import Question, SourceText
from pipeline.tasks.scores import holds_answer

CONFIG = NearMissConfig(
    near=3, found=3, silent=1, most_near=9, reach=20, budgets=(64, 96, 128, 160, 192, 256)
)
"""What tells beside one to nine others; budgets from what policies read to what simple methods read best with.

Shorter ones are among the shipped reader's kinds: 57% of those rows have 3 sentences or more, 22% have 6."""
PASSAGES = 12
RANKED_BY = {"dense": "dense", "hybrid": "fused"}
"""Orders that the material tells, by the feature that ranks them."""


@dataclass(frozen=True, slots=True)
class Offered:
    """The sentences that policies choose from for a question, and orders of them, best first."""

    sentences: tuple[Sentence, ...]
    places: tuple[tuple[int, int], ...]
    orders: Mapping[str, tuple[int, ...]]


def offered(material: Material) -> dict[str, Offered]:
    """What the training and dev questions of a material are offered, by question id."""
    found = {}
    for row, question in enumerate(material.questions):
        if question.split == "test":
            continue
        features = material.tables.features[row, : len(question.sentences)]
        orders = {
            name: tuple(np.argsort(-features[:, FEATURES.index(feature)], kind="stable").tolist())
            for name, feature in RANKED_BY.items()
        }
        found[question.question_id] = Offered(question.sentences, question.places, orders)
    return found


def contexts(
    question: Question,
    golds: Sequence[SourceText],
    pool: Sequence[SourceText],
    offer: Offered | None,
    is_open: Callable[[str], bool],
    weights: WordWeights,
    count_tokens: CountTokens,
    answers: AnswerPool,
    config: NearMissConfig = CONFIG,
) -> Iterator[Misleading]:
    """The contexts of a question; what is offered under a title that is not open is left out.

    `pool` and `golds` hold open texts only. None where no gold text is known: such questions have one reading.
    """
    if not golds:
        return
    choices, orders = _candidates(question, golds, pool, offer, is_open)
    ranked = rank_sentences(question.text, choices, weights)
    at = {choice.place: number for number, choice in enumerate(choices)}
    orders["bm25"] = [at[choice.place] for choice in ranked]
    misses = NearMisses(question, choices, orders, golds, count_tokens, config)
    for each in misses.training(answers):
        # apart from the shipped reader's kinds, so that their shares can differ
        yield replace(each, triple=replace(each.triple, kind=f"among:{each.triple.kind}"))


def cloze_among(
    triple: Triple, near: Sequence[SourceText], weights: WordWeights, seed: int = 0, most_near: int = 9
) -> Triple | None:
    """A blanked sentence read with one that tells among near misses of other texts; None where there are none."""
    chance = random.Random(f"{seed}:among:{triple.question_id}")
    telling = [sentence for sentence in triple.sentences if holds_answer(sentence[2], triple.answers)]
    ranked = rank_sentences(triple.question, candidates(near), weights)
    # a text that has the blanked sentence itself would be no near miss
    quiet = [
        choice
        for choice in ranked[:40]
        if not holds_answer(f"{choice.source.title} {choice.text}", triple.answers)
        and choice.source.title != triple.sentences[0][0]
    ]
    if not telling or not quiet:
        return None
    extra = as_sentences(chance.sample(quiet[:20], min(len(quiet[:20]), chance.randint(1, most_near))))
    groups: dict[str, list[Sentence]] = {}
    for sentence in [chance.choice(telling), *extra]:
        groups.setdefault(sentence[0], []).append(sentence)
    order = list(groups.values())
    chance.shuffle(order)
    return replace(triple, kind="among", sentences=tuple(sentence for group in order for sentence in group))


def _candidates(
    question: Question,
    golds: Sequence[SourceText],
    pool: Sequence[SourceText],
    offer: Offered | None,
    is_open: Callable[[str], bool],
) -> tuple[list[Candidate], dict[str, list[int]]]:
    """What is chosen from, and the orders of what is offered; gold sentences that no ranking found come last."""
    if offer is None:
        texts = [*pool[:PASSAGES], *(gold for gold in golds if gold not in pool[:PASSAGES])]
        return candidates(texts), {}
    known: dict[str, list[SourceText]] = {}
    for text in [*golds, *pool]:
        known.setdefault(text.title, []).append(text)
    kept = [at for at, (title, _, _) in enumerate(offer.sentences) if is_open(title)]
    choices = []
    for at in kept:
        title, date, sentence = offer.sentences[at]
        own = next((text for text in known.get(title, []) if sentence in text.text), None)
        rank = offer.places[at][0]
        source = own or SourceText(text_id=f"offered-{rank}", title=title, text=sentence, date=date)
        choices.append(Candidate(source, sentence, offer.places[at]))
    new = {old: number for number, old in enumerate(kept)}
    orders = {name: [new[at] for at in order if at in new] for name, order in offer.orders.items()}
    have = {choice.text for choice in choices}
    texts_before = 1 + max((place[0] for place in offer.places), default=0)
    for choice in candidates(golds):
        if choice.text not in have:
            choices.append(replace(choice, place=(texts_before + choice.place[0], choice.place[1])))
            for order in orders.values():
                order.append(len(choices) - 1)
    return choices, orders
