"""Pair readers trained on by what their picks are worth (`pair_rewarded`): arms, their folds, and the best of them.

An arm is a form of the objective and a seed (`log`, `log-1`). It begins with the label-trained reader of each fold
and learns on that fold's questions and the made ones, as read by the stage `alone`; `labels` takes as many steps
over the same questions without any reward. OUT/arms/<arm> is laid out as OUT is, so whatever takes a run's pair
readers takes an arm's. Stages:

rewarded         both folds of every arm; OUT/arms.json says what a training question's first pick by each is worth,
                 scored by the fold that did not see it, and which form is best by that: no dev or test question is
                 looked at
rewarded_whole   the whole of the best form and of `labels`, and all folds of the best form's further seeds
rewarded_both    where policies see a weighted sum of several kinds: that of each arm's, weighed by worth (of
                 `labels` by its labels)

Policies see the best form's scores as `rewarded` and those of `labels` as `longer`. Imports nothing that a GPU host
lacks.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from infra.training.policy_alone import MADE, TRAIN, config_of, load_alone, plan_of, read_questions, told_of
from infra.training.policy_arms import Work, form_of, rewarded_kinds
from infra.training.policy_both import combine_fold, first_scores
from infra.training.policy_opened import ARMS, LABELS, LONGER, Given, arm_home, best_arm, say
from infra.training.policy_pairs import (
    DECODER,
    FOLDS,
    KINDS,
    MINILM,
    PLACES,
    PairBase,
    fold_rows,
    hit_of,
    kinds_of,
    pair_features,
    rate_of,
    scores_in,
    texts_of,
)
from infra.training.policy_ranks import NAMES, pair_orders, ranks_of
from infra.training.policy_stages import REWARDED
from models.retriever.pair_reader import CONFIG, save_pair_reader
from models.retriever.pair_rewarded import (
    FLOOR,
    ReadQuestions,
    RewardedConfig,
    Worths,
    expected_worth,
    train_rewarded,
)
from models.retriever.pair_training import PairTrainConfig
from models.retriever.table import ALL_FEATURES, FEATURES
from pipeline.tasks.material import Material
from rl.episodes import Readings

PRICE = 0.0005
"""Of a token, as policies are paid (`PolicyJob.price`)."""
LABEL_TRAINED = "label_trained"
"""What the readers that arms begin with are called in OUT/arms.json."""
SECONDS = {DECODER: 150.0}
"""Seconds that an arm's training of a kind should take, beside the others (60 where none is named)."""
MINILM_LR = PairTrainConfig().lr
FIGURES = ("loss", "worth", "label_loss")
"""Of a step's record, what a reader's configuration keeps of the last ones."""


def config_for(given: Given, arm: str, kind: str) -> RewardedConfig:
    """How an arm of a kind is trained: by steps, cut only at 2.5 times the time that is expected."""
    form, seed = form_of(arm)
    decoder = kind == DECODER
    lr = given.rewarded_lr
    if kind != MINILM:  # as its rate by labels is to MiniLM's
        lr *= rate_of(given, kind) / MINILM_LR
    return RewardedConfig(
        form=form,
        epochs=given.rewarded_epochs,
        questions=16 if decoder else 32,
        lr=lr,
        # the worth moves by hundredths where a logarithm or a divergence moves by tenths
        reward=given.reward_weight * (4.0 if form == "expected" else 1.0),
        labels=given.label_weight,
        temperature=given.likelihood_temperature,
        drawn=PairTrainConfig(candidates=8),
        together={MINILM: 16, DECODER: 4}.get(kind, 8),
        seed=seed,
        limit_s=min(2.5 * SECONDS.get(kind, 60.0), 1.5 * given.seconds),
    )


def train_rewarded_fold(given: Given, base: PairBase, work: Work) -> None:
    """Train one fold of one arm, save it (8 bits), score its rows: OUT/arms/<arm>/<place>/<fold>/scores.npz.

    One that is trained and saved already only scores.
    """
    arm, kind, fold = work
    folder = arm_home(given.out, arm) / PLACES[kind] / fold
    _link_others(given, arm)
    if (folder / "scores.npz").exists():
        return
    began = time.monotonic()
    material = Material.load(given.out / "material")
    rows, scored = fold_rows(material, fold)
    if not (folder / CONFIG).exists():
        _train(given, base, work, rows, folder)
    trained_s = time.monotonic() - began
    columns = pair_features(base.load(folder, given.device), material, scored)
    part = folder / "scores.part.npz"
    np.savez(part, rows=scored, columns=columns)
    part.rename(folder / "scores.npz")
    scored_s, hit = time.monotonic() - began - trained_s, hit_of(material, scored, columns[..., 0])
    say(f"{arm} {kind} {fold}: trained in {trained_s:.0f} s, scored in {scored_s:.0f} s, hit@1 {hit:.1f}")


def _train(given: Given, base: PairBase, work: Work, rows: npt.NDArray[np.int64], folder: Path) -> None:
    arm, kind, fold = work
    began = time.monotonic()
    config = config_for(given, arm, kind)
    reader = base.load(given.out / PLACES[kind] / fold, given.device, learns=True)
    sources: list[ReadQuestions] = []
    told: dict[str, dict[str, float]] = {}
    for plan in (TRAIN, MADE):
        if plan == MADE and (given.made is None or not given.alone_made):
            continue
        material, every, scores = plan_of(given, plan)
        asked = np.intersect1d(every, rows) if plan == TRAIN else every
        readings = load_alone(given, plan, material)
        read = read_questions(material, asked, scores, readings, config_of(given, plan), PRICE)
        told[plan] = told_of(material, read)
        if read:
            # only what was read is made into tokens
            part = material.take([each.row for each in read])
            renumbered = [replace(each, row=at) for at, each in enumerate(read)]
            sources.append(ReadQuestions(part.tables, texts_of(reader, part), renumbered))
    say(f"{arm} {kind} {fold}: begins after {time.monotonic() - began:.0f} s, read: {json.dumps(told)}")
    started = time.monotonic()

    def tell(step: dict[str, float]) -> None:
        if int(step["step"]) % 40 == 0:
            figures = {name: round(value, 5) for name, value in step.items()}
            say(f"{arm} {kind} {fold} {time.monotonic() - started:.0f} s {json.dumps(figures)}")

    records = train_rewarded(reader, sources, config, on_step=tell)
    last, count = records[-5:], sum(len(each.questions) for each in sources)
    about: dict[str, Any] = {
        "trained_on": f"{told[TRAIN]['questions']:,} training questions read and "
        f"{count - int(told[TRAIN]['questions']):,} made ones, from the label-trained reader of its fold",
        "arm": arm, "fold": fold, "read": told, "steps": int(records[-1]["step"]) + 1,
        "steps_planned": math.ceil(config.epochs * count / config.questions),
        "seconds": round(time.monotonic() - started, 1),
        **{name: round(float(np.mean([each[name] for each in last])), 4) for name in FIGURES},
        **asdict(config),
    }  # fmt: skip
    save_pair_reader(reader, folder, about)
    (folder / "curve.json").write_text(json.dumps(records))
    shown = {name: about[name] for name in ("steps", "steps_planned", "loss", "worth", "seconds")}
    say(f"{arm} {kind} {fold}: {json.dumps(shown)}")


def _link_others(given: Given, arm: str) -> None:
    """Kinds that policies see and that no arm trains stand in the arm's home as the label-trained ones."""
    own = rewarded_kinds(given)
    for kind in kinds_of(given.pair_base):
        target = arm_home(given.out, arm) / PLACES[kind]
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind not in own and (given.out / PLACES[kind]).is_dir() and not target.exists():
            with contextlib.suppress(FileExistsError):  # another of the arm's processes was quicker
                target.symlink_to((given.out / PLACES[kind]).resolve(), target_is_directory=True)


def all_scored(given: Given, works: list[Work]) -> bool:
    """Whether every one of these has scored its rows."""
    return all(
        (arm_home(given.out, arm) / PLACES[kind] / fold / "scores.npz").exists() for arm, kind, fold in works
    )


def first_picks(
    material: Material, homes: Mapping[str, Path], readings: Readings, places: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """What the first pick by each home's order is worth (F1, percent), by folds that did not see the question.

    {name: {n, f1, hit@1}} over answerable training questions whose first picks by all of them were read; of several
    kinds (`places`) the mean.
    """
    at = ALL_FEATURES.index("pair") - len(FEATURES)
    best: dict[tuple[str, str], npt.NDArray[np.int64]] = {}
    hits: dict[str, list[float]] = {name: [] for name in homes}
    for name, home in homes.items():
        for place in places:
            picks = np.full(len(material), -1, np.int64)
            for fold in FOLDS[:2]:
                with np.load(home / place / fold / "scores.npz") as packed:
                    rows, scores = packed["rows"], packed["columns"][..., at]
                shown = np.where(material.tables.present[rows], scores, -np.inf)
                picks[rows] = shown.argmax(1)
                hits[name].append(hit_of(material, rows, scores))
            best[name, place] = picks
    rows = [
        row
        for row in material.rows("train", answerable=True).tolist()
        if all(picks[row] >= 0 and readings.knows(row, (int(picks[row]),)) for picks in best.values())
    ]
    return {
        name: {
            "n": len(rows),
            "f1": round(100 * float(np.mean([
                readings.read([(row, (int(best[name, place][row]),))])[0].f1 for place in places for row in rows
            ])), 2) if rows else math.nan,
            "hit@1": round(float(np.nanmean(hits[name])), 2),
        }
        for name in homes
    }  # fmt: skip


def write_arms(given: Given) -> dict[str, Any]:
    """Write OUT/arms.json: first picks of every arm and of what they begin with, and the best form of reward."""
    material, _, _ = plan_of(given, TRAIN)
    readings = load_alone(given, TRAIN, material)
    homes = {LABEL_TRAINED: given.out} | {arm: arm_home(given.out, arm) for arm in given.arms}
    places = tuple(PLACES[kind] for kind in rewarded_kinds(given))
    found = first_picks(material, homes, readings, places)
    rewarded = [arm for arm in given.arms if arm != LABELS]
    best = max(rewarded, key=lambda arm: (found[arm]["f1"], -rewarded.index(arm)))
    told: dict[str, Any] = {"first_picks": found, "best": best, "kinds": rewarded_kinds(given)}
    part = given.out / f"{ARMS}.{os.getpid()}.part"
    part.write_text(json.dumps(told))
    part.replace(given.out / ARMS)
    say(f"arms: {json.dumps(told)}")
    return told


def arms_report(given: Given, material: Material) -> dict[str, Any]:
    """OUT/arms.json, what each arm's readers say of their training, and how early its orders find what tells."""
    if not (given.out / ARMS).exists():
        return {}
    found: dict[str, Any] = json.loads((given.out / ARMS).read_text())
    found["trained"] = {
        path.relative_to(given.out / "arms").parent.as_posix(): json.loads(path.read_text())["about"]
        for path in sorted((given.out / "arms").glob("*/pairs*/*/config.json"))
        if not path.parents[1].is_symlink() and path.parents[1].name != "pairs_both"
    }
    found["ranks"] = ranks_of(material, arm_orders(given, material))
    return found


def arm_orders(
    given: Given, material: Material, only_seen: bool = False
) -> dict[str, npt.NDArray[np.float32]]:
    """The orders of the pair readers of `rewarded` and `longer`: `pair_rewarded`, `pair_both_longer`, ...

    `only_seen`: of each the one that policies see. Orders cost nothing to rank by, but readings to judge.
    """
    if not (given.out / ARMS).exists():
        return {}
    seen = NAMES["both" if given.pair_features == "both" else kinds_of(given.pair_base)[0]]
    found = {}
    for name, arm in ((REWARDED, best_arm(given.out)), (LONGER, LABELS)):
        for order, scores in pair_orders(material, arm_home(given.out, arm)).items():
            if not only_seen or order == seen:
                found[f"{order}_{name}"] = scores
    return found


def combine_arm(given: Given, bases: Mapping[str, PairBase], arm: str, fold: str) -> None:
    """One fold of the weighted sum of an arm's kinds, weighed by worth where reward trained them."""
    home = arm_home(given.out, arm)
    weights = (
        () if form_of(arm)[0] == LABELS else worth_weights(given, home, [k for k in KINDS if k in bases])
    )
    combine_fold(Material.load(given.out / "material"), bases, fold, home, given.device, say, weights)


def worth_weights(given: Given, home: Path, kinds: Sequence[str]) -> tuple[float, ...]:
    """The weights of these kinds' scores by which training questions' first picks are worth most (form `log`).

    Each question's scores are those of the folds that did not see it. RuntimeError where nothing was read.
    """
    material, rows, order = plan_of(given, TRAIN)
    readings = load_alone(given, TRAIN, material)
    config = config_of(given, TRAIN)
    read = read_questions(material, rows, order, readings, config, PRICE)
    if not read:
        raise RuntimeError(
            f"{given.out}/alone holds no readings of training questions; run the stage alone first"
        )
    worths = Worths.of([replace(each, twos=np.zeros((0, 0), np.float32)) for each in read])
    firsts = []
    for kind in kinds:
        scores = first_scores(scores_in(material, home / PLACES[kind]))
        own = np.zeros(tuple(worths.there.shape), np.float32)
        for at, each in enumerate(read):
            own[at, : len(each.picks)] = scores[each.row, each.picks]
        firsts.append(torch.from_numpy(own).double())
    worths = replace(worths, alone=worths.alone.double(), nothing=worths.nothing.double())
    logs = torch.full((len(kinds),), float(np.log(1 / len(kinds))), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logs], max_iter=60, line_search_fn="strong_wolfe")
    none = torch.zeros(len(read), 0, 0, dtype=torch.float64)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = (logs.exp()[:, None, None] * torch.stack(firsts)).sum(0)
        value = -(expected_worth(scores, none, worths).clamp_min(0.0) + FLOOR).log().mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call, arg-type]
    return tuple(float(each) for each in logs.detach().exp().tolist())
