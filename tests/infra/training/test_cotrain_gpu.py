"""Alone, in turn and together at equal updates, in miniature: each part changes what it may, and all are judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from infra.training import cotrain_gpu, cotrain_report
from tests.infra.training.learning_case import material, reader


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """All five runs over a toy, in this process; the folder, and what was gathered."""
    folder = tmp_path_factory.mktemp("cotrain")
    told = [
        "--material", str(material(folder / "made", count=24)), "--reader", str(reader(folder).model),
        "--work", str(folder / "work"), "--out", str(folder / "out"), "--device", "cpu", "--updates", "2",
        "--rounds", "2", "--questions", "6", "--train", "12", "--test", "4", "--budget", "400",
        "--budgets", "400", "--warm-steps", "20", "--training", "100", "--seeds", "0",
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
    assert [figures["run"] for figures in found.values()] == list(cotrain_gpu.RUNS)
    assert list(found) == ["start", "reader-0", "policy-0", "alternating-0", "joint-0"]
    points = {"oracle_400", "policy_400", "filled_400", "hybrid_400"}
    for name, figures in found.items():
        assert set(figures["judged"]["toy"]) == points
        assert ("gain_on_start" in figures) == (name != "start")
    assert set(found["joint-0"]["gain_on_start"]) == {f"toy.{point}" for point in points}


def test_each_run_trains_its_own_part_and_no_other(done: tuple[Path, dict[str, Any]]) -> None:
    """`reader` leaves the policy, `policy` has no adapter, the others move both, and from one beginning."""
    folder, found = done
    work = folder / "work"
    warm = load_file(work / "warm" / "policy.safetensors")

    def moved(path: Path) -> bool:
        return any(not tensor.equal(warm[name]) for name, tensor in load_file(path).items())

    assert not (work / "reader-0" / "model" / "policy").exists()
    assert (work / "reader-0" / "model" / "adapter_model.safetensors").exists()
    assert moved(work / "policy-0" / "policy" / "policy.safetensors")
    assert not list((work / "policy-0").rglob("adapter_model.safetensors"))
    assert moved(work / "joint-0" / "model" / "policy" / "policy.safetensors")
    assert (work / "joint-0" / "model" / "adapter_model.safetensors").exists()
    assert len(list((work / "alternating-0").glob("round-*/reader/model/adapter_model.safetensors"))) == 2
    assert moved(work / "alternating-0" / "round-01" / "policy" / "policy.safetensors")
    steps = [each["reader"]["steps"] for each in found["alternating-0"]["training"]["rounds"]]
    assert steps == [1, 1]
    assert found["joint-0"]["training"]["rounds"][0]["steps"] == 2
    assert found["policy-0"]["training"]["learning"]["iterations"] == 2


def test_finished_runs_are_not_repeated(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second start of the whole starts no process."""
    folder, _ = done
    begun: list[str] = []

    def none(commands: dict[str, Any], logs: Path, limit_s: float, **_: Any) -> dict[str, int]:
        begun.extend(commands)
        return {}

    monkeypatch.setattr(cotrain_gpu, "run_side_by_side", none)
    told = [
        "--material", str(folder / "made"), "--reader", str(folder / "reader"), "--work", str(folder / "work"),
        "--out", str(folder / "out"), "--device", "cpu", "--seeds", "0",
    ]  # fmt: skip
    assert cotrain_gpu.main(told) == 0
    assert begun == []


def test_seeds_come_one_after_the_other_and_the_start_once(done: tuple[Path, dict[str, Any]]) -> None:
    """When the time is up, whole seeds are missing, not whole ways of training."""
    folder, _ = done
    told = ["--material", str(folder), "--reader", "r", "--work", "w", "--out", "o", "--seeds", "3", "5"]
    names = list(cotrain_gpu.runs_of(cotrain_gpu._parser().parse_args(told)).values())
    assert names[0] == "start" and len(names) == 9
    assert {name.rpartition("-")[2] for name in names[1:5]} == {"3"}
    assert {name.rpartition("-")[2] for name in names[5:]} == {"5"}


def test_page_tells_updates_that_were_done_and_gains_over_seeds(
    done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Every run has its updates; a gain is the mean of the seeds with their extremes; no path of a host is kept."""
    folder, found = done
    counted = {figures["run"]: cotrain_report.updates_done(figures) for figures in found.values()}
    assert counted == {
        "start": (0, 0), "reader": (2, 0), "policy": (0, 2), "alternating": (2, 2), "joint": (2, 2),
    }  # fmt: skip
    again = json.loads(json.dumps(found["joint-0"])) | {"seed": 1}
    again["gain_on_start"]["toy.policy_400"]["gain"] = 10.0
    found["joint-0"]["gain_on_start"]["toy.policy_400"]["gain"] = 4.0
    gained = cotrain_report.gains(found | {"joint-1": again})["joint.toy.policy_400"]
    assert (gained["mean"], gained["least"], gained["most"], gained["seeds"]) == (7.0, 4.0, 10.0, 2)
    path = tmp_path / "cotrain.json"
    path.write_text(json.dumps(found | {"joint-1": again}))
    cotrain_report.main(
        ["--found", str(path), "--bench", str(tmp_path / "page"), "--note", "All of it a toy."]
    )
    text = (tmp_path / "page.md").read_text()
    assert "+7.0 (+4.0 to +10.0" in text and "| in turn | 1 | 2 | 2 |" in text and "All of it a toy." in text
    assert str(folder) not in (tmp_path / "page.json").read_text()
    # scores by question may be lost with a host: the means are told, and that they are not paired
    del again["gain_on_start"], found["joint-0"]["gain_on_start"]
    path.write_text(json.dumps(found | {"joint-1": again}))
    cotrain_report.main(["--found", str(path), "--bench", str(tmp_path / "page")])
    text = (tmp_path / "page.md").read_text()
    begun = found["start"]["judged"]["toy"]["policy_400"]["forced_f1"]
    apart = again["judged"]["toy"]["policy_400"]["forced_f1"] - begun
    assert f"| {apart:+.1f} ({apart:+.1f} to {apart:+.1f}; unpaired) at " in text


def test_material_without_a_pair_reader_s_features_goes_on(tmp_path: Path) -> None:
    """Where the pair reader left nothing, the policy is trained with fewer features, not at all refused."""
    from pipeline.tasks.material import Material

    made = Material.load(material(tmp_path / "made", count=8))
    assert cotrain_gpu._with_pairs(made, tmp_path / "nothing") is made
    assert cotrain_gpu._sets(made, []) == cotrain_gpu._sets(made, ["toy"]) == ["toy"]
    with pytest.raises(ValueError, match="the material has toy"):
        cotrain_gpu._sets(made, ["nq"])
