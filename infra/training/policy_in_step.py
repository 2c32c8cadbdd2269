"""Policies of one run that learn by reward in step: what they choose in an iteration is read in one call.

A reader's call costs some ten launches of its decoder whatever is in it, and policies that differ in a price alone
choose much the same: a dozen in step ask one reader for one batch, where a dozen processes ask twelve on one device
for small ones. Each learns what it would have learned alone: its own questions, budgets and actions, by its seed.
Imports nothing that a GPU host lacks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.training.policy_pairs import Say
from infra.training.policy_stages import (
    LEARNING,
    PolicyJob,
    begin_record,
    keep_policy,
    loop_of,
    of_rows,
    save_and_tell,
    told_of,
)
from models.retriever.storage import load_policy
from pipeline.tasks.material import Material
from rl.episodes import Readings
from rl.health import CollapseAlarm, health_in
from rl.loops import PolicyLoop


def learn_in_step(
    loops: Sequence[PolicyLoop],
    readings: Readings,
    iterations: int,
    *,
    limit_s: float,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[list[list[dict[str, float]]], list[list[str]]]:
    """Each loop to its iteration `iterations`, to its alarm or to the time's end; records and alarms by loop.

    `readings` are asked once a round for what all of them chose. ValueError where loops differ in their rows.
    """
    if len({len(loop.tables) for loop in loops}) > 1:
        raise ValueError(
            f"loops: given rows {[len(loop.tables) for loop in loops]}; allowed: the same of all"
        )
    records: list[list[dict[str, float]]] = [[] for _ in loops]
    alarms: list[list[str]] = [[] for _ in loops]
    watches = [CollapseAlarm(None) for _ in loops]
    began = time.monotonic()
    while time.monotonic() - began < limit_s:
        live = [at for at, loop in enumerate(loops) if loop.iteration < iterations and not alarms[at]]
        if not live:
            break
        played = [loops[at].play() for at in live]
        found = readings.read([request for each in played for request in each.requests])
        for at, each in zip(live, played, strict=True):
            own, found = found[: len(each.requests)], found[len(each.requests) :]
            record = loops[at].learn(each, own)
            records[at].append(record)
            if on_step is not None:
                on_step(at, record)
            if (health := health_in(record)) is not None:
                alarms[at] = watches[at].check(health)
    return records, alarms


def train_in_step(
    material: Material, rows: np.ndarray[Any, Any], readings: Readings, jobs: Sequence[PolicyJob], *,
    out: Path, seconds: float, iterations: int, device: str, say: Say,
    projection: np.ndarray[Any, Any] | None = None, questions: int = 64,
) -> list[dict[str, Any]]:  # fmt: skip
    """The jobs' policies, begun with OUT/supervised-SEED and saved under OUT/<name>; their records, in order.

    A policy whose loop was ended goes on from its last checkpoint. ValueError for a job that does not learn by
    reward over all rows with the pair reader's features.
    """
    odd = [job.name for job in jobs if job.algorithm not in LEARNING or not job.pair or job.multi_hop > 1]
    if odd:
        raise ValueError(
            f"jobs: given {', '.join(odd)}; allowed: {' or '.join(LEARNING)} over all rows and features"
        )
    began = time.monotonic()
    tables = material.tables.take(rows)
    shared = Readings(of_rows(readings, rows))
    loops, known = [], []
    for job in jobs:
        (out / job.name).mkdir(parents=True, exist_ok=True)
        network, _ = load_policy(out / f"supervised-{job.seed}" / "carried", device)
        loop = loop_of(network, tables, shared, job, questions, device)
        if (checkpoint := out / job.name / "loop.pt").exists():
            loop.restore(checkpoint)
        loops.append(loop)
        known.append(begin_record(job, len(rows)))

    def told(at: int, record: dict[str, float]) -> None:
        save_and_tell(record, loops[at], out / jobs[at].name / "loop.pt", say, jobs[at].name)

    records, alarms = learn_in_step(loops, shared, iterations, limit_s=seconds, on_step=told)
    for job, loop, record, curve, alarm in zip(jobs, loops, known, records, alarms, strict=True):
        loop.save(out / job.name / "loop.pt")
        record |= told_of(loop, curve, alarm) | {
            # of all that learn beside it
            "in_step_with": len(jobs) - 1, "readings_asked": shared.num_asked, "readings_done": shared.num_read,
        }  # fmt: skip
        keep_policy(loop.network, record, out / job.name, projection, material, began)
    say(json.dumps({job.name: record["iterations"] for job, record in zip(jobs, known, strict=True)}))
    return known
