"""What the processes of each stage of `policy_gpu` do: a function a stage, given the options and until when.

Imports nothing that a GPU host lacks: torch, transformers, peft, tokenizers, numpy, safetensors, our light parts.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.training import policy_evaluation as judging
from infra.training import policy_halves as otherwise
from infra.training import policy_points as points
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
from infra.training.policy_both import combine_fold
from infra.training.policy_made import UNMADE, after_made, made_config, score_made, train_on_made
from infra.training.policy_pairs import (
    BOTH,
    DECODER,
    FOLDS,
    MINILM,
    PAIRS_BOTH,
    PLACES,
    PairBase,
    kinds_of,
    train_fold,
    with_scores,
)
from infra.training.policy_ranks import pair_orders, table_of, write_ranks
from infra.training.policy_readers import open_readers, readings_of, who_reads
from infra.training.policy_served import as_served
from infra.training.policy_stages import (
    PolicyJob,
    load_readings,
    put_shipped,
    reward_jobs,
    routed_jobs,
    taught_jobs,
    train_one,
)
from models.retriever.pair_training import PairTrainConfig
from models.retriever.trust import KINDS, Combination
from pipeline.tasks.material import Material
from rl.apart import ApartReader
from rl.episodes import Outcome, OutcomeReader, Readings

Given = argparse.Namespace
PAIR_SECONDS = {MINILM: 70.0, DECODER: 140.0}
"""Seconds that the trainings of all folds of a kind should take on one H200, side by side."""


def jobs_of(given: Given, stage: str) -> list[PolicyJob]:
    """The policies of a stage that trains."""
    if stage == "reward":
        return reward_jobs(given.seeds, given.prices, together=given.together, multi_hop=given.multi_hop)
    return routed_jobs(given.seeds) if stage == "trust" else taught_jobs(given.seeds)


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
    kind = kinds_of(given.pair_base)[given.worker]
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
    made = given.made is not None and fold != UNMADE
    train_fold(
        material, base_of(given, kind), fold, given.out / PLACES[kind], after_made(config) if made else config,
        given.device, say, made,
    )  # fmt: skip
    if all((given.out / PLACES[kind] / fold / "scores.npz").exists() for kind, fold in trainings(given)):
        found = write_ranks(material, given.out)
        for split in ("dev", "test"):
            say(f"ranks\n{table_of(found, split)}")


def _both(given: Given, until: float) -> None:
    """One fold's features of both pair readers; whoever ends last tells the ranks again."""
    material = Material.load(given.out / "material")
    bases = {kind: base_of(given, kind) for kind in (DECODER, MINILM)}
    combine_fold(material, bases, FOLDS[given.worker], given.out, given.device, say)
    if all((given.out / PAIRS_BOTH / fold / "scores.npz").exists() for fold in FOLDS):
        found = write_ranks(material, given.out)
        for split in ("dev", "test"):
            say(f"ranks\n{table_of(found, split)}")


def trainings(given: Given) -> list[tuple[str, str]]:
    """(kind, fold) of each pair reader of a run, the longest first."""
    beside = (UNMADE,) if given.made is not None and given.unmade else ()
    return [(kind, fold) for kind in kinds_of(given.pair_base) for fold in (*beside, *reversed(FOLDS))]


def pair_config(given: Given, kind: str) -> PairTrainConfig:
    """How a kind of pair reader is trained: by steps; only a run of 2.5 times the time that is expected is cut.

    The stage ends its processes at twice its share, so scoring must begin before that.
    """
    limit = min(2.5 * PAIR_SECONDS[kind], 1.5 * given.seconds)
    if kind == MINILM:
        return PairTrainConfig(epochs=given.pair_epochs, limit_s=limit)
    return PairTrainConfig(
        epochs=given.decoder_epochs, questions=16, candidates=given.decoder_candidates, lr=given.decoder_lr,
        together=8 if given.crowded else 0, limit_s=limit,
    )  # fmt: skip


def base_of(given: Given, kind: str) -> PairBase:
    """What a kind of pair reader begins with: MiniLM as it is carried, the reader's plain base."""
    if kind == MINILM:
        return PairBase(kind, given.carried / "minilm")
    from infra.training.reader_gpu import unpack_weights

    folder = given.reader or given.carried
    unpack_weights(folder)
    return PairBase(kind, folder)


def seen_place(given: Given) -> str:
    """Where under OUT the scores lie that policies see."""
    return PAIRS_BOTH if given.pair_features == BOTH else PLACES[kinds_of(given.pair_base)[0]]


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
    # MiniLM's where there are both: a verifier of the decoder would read every answer at ten times the cost
    kind = MINILM if MINILM in kinds_of(given.pair_base) else DECODER
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


def _teach(given: Given, until: float) -> None:
    """One supervised policy."""
    material = open_material(given)
    _trained(given, material, Readings(None), jobs_of(given, "teach")[given.worker], until)


def _reward(given: Given, until: float) -> None:
    """One policy paid by the reader: live where it reads together, from recorded readings where apart."""
    material = open_material(given)
    job = jobs_of(given, "reward")[given.worker]
    apart = open_apart(given, material)
    if job.reading == "together":
        reader = open_readers(given, material)(job.form == "stepwise")
        readings = Readings(OutcomeReader(reader), readings_of(given, material))
        _remember(readings, apart)
    else:
        assert apart is not None
        readings = Readings(ApartReader(apart.singles, apart.logits["verified" if job.pair else "plain"]))
        material = Material(material.questions, apart.tables(material.tables))
    _trained(given, material, readings, job, until)


def _choose(given: Given, until: float) -> None:
    """The choices of this worker's methods, those read apart judged at once."""
    material = open_material(given)
    apart = open_apart(given, material)
    folder, policies = given.out / "judged", given.out / "policies"
    folder.mkdir(exist_ok=True)
    if given.shipped is not None:
        put_shipped(given.shipped, policies, np.load(given.out / "material" / "projection.npy"))
    orders = pair_orders(material, given.out)
    names = points.names_to_judge(material, policies, given.together, orders)
    # the policy in service is judged with its own pair reader, else with MiniLM's of this run
    served = material
    if given.shipped is not None and "shipped-0" in names[given.worker :: given.workers]:
        minilm = given.carried / "minilm"
        own = as_served(material, given.shipped, given.out, minilm, given.device, say)
        if own is not None:
            served = own
        elif given.pair_base == BOTH:
            served = with_scores(material, given.out / PLACES[MINILM])
    for name in names[given.worker :: given.workers]:
        if points.kind_of(name).endswith(points.APART) and apart is not None:
            judged = points.judged_apart(
                name, material, apart, policies, device=given.device, budgets=given.apart_budgets,
                biases=given.biases,
            )  # fmt: skip
            points.save_judged(judged, folder / f"{name}.judged.npz")
        else:
            found = points.choices_of(
                name, served if name.startswith("shipped") else material, policies, device=given.device,
                budgets=given.budgets, biases=given.biases, orders=orders,
            )  # fmt: skip
            points.save_points(found, folder / f"{name}.points.json")
        if time.monotonic() > until:
            say(f"worker {given.worker}: out of time at {name}")
            return


def _read(given: Given, until: float) -> None:
    """This worker's rows: dev questions and simple methods first, then the test points that dev questions name."""
    (given.out / "judged" / f"dev-{given.worker}.done").unlink(missing_ok=True)
    material = open_material(given)
    folder = given.out / "judged"
    readings = _reader_of(given, material)
    load_readings([folder], readings)
    apart = open_apart(given, material)
    _remember(readings, apart)
    known = points.load_points(folder)
    first = [point for point in known if point.split == "dev" or not points.is_policy(point.name)]
    stamp = int(time.time())
    _read_all(given, material, readings, first, folder / f"readings-{given.worker}-{stamp}a.npz", until)
    (folder / f"dev-{given.worker}.done").touch()
    while not all((folder / f"dev-{at}.done").exists() for at in range(given.workers)):
        if time.monotonic() > until:
            raise SystemExit(
                "read: the other workers' dev readings are not there in time; start the stage again"
            )
        time.sleep(0.5)
    load_readings([folder], readings)
    judged = points.load_judged(folder)
    curves = judging.curves_of(known, judged, material, readings, apart)
    wanted = judging.wanted_on_test(known, curves)
    _read_all(given, material, readings, wanted, folder / f"readings-{given.worker}-{stamp}b.npz", until)
    if given.together:
        # nothing else is left to do: every point that a half of the test questions might choose, if time is left
        path = folder / f"readings-{given.worker}-{stamp}c.npz"
        _read_all(given, material, readings, known, path, until, must=False)


def _read_all(
    given: Given, material: Material, readings: Readings, wanted: Sequence[points.Point], path: Path,
    until: float, must: bool = True,
) -> None:  # fmt: skip
    """Read what of some points falls to this worker and no folder holds, and keep it as it comes.

    What is left when the time is over ends the worker with an error if it `must` be read.
    """
    requests = points.requests_of(wanted, material)
    missing = [
        each for each in requests if each[0] % given.workers == given.worker and not readings.knows(*each)
    ]
    new = Readings(readings, readings.material)
    for at in range(0, len(missing), judging.READ_TOGETHER):
        if time.monotonic() > until:
            say(f"worker {given.worker}: {len(missing) - at:,} readings left; start --stage read again")
            if must:
                raise SystemExit(1)
            return
        new.read(missing[at : at + judging.READ_TOGETHER])
        new.save(path)
    say(f"worker {given.worker}: {len(missing):,} of {len(requests):,} readings done")


def _report(given: Given, until: float) -> None:
    """Curves and named figures from what was chosen and read."""
    material = open_material(given)
    folder = given.out / "judged"
    apart = open_apart(given, material)
    readings = Readings(None, readings_of(given, material))
    _remember(readings, apart)
    load_readings([folder], readings)
    curves = judging.curves_of(
        points.load_points(folder), points.load_judged(folder), material, readings, apart
    )
    found = judging.report(curves)
    halves = {
        name: otherwise.half_of(
            material.questions[row].question_id for row in points.rows_of(material, "test", name)
        )
        for name in curves.sets
    }
    found["ways"] = otherwise.ways(curves, halves)
    otherwise.save_scores(curves, halves, given.out / "scores.npz")
    found["questions"] = json.loads((given.out / "material" / "manifest.json").read_text())["told"]
    found["pair_base"], found["pair_features"] = given.pair_base, given.pair_features
    found["ranks"] = write_ranks(material, given.out)
    found["adapter"] = str(given.adapter or "reader-lora")
    found["rewarded_by"] = "fold readers" if given.fold_readers is not None else "the same reader"
    if given.fold_readers is not None:
        found["who_reads"] = who_reads(material, given.fold_readers)
    for figure, name in (("fold_readers", "equal.json"), ("slopes", "slopes.json")):
        if given.fold_readers is not None and (given.fold_readers / name).exists():
            found[figure] = json.loads((given.fold_readers / name).read_text())
    found["trust"] = {
        path.stem: json.loads(path.read_text()) for path in sorted((given.out / "trust").glob("*.json"))
    }
    found["records"] = {
        path.parent.name: json.loads(path.read_text())
        for path in sorted((given.out / "policies").glob("*/record.json"))
    }
    (given.out / "evaluation.json").write_text(json.dumps(found))
    say(json.dumps(found["summary"], indent=1))


WORK: dict[str, Callable[[Given, float], None]] = {
    "material": _material, "made": _made, "pairs": _pairs, "both": _both, "readings": _readings, "trust": _trust,
    "teach": _teach, "reward": _reward, "choose": _choose, "read": _read, "report": _report,
}  # fmt: skip


def open_material(given: Given) -> Material:
    """The material with the pair reader's features, where it has looked."""
    material = Material.load(given.out / "material")
    pairs = given.out / seen_place(given)
    return with_scores(material, pairs) if pairs.exists() else material


def open_apart(given: Given, material: Material) -> points.ApartTable | None:
    """Everything that reading apart is judged with, None where nothing is read apart.

    FileNotFoundError where the stage trust has not ended.
    """
    if given.together:
        return None
    spoken = load_spoken(given.out / "readings", readings_of(given, material))
    width = material.tables.num_candidates
    singles = spoken.singles(len(material), width)
    verified = np.nan_to_num(load_verified(given.out / "trust", len(material), width))
    combined = {kind: Combination.load(given.out / "trust" / f"{kind}.json") for kind in KINDS}
    return points.ApartTable(
        singles=singles,
        logits={kind: each.logits(material.tables, singles, verified) for kind, each in combined.items()},
        allowed=choosable(material),
        prompts=np.load(given.out / "material" / "prompts.npy"),
    )


def training_rows(material: Material) -> np.ndarray[Any, Any]:
    """The answerable training questions."""
    return material.rows("train", answerable=True)


def say(what: str) -> None:
    """A line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)  # noqa: T201


def _trained(
    given: Given, material: Material, readings: Readings, job: PolicyJob, until: float,
    losses: np.ndarray[Any, Any] | None = None,
) -> None:  # fmt: skip
    record: dict[str, Any] = train_one(
        material, training_rows(material), readings, job, out=given.out / "policies",
        seconds=until - time.monotonic(), device=given.device, say=say,
        projection=np.load(given.out / "material" / "projection.npy"), width=given.width, layers=given.layers,
        warm_steps=given.warm_steps, iterations=given.iterations, losses=losses,
        command=f"python3 -m infra.training.policy_gpu {shlex.join(sys.argv[1:])}",
    )  # fmt: skip
    shown = ("steps", "warm_loss", "loss", "iterations", "readings_done", "alarm")
    told = {name: value for name, value in record.items() if name in shown}
    say(f"{job.name} in {record['seconds']} s: {json.dumps(told)}")


def _reader_of(given: Given, material: Material) -> Readings:
    return Readings(OutcomeReader(open_readers(given, material)(False)), readings_of(given, material))


def _remember(readings: Readings, apart: points.ApartTable | None) -> None:
    """What was read alone need not be read again where a choice is of one candidate."""
    if apart is None:
        return
    singles = apart.singles
    rows, picks = np.nonzero(singles.read)
    outcomes = [
        Outcome(f1, loss, margin)
        for f1, loss, margin in zip(
            singles.f1[rows, picks].tolist(), singles.loss[rows, picks].tolist(),
            singles.margin[rows, picks].tolist(), strict=True,
        )
    ]  # fmt: skip
    readings.add(rows.tolist(), [1 << int(pick) for pick in picks], outcomes)
