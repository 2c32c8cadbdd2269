"""The stages of `policy_gpu` that judge: what every method chooses, what is read of it, and the figures."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.training import policy_evaluation as judging
from infra.training import policy_halves as otherwise
from infra.training import policy_points as points
from infra.training.policy_both import mixed_orders
from infra.training.policy_halves_dev import Read, at_fixed_points, by_halves, over, readings_in
from infra.training.policy_opened import Given, open_apart, open_material, reader_of, remember, say
from infra.training.policy_over import LABELLED, over_supervised
from infra.training.policy_pairs import (
    MINILM,
    PLACES,
    kinds_of,
    with_scores,
)
from infra.training.policy_ranks import pair_orders, write_ranks
from infra.training.policy_readers import readings_of, who_reads
from infra.training.policy_rewarded import arm_orders, arms_report
from infra.training.policy_served import as_served
from infra.training.policy_stages import (
    load_readings,
    put_shipped,
)
from pipeline.tasks.material import Material
from rl.episodes import Readings

LEAST_FOR_HALVES = 20
"""Test questions that each set must have to be told by halves of them."""
DEV_SHARE = 0.65
"""Of the stage `read`'s time, what dev questions and simple methods may take."""


def choose(given: Given, until: float) -> None:
    """The choices of this worker's methods, those read apart judged at once."""
    material = open_material(given)
    apart = open_apart(given, material)
    folder, policies = given.out / "judged", given.out / "policies"
    folder.mkdir(exist_ok=True)
    if given.shipped is not None:
        put_shipped(given.shipped, policies, np.load(given.out / "material" / "projection.npy"))
    orders = {**pair_orders(material, given.out), **arm_orders(given, material, only_seen=True)}
    names = points.names_to_judge(material, policies, given.together, orders)
    # the policy in service is judged with its own pair reader, else with MiniLM's of this run
    served = material
    if given.shipped is not None and "shipped-0" in names[given.worker :: given.workers]:
        minilm = given.carried / "minilm"
        own = as_served(material, given.shipped, given.out, minilm, given.device, say)
        if own is not None:
            served = own
        elif MINILM in kinds_of(given.pair_base)[1:]:
            served = with_scores(material, given.out / PLACES[MINILM])
    # policies over other pair readers' scores are judged over these
    over: dict[tuple[str, int], Material] = {}
    for name in names[given.worker :: given.workers]:
        if points.kind_of(name).endswith(points.APART) and apart is not None:
            judged = points.judged_apart(
                name, material, apart, policies, device=given.device, budgets=given.apart_budgets,
                biases=given.biases,
            )  # fmt: skip
            points.save_judged(judged, folder / f"{name}.judged.npz")
        else:
            seen = points.scores_seen(name, policies)
            if seen[0] and seen not in over:
                over[seen] = open_material(given, *seen)
            judged_over = served if name.startswith("shipped") else over.get(seen, material)
            found = points.choices_of(
                name, judged_over, policies, device=given.device,
                budgets=given.budgets, biases=given.biases, orders=orders,
            )  # fmt: skip
            points.save_points(found, folder / f"{name}.points.json")
        if time.monotonic() > until:
            say(f"worker {given.worker}: out of time at {name}")
            return


def read(given: Given, until: float) -> None:
    """This worker's rows: dev questions and simple methods first, then the test points that dev questions name.

    Dev questions end at DEV_SHARE of the time, so that some test points of policies are always read: a dev point
    that was not read whole is not chosen.
    """
    began = time.monotonic()
    (given.out / "judged" / f"dev-{given.worker}.done").unlink(missing_ok=True)
    material = open_material(given)
    folder = given.out / "judged"
    readings = reader_of(given, material)
    load_readings([folder], readings)
    apart = open_apart(given, material)
    remember(readings, apart)
    known = points.load_points(folder)
    first = in_reading_order(
        point for point in known if point.split == "dev" or not points.is_policy(point.name)
    )
    stamp = int(time.time())
    path = folder / f"readings-{given.worker}-{stamp}a.npz"
    _read_all(given, material, readings, first, path, began + DEV_SHARE * (until - began), must=False)
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
    wanted = in_reading_order(judging.wanted_on_test(known, curves))
    _read_all(given, material, readings, wanted, folder / f"readings-{given.worker}-{stamp}b.npz", until)
    if given.together:
        # nothing else is left to do: every point that a half of the test questions might choose, if time is left
        path = folder / f"readings-{given.worker}-{stamp}c.npz"
        _read_all(given, material, readings, in_reading_order(known), path, until, must=False)


def in_reading_order(known: Iterable[points.Point]) -> list[points.Point]:
    """Points in the order in which they are read: simple methods' and the oracle's, policies that are compared (by
    labels, by reward), then others; where the time ends, those at the end are not judged."""
    compared = (*LABELLED, "supervised_rewarded", *judging.LEARNED)

    def turn(point: points.Point) -> int:
        if point.name in (*points.SIMPLE, "oracle"):
            return 0
        return 1 if points.kind_of(point.name) in compared else 2

    return sorted(known, key=turn)


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


def report(given: Given, until: float) -> None:
    """Curves and named figures from what was chosen and read."""
    material = open_material(given)
    folder = given.out / "judged"
    apart = open_apart(given, material)
    readings = Readings(None, readings_of(given, material))
    remember(readings, apart)
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
    found["over_supervised"] = over_supervised(curves, found["summary"])
    found["ways"] = otherwise.ways(curves, halves)
    otherwise.save_scores(curves, halves, given.out / "scores.npz")
    found["over_by_halves"], found["at_fixed_points"] = compared(material, folder)
    found["questions"] = json.loads((given.out / "material" / "manifest.json").read_text())["told"]
    found["pair_base"], found["pair_features"] = given.pair_base, given.pair_features
    found["ranks"] = write_ranks(material, given.out, mixed_orders(material, given.out))
    found["arms"] = arms_report(given, material)
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


def compared(material: Material, judged: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Policies against each other on test questions: by halves of these, and at the same points, nothing chosen.

    Only what was read whole; nothing where a set has too few questions for halves.
    """
    places = {
        (split, name): points.rows_of(material, split, name).tolist()
        for split in points.SPLITS
        for name in points.datasets(material)
    }
    known = [p for p in points.load_points(judged) if p.split == "test"]
    read = Read(known, places, readings_in(judged), "test")
    if min((len(places["test", name]) for name in read.sets), default=0) < LEAST_FOR_HALVES:
        return {}, []
    halves = by_halves(read)
    told = {
        f"{kind} over {than}": gain
        for than in LABELLED
        for kind in ("policy", "supervised_rewarded", "supervised_longer", *judging.LEARNED)
        if kind != than and (gain := over(halves, kind, than)) is not None
    }
    return told, at_fixed_points(read)
