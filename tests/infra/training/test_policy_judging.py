"""infra/training/policy_judging.py: what is read first, and what is still told where the time ends."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from infra.training import policy_judging
from infra.training import policy_points as points
from infra.training.policy_halves_dev import readings_in
from infra.training.policy_over import otherwise_table
from infra.training.policy_points import Point
from models.retriever.selecting import Chosen
from pipeline.tasks.material import Material
from rl.episodes import Outcome, Readings, Request
from tests.infra.training.test_policy_gpu import questions_with_features

SIMPLE = ("bm25", "dense", "hybrid", "random", "oracle")
POLICIES = ("router-0", "supervised-0", "reinforce-0", "supervised_without_pair-0")


class Clock:
    """Time that only reading takes: a second a reading."""

    def __init__(self) -> None:
        self.now, self.asked = 0.0, list[Request]()

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 0.0

    def strftime(self, _: str) -> str:
        return ""

    def read(self, requests: Sequence[Request]) -> list[Outcome]:
        self.now += len(requests)
        self.asked += requests
        return [Outcome(0.5, 1.0, 0.0) for _ in requests]


def test_where_the_time_ends_early_policies_that_are_compared_are_still_read_on_test_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dev questions take their share and no more; what was kept is what was asked, one worker for all rows."""
    made = questions_with_features()
    dev = {0, 1, 2, 3}
    made = Material(
        tuple(replace(q, split="dev" if at in dev else q.split) for at, q in enumerate(made.questions)),
        made.tables,
    )
    rows = {split: made.rows(split).tolist() for split in ("dev", "test")}
    judged = tmp_path / "judged"
    judged.mkdir()
    made_points = [
        Point(
            name, split, made.questions[0].dataset, 64, -1.0 if "-" in name else 0.0,
            tuple(Chosen(picks, 10 if "-" in name else 60) for _ in rows[split]),
        )
        for split in rows
        for name, picks in zip((*POLICIES, *SIMPLE), PICKS, strict=True)
    ]  # fmt: skip
    points.save_points(made_points, judged / "all.points.json")
    clock = Clock()
    monkeypatch.setattr(policy_judging, "time", clock)
    monkeypatch.setattr(policy_judging.judging, "READ_TOGETHER", 2)
    monkeypatch.setattr(policy_judging, "open_material", lambda given: made)
    monkeypatch.setattr(policy_judging, "reader_of", lambda given, material: Readings(clock))
    given = argparse.Namespace(out=tmp_path, worker=0, workers=1, together=True, fold_readers=None)
    simple = len(SIMPLE) * (len(rows["dev"]) + len(rows["test"]))
    compared = 2 * len(rows["dev"])
    # time for simple methods and dev questions of two policies; not for those of the others
    seconds = (simple + compared - 0.5) / policy_judging.DEV_SHARE
    policy_judging.read(given, seconds)
    read = set(readings_in(judged))
    mask = {
        name: sum(1 << at for at in picks) for name, picks in zip((*POLICIES, *SIMPLE), PICKS, strict=True)
    }
    for name in (*SIMPLE, "supervised-0", "reinforce-0"):
        assert {(row, mask[name]) for row in rows["dev"]} <= read
        assert {(row, mask[name]) for row in rows["test"]} <= read
    order = [mask_of_request(each) for each in clock.asked]
    assert set(order[:simple]) == {mask[name] for name in SIMPLE}
    others = {mask["router-0"], mask["supervised_without_pair-0"]}
    first_other = next((at for at, each in enumerate(order) if each in others), len(order))
    assert set(order[:first_other]) >= {mask["supervised-0"], mask["reinforce-0"]}
    assert first_other >= simple + 2 * (len(rows["dev"]) + len(rows["test"])), "not before what is compared"
    assert clock.now <= seconds + 2


PICKS = ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2), (3,), (0, 3))


def mask_of_request(request: Request) -> int:
    """The candidates of a request as bits."""
    return sum(1 << at for at in request[1])


def test_policies_are_held_against_each_other_by_halves_and_at_the_same_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is better on every test question is so both ways; a set of few questions is not told by halves."""
    made = questions_with_features()
    rows = made.rows("test").tolist()
    dataset = made.questions[rows[0]].dataset
    told = {"bm25": 0.2, "dense": 0.2, "hybrid": 0.2, "random": 0.1, "oracle": 0.9, "supervised-0": 0.25,
            "reinforce-0": 0.5}  # fmt: skip
    readings = Readings(None, "one")
    found = []
    for at, (name, f1) in enumerate(told.items()):
        picks = PICKS[at]
        readings.add(
            rows, [sum(1 << pick for pick in picks)] * len(rows), [Outcome(f1, 1.0, 0.0)] * len(rows)
        )
        chosen = tuple(Chosen(picks, 50 if "-" in name else 100) for _ in rows)
        found.append(Point(name, "test", dataset, 64, -12.0 if "-" in name else 0.0, chosen))
    readings.save(tmp_path / "readings-0.npz")
    points.save_points(found, tmp_path / "all.points.json")
    assert policy_judging.compared(made, tmp_path) == ({}, []), f"{len(rows)} questions"
    monkeypatch.setattr(policy_judging, "LEAST_FOR_HALVES", len(rows))
    halves, fixed = policy_judging.compared(made, tmp_path)
    assert halves["reinforce over supervised"]["gain"] == 25.0 == halves["policy over supervised"]["gain"]
    assert [(each["kind"], each["gain"], each["tokens"]) for each in fixed] == [
        ("reinforce", 25.0, [50.0, 50.0])
    ]
    shown = "\n".join(otherwise_table(halves, fixed))
    assert "| reinforce over supervised | 25.0 (25.0 to 25.0) | 25.0 | 25.0 |" in shown
    assert "all but never stopping" in shown and "by their own STOP" not in shown
