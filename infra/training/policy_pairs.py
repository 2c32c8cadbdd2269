"""The pair reader trained beside the policy's material, and its scores put among the features.

Scores of training questions come from a reader that was not trained on them (two folds, by the title of the first
gold candidate); those of dev and test questions from the one trained on all training questions, in the 8 bits in
which it is saved. Else the policy would trust the score more than it deserves.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.retriever.pair_reader import (
    PairReader,
    from_minilm,
    load_pair_reader,
    save_pair_reader,
)
from models.retriever.pair_training import PairTexts, PairTrainConfig, train_pairs
from models.retriever.table import FEATURES, GOLD
from pipeline.tasks.material import Material

FOLDS = ("fold0", "fold1", "whole")
Say = Callable[[str], None]


def fold_of(material: Material, row: int) -> int:
    """0 or 1: the fold of a question, the same for all questions about one title."""
    gold = np.flatnonzero(material.tables.labels[row] == GOLD)
    question = material.questions[row]
    key = question.sentences[int(gold[0])][0] if len(gold) else question.question_id
    return hashlib.blake2b(key.encode(), digest_size=1).digest()[0] % 2


def fold_rows(material: Material, fold: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows that a reader is trained on, and those that it scores."""
    train = material.rows("train", answerable=True)
    if fold == "whole":
        return train, np.setdiff1d(np.arange(len(material)), material.rows("train"))
    at = np.array([fold_of(material, int(row)) for row in material.rows("train")], np.int64)
    other = material.rows("train")[at != int(fold[-1])]
    return np.setdiff1d(train, other), other


def train_fold(
    material: Material, minilm: Path, fold: str, out: Path, config: PairTrainConfig, device: str, say: Say
) -> None:
    """Train one reader, save it (8 bits), score its rows with what was saved: OUT/<fold>/scores.npz."""
    folder = out / fold
    if (folder / "scores.npz").exists():
        return
    began = time.monotonic()
    reader = from_minilm(minilm, device)
    rows, scored = fold_rows(material, fold)
    texts = texts_of(reader, material)
    records = train_pairs(
        reader, material.tables, texts, rows, config,
        on_step=lambda step: say(f"pair reader {fold} {json.dumps({k: round(v, 5) for k, v in step.items()})}")
        if int(step["step"]) % 100 == 0 else None,
    )  # fmt: skip
    last = records[-5:]
    about = {
        "trained_on": f"{len(rows):,} training questions of NQ-open, SQuAD 2 and HotpotQA",
        "steps": int(records[-1]["step"]) + 1,
        "loss": round(float(np.mean([each["loss"] for each in last])), 4),
        "right": round(float(np.mean([each["right"] for each in last])), 4),
        "fold": fold,
        **asdict(config),
    }
    save_pair_reader(reader, folder, about)
    saved, _ = load_pair_reader(folder, device)
    columns = pair_features(saved, material, scored)
    part = folder / "scores.part.npz"
    np.savez(part, rows=scored, columns=columns)
    part.rename(folder / "scores.npz")
    say(
        f"pair reader {fold}: {about['steps']} steps, {time.monotonic() - began:.0f} s, right {about['right']}"
    )


def texts_of(reader: PairReader, material: Material) -> PairTexts:
    """The token ids of all questions and candidates."""
    return PairTexts.of(
        reader,
        [question.text for question in material.questions],
        [_texts(question.sentences) for question in material.questions],
    )


def pair_features(
    reader: PairReader, material: Material, rows: npt.NDArray[np.int64], batch: int = 512
) -> npt.NDArray[np.float32]:
    """The pair features of some rows, padded as their tables. [N, K, 6]"""
    width = material.tables.num_candidates
    out = np.zeros((len(rows), width, 6), np.float32)
    for start in range(0, len(rows), batch):
        asked = [
            (material.questions[int(row)].text, _texts(material.questions[int(row)].sentences))
            for row in rows[start : start + batch]
        ]
        for at, columns in enumerate(reader.features_of(asked), start):
            out[at, : len(columns)] = columns
    return out


def with_scores(material: Material, folder: Path) -> Material:
    """The material with the pair features that the folds left in `folder`; FileNotFoundError where one did not."""
    width = len(FEATURES)
    columns = np.zeros((*material.tables.present.shape, width + 6), np.float32)
    columns[..., :width] = material.tables.features[..., :width]
    known = np.zeros(len(material), bool)
    for fold in FOLDS:
        path = folder / fold / "scores.npz"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run the stage pairs to its end first")
        with np.load(path) as packed:
            columns[packed["rows"], :, width:] = packed["columns"]
            known[packed["rows"]] = True
    if not known.all():
        raise ValueError(
            f"{folder}: {int((~known).sum())} questions have no score; it is of another material"
        )
    return Material(material.questions, replace(material.tables, features=columns))


def _texts(sentences: Sequence[tuple[str, str, str]]) -> list[str]:
    return [f"{title}: {text}" for title, _, text in sentences]
