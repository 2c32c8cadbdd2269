"""All kinds of pair reader of a run as one: the weights of their scores, and the features that policies see of all.

The weights are fitted on training questions, each scored by the folds that were not trained on it. The first pass
is known from each kind's scores.npz; the best candidate of all together may be no one's, so the second is read.
OUT/pairs_both/<fold>/scores.npz is as each kind's own; the whole's folder says the weights (the readers themselves
stay where they are: `policy_ship` puts them together).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from infra.training.policy_pairs import (
    DECODER,
    FOLDS,
    KINDS,
    MINILM,
    PAIRS_BOTH,
    PLACES,
    PairBase,
    Say,
    fold_rows,
    hit_of,
    scores_in,
    texts_asked,
)
from models.retriever.combined_pair import CombinedPairReader, parts_of, put_weights
from models.retriever.pair_base import SCORE_LIMIT
from models.retriever.pair_reader import CONFIG
from models.retriever.table import GOLD
from pipeline.tasks.material import Material

Doubles = npt.NDArray[np.float64]
BATCH = 512
_PULL = 1e-4
"""Loss for a weight e times what it begins with, or an e-th of it."""
MIX = "pair_mix"
"""What orders by weighted sums of some kinds are called: `pair_mix_e5_minilm`."""


def first_scores(columns: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The scores of the first pass, within SCORE_LIMIT, from pair features. [N, K, 6] to [N, K]"""
    return columns[..., 0] * np.float32(SCORE_LIMIT / 2)


def fit_weights(material: Material, out: Path, kinds: Sequence[str] = (DECODER, MINILM)) -> tuple[float, ...]:
    """The weights of these kinds' scores that make training questions' labels likeliest, in their order.

    Rows with a gold candidate: it, or each where all are needed, against the others that hold no answer and "none".
    Rows where nothing tells: "none". ValueError where no training question tells anything.
    """
    tables = material.tables
    rows = material.rows("train")
    labels, present = tables.labels[rows], tables.present[rows]
    gold = (labels == GOLD) & present
    usable = gold.any(1) | ~((labels > 0) & present).any(1)
    rows, gold = rows[usable], gold[usable]
    if not gold.any():
        raise ValueError(
            "no training question has a candidate that tells: there is nothing to fit weights on"
        )
    shown = torch.from_numpy((present & ((labels == 0) | (labels == GOLD)))[usable])
    firsts = [
        torch.from_numpy(first_scores(scores_in(material, out / PLACES[kind])[rows])).double()
        for kind in kinds
    ]
    right = torch.from_numpy(gold).double()
    every = torch.from_numpy(tables.needs_all[rows])
    none = ~right.any(1)
    start = float(np.log(1 / len(kinds)))
    logs = torch.full((len(kinds),), start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logs], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = sum(weight * first for weight, first in zip(logs.exp(), firsts, strict=True))
        assert isinstance(scores, torch.Tensor)
        logits = torch.cat([torch.where(shown, scores, -1e4), scores.new_zeros(len(rows), 1)], 1)
        known = logits.log_softmax(1)
        one = torch.logsumexp(torch.where(right > 0, known[:, :-1], -1e4), 1)
        each = (right * known[:, :-1]).sum(1) / right.sum(1).clamp_min(1)
        value = -torch.where(none, known[:, -1], torch.where(every, each, one)).mean()
        # where few questions are told apart wholly (or a kind tells nothing) the best weight is none that there is
        value = value + _PULL * ((logs - start) ** 2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call, arg-type]
    return tuple(float(each) for each in logs.detach().exp().tolist())


def mixed_orders(material: Material, out: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The orders [N, K] by weighted sums of two or more kinds, where the folds of three kinds are there."""
    there = [
        kind for kind in KINDS if all((out / PLACES[kind] / fold / "scores.npz").exists() for fold in FOLDS)
    ]
    firsts = {kind: first_scores(scores_in(material, out / PLACES[kind])) for kind in there}
    found = {}
    for count in range(2, len(there) + 1) if len(there) > 2 else ():
        for kinds in combinations(there, count):
            weights = fit_weights(material, out, kinds)
            found["_".join([MIX, *kinds])] = sum(
                (np.float32(weight) * firsts[kind] for weight, kind in zip(weights, kinds, strict=True)),
                np.zeros(material.tables.present.shape, np.float32),
            )
    return found


def combine_fold(
    material: Material, bases: Mapping[str, PairBase], fold: str, out: Path, device: str, say: Say,
    weights: tuple[float, ...] = (),
) -> None:  # fmt: skip
    """Fit the weights, and make one fold's features of all readers: OUT/pairs_both/<fold>/scores.npz.

    `weights`: those given are taken, in the order of KINDS.
    """
    folder = out / PAIRS_BOTH / fold
    if (folder / "scores.npz").exists():
        return
    began = time.monotonic()
    kinds = [kind for kind in KINDS if kind in bases]
    weights = weights or fit_weights(material, out, kinds)
    readers = [bases[kind].load(out / PLACES[kind] / fold, device) for kind in kinds]
    reader = CombinedPairReader(readers, weights, kinds)
    _, scored = fold_rows(material, fold)
    known = [first_scores(_columns(out / PLACES[kind] / fold, scored)) for kind in kinds]
    firsts = sum(
        (np.float32(weight) * each for weight, each in zip(weights, known, strict=True)),
        np.zeros_like(known[0]),
    )
    columns = np.zeros((len(scored), material.tables.num_candidates, 6), np.float32)
    for start in range(0, len(scored), BATCH):
        asked = texts_asked(material, scored[start : start + BATCH], around=reader.around)
        own = [firsts[start + at, : len(texts)] for at, (_, texts) in enumerate(asked)]
        for at, found in enumerate(reader.features_after(asked, own), start):
            columns[at, : len(found)] = found
    folder.mkdir(parents=True, exist_ok=True)
    if fold == FOLDS[-1]:
        about = {"fold": fold, "fitted_on": "training questions, by folds without them"}
        put_weights(folder, weights, about, kinds)
    part = folder / "scores.part.npz"
    np.savez(part, rows=scored, columns=columns)
    part.rename(folder / "scores.npz")
    told = dict(zip(kinds, (round(weight, 4) for weight in weights), strict=True))
    hit = hit_of(material, scored, columns[..., 0])
    say(f"both {fold}: {json.dumps(told)}, hit@1 {hit:.1f}, {time.monotonic() - began:.0f} s")


def put_both(home: Path, target: Path, copied: Callable[[Path, Path], Path]) -> Path:
    """The folder of all readers that a session serves, from a run's; `copied` brings one reader's folder over."""
    config = home / PAIRS_BOTH / "whole" / CONFIG
    for kind in parts_of(json.loads(config.read_text(encoding="utf-8"))):
        copied(home / PLACES[kind] / "whole", target / kind)
    (target / CONFIG).write_bytes(config.read_bytes())
    return target


def _columns(folder: Path, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """One fold's pair features; ValueError where they are of other questions."""
    with np.load(folder / "scores.npz") as packed:
        if not np.array_equal(packed["rows"], rows):
            raise ValueError(f"{folder}: its scores are of other questions; run the stage pairs again")
        found: npt.NDArray[np.float32] = packed["columns"]
        return found
