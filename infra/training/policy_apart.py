"""Reading apart in a policy run: which candidates are read alone, the verifier of their answers, what is trusted.

The verifier is the pair reader trained on: it reads a question with "answer. title: sentence" and tells whether the
answer is right, so a handful of weights (`models/retriever/trust.py`) can choose among answers. As with the pair
reader, training questions are scored by a verifier that was not trained on them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.training.policy_pairs import FOLDS, PairBase, Say, fold_rows
from infra.training.policy_readers import TextReader
from models.retriever.pair_reader import PairRow, PairScorer, save_pair_reader
from models.retriever.pair_training import PairTexts, PairTrainConfig, train_pairs
from models.retriever.table import ALL_FEATURES, FEATURES, GOLD, Floats
from models.retriever.trust import KINDS, Combination, SingleReadings, claim, fit
from pipeline.session.prompts import reader_prompt
from pipeline.tasks.material import Material
from rl.apart import SpokenTable
from rl.episodes import Request

CHUNK = 64
RIGHT = 0.5
"""F1 from which an answer counts as right for the verifier."""
REACHES = {"train": {"pair": 10, "fused": 6}, "": {"pair": 12, "fused": 8, "bm25": 8, "dense": 8}}
"""How many of the best by each ranking are read alone; "": of dev and test questions."""
Bools = npt.NDArray[np.bool_]


def choosable(material: Material) -> Bools:
    """The candidates that may be chosen where choices are read apart: the best of several rankings. [N, K]

    By nothing but what a session knows; labels play no part.
    """
    tables = material.tables
    found = np.zeros(tables.present.shape, bool)
    trained = np.array([question.split == "train" for question in material.questions])
    for name in ("pair", "fused", "bm25", "dense"):
        at = ALL_FEATURES.index(name)
        if at >= tables.num_features:
            continue
        scores = np.where(tables.present, tables.features[:, :, at], -np.inf)
        places = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
        reach = np.where(trained, REACHES["train"].get(name, 0), REACHES[""][name])
        found |= places < reach[:, None]
    return found & tables.present


def planned_singles(material: Material, row: int, allowed: Bools) -> list[Request]:
    """What is read alone of a question: what may be chosen, and of training questions some that tell."""
    picks = set(map(int, np.flatnonzero(allowed[row])))
    if material.questions[row].split == "train":
        picks |= set(map(int, np.flatnonzero(material.tables.labels[row] == GOLD)[:4]))
    return [(row, (pick,)) for pick in sorted(picks)]


def read_singles(
    material: Material, rows: Sequence[int], allowed: Bools, readers: tuple[TextReader, TextReader],
    path: Path, kind: str,
) -> int:  # fmt: skip
    """Read a chunk of questions and write its table; losses of gold answers for training questions only.

    `readers`: one that makes losses, one that does not. Returns the number of readings.
    """
    table = SpokenTable(kind)
    for wanted, reader in zip((True, False), readers, strict=True):
        requests = [
            request
            for row in rows
            if (material.questions[row].split == "train") == wanted
            for request in planned_singles(material, int(row), allowed)
        ]
        table.add(requests, reader.spoken(requests))
    table.save(path)
    return len(table)


def load_spoken(folder: Path, kind: str) -> SpokenTable:
    """All single readings of a run; FileNotFoundError where there are none."""
    table = SpokenTable(kind)
    paths = sorted(folder.glob("singles-*.npz"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no singles-*.npz: run the stage readings first")
    for path in paths:
        table.load(path)
    return table


def prompt_tokens(material: Material, count: Any, begin: int = 1) -> npt.NDArray[np.int64]:
    """Tokens of each question's prompt without any text: what every further reading pays again. [N]"""
    return np.array(
        [begin + count(reader_prompt((), question.text)) for question in material.questions], np.int64
    )


def train_verifier(
    material: Material, spoken: SpokenTable, fold: str, pairs: Path, base: PairBase, out: Path,
    config: PairTrainConfig, device: str, say: Say,
) -> None:  # fmt: skip
    """Train one verifier on from its fold's pair reader in `pairs`, of the kind `base`; score its rows' answers.

    Leaves OUT/<fold>/verified.npz.
    """
    folder = out / fold
    if (folder / "verified.npz").exists():
        return
    began = time.monotonic()
    tables = material.tables
    singles = spoken.singles(len(material), tables.num_candidates)
    reader = base.load(pairs / fold, device, learns=True)
    claims = claims_of(material, spoken, singles.read)
    right = singles.read & (np.nan_to_num(singles.f1) >= RIGHT)
    judged = replace(
        tables, present=singles.read, labels=np.where(right, GOLD, 0).astype(np.int8),
        needs_all=np.zeros(len(tables), bool),
    )  # fmt: skip
    rows, scored = fold_rows(material, fold)
    rows = rows[singles.read[rows].any(1)]
    texts = PairTexts.of(reader, [question.text for question in material.questions], claims)
    records = train_pairs(reader, judged, texts, rows, config)
    last = records[-5:]
    about = {
        "verifies": "the answer that the reader gave over one sentence",
        "trained_on": f"{len(rows):,} training questions, each sentence read alone",
        "right": round(float(np.mean([each["right"] for each in last])), 4),
        "loss": round(float(np.mean([each["loss"] for each in last])), 4),
        "fold": fold,
    }
    save_pair_reader(reader, folder, about)
    found = verified_scores(reader, texts, singles, scored)
    part = folder / "verified.part.npz"
    np.savez(part, rows=scored, scores=found)
    part.rename(folder / "verified.npz")
    say(f"verifier {fold}: {time.monotonic() - began:.0f} s, {json.dumps(about)}")


def claims_of(material: Material, spoken: SpokenTable, read: Bools) -> list[list[str]]:
    """What the verifier reads beside the question, candidate by candidate; empty where it was not read."""
    return [
        [
            claim(spoken.text(row, at), title, text) if read[row, at] else ""
            for at, (title, _, text) in enumerate(question.sentences)
        ]
        for row, question in enumerate(material.questions)
    ]


def verified_scores(
    reader: PairScorer, texts: PairTexts, singles: SingleReadings, rows: npt.NDArray[np.int64]
) -> Floats:
    """The verifier's logits of some rows, NaN where nothing was read. [R, K]"""
    out = np.full((len(rows), singles.groups.shape[1]), np.nan, np.float32)
    places = [(at, int(pick)) for at, row in enumerate(rows) for pick in np.flatnonzero(singles.read[row])]
    pairs = [PairRow(texts.questions[rows[at]], texts.candidates[rows[at]][pick]) for at, pick in places]
    scores = reader.scores(pairs)
    for (at, pick), score in zip(places, scores, strict=True):
        out[at, pick] = score
    return out


def load_verified(folder: Path, num_rows: int, width: int) -> Floats:
    """The verifiers' logits of all questions; FileNotFoundError where a fold is missing. [N, K]"""
    out = np.full((num_rows, width), np.nan, np.float32)
    for fold in FOLDS:
        path = folder / fold / "verified.npz"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run the stage trust to its end first")
        with np.load(path) as packed:
            out[packed["rows"]] = packed["scores"]
    return out


def fit_all(
    material: Material, singles: SingleReadings, verified: Floats, out: Path
) -> dict[str, Combination]:
    """The combinations of every kind, fitted on training questions, written to OUT/<kind>.json, `verified` last."""
    rows = material.rows("train", answerable=True)
    rows = rows[singles.read[rows].any(1)]
    found = {}
    for kind, names in KINDS.items():
        known = names if material.tables.num_features > len(FEATURES) or kind == "alone" else KINDS["plain"]
        found[kind] = fit(
            material.tables.take(rows), singles.take(rows), known, verified=np.nan_to_num(verified[rows])
        )
        found[kind].save(out / f"{kind}.json")
    return found
