"""infra/training/policy_distill.py: a student's run beside the decoder's; the policy in service as it serves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.training import policy_distill, policy_targets
from infra.training.policy_against import ANYHOW, Served, against, load_curves, named
from infra.training.policy_collect import collect, unpack
from infra.training.policy_distill import works
from infra.training.policy_pairs import MINILM, PairBase, fold_of, pairs_seen, with_scores
from infra.training.policy_served import as_served, load_served, scored_by_own
from infra.training.policy_ship import ship
from infra.training.policy_student import load_student
from infra.training.policy_targets import scored_shards, taught_by
from models.retriever.pair_reader import from_minilm, load_pair_reader, save_pair_reader
from models.retriever.pair_taught import WORDS, Plan
from models.retriever.table import ALL_FEATURES
from pipeline.tasks.material import Material
from tests.infra.training.test_policy_gpu import carried, run, texts
from tests.infra.training.test_policy_made import made_folder

__all__ = ["carried", "texts"]  # fixtures


def distill(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """The script with these arguments, its processes one after another in this one; what they did."""
    done: list[str] = []

    def here(given: policy_distill.Given, stage: str, seconds: float) -> bool:
        for work in works(given, stage, 2):
            done.append(work)
            given.work = work
            policy_distill.WORK[work.partition(":")[0]](given)
        given.work = ""
        return True

    monkeypatch.setattr(policy_distill, "_processes", here)
    monkeypatch.setattr(sys, "argv", ["policy_distill", "--device", "cpu", *arguments])
    policy_distill.main()
    return done


@pytest.mark.slow
def test_a_student_s_run_stands_beside_its_teacher_s(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoder's pair readers, students of them, policies over the students, the served policy over its own reader:
    judged, carried home, stood against one another and shipped, from a few questions."""
    big, small = tmp_path / "big", tmp_path / "small"
    made = made_folder(tmp_path / "made", 8)
    common = (
        "--carried", str(texts), "--seeds", "0", "--warm-steps", "4", "--worlds", "0", "--iterations", "1",
        "--width", "16", "--layers", "1", "--budgets", "128", "--biases", "-12", "-8", "--seconds", "600",
        "--most", "4", "--together",
    )  # fmt: skip
    run(
        monkeypatch, *common, "--out", str(big), "--stage", "material", "pairs", "--pair-base", "decoder",
        "--made", str(made), "--decoder-epochs", "1", "--decoder-candidates", "3",
    )  # fmt: skip
    options = (
        "--run", str(big), "--out", str(small), "--carried", str(texts), "--made", str(made), "--questions", "8",
        "--made-passes", "3", "--passes", "2", "--candidates", "4",
    )  # fmt: skip
    done = distill(monkeypatch, *options)
    assert done[:3] == ["targets:made:0/2", "targets:made:1/2", "student:made"]
    assert done[3:5] == ["targets:fold0:0/1", "targets:fold1:0/1"]
    assert sorted(done[5:]) == ["student:fold0", "student:fold1", "student:whole"]
    assert distill(monkeypatch, *options) == [], "what is done is passed over"

    material = Material.load(small / "material")
    for fold in (0, 1):
        plan = Plan.load(scored_shards(small / "", f"fold{fold}")[0])
        assert np.isfinite(plan.scores).all()
        assert {fold_of(material, int(row)) for row in plan.questions} == {fold}
        # the decoder's other fold scores as the plan says it did
        teacher = PairBase("decoder", texts).load(big / "pairs_decoder" / f"fold{1 - fold}", "cpu")
        again = taught_by(teacher, plan, material, float("inf"))
        np.testing.assert_allclose(again.scores, plan.scores, atol=1e-3)
    about = json.loads((small / "pairs" / "whole" / "config.json").read_text())["about"]
    assert about["rows_taught"] == 1.0 and about["steps"] == about["steps_planned"]
    card = (small / "pairs" / "whole" / "README.md").read_text()
    assert "Curve (means" in card and "Curve before it, on made questions (means" in card
    ranks = json.loads((small / "ranks_beside.json").read_text())
    assert {"pair_taught", "pair_decoder", "hybrid"} <= set(ranks["test"]["nq"])

    # what serves: a policy of the decoder's kind of features over another pair reader
    served = tmp_path / "served"
    other = from_minilm(texts / "minilm")
    torch.manual_seed(5)
    torch.nn.init.normal_(other.model.head.weight, std=0.5)
    save_pair_reader(other, served / "pair-reader", {"fold": "served"})
    run(monkeypatch, *common, "--out", str(small), "--stage", "teach")
    policy = served / "retriever"
    ship(small, "supervised-0", policy, stop_bias=-12.0)
    run(monkeypatch, *common, "--out", str(small), "--stage", "reward", "judge", "--shipped", str(policy))
    own = as_served(material, policy, small, texts / "minilm", "cpu", print)
    assert own is not None
    test = material.rows("test")
    at = ALL_FEATURES.index("pair")
    assert not np.allclose(
        own.tables.features[test, :, at], with_scores(material, small / "pairs").tables.features[test, :, at]
    )

    collect(small, tmp_path / "sent")
    home = tmp_path / "home"
    unpack(sorted((tmp_path / "sent").iterdir()), home)
    assert pairs_seen(home) == home / "pairs"
    assert scored_by_own(home)
    curves = load_curves(home)
    theirs = Served("shipped-0", -12.0)
    told = {rule: against(curves, ours, theirs, 128) for rule, ours in named(curves, theirs, 128).items()}
    assert set(told[ANYHOW]["dev_gain"]) == {"gain", "low", "high"}
    assert isinstance(told[ANYHOW]["ships"], bool)

    monkeypatch.setattr("models.retriever.pair_reader._minilm_words", lambda: _words_of(texts / "minilm"))
    weights = tmp_path / "weights"
    found = ship(
        home, "reinforce-0", weights / "retriever", stop_bias=-8.0, pair_reader=True, small=True, beside=True
    )
    assert (weights / "pair-reader" / "config.json").is_file()
    assert not (weights / "retriever" / "pair-reader").exists()
    assert found["bytes"] < 1 << 20
    assert "Learning by reward" in (weights / "retriever" / "README.md").read_text()
    assert "Curve before it, on made questions" in (weights / "pair-reader" / "README.md").read_text()
    for name in ("retriever", "pair-reader"):
        told_of = (weights / name / "README.md").read_text().lower()
        assert all(
            word in told_of for word in ("python3 -m infra.training", "seed", "curve", "trained", "licence")
        )
    student = load_student(small / "pairs" / "whole", PairBase(MINILM, texts / "minilm"), "cpu")
    shipped = load_pair_reader(weights / "pair-reader")[0]
    for name, tensor in shipped.model.state_dict().items():
        torch.testing.assert_close(tensor, student.model.state_dict()[name], atol=2e-3, rtol=1e-2)
    carried_words = load_served(weights / "pair-reader", texts / "minilm", "cpu")
    torch.testing.assert_close(carried_words.model.state_dict(), shipped.model.state_dict())


def _words_of(folder: Path) -> tuple[torch.Tensor, Path]:
    return from_minilm(folder).model.state_dict()[WORDS], folder / "tokenizer.json"


def test_shards_of_another_number_of_devices_count_only_when_all_are_there(tmp_path: Path) -> None:
    """Two of two make a plan, one of two does not."""
    (tmp_path / "taught").mkdir()
    for name in ("made-0of2", "made-0of1"):
        (tmp_path / "taught" / f"{name}.npz").touch()
    assert [path.stem for path in scored_shards(tmp_path, "made")] == ["made-0of1"]
    (tmp_path / "taught" / "made-0of1.npz").unlink()
    assert scored_shards(tmp_path, "made") == []


def test_a_teacher_that_the_clock_cuts_leaves_the_rest_to_the_labels(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row is scored after the time is over, and the plan says which were not."""
    made = Material.load(made_folder(tmp_path / "made"))
    reader = from_minilm(texts / "minilm")
    from models.retriever.pair_taught import draw_plan
    from models.retriever.pair_training import PairTrainConfig

    plan = draw_plan(made.tables, np.arange(4), 6, PairTrainConfig(candidates=3))
    assert np.isnan(taught_by(reader, plan, made, 0.0).scores).all()
    monkeypatch.setattr(policy_targets, "CHUNK", 2)
    assert np.isfinite(taught_by(reader, plan, made, float("inf")).scores).all()


def test_a_policy_without_a_pair_reader_beside_it_is_judged_over_the_run_s(tmp_path: Path) -> None:
    """It says so, and nothing is scored."""
    (tmp_path / "retriever").mkdir()
    said: list[str] = []
    made = Material.load(made_folder(tmp_path / "made"))
    assert as_served(made, tmp_path / "retriever", tmp_path / "out", tmp_path, "cpu", said.append) is None
    assert "brings no pair reader" in said[0]


JOB = Path(__file__).resolve().parents[3] / "infra" / "gpu_host" / "jobs" / "policy_small.sh"


def test_the_job_distils_then_learns_and_judges_in_its_own_folder(tmp_path: Path) -> None:
    """With a python3 that only writes down what it is called with."""
    import os

    for name in ("tree", "bin", "carried", "out", "reader", "folds", "made", "parts/served/retriever"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("carried/joined", "reader/ready.json", "folds/ready", "made/ready"):
        (tmp_path / name).touch()
    stub = tmp_path / "bin" / "python3"
    stub.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/called\n')
    stub.chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "LEASE_ROOT": str(tmp_path),
        "OUT": str(tmp_path / "out"), "SECONDS_LIMIT": "900",
    }  # fmt: skip
    done = subprocess.run(["bash", str(JOB)], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    called = (tmp_path / "called").read_text().splitlines()
    assert [line.split()[1].rpartition(".")[2] for line in called] == [
        "policy_distill", "policy_served", "policy_gpu", "policy_gpu", "policy_gpu",
    ]  # fmt: skip
    runs = tmp_path / "work"
    assert f"--run {runs / 'policy'} --out {runs / 'policy_small'}" in called[0]
    assert "--stage teach" in called[2] and "--stage reward judge" in called[3]
    assert f"--shipped {tmp_path}/parts/served/retriever" in called[3]
    assert f"--fold-readers {tmp_path}/folds" in called[3]
    assert "--stage collect" in called[4]
