"""infra/training/policy_again.py: test points of a run that was ended before it read them, read on another day."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from infra.training import policy_again
from infra.training.policy_again import (
    FIRST,
    SECOND,
    curves_without_material,
    main,
    others_now,
    read_part,
    save_bare,
    wanted,
)
from infra.training.policy_halves_dev import readings_in
from infra.training.policy_pairs import FOLDS
from infra.training.policy_points import Point, choices_of, load_points, save_points
from infra.training.policy_readers import readings_of
from models.retriever import PolicyNetwork
from models.retriever.selecting import Chosen
from models.retriever.storage import save_policy
from models.retriever.table import TableBatch
from pipeline.tasks.material import Material
from rl.episodes import Readings, Request, fingerprint, mask_of
from tests.infra.training.test_policy_gpu import carried, questions_with_features
from tests.rl.toy import network_config

__all__ = ["carried"]  # a fixture
COUNT = 6
PLACES = {("dev", "nq"): range(COUNT), ("test", "nq"): range(COUNT, 2 * COUNT)}
SIMPLE = ("bm25", "random", "dense", "hybrid", "oracle")


def run_ended_early() -> tuple[list[Point], dict[tuple[int, int], float]]:
    """Every dev question and every simple method was read; of policies no test question.

    A method at a budget always picks one candidate of its own, so readings tell whose they are.
    """
    made, known = [], {}
    told = [(name, 64, 100, 0.3) for name in SIMPLE]
    told += [("supervised-0", 32, 50, 0.5), ("supervised-0", 64, 60, 0.4), ("router-0", 32, 40, 0.6)]
    for at, (name, budget, tokens, f1) in enumerate(told):
        for split in ("dev", "test"):
            chosen = tuple(Chosen((at,), tokens) for _ in range(COUNT))
            made.append(Point(name, split, "nq", budget, -4.0 if "-" in name else 0.0, chosen))
            for row in PLACES[split, "nq"]:
                if split == "dev" or name in SIMPLE:
                    known[row, 1 << at] = f1
    return made, known


def test_what_dev_questions_choose_is_read_first_and_nothing_twice() -> None:
    points, known = run_ended_early()
    found = wanted(points, PLACES, known)
    keys = list(zip(found["rows"].tolist(), found["masks"].tolist(), strict=True))
    assert not set(keys) & set(known)
    assert len(keys) == 3 * COUNT == len(set(keys)), "two points of the policy and one of the router"
    assert [mask for _, mask in keys[:COUNT]] == [1 << 5] * COUNT, "its best point on dev questions"
    assert found["rank"].tolist() == sorted(found["rank"].tolist())
    assert found["rank"][:COUNT].tolist() == [FIRST] * COUNT and found["rank"][COUNT] == SECOND
    assert set(zip(found["checked_rows"].tolist(), found["checked_masks"].tolist(), strict=True)) <= set(
        known
    )


def test_a_curve_needs_no_material_and_what_was_not_read_has_no_f1() -> None:
    points, known = run_ended_early()
    curves = curves_without_material(points, PLACES, known)
    dev, test = ({(p["name"], p["budget"]): p for p in curves.of("nq", split)} for split in ("dev", "test"))
    assert (dev["supervised-0", 32]["forced_f1"], dev["supervised-0", 32]["tokens"]) == (50.0, 50.0)
    assert test["supervised-0", 32]["forced_f1"] is None and test["bm25", 64]["forced_f1"] == 30.0
    with pytest.raises(ValueError, match="given 6 choices of 5 dev questions of nq"):
        curves_without_material(points, {**PLACES, ("dev", "nq"): range(5)}, known)


def chosen_in(made: Material, folder: Path) -> list[tuple[int, int, int]]:
    """(row, mask, tokens) of everything that the simple methods, the oracle and a policy choose in test."""
    torch.manual_seed(0)
    config = replace(
        network_config(), num_features=made.tables.num_features, dim=made.tables.dim, feature_names=()
    )
    save_policy(PolicyNetwork(config), folder / "supervised-0" / "carried", {})
    rows = made.rows("test").tolist()
    return [
        (row, mask_of(one.picks), one.tokens)
        for name in (*SIMPLE, "supervised-0")
        for point in choices_of(name, made, folder, device="cpu", budgets=(40, 120), biases=(-12.0,))
        if point.split == "test"
        for row, one in zip(rows, point.chosen, strict=True)
    ]


def test_a_question_whose_candidates_are_others_now_is_left_out(tmp_path: Path) -> None:
    """What methods choose costs what they tell of it; where two candidates have changed places it does not."""
    made = questions_with_features()
    chosen = chosen_in(made, tmp_path)
    assert len(chosen) > 40 and others_now(made, *zip(*chosen, strict=True)) == set()
    row = made.rows("test").tolist()[0]
    first, *others = np.flatnonzero(made.tables.present[row]).tolist()
    order = np.arange(made.tables.num_candidates)
    other = next(at for at in others if made.tables.tokens[row, at] != made.tables.tokens[row, first])
    order[[first, other]] = order[[other, first]]
    arrays = made.tables.arrays()
    for name in ("tokens", "heads", "groups", "present"):
        arrays[name] = arrays[name].copy()
        arrays[name][row] = arrays[name][row][order]
    changed = Material(made.questions, TableBatch(**arrays))
    assert others_now(changed, *zip(*chosen, strict=True)) == {row}
    assert others_now(made, [row, len(made)], [1 << 60, 1], [7, 7]) == {row, len(made)}, "no such candidate"


class Counting:
    """A reader that answers with the row, and counts what it is asked at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def outcomes(self, requests: Sequence[Request]) -> list[tuple[float, float, float]]:
        self.asked.append(len(requests))
        return [(row / 100, float("nan"), 0.0) for row, _ in requests]


def test_what_was_read_is_kept_when_the_clock_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((0.0, 1.0, 9.0))
    monkeypatch.setattr(policy_again.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(policy_again, "CHUNK", 2)
    asked: list[Request] = [(row, (row % 3,)) for row in range(6)]
    reader = Counting()
    path = tmp_path / "readings-again-0.npz"
    assert read_part(reader, "one", asked, path, until=5.0) == 4
    assert reader.asked == [2, 2]
    assert sorted(readings_in(tmp_path)) == [(row, 1 << row % 3) for row in range(4)]


def test_the_host_reads_what_is_wanted_and_says_whose_material_it_is(
    carried: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verb in this process, by the tiny reader: what fits is read, what does not is named."""
    made = Material.load(carried / "material")
    part, out = tmp_path / "part", tmp_path / "out"
    part.mkdir()
    rows = made.rows("test").tolist()
    folds = {q.question_id: at % len(FOLDS[:2]) for at, q in enumerate(made.questions) if q.split != "test"}
    (part / "folds.json").write_text(json.dumps(folds))
    tokens = [policy_again.tokens_of(made, row, (0, 1)) for row in rows]
    tokens[-1] += 1
    np.savez(
        part / "wanted.npz",
        rows=np.array(rows, np.int32), masks=np.full(len(rows), 3, np.uint64), tokens=np.array(tokens),
        rank=np.zeros(len(rows), np.uint8), checked_rows=np.array(rows[:1]), checked_masks=np.ones(1, np.uint64),
        checked_tokens=np.array([policy_again.tokens_of(made, rows[0], (0,))]), checked_f1=np.zeros(1),
        material=np.array("another"),
    )  # fmt: skip
    main([
        "read", "--wanted", str(part), "--folds", str(part), "--material", str(carried / "material"),
        "--reader", str(carried), "--out", str(out), "--device", "cpu", "--workers", "1", "--worker", "0",
    ])  # fmt: skip
    told = json.loads((out / "again.json").read_text())
    assert told["rows_left_out"] == [rows[-1]] and told["checked"] == 1
    assert told["of_the_run"] == "another" and told["material"].startswith(fingerprint(made))
    assert sorted(readings_in(out)) == [(row, 3) for row in rows[:-1]]
    assert f"{len(rows) - 1} of {len(rows) - 1} read" in capsys.readouterr().out


def test_material_is_carried_without_vectors_or_with_them_in_eight_bits(tmp_path: Path) -> None:
    """Questions, costs and so the readings' fingerprint stay; with vectors, what a run needs beside them too."""
    made = questions_with_features()
    made.save(tmp_path / "material", {"told": {"test": {}}})
    for name in ("projection.npy", "prompts.npy"):
        np.save(tmp_path / "material" / name, np.ones(2))
    for vectors in (False, True):
        out = tmp_path / f"out-{vectors}"
        save_bare(tmp_path / "material", out, vectors)
        small = Material.load(out)
        assert fingerprint(small) == fingerprint(made)
        np.testing.assert_array_equal(small.tables.tokens, made.tables.tokens)
        assert json.loads((out / "manifest.json").read_text())["told"] == {"test": {}}
        assert small.tables.dim == (made.tables.dim if vectors else 1)
        assert (out / "prompts.npy").is_file() == vectors
    np.testing.assert_allclose(small.tables.vectors, made.tables.vectors, atol=0.02)


def test_known_readings_are_taken_for_the_same_material_and_readers_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where one question is read by another reader, nothing is: readings do not say who did them."""
    made = questions_with_features()
    made.save(tmp_path / "material", {})
    folds = {q.question_id: at % 2 for at, q in enumerate(made.questions) if q.split != "test"}
    (tmp_path / "folds.json").write_text(json.dumps(folds))
    judged = tmp_path / "judged"
    judged.mkdir()
    kind = policy_again_kind(made, tmp_path)
    read_part(Counting(), kind, [(1, (0,))], judged / "readings-0.npz", until=1e12)
    read_part(Counting(), "another", [(2, (0,))], judged / "readings-1.npz", until=1e12)
    place = [
        "--material",
        str(tmp_path / "material"),
        "--folds",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
    ]
    main(["known", "--judged", str(judged), *place])
    assert sorted(readings_in(tmp_path / "out")) == [(1, 1)]
    assert "readings-1.npz: readings of another" in capsys.readouterr().out
    first = next(iter(folds))
    (tmp_path / "folds.json").write_text(json.dumps(folds | {first: 1 - folds[first]}))
    main(["known", "--judged", str(judged), *place[:-1], str(tmp_path / "other")])
    assert not list((tmp_path / "other").glob("readings-*"))


def policy_again_kind(made: Material, folds: Path) -> str:
    """What readings of the material by these fold readers are known by."""
    return readings_of(SimpleNamespace(fold_readers=folds), made)


def test_a_run_is_joined_with_what_was_read_again_and_nobody_is_judged_by_what_was_left_out(
    tmp_path: Path,
) -> None:
    """Both runs' readings stand under one material; the row left out is in no choice and no reading."""
    made = questions_with_features()
    made.save(tmp_path / "material", {"told": {}})
    rows = made.rows("test").tolist()
    folds = {q.question_id: at % 2 for at, q in enumerate(made.questions) if q.split != "test"}
    (tmp_path / "folds.json").write_text(json.dumps(folds))
    judged, again, out = (tmp_path / name for name in ("judged", "again", "out"))
    judged.mkdir()
    again.mkdir()
    read_part(Counting(), "before", [(row, (0,)) for row in rows[:4]], judged / "readings-0.npz", until=1e12)
    read_part(
        Counting(), "now", [(row, (0,)) for row in rows[4:]], again / "readings-again-0.npz", until=1e12
    )
    chosen = tuple(Chosen((0,), 10) for _ in rows)
    save_points(
        [Point("bm25", "test", made.questions[0].dataset, 64, 0.0, chosen)], judged / "bm25.points.json"
    )
    (again / "again.json").write_text(json.dumps({"rows_left_out": [rows[1]]}))
    places = {name: str(path) for name, path in (("judged", judged), ("again", again), ("out", out))}
    told = [word for name, path in places.items() for word in (f"--{name}", path)]
    main(["joined", *told, "--material", str(tmp_path / "material"), "--folds", str(tmp_path)])
    assert sorted(readings_in(out / "judged")) == [(row, 1) for row in rows if row != rows[1]]
    (point,) = load_points(out / "judged")
    joined = Material.load(out / "material")
    asked = joined.rows("test", answerable=True).tolist()
    assert len(point.chosen) == len(asked) == len(rows) - 1 and rows[1] not in asked
    kind = policy_again_kind(joined, tmp_path)
    readings = Readings(None, kind)
    assert readings.load(out / "judged" / "readings-joined.npz") == len(rows) - 1
