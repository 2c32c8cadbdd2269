"""What the processes of each stage of `policy_gpu` do: a function a stage, given the options and until when.

Imports nothing that a GPU host lacks: torch, transformers, peft, tokenizers, numpy, safetensors, our light parts.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from infra.training import policy_arms
from infra.training import policy_judging as judging
from infra.training import policy_rewarded as rewarding
from infra.training.policy_alone import ALONE, TRAIN, load_alone, read_alone
from infra.training.policy_apart import (
    CHUNK,
    choosable,
    fit_all,
    load_spoken,
    load_verified,
    prompt_tokens,
    read_singles,
    train_verifier,
)
from infra.training.policy_both import combine_fold, mixed_orders
from infra.training.policy_made import UNMADE, after_made, made_config, score_made, train_on_made
from infra.training.policy_opened import LABELS, LONGER, Given, open_apart, open_material, remember, say
from infra.training.policy_pairs import (
    BGE,
    BGE_DUAL,
    DECODER,
    DUALS,
    E5,
    E5_DUAL,
    FOLDS,
    MINILM,
    MPNET,
    PAIRS_BOTH,
    PLACES,
    PairBase,
    kinds_of,
    made_kinds,
    rate_of,
    train_fold,
)
from infra.training.policy_ranks import table_of, write_ranks
from infra.training.policy_readers import open_readers, paid_by, readings_of
from infra.training.policy_routed import losses_alone
from infra.training.policy_stages import (
    REWARDED,
    PolicyJob,
    load_readings,
    reward_jobs,
    routed_jobs,
    taught_jobs,
    train_one,
)
from models.retriever.pair_training import PairTrainConfig
from pipeline.tasks.material import Material
from rl.apart import ApartReader
from rl.episodes import OutcomeReader, Readings

PAIR_SECONDS = {MINILM: 70.0, DECODER: 140.0, MPNET: 160.0} | dict.fromkeys(
    (E5, BGE, E5_DUAL, BGE_DUAL), 140.0
)
"""Seconds that the trainings of all folds of a kind should take on one H200, side by side."""

TRAINS = 0.7
"""Of the stage's seconds, what a training may take at most where the stage must end in time: the rest it scores."""


def jobs_of(given: Given, stage: str) -> list[PolicyJob]:
    """The policies of a stage that trains."""
    if stage == "reward":
        return reward_jobs(
            given.seeds,
            given.prices,
            together=given.together,
            multi_hop=given.multi_hop,
            rewarded=bool(given.arms),
        )
    routers = routed_jobs(given.seeds)
    if stage == "trust":
        return routers
    # where candidates were read alone for the arms, routers have what they learn from
    return [*taught_jobs(given.seeds, scores_of_arms(given)), *(routers if given.arms else [])]


def scores_of_arms(given: Given) -> tuple[str, ...]:
    """The scores of arms that policies see, as `PolicyJob.scores` names them."""
    return (REWARDED, *([LONGER] if LABELS in given.arms else [])) if given.arms else ()


def _material(given: Given, until: float) -> None:
    from infra.training.host_search import counter
    from infra.training.policy_material import WORLDS, HostMaterialConfig, checked, make
    from infra.training.policy_worlds import cache_told

    folder = given.out / "material"
    if (folder / "manifest.json").exists():
        return
    config = HostMaterialConfig(
        processes=min(16, max(1, (os.cpu_count() or 1) - 2)),
        most=given.most,
        worlds=len(WORLDS) if given.worlds < 0 else given.worlds,
        cache=given.cache,
    )
    made, projection = make(given.carried, config, given.device)
    told = checked(made)
    say(
        f"{len(made):,} questions; number and share with what tells among their candidates: {json.dumps(told)}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "projection.npy", projection)
    np.save(folder / "prompts.npy", prompt_tokens(made, counter(given.carried)))
    cache = cache_told(made, config.passages)
    if given.cache:
        say(f"candidates of caches: {json.dumps(cache)}")
    made.save(folder, {"stage": "material", "told": told} | ({"cache": cache} if given.cache else {}))


def _made(given: Given, until: float) -> None:
    """One kind's pair reader learns the made questions."""
    kind = made_kinds(given)[given.worker]
    config = made_config(pair_config(given, kind), 1.5 * given.seconds)
    base, out = base_of(given, kind), given.out / PLACES[kind]
    train_on_made(given.made, base, out, config, given.made_steps, given.device, say)
    if given.unmade:
        score_made(Material.load(given.out / "material"), base, out, given.device)


def _pairs(given: Given, until: float) -> None:
    """Train one fold's pair reader of one kind; whoever ends last tells how early each order finds what tells."""
    kind, fold = trainings(given)[given.worker]
    config = pair_config(given, kind)
    material = Material.load(given.out / "material")
    say(f"pair reader {kind} {fold}: {config.epochs:g} passes, at most {config.limit_s:.0f} s")
    made = given.made is not None and fold != UNMADE and kind in made_kinds(given)
    train_fold(
        material, base_of(given, kind), fold, given.out / PLACES[kind], after_made(config) if made else config,
        given.device, say, made,
    )  # fmt: skip
    if all((given.out / PLACES[kind] / fold / "scores.npz").exists() for kind, fold in trainings(given)):
        found = write_ranks(material, given.out, mixed_orders(material, given.out))
        for split in ("dev", "test"):
            say(f"ranks\n{table_of(found, split)}")


def _both(given: Given, until: float) -> None:
    """One fold's features of all pair readers; whoever ends last tells the ranks again."""
    material = Material.load(given.out / "material")
    bases = {kind: base_of(given, kind) for kind in kinds_of(given.pair_base)}
    combine_fold(material, bases, FOLDS[given.worker], given.out, given.device, say)
    if all((given.out / PAIRS_BOTH / fold / "scores.npz").exists() for fold in FOLDS):
        found = write_ranks(material, given.out, mixed_orders(material, given.out))
        for split in ("dev", "test"):
            say(f"ranks\n{table_of(found, split)}")


def trainings(given: Given) -> list[tuple[str, str]]:
    """(kind, fold) of each pair reader of a run, the longest first."""
    beside = made_kinds(given) if given.made is not None and given.unmade else ()
    return [
        (kind, fold)
        for kind in kinds_of(given.pair_base)
        for fold in (*((UNMADE,) if kind in beside else ()), *reversed(FOLDS))
    ]


def pair_config(given: Given, kind: str) -> PairTrainConfig:
    """How a kind of pair reader is trained: by steps; only a run of 2.5 times the time that is expected is cut.

    The stage ends its processes at twice its share, so scoring must begin before that; where what it leaves to
    others is named (`--leave pairs=...`), training and scoring keep within the share.
    """
    promised = "pairs" in getattr(given, "leave", {})
    limit = min(2.5 * PAIR_SECONDS[kind], (TRAINS if promised else 1.5) * given.seconds)
    if kind == MINILM:
        return PairTrainConfig(epochs=given.pair_epochs, limit_s=limit)
    rate = rate_of(given, kind)
    if kind != DECODER:
        return PairTrainConfig(
            epochs=given.encoder_epochs, candidates=given.encoder_candidates, lr=rate,
            together=8 if kind == MPNET else 16, limit_s=limit,
        )  # fmt: skip
    return PairTrainConfig(
        epochs=given.decoder_epochs, questions=16, candidates=given.decoder_candidates, lr=rate,
        together=8 if given.crowded else 0, limit_s=limit,
    )  # fmt: skip


def base_of(given: Given, kind: str) -> PairBase:
    """What a kind of pair reader begins with: MiniLM as it is carried, another encoder, the reader's plain base."""
    around = kind in given.around
    if kind == MINILM:
        return PairBase(kind, given.carried / "minilm", around)
    if kind != DECODER:
        return PairBase(kind, (given.encoders or given.carried) / DUALS.get(kind, kind), around)
    from infra.training.reader_gpu import unpack_weights

    folder = given.reader or given.carried
    unpack_weights(folder)
    return PairBase(kind, folder, around)


def _readings(given: Given, until: float) -> None:
    """This worker's chunks of questions, each likely candidate read alone, one shard a chunk."""
    material = open_material(given)
    folder = given.out / "readings"
    folder.mkdir(exist_ok=True)
    opened = open_readers(given, material)
    readers = opened(True), opened(False)
    allowed, kind = choosable(material), readings_of(given, material)
    for at in range(given.worker * CHUNK, len(material), CHUNK * given.workers):
        path = folder / f"singles-{at:06d}.npz"
        if path.exists():
            continue
        if time.monotonic() > until:
            say(f"worker {given.worker}: readings from {at} on are left; start the stage again")
            raise SystemExit(1)
        read_singles(material, range(at, min(at + CHUNK, len(material))), allowed, readers, path, kind)


def _trust(given: Given, until: float) -> None:
    """One fold's verifier; the last fold's process fits the combinations when all are there. The rest: routers."""
    material = open_material(given)
    spoken = load_spoken(given.out / "readings", readings_of(given, material))
    folder = given.out / "trust"
    if given.worker >= len(FOLDS):
        singles = spoken.singles(len(material), material.tables.num_candidates)
        job = jobs_of(given, "trust")[given.worker - len(FOLDS)]
        _trained(given, material, Readings(None), job, until, singles.loss)
        return
    config = PairTrainConfig(
        epochs=given.verify_epochs, given=0.0, weak_weight=1.0, lr=6e-5, limit_s=0.6 * given.seconds
    )
    fold = FOLDS[given.worker]
    # the cheapest where there are several: a verifier of the decoder would read every answer at ten times the cost
    kind = kinds_of(given.pair_base)[-1]
    train_verifier(
        material,
        spoken,
        fold,
        given.out / PLACES[kind],
        base_of(given, kind),
        folder,
        config,
        given.device,
        say,
    )
    if fold != FOLDS[-1]:
        return
    while not all((folder / name / "verified.npz").exists() for name in FOLDS):
        if time.monotonic() > until:
            raise SystemExit(f"trust: the other verifiers are not there after {given.seconds:.0f} s")
        time.sleep(0.5)
    singles = spoken.singles(len(material), material.tables.num_candidates)
    verified = load_verified(folder, len(material), material.tables.num_candidates)
    for kind, found in fit_all(material, singles, verified, folder).items():
        told = dict(zip(found.names, found.weights, strict=True))
        say(f"trust {kind}: {json.dumps(told)}, constant {found.constant}")


def _rewarded(given: Given, until: float) -> None:
    """One fold of an arm; whoever ends last says which form's first picks are worth most."""
    every = policy_arms.folds_first(given)
    rewarding.train_rewarded_fold(given, base_of(given, every[given.worker][1]), every[given.worker])
    if rewarding.all_scored(given, every):
        rewarding.write_arms(given)


def _rewarded_whole(given: Given, until: float) -> None:
    """The whole of an arm that policies see, or a fold of another seed."""
    work = policy_arms.folds_then(given)[given.worker]
    rewarding.train_rewarded_fold(given, base_of(given, work[1]), work)


def _rewarded_both(given: Given, until: float) -> None:
    """One fold of the weighted sum of an arm's kinds."""
    bases = {kind: base_of(given, kind) for kind in kinds_of(given.pair_base)}
    rewarding.combine_arm(given, bases, *policy_arms.combined_arms(given)[given.worker])


def _teach(given: Given, until: float) -> None:
    """One supervised policy."""
    job = jobs_of(given, "teach")[given.worker]
    material = open_material(given, job.scores, job.seed)
    losses = None
    if job.algorithm == "router":
        losses = losses_alone(material.tables, load_alone(given, TRAIN, material))
    _trained(given, material, Readings(None), job, until, losses)


def _reward(given: Given, until: float) -> None:
    """One policy paid by the reader: live where it reads together, from recorded readings where apart."""
    job = jobs_of(given, "reward")[given.worker]
    material = open_material(given, job.scores, job.seed)
    apart = open_apart(given, material)
    if job.reading == "together":
        reader = open_readers(given, material)(job.form == "stepwise")
        readings = Readings(OutcomeReader(reader), readings_of(given, material))
        load_readings([given.out / ALONE / TRAIN], readings)
        remember(readings, apart)
    else:
        assert apart is not None
        readings = Readings(ApartReader(apart.singles, apart.logits["verified" if job.pair else "plain"]))
        material = Material(material.questions, apart.tables(material.tables))
    _trained(given, material, readings, job, until, about={"paid_by": paid_by(given, material)})


WORK: dict[str, Callable[[Given, float], None]] = {
    "material": _material, "made": _made, "pairs": _pairs, "both": _both, "readings": _readings, "trust": _trust,
    "alone": read_alone, "rewarded": _rewarded, "rewarded_whole": _rewarded_whole, "rewarded_both": _rewarded_both,
    "teach": _teach, "reward": _reward, "choose": judging.choose, "read": judging.read, "report": judging.report,
}  # fmt: skip


def training_rows(material: Material) -> np.ndarray[Any, Any]:
    """The answerable training questions."""
    return material.rows("train", answerable=True)


def _trained(
    given: Given, material: Material, readings: Readings, job: PolicyJob, until: float,
    losses: np.ndarray[Any, Any] | None = None, about: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    record: dict[str, Any] = train_one(
        material, training_rows(material), readings, job, out=given.out / "policies",
        seconds=until - time.monotonic(), device=given.device, say=say,
        projection=np.load(given.out / "material" / "projection.npy"), width=given.width, layers=given.layers,
        warm_steps=given.warm_steps, iterations=given.iterations, losses=losses, about=about,
        command=f"python3 -m infra.training.policy_gpu {shlex.join(sys.argv[1:])}",
    )  # fmt: skip
    shown = ("steps", "warm_loss", "loss", "iterations", "readings_done", "alarm")
    told = {name: value for name, value in record.items() if name in shown}
    say(f"{job.name} in {record['seconds']} s: {json.dumps(told)}")
