"""infra/training/policy_routed.py: a router of a run learns from what stage `alone` has read."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from infra.training.policy_routed import losses_alone
from infra.training.policy_stages import PolicyJob, routed_jobs, train_one
from infra.training.policy_work import jobs_of
from models.retriever import GOLD, load_policy
from models.retriever.router import router_scores
from rl.episodes import Readings
from tests.rl.toy import KnowingReader, material, tables


def test_what_was_not_read_loses_as_much_as_reading_nothing() -> None:
    """Singles keep their loss; padding and questions that were not read have none."""
    batch = tables(4)
    readings = Readings(KnowingReader(batch))
    readings.read([(0, ()), (0, (1,)), (0, (0, 1)), (2, ()), (3, (0,))])
    losses = losses_alone(batch, readings)
    nothing = readings.read([(0, ())])[0].loss
    present = batch.present[0]
    assert losses[0, 1] == np.float32(readings.read([(0, (1,))])[0].loss)
    others = np.delete(losses[0], 1)[np.delete(present, 1)]
    assert (others == np.float32(nothing)).all() and np.isnan(losses[0][~present]).all()
    assert np.isnan(losses[[1, 2]]).all()
    assert np.isnan(losses[3, 1:]).all(), "what reading nothing loses is not known"


def test_three_routers_of_a_run_find_what_tells_from_a_few_readings(tmp_path: Path) -> None:
    """Read: three candidates a question, what tells among them. None collapses, on new questions either."""
    batch = tables(96)
    made = material(batch)
    readings = Readings(KnowingReader(batch))
    for row in range(len(batch)):
        gold = int((batch.labels[row] == GOLD).argmax())
        readings.read([(row, ()), *((row, (at,)) for at in {gold, 0, 1})])
    fresh = tables(64, seed=9)
    rows = np.arange(len(batch))
    for job in routed_jobs((0, 1, 2)):
        record = train_one(
            made, rows, Readings(None), job, out=tmp_path, seconds=60, device="cpu", say=lambda text: None,
            width=32, layers=1, warm_steps=120, losses=losses_alone(batch, readings),
        )  # fmt: skip
        network, _ = load_policy(tmp_path / job.name / "carried")
        first = router_scores(network, fresh).argmax(1)
        assert (fresh.labels[np.arange(64), first] == GOLD).mean() > 0.75, job.name
        assert record["loss"] < 1.2


def test_a_run_with_arms_has_routers_among_what_it_teaches() -> None:
    """Their losses come from the stage `alone`, which such a run has; without it they stand in the stage trust."""
    given = argparse.Namespace(seeds=[0, 1], arms=[], together=True, prices=[], multi_hop=1)
    assert not [job for job in jobs_of(given, "teach") if job.algorithm == "router"]
    assert {job.algorithm for job in jobs_of(given, "trust")} == {"router"}
    given.arms = ["log"]
    routers = [job for job in jobs_of(given, "teach") if job.algorithm == "router"]
    assert routers == [PolicyJob(kind="router", algorithm="router", seed=seed) for seed in (0, 1)]
    assert all(replace(job, seed=0).pair for job in routers)
