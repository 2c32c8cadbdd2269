"""Alone, in turn and together at equal updates, in miniature: each part changes what it may, and all are judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from infra.training import cotrain_gpu
from tests.infra.training.learning_case import material, reader


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """All five runs over a toy, in this process; the folder, and what was gathered."""
    folder = tmp_path_factory.mktemp("cotrain")
    told = [
        "--material", str(material(folder / "made", count=24)), "--reader", str(reader(folder).model),
        "--work", str(folder / "work"), "--out", str(folder / "out"), "--device", "cpu", "--updates", "2",
        "--rounds", "2", "--questions", "6", "--train", "12", "--test", "4", "--budget", "400",
        "--budgets", "400", "--warm-steps", "20", "--training", "100",
    ]  # fmt: skip
    given = cotrain_gpu._parser().parse_args(told)
    cotrain_gpu.prepare(given)
    for name in cotrain_gpu.RUNS:
        assert cotrain_gpu.main([*told, "--run", name]) == 0
    assert cotrain_gpu.gather(given, {}) == 0
    return folder, json.loads((folder / "out" / "cotrain.json").read_text())


def test_every_run_is_judged_on_the_same_questions(done: tuple[Path, dict[str, Any]]) -> None:
    """Five runs, the same points; gains are against the start, and the start has none."""
    _, found = done
    assert list(found) == list(cotrain_gpu.RUNS)
    points = {"oracle_400", "policy_400", "filled_400", "hybrid_400"}
    for name, figures in found.items():
        assert set(figures["judged"]["toy"]) == points
        assert ("gain_on_start" in figures) == (name != "start")
    assert set(found["joint"]["gain_on_start"]) == {f"toy.{point}" for point in points}


def test_each_run_trains_its_own_part_and_no_other(done: tuple[Path, dict[str, Any]]) -> None:
    """`reader` leaves the policy, `policy` has no adapter, the others move both, and from one beginning."""
    folder, found = done
    work = folder / "work"
    warm = load_file(work / "warm" / "policy.safetensors")

    def moved(path: Path) -> bool:
        return any(not tensor.equal(warm[name]) for name, tensor in load_file(path).items())

    assert not (work / "reader" / "model" / "policy").exists()
    assert (work / "reader" / "model" / "adapter_model.safetensors").exists()
    assert moved(work / "policy" / "policy" / "policy.safetensors")
    assert not list((work / "policy").rglob("adapter_model.safetensors"))
    assert moved(work / "joint" / "model" / "policy" / "policy.safetensors")
    assert (work / "joint" / "model" / "adapter_model.safetensors").exists()
    assert len(list((work / "alternating").glob("round-*/reader/model/adapter_model.safetensors"))) == 2
    assert moved(work / "alternating" / "round-01" / "policy" / "policy.safetensors")
    steps = [each["reader"]["steps"] for each in found["alternating"]["training"]["rounds"]]
    assert steps == [1, 1]
    assert found["joint"]["training"]["rounds"][0]["steps"] == 2
    assert found["policy"]["training"]["learning"]["iterations"] == 2


def test_finished_runs_are_not_repeated(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second start of the whole starts no process."""
    folder, _ = done
    begun: list[str] = []

    def none(commands: dict[str, Any], logs: Path, limit_s: float) -> dict[str, int]:
        begun.extend(commands)
        return {}

    monkeypatch.setattr(cotrain_gpu, "run_side_by_side", none)
    told = [
        "--material", str(folder / "made"), "--reader", str(folder / "reader"), "--work", str(folder / "work"),
        "--out", str(folder / "out"), "--device", "cpu",
    ]  # fmt: skip
    assert cotrain_gpu.main(told) == 0
    assert begun == []
