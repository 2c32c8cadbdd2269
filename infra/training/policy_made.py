"""Pair readers that learn made questions first (`--made FOLDER` of made_questions), then the real ones by fold.

One training a kind over the made questions serves all folds: nothing under a gold title is in them, so no fold's
questions are known by it. The folds go on from there at half the learning rate: they begin with what some ten times
as many questions taught, and the optimizer's first steps at a full peak would undo part of it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infra.training.made_questions import read_made
from models.retriever.pair_reader import CONFIG, PairScorer, save_pair_reader
from models.retriever.pair_training import PairTrainConfig, train_pairs
from pipeline.tasks.material import Material

if TYPE_CHECKING:
    from infra.training.policy_pairs import PairBase

MADE, UNMADE = "made", "unmade"
"""Folders beside the folds': the reader after the made questions alone; one of all real questions without them."""
LOWER = 0.5
"""The folds' learning rate after the made questions, over theirs without."""
STEPS = 1200
CANDIDATES = 16
"""Candidates of a made question in one step, at most: many questions teach more than many negatives of each."""

HELD = 300
"""Made questions that no reader learns, a tenth at most: how often it puts first what tells is told at its end."""
HOPS = 0.35
"""Share of two-sentence questions among those that one pass has room for, at most."""


def made_config(config: PairTrainConfig, limit_s: float) -> PairTrainConfig:
    """One pass over the made questions by a kind's own settings."""
    return replace(config, epochs=1.0, candidates=min(CANDIDATES, config.candidates), limit_s=limit_s)


def after_made(config: PairTrainConfig) -> PairTrainConfig:
    """How a fold goes on."""
    return replace(config, lr=LOWER * config.lr)


def rows_of_pass(material: Material, config: PairTrainConfig, most_steps: int) -> npt.NDArray[np.int64]:
    """The made questions of one pass, drawn by the seed where `most_steps` (0: all) leave no room for all.

    Those of two sentences are few and teach what no other does: they come first, up to HOPS of what is drawn.
    """
    rows = material.rows(answerable=True)
    most = most_steps * config.questions
    if not most or len(rows) <= most:
        return rows
    drawn = np.random.default_rng(config.seed).permutation(rows)
    of_two = material.tables.needs_all[drawn]
    hops, single, few = drawn[of_two], drawn[~of_two], int(HOPS * most)
    return np.sort(np.concatenate([hops[:few], single, hops[few:]])[:most])


def train_on_made(
    made: Path, base: PairBase, out: Path, config: PairTrainConfig, most_steps: int, device: str,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Train one kind's reader on the made questions: OUT/made, passed over where it is there."""
    from infra.training.policy_pairs import texts_of

    folder = out / MADE
    if (folder / CONFIG).exists():
        return
    began = time.monotonic()
    whole = read_made(made)
    learned, held = held_out(whole, config.seed)
    held_back, whole = whole.take(held), whole.take(learned)
    material = whole.take(rows_of_pass(whole, config, most_steps))
    reader = base.new(device)
    texts = texts_of(reader, material)
    say(
        f"pair reader {base.kind} made: {len(material):,} questions, begins after {time.monotonic() - began:.0f} s"
    )
    started = time.monotonic()

    def tell(step: dict[str, float]) -> None:
        if int(step["step"]) % 100 == 0:
            figures = {name: round(value, 5) for name, value in step.items()}
            say(f"pair reader {base.kind} made {time.monotonic() - started:.0f} s {json.dumps(figures)}")

    records = train_pairs(reader, material.tables, texts, material.rows(), config, on_step=tell)
    seconds = time.monotonic() - started
    last = records[-5:]
    about = {
        "trained_on": f"{len(material):,} questions made of Wikipedia sentences",
        "steps": int(records[-1]["step"]) + 1,
        "steps_planned": math.ceil(config.epochs * len(material) / config.questions),
        "loss": round(float(np.mean([each["loss"] for each in last])), 4),
        "right": round(float(np.mean([each["right"] for each in last])), 4),
        "fold": MADE,
        "held_out": len(held_back),
        "held_out_hit_1": round(hit_held(reader, held_back), 2) if len(held_back) else None,
        "seconds": round(seconds, 1),
        **asdict(config),
    }
    save_pair_reader(reader, folder, about)
    shown = ("steps", "steps_planned", "loss", "right", "held_out", "held_out_hit_1", "seconds")
    told = {name: about[name] for name in shown}
    say(f"pair reader {base.kind} made: {json.dumps(told)}")


def held_out(material: Material, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows that are learned, and HELD (a tenth at most) that are not, drawn by the seed."""
    order = np.random.default_rng((seed, HELD)).permutation(len(material))
    count = min(HELD, len(material) // 10)
    return np.sort(order[count:]), np.sort(order[:count])


def hit_held(reader: PairScorer, material: Material) -> float:
    """How often, in percent, the reader puts a candidate first that tells."""
    from infra.training.policy_pairs import hit_of, pair_features

    rows = np.arange(len(material))
    return hit_of(material, rows, pair_features(reader, material, rows)[..., 0])


def begun(base: PairBase, out: Path, device: str) -> PairScorer:
    """The reader that a fold goes on from; FileNotFoundError where the made questions were not learned."""
    if not (out / MADE / CONFIG).exists():
        raise FileNotFoundError(f"{out / MADE} is missing: run the stage made to its end first")
    return base.load(out / MADE, device, learns=True)


def score_made(material: Material, base: PairBase, out: Path, device: str) -> None:
    """Score dev and test questions by the reader of made questions alone, for the ranks: OUT/made/scores.npz."""
    from infra.training.policy_pairs import fold_rows, pair_features

    path = out / MADE / "scores.npz"
    if path.exists():
        return
    _, scored = fold_rows(material, MADE)
    columns = pair_features(base.load(out / MADE, device), material, scored)
    part = path.with_suffix(".part.npz")
    np.savez(part, rows=scored, columns=columns)
    part.replace(path)
