"""infra/training/policy_readers.py: training and dev questions are read by the reader that does not know them."""

from __future__ import annotations

import hashlib
import json
import shutil
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.training import policy_readers
from infra.training.policy_pack import main_directions, turn
from infra.training.policy_readers import (
    FoldedReader,
    equals,
    merged,
    open_readers,
    own_device,
    reader_names,
    readings_of,
    slopes,
    who_reads,
)
from infra.training.policy_report import page
from infra.training.policy_stages import put_shipped, reward_jobs, train_one
from infra.training.policy_voice import open_voice
from infra.training.reader_gpu import load_base
from models.reader_lowrank import LowRank
from models.retriever import Choosing, PolicyNetwork, load_policy
from models.retriever.network import as_tensors
from models.retriever.storage import save_policy
from models.retriever.table import GOLD
from pipeline.tasks.material import Material
from pipeline.tasks.reading import MaterialReader
from rl.episodes import Readings, fingerprint
from tests.infra.training.test_policy_gpu import carried, questions_with_features, run, texts
from tests.rl.toy import network_config

__all__ = ["carried", "texts"]

FOLDS = ("fold0", "fold1")


def with_dev() -> Material:
    """The toy's questions, some of training in dev."""
    made = questions_with_features()
    asked = [replace(q, split="dev") if at in (3, 7) else q for at, q in enumerate(made.questions)]
    return Material(tuple(asked), made.tables)


def write_folds(folder: Path, made: Material) -> dict[str, int]:
    """A fold of every second question."""
    folder.mkdir(parents=True, exist_ok=True)
    folds = {q.question_id: at % 2 for at, q in enumerate(made.questions)}
    (folder / "folds.json").write_text(json.dumps(folds))
    return folds


def adapters(carried: Path, folder: Path, scale: float = 0.3) -> None:
    """An adapter of each fold, far from the base and from each other."""
    for seed, name in enumerate(FOLDS):
        model = load_base(carried, torch.float32)
        low = LowRank(model, rank=4, alpha=8, seed=seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in low.parameters():
                parameter.add_(scale * torch.randn_like(parameter))
        low.save(folder / name)


class Named:
    """A reader that answers with its own number, and counts what it was asked."""

    def __init__(self, number: float) -> None:
        self.number, self.asked = number, 0

    def outcomes(self, requests: Sequence[Any]) -> list[tuple[float, float, float]]:
        self.asked += len(requests)
        return [(self.number, float(row), 0.0) for row, _ in requests]

    def spoken(self, requests: Sequence[Any]) -> list[Any]:
        return [(self.number, row) for row, _ in requests]


def test_every_training_and_dev_question_is_read_by_the_reader_that_was_not_trained_on_it(
    tmp_path: Path,
) -> None:
    """By its fold; test questions by the shipped one; a question of unknown fold is refused, newswire's dealt."""
    made = with_dev()
    folds = write_folds(tmp_path, made)
    names = reader_names(made, tmp_path)
    for question, name in zip(made.questions, names, strict=True):
        assert name == ("shipped" if question.split == "test" else f"fold{folds[question.question_id]}")
    stranger = replace(made.questions[0], question_id="stranger")
    with pytest.raises(ValueError, match="has no fold for"):
        reader_names(Material((stranger, *made.questions[1:]), made.tables), tmp_path)
    stranger = replace(stranger, dataset="newswire")
    assert reader_names(Material((stranger, *made.questions[1:]), made.tables), tmp_path)[0] in FOLDS


def test_what_the_shipped_reader_does_not_know_it_reads_itself(tmp_path: Path) -> None:
    """Where the folder names it; a question of a fold among these is refused. Readings are known by who read."""
    made = with_dev()
    asked = [
        replace(q, dataset="rtqa", question_id=f"r{at}") if at < 2 else q
        for at, q in enumerate(made.questions)
    ]
    made = Material(tuple(asked), made.tables)
    folds = {q.question_id: at % 3 for at, q in enumerate(made.questions) if at >= 2}
    (tmp_path / "folds.json").write_text(json.dumps(folds))
    before = readings_of(Namespace(fold_readers=tmp_path), made)
    assert set(reader_names(made, tmp_path)[:2]) <= {"fold0", "fold1", "fold2"}
    (tmp_path / "shipped_reads.json").write_text(json.dumps(["r0", "r1"]))
    names = reader_names(made, tmp_path)
    assert names[:2] == ["shipped", "shipped"] and names[2:5] == ["fold2", "fold0", "fold1"]
    assert readings_of(Namespace(fold_readers=tmp_path), made) != before
    told = who_reads(made, tmp_path)
    assert told["train"]["rtqa"] == {"shipped": 2} and told["test"]["toy"] == {"shipped": 8}
    (tmp_path / "shipped_reads.json").write_text(json.dumps([made.questions[4].question_id]))
    with pytest.raises(ValueError, match="may have been trained on it"):
        reader_names(made, tmp_path)


def test_processes_are_dealt_the_devices_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """In turn; without any named each sees what the machine has."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert [own_device(at)["CUDA_VISIBLE_DEVICES"] for at in range(3)] == ["2", "3", "2"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert own_device(0) == {}


class Here:
    """A process that has done its work here before it is waited for: three imports of torch less."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        assert command[1:3] == ["-m", "infra.training.policy_readers"] and env
        policy_readers.main(command[3:])

    def wait(self, timeout: float) -> int:
        assert timeout > 0
        return 0


def test_all_readers_are_compared_each_in_a_process_of_its_own(
    carried: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their figures stand side by side over the same questions; who reads what is written beside them."""
    monkeypatch.setattr(policy_readers.subprocess, "Popen", Here)
    made, folder = with_dev(), tmp_path / "folds"
    write_folds(folder, made)
    adapters(carried, folder)
    made.save(tmp_path / "material", {})
    given = [
        "--material", str(tmp_path / "material"), "--reader", str(carried), "--fold-readers", str(folder),
        "--out", str(folder / "equal.json"), "--slopes", str(folder / "slopes.json"), "--most", "2",
        "--device", "cpu",
    ]  # fmt: skip
    policy_readers.main(given)
    equal, found = (json.loads((folder / name).read_text()) for name in ("equal.json", "slopes.json"))
    for told in (*equal["toy"].values(), *found["toy"].values()):
        assert set(told) == {"n", "shipped", "fold0", "fold1"}
    assert set(json.loads((folder / "who_reads.json").read_text())) == {"train", "dev", "test"}
    assert merged([{"a": {"b": {"n": 1, "x": 2}}}, {"a": {"b": {"n": 1, "y": 3}}}]) == {
        "a": {"b": {"n": 1, "x": 2, "y": 3}}
    }
    with pytest.raises(SystemExit, match="given fold7; allowed: shipped, fold0, fold1"):
        policy_readers.main([*given, "--only", "fold7"])


def test_answers_come_back_in_the_order_in_which_they_were_asked() -> None:
    """Whoever read them; a reader that nothing is asked of is never opened."""
    opened: dict[str, Named] = {}

    def make(name: str) -> Named:
        opened[name] = Named({"a": 1.0, "b": 2.0, "c": 3.0}[name])
        return opened[name]

    reader = FoldedReader(["a", "b", "a", "c"], make)
    asked = [(1, (0,)), (0, (1,)), (2, ()), (1, (2,)), (0, ())]
    assert [row for _, row, _ in reader.outcomes(asked)] == [1, 0, 2, 1, 0]
    assert [f1 for f1, _, _ in reader.outcomes(asked)] == [2.0, 1.0, 1.0, 2.0, 1.0]
    assert reader.spoken(asked) == [(2.0, 1), (1.0, 0), (1.0, 2), (2.0, 1), (1.0, 0)]
    assert set(opened) == {"a", "b"}
    assert opened["a"].asked == 6


def test_a_fold_reader_is_the_base_with_its_own_adapter(carried: Path, tmp_path: Path) -> None:
    """Losses are those of a voice opened with that adapter; without the option nothing differs from before."""
    made, folder = with_dev(), tmp_path / "folds"
    write_folds(folder, made)
    adapters(carried, folder)
    given = Namespace(reader=None, carried=carried, device="cpu", adapter=None, fold_readers=folder)
    asked = [(at, (0, 1)) for at in (0, 1, 3, 15)]
    found = open_readers(given, made)(True).outcomes(asked)
    voices = [open_voice(carried, "cpu", folder / name) for name in ("fold0", "fold1")]
    voices = [*voices, voices[1], open_voice(carried, "cpu")]
    alone = [
        MaterialReader(made, voice).outcomes([request])[0]
        for request, voice in zip(asked, voices, strict=True)
    ]
    np.testing.assert_allclose(found, alone, rtol=2e-3, atol=2e-3)
    given.fold_readers = None
    plain = open_readers(given, made)(True).outcomes(asked)
    np.testing.assert_allclose(plain, MaterialReader(made, voices[3]).outcomes(asked), rtol=2e-3, atol=2e-3)
    assert abs(plain[0][1] - found[0][1]) > 1e-3
    assert readings_of(given, made) == fingerprint(made) != readings_of(Namespace(fold_readers=folder), made)


def test_readers_are_compared_on_the_same_test_questions() -> None:
    """F1 in percent of each reader, by set and context."""
    made = with_dev()
    found = equals(made, {"shipped": Named(0.5), "fold0": Named(0.25)}, most=3)
    assert all(
        told == {"n": 3, "shipped": 50.0, "fold0": 25.0} for each in found.values() for told in each.values()
    )
    assert {tuple(each) for each in found.values()} == {("oracle", "hybrid")}


def test_readers_are_compared_over_the_number_of_sentences() -> None:
    """The telling one and so many others, the same questions at each number; sets without one tell nothing."""
    made = with_dev()
    asked: list[tuple[int, tuple[int, ...]]] = []

    class Counted(Named):
        def outcomes(self, requests: Sequence[Any]) -> list[tuple[float, float, float]]:
            asked.extend(requests)
            return [(1.0 / len(picks), 0.0, 0.0) for _, picks in requests]

    found = slopes(made, {"shipped": Counted(0.0)}, sizes=(1, 2))
    assert found
    for told in found.values():
        assert told["1"]["shipped"] == 100.0 and 50.0 <= told["2"]["shipped"] <= 100.0
    for row, picks in asked:
        labels = made.tables.labels[row, list(picks)]
        assert labels[0] == GOLD and (labels[1:] == 0).all() and made.questions[row].split == "test"


def test_the_shipped_policy_chooses_over_turned_vectors_as_over_the_embedders_own(tmp_path: Path) -> None:
    """Its first layer is turned as the vectors are; a second worker that comes later changes nothing."""
    made = questions_with_features()
    projection = main_directions(made, 6)
    torch.manual_seed(0)
    network = PolicyNetwork(network_config(dim=made.tables.dim, num_features=15)).eval()
    save_policy(network, tmp_path / "own", {"kind": "reinforce"}, "")
    for _ in range(2):
        put_shipped(tmp_path / "own", tmp_path / "policies", projection)
    narrow, _ = load_policy(tmp_path / "policies" / "shipped-0" / "carried")
    assert narrow.config.dim == 6
    rows = np.arange(8)
    turned = as_tensors(Choosing(turn(made, projection).tables, rows, 90).observe())
    wide = as_tensors(Choosing(made.tables, rows, 90).observe())
    torch.testing.assert_close(narrow(turned)[0], network(wide)[0], atol=5e-3, rtol=5e-3)


def test_multi_hop_questions_are_met_as_often_as_they_are_weighed(tmp_path: Path) -> None:
    """A job of its own, and only where it is asked for; it learns from the others once."""
    assert not [job for job in reward_jobs([0]) if job.multi_hop > 1]
    jobs = reward_jobs([0, 1], together=True, multi_hop=3)
    assert not [job for job in jobs if job.reading == "apart"]
    weighed = [job for job in jobs if job.multi_hop > 1]
    assert [job.name for job in weighed] == ["reinforce_hops-0", "reinforce_hops-1"]
    made = questions_with_features()
    asked = [replace(q, dataset="hotpot") if at < 2 else q for at, q in enumerate(made.questions)]
    made = Material(tuple(asked), made.tables)
    record = train_one(
        made, made.rows("train"), Readings(None), replace(weighed[0], algorithm="supervised"), out=tmp_path,
        seconds=60, device="cpu", say=lambda _: None, width=16, layers=1, warm_steps=2,
    )  # fmt: skip
    assert record["questions"] == 12 + 2 * 2


def test_a_whole_run_with_fold_readers_reads_together_only_and_judges_the_shipped_policy(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No readings apart, no routers; all test points are read, so that halves of the questions can choose."""
    out, folder = tmp_path / "state", tmp_path / "folds"
    common = (
        "--carried", str(texts), "--out", str(out), "--seeds", "0", "--warm-steps", "6", "--worlds", "0",
        "--iterations", "1", "--width", "16", "--layers", "1", "--budgets", "48", "64", "--biases", "-4", "0",
        "--pair-epochs", "1", "--seconds", "600", "--most", "6", "--together",
    )  # fmt: skip
    run(monkeypatch, *common, "--stage", "material", "pairs", "teach")
    made = Material.load(out / "material")
    write_folds(folder, made)
    adapters(texts, folder)
    told = {"n": 1, "shipped": 50.0, "fold0": 49.5, "fold1": 47.25}
    (folder / "equal.json").write_text(json.dumps({"nq": {"oracle": told}}))
    shutil.copytree(out / "policies" / "supervised-0" / "policy", tmp_path / "shipped")
    more = ("--fold-readers", str(folder), "--shipped", str(tmp_path / "shipped"), "--multi-hop", "2")
    run(monkeypatch, *common, *more, "--stage", "all")
    assert not (out / "readings").exists()
    found = json.loads((out / "evaluation.json").read_text())
    points = found["sets"]["nq"]["test"]
    names = {point["name"] for point in points}
    assert names >= {"shipped-0", "reinforce_hops-0", "reinforce-0", "plain_ppo-0", "oracle", "bm25"}
    assert not [name for name in names if "_apart" in name or "_staged" in name or "router" in name]
    assert all(point["forced_f1"] is not None for point in points)
    assert found["rewarded_by"] == "fold readers"
    digests = {
        name: hashlib.sha256((folder / name / "adapter_model.safetensors").read_bytes()).hexdigest()
        for name in FOLDS
    }
    about = {
        name: load_policy(out / "policies" / f"{name}-0" / "policy")[1]
        for name in ("reinforce", "supervised")
    }
    assert about["reinforce"]["paid_by"] == digests and "paid_by" not in about["supervised"]
    assert "own_stop_shipped_nq" in found["summary"]
    shown = page(found, "a CPU", "abc")
    assert "the one that does not know it" in shown
    assert "| nq | oracle | 1 | 50.0 | 49.5 | 47.25 |" in shown
    assert "by 2 readers that were each trained without one part" in shown
    read = found["who_reads"]["test"]["nq"]
    assert set(read) == {"shipped"} and f"| test | nq | {read['shipped']} | 0 | 0 |" in shown
    assert "| set | method | 48 | 64 |" in shown
    assert "read apart, until" not in shown
