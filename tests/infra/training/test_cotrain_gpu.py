"""Alone, in turn and together at equal updates, in miniature: each part changes what it may, and all are judged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from infra.training import cotrain_gpu, cotrain_judge, cotrain_report
from infra.training.cotrain_rows import ROWS, Notes, assemble, read_rows
from infra.training.cotrain_runs import Mark, marks_of
from pipeline.prepare.files import read_triples
from pipeline.tasks.material import Material
from tests.infra.training.learning_case import material, reader


def with_dev(folder: Path) -> Path:
    """Toy material, each fourth training question of which is a dev question."""
    made = Material.load(material(folder, count=24))
    questions = [
        replace(each, split="dev") if each.split == "train" and at % 4 == 3 else each
        for at, each in enumerate(made.questions)
    ]
    Material(tuple(questions), made.tables).save(folder, {"toy": True})
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """All five runs over a toy, in this process; the folder, and what was gathered."""
    folder = tmp_path_factory.mktemp("cotrain")
    told = [
        "--material", str(with_dev(folder / "made")), "--reader", str(reader(folder).model),
        "--work", str(folder / "work"), "--out", str(folder / "out"), "--device", "cpu", "--updates", "2",
        "--marks", "2", "--questions", "6", "--train", "12", "--dev", "4", "--test", "4", "--budget", "400",
        "--budgets", "400", "--warm-steps", "20", "--training", "100", "--seeds", "0", "--gold", "0", "--oracle",
        "0", "--group", "4", "--epochs", "1",
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
    points = {"oracle_400", "policy_400", "last_400", "filled_400", "hybrid_400"}
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
    for name in ("policy-0/policy/marks/000001", "joint-0/marks/000001/policy"):
        assert moved(work / name / "policy.safetensors")
    assert not list((work / "policy-0").rglob("adapter_model.safetensors"))
    assert moved(work / "joint-0" / "model" / "policy" / "policy.safetensors")
    assert (work / "joint-0" / "model" / "adapter_model.safetensors").exists()
    assert len(list((work / "alternating-0").glob("round-*/reader/model/adapter_model.safetensors"))) == 2
    assert moved(work / "alternating-0" / "round-01" / "policy" / "policy.safetensors")
    steps = [each["reader"]["steps"] for each in found["alternating-0"]["training"]["rounds"]]
    assert steps == [1, 1]
    assert found["joint-0"]["training"]["rounds"][0]["steps"] == 2
    assert found["policy-0"]["training"]["learning"]["iterations"] == 2


def test_on_equal_terms_an_update_by_reward_is_as_many_readings_as_a_joint_one(
    done: tuple[Path, dict[str, Any]],
) -> None:
    """Policy alone, in turn and jointly ask for as many; no context of the reader's is there for its label."""
    folder, found = done
    work = {figures["run"]: cotrain_report.work_done(figures) for figures in found.values()}
    asked = 2 * 6 * 4
    assert [work[name][0] for name in cotrain_gpu.RUNS] == [0, 0, asked, asked, asked]
    assert work["policy"][1] == 0 and all(work[name][1] for name in ("reader", "alternating", "joint"))
    for path in ("reader-0", "alternating-0/round-00"):
        kinds = {triple.kind for triple in read_triples(folder / "work" / path / "triples")}
        assert kinds == {"chosen"}
    text = cotrain_report.page(found, "here")
    assert "paid 0;" in text and "6 questions of 4 episodes, passes: 1" in text and f"| {asked} |" in text


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows that came home."""
    return read_rows(folder / "out" / "cotrain.jsonl")


def test_rows_come_home_as_they_come(done: tuple[Path, dict[str, Any]]) -> None:
    """All figures are in the rows that each run appended: curves by part, and what was judged, point by point."""
    folder, found = done
    rows = rows_of(folder)
    assert {name: each | {"code": None} for name, each in assemble(rows).items()} == found
    joint = [row for row in rows if row["run"] == "joint"]
    kinds = [next(name for name in row if name not in ("run", "seed")) for row in joint]
    assert kinds == ["begun", "curve", "trained", *["mark"] * 3, "chosen", *["set"] * 5, "ended"]
    parts = [row["curve"]["part"] for row in rows if row["run"] == "alternating" and "curve" in row]
    assert list(dict.fromkeys(parts)) == [
        f"round-{number:02d}-{part}" for number in (0, 1) for part in ("reader", "retriever")
    ]
    assert {row["curve"]["step"] for row in rows if row["run"] == "policy" and "curve" in row} == {1, 2}
    times = [row["at_s"] for row in joint]
    assert times == sorted(times) and times[0] >= 0


def test_dev_questions_choose_where_a_run_should_have_stopped(done: tuple[Path, dict[str, Any]]) -> None:
    """Each run's marks are judged on dev, with the beginning; the best paid is taken, the earliest of equals."""
    folder, found = done
    for name, figures in found.items():
        worth = {mark["step"]: mark["paid"] for mark in figures["marks"]}
        assert list(worth) == ([] if name == "start" else [0, 1, 2])
        best = max(worth.values(), default=0.0)
        assert figures["chosen"] == min((at for at, paid in worth.items() if paid == best), default=0)
        for mark in figures["marks"]:
            assert mark["paid"] == pytest.approx(
                mark["by_set"]["toy"][0] / 100 - 0.0005 * mark["by_set"]["toy"][1], abs=1e-4
            )
    marks = [Mark(at, folder) for at in (0, 20, 40)]
    assert cotrain_judge.best(marks, {0: 0.1, 20: 0.3, 40: 0.3}).step == 20
    assert marks_of(60, 3) == [20, 40, 60] and marks_of(2, 3) == [1, 2]


def test_material_without_dev_questions_is_refused(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Without dev questions nothing can choose, and the error says what to make."""
    folder, _ = done
    work = tmp_path / "work"
    shutil.copytree(folder / "work" / "warm", work / "warm")
    Material.load(material(work / "material", count=8))
    given = cotrain_gpu._parser().parse_args(
        [
            "--material",
            "m",
            "--reader",
            str(folder / "reader"),
            "--work",
            str(work),
            "--out",
            "o",
            "--device",
            "cpu",
        ]
    )
    notes = Notes("policy", 0, tmp_path / "own.jsonl", tmp_path / "all.jsonl")
    marks = [Mark(0, work / "warm"), Mark(1, work / "warm")]
    with pytest.raises(ValueError, match="no dev question"):
        cotrain_judge.judge_run(given, reader(tmp_path), marks, notes)


def test_a_given_warm_policy_begins_all_runs_or_is_refused(
    done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """The policy of another run is taken as it is; one that sees more than the material has is refused."""
    folder, _ = done
    warm = folder / "work" / "warm"
    (tmp_path / "manifest.json").write_text('{"features": 15}')
    cotrain_gpu.take_warm(warm, tmp_path / "taken", tmp_path)
    ours, theirs = (load_file(at / "policy.safetensors") for at in (tmp_path / "taken", warm))
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())
    (tmp_path / "manifest.json").write_text('{"features": 14}')
    with pytest.raises(ValueError, match="sees 15 features, the material has 14: give --pairs"):
        cotrain_gpu.take_warm(warm, tmp_path / "refused", tmp_path)


def test_what_was_found_before_the_end_makes_a_page(
    done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """A host that goes away leaves a torn row: all before it is told, and whose judging was cut off."""
    folder, found = done
    lines = (folder / "out" / "cotrain.jsonl").read_text().splitlines(keepends=True)
    judged = [at for at, line in enumerate(lines) if '"run": "joint"' in line and '"point"' in line]
    path = tmp_path / "cotrain.jsonl"
    path.write_text("".join(lines[: judged[2]]) + lines[judged[2]][:40])
    cut = assemble(read_rows(path))
    assert {name: each["ended"] for name, each in cut.items()} == dict.fromkeys(found, True) | {
        "joint-0": False
    }
    assert list(cut["joint-0"]["judged"]["toy"]) == ["policy_400", "last_400"]
    assert (
        cut["joint-0"]["gain_on_start"]["toy.policy_400"]
        == found["joint-0"]["gain_on_start"]["toy.policy_400"]
    )
    Notes("joint", 0, tmp_path / "own.jsonl", path).add(ended={})
    assert read_rows(path)[-1]["ended"] == {}  # not lost behind the torn one
    path.write_text("".join(lines[: judged[2]]))
    cotrain_report.main(["--found", str(path), "--bench", str(tmp_path / "page")])
    text = (tmp_path / "page.md").read_text()
    assert "Cut off while they were judged: joint-0" in text
    assert next(line for line in text.splitlines() if line.startswith("| hybrid")).endswith("| not judged |")


def test_a_second_call_judges_what_is_missing_only(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was ended while it was judged trains no more and asks for the missing points."""
    folder, found = done
    work = tmp_path / "work"
    shutil.copytree(folder / "work", work)
    out = work / "policy-0"
    told = [
        "--material", str(folder / "made"), "--reader", str(folder / "reader"), "--work", str(work), "--out",
        str(tmp_path / "out"), "--device", "cpu", "--budgets", "400", "--updates", "2", "--run", "policy",
    ]  # fmt: skip
    done_before = json.loads((out / cotrain_gpu.TRAINED).read_text())
    assert [mark[0] for mark in done_before["marks"]] == [0, 1, 2]
    lines = (out / ROWS).read_text().splitlines(keepends=True)
    (out / ROWS).write_text("".join(lines[:-3]))  # three of five points, no end
    begun: list[str] = []
    monkeypatch.setattr(cotrain_gpu, "trained", lambda *_: begun.append("trained"))
    assert cotrain_gpu.main(told) == 0 and begun == []
    added = read_rows(tmp_path / "out" / "cotrain.jsonl")
    assert [row.get("point", "end") for row in added] == ["hybrid_400", "filled_400", "end"]
    again = json.loads((out / cotrain_gpu.RESULT).read_text())
    assert again["judged"] == found["policy-0"]["judged"] and again["ended"]
    (out / cotrain_gpu.TRAINED).unlink()
    with pytest.raises(TypeError):  # the stand-in gives no folders
        cotrain_gpu.main(told)
    assert begun == ["trained"]
    assert [row for row in read_rows(out / ROWS) if "point" in row] == []


def test_finished_runs_are_not_repeated(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second start of the whole starts no process."""
    folder, _ = done
    begun: list[str] = []

    def none(commands: dict[str, Any], logs: Path, limit_s: float, **more: Any) -> dict[str, int]:
        begun.extend(commands)
        (folder / "out" / "cotrain.json").unlink(missing_ok=True)
        more["on_end"]({})  # as when a run ends: what is there is gathered then
        assert set(json.loads((folder / "out" / "cotrain.json").read_text())) >= {"start", "joint-0"}
        return {}

    monkeypatch.setattr(cotrain_gpu, "run_side_by_side", none)
    told = [
        "--material", str(folder / "made"), "--reader", str(folder / "reader"), "--work", str(folder / "work"),
        "--out", str(folder / "out"), "--device", "cpu", "--seeds", "0",
    ]  # fmt: skip
    before = rows_of(folder)
    assert cotrain_gpu.main(told) == 0
    assert begun == []
    # OUT is emptied before a call: it has the earlier calls' rows again
    assert sorted(map(json.dumps, rows_of(folder))) == sorted(map(json.dumps, before))


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
