"""A student of the decoder's pair readers: MiniLM's, trained on a teacher's scores beside the labels, and saved."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.training.cards import card_text
from infra.training.policy_made import LOWER, MADE
from infra.training.policy_pairs import MINILM, PLACES, PairBase, fold_rows, pair_features, texts_of
from infra.training.policy_targets import TEACHERS, Given, material_of, plan_config, read_plan, say
from models.retriever.pair_reader import CONFIG, PairReader, PairScorer, from_minilm, save_pair_reader
from models.retriever.pair_taught import WORDS, Plan, TaughtConfig, measured, train_taught
from pipeline.tasks.material import Material

HELD_OUT = 256
"""Examples of the made questions that no student learns: they tell how near it came to its teacher."""
SAYS = (
    "Reads a question and a candidate sentence together, one score each against none of these (docs/policy.md); "
    "six features of the retriever's policy are made of it. all-MiniLM-L6-v2 (Apache-2.0) fine-tuned with one "
    "linear head, taught by a pair reader over Gemma-3-270M: its scores beside the labels. Matrices in 8 bits, a "
    "scale for each row; words' vectors are MiniLM's own. Licence: Apache-2.0, as what it comes from."
)
ASKED = {True: "made of Wikipedia sentences", False: "of training: NQ, SQuAD 2, HotpotQA, MuSiQue, newswire"}


def train_student(given: Given) -> None:
    """Train one student, save it (8 bits), and let it score its rows."""
    fold = given.work.partition(":")[2]
    folder = given.out / PLACES[MINILM] / fold
    base = PairBase(MINILM, given.carried / "minilm")
    if not (folder / CONFIG).exists():
        learn(given, base, fold, folder)
    if fold == MADE:
        return
    material = Material.load(given.out / "material")
    _, scored = fold_rows(material, fold)
    columns = pair_features(load_student(folder, base, given.device), material, scored)
    part = folder / "scores.part.npz"
    np.savez(part, rows=scored, columns=columns)
    part.replace(folder / "scores.npz")


def learn(given: Given, base: PairBase, fold: str, folder: Path) -> dict[str, Any]:
    """Train a student and save it; what is said of it."""
    began = time.monotonic()
    first = fold == MADE
    plans = (MADE,) if first else ("fold0", "fold1") if fold == "whole" else (fold,)
    material = material_of(given, plans[0])
    config = TaughtConfig(
        lr=given.lr if first else LOWER * given.lr, soft=given.soft, temperature=given.temperature,
        questions=given.questions if first else max(1, given.questions // 2), limit_s=1.2 * given.seconds,
    )  # fmt: skip
    plan = Plan.join([read_plan(given.out, name) for name in plans])
    held = _apart(plan) if first else np.zeros(0, np.int64)
    before = folder.parent / MADE
    reader: PairScorer = (
        from_minilm(base.folder, given.device) if first else load_student(before, base, given.device)
    )
    texts = texts_of(reader, material)
    kept = np.setdiff1d(np.arange(len(plan)), held)
    say(f"student {fold}: {len(kept):,} examples, begins after {time.monotonic() - began:.0f} s")
    started = time.monotonic()

    def tell(step: dict[str, float]) -> None:
        if int(step["step"]) % 100 == 0:
            figures = {name: round(value, 5) for name, value in step.items()}
            say(f"student {fold} {time.monotonic() - started:.0f} s {json.dumps(figures)}")

    records = train_taught(reader, plan.take(kept), texts, config, on_step=tell)
    seconds = round(time.monotonic() - started, 1)
    taught = float(np.mean(~np.isnan(plan.scores)))
    about: dict[str, Any] = {
        "taught_by": f"the decoder's pair reader, its {' and '.join(TEACHERS[name] for name in plans)}",
        "trained_on": f"{len(np.unique(plan.questions[plan.starts[:-1]])):,} questions "
        + ASKED[first],
        "fold": fold, "after_made": not first, "examples": len(kept), "rows_taught": round(taught, 4),
        "steps": int(records[-1]["step"]) + 1, "steps_planned": math.ceil(len(kept) / config.questions),
        "loss": _last(records, "loss"), "soft_loss": _last(records, "soft"), "right": _last(records, "right"),
        "seconds": seconds, "candidates": plan_config(given, plans[0]).candidates, **asdict(config),
    }  # fmt: skip
    if len(held):
        about["held_out"] = measured(reader, plan.take(held), texts)
    card = card_text("Pair reader", SAYS, about, {"Curve": records, **_before(folder)}, _command())
    save_pair_reader(reader, folder, about, card)
    (folder / "curve.json").write_text(json.dumps(records))
    told = {name: about[name] for name in ("steps", "steps_planned", "loss", "soft_loss", "right", "seconds")}
    say(f"student {fold}: {json.dumps(told | {'held_out': about.get('held_out')})}")
    return about


def load_student(folder: Path, base: PairBase, device: str) -> PairScorer:
    """A saved student with its words as they were learned with: MiniLM's as carried, not their 8 bits."""
    reader = base.load(folder, device, learns=True)
    assert isinstance(reader, PairReader)
    own = from_minilm(base.folder).model.state_dict()[WORDS]
    with torch.no_grad():
        dict(reader.model.named_parameters())[WORDS].copy_(own.to(device))
    return reader


def _apart(plan: Plan) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Examples of some questions, all of theirs: what is measured was never learned."""
    asked = plan.questions[plan.starts[:-1]]
    every = np.unique(asked)
    some = np.random.default_rng(3).permutation(every)[: min(HELD_OUT, len(every) // 20)]
    return np.flatnonzero(np.isin(asked, some))


def _before(folder: Path) -> dict[str, Any]:
    path = folder.parent / MADE / "curve.json"
    return {"Curve before it, on made questions": json.loads(path.read_text())} if path.exists() else {}


def _last(records: Sequence[dict[str, float]], name: str) -> float:
    return round(float(np.mean([each[name] for each in records[-5:]])), 4)


def _command() -> str:
    return f"python3 -m infra.training.policy_distill {' '.join(sys.argv[1:])}"
