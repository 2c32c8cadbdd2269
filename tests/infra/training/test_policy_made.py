"""infra/training/policy_made.py: pair readers learn made questions first; folds go on from there."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.training import policy_gpu, policy_made, policy_pairs
from infra.training.policy_made import (
    CANDIDATES,
    LOWER,
    MADE,
    UNMADE,
    after_made,
    held_out,
    made_config,
    rows_of_pass,
    train_on_made,
)
from infra.training.policy_pairs import MINILM, PairBase, train_fold
from infra.training.policy_work import trainings
from models.retriever.pair_training import PairTrainConfig
from pipeline.errors import UsageError
from pipeline.tasks.material import Material
from tests.infra.training.test_policy_gpu import carried, questions_with_features, run, small_bert, texts

__all__ = ["carried", "texts"]
CONFIG = PairTrainConfig(questions=4, candidates=4, epochs=1.0)


def made_folder(folder: Path, questions: int = 0) -> Path:
    """The toy as made questions: all of training."""
    made = questions_with_features()
    whole = Material(tuple(replace(question, split="train") for question in made.questions), made.tables)
    (whole.take(range(questions)) if questions else whole).save(folder, {})
    return folder


def quiet(_: str) -> None:
    """Says nothing."""


@pytest.fixture
def base(tmp_path: Path) -> PairBase:
    """A small BERT over the toy's words."""
    made = questions_with_features()
    words = {word.lower() for q in made.questions for _, _, text in q.sentences for word in text.split()}
    small_bert(tmp_path / "minilm", sorted(words))
    return PairBase(MINILM, tmp_path / "minilm")


def weights(base: PairBase, folder: Path) -> torch.Tensor:
    """A saved reader's weights as one vector."""
    state = base.load(folder, "cpu").model.state_dict()
    return torch.cat([tensor.flatten().float() for tensor in state.values()])


def test_a_fold_goes_on_from_the_made_questions(
    base: PairBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it begins with is what was saved; without it, it is refused; done work is passed over."""
    out, begins = tmp_path / "pairs", []
    material = questions_with_features()
    with pytest.raises(FileNotFoundError, match="run the stage made"):
        train_fold(material, base, "whole", out, CONFIG, "cpu", quiet, True)
    train_on_made(made_folder(tmp_path / "made"), base, out, CONFIG, 0, "cpu", quiet)
    saved = weights(base, out / MADE)
    about = json.loads((out / MADE / "config.json").read_text())["about"]
    assert (about["held_out"], about["steps"]) == (2, about["steps_planned"])
    assert 0 <= about["held_out_hit_1"] <= 100
    told = (out / MADE / "config.json").stat().st_mtime_ns
    train_on_made(tmp_path / "none", base, out, CONFIG, 0, "cpu", quiet)
    assert (out / MADE / "config.json").stat().st_mtime_ns == told
    whole = policy_pairs.train_pairs

    def watching(reader: object, *given: object, **named: object) -> object:
        state = reader.model.state_dict()  # type: ignore[attr-defined]
        begins.append(torch.cat([tensor.flatten().float() for tensor in state.values()]))
        return whole(reader, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(policy_pairs, "train_pairs", watching)
    train_fold(material, base, "whole", out, CONFIG, "cpu", quiet, True)
    torch.testing.assert_close(begins[0], saved)
    train_fold(material, base, UNMADE, out, CONFIG, "cpu", quiet)
    assert not torch.equal(begins[1], saved)
    about = [json.loads((out / name / "config.json").read_text())["about"] for name in ("whole", UNMADE)]
    assert [each["after_made"] for each in about] == [True, False]
    assert sorted(np.load(out / UNMADE / "scores.npz")["rows"].tolist()) == material.rows("test").tolist()


def test_only_kinds_that_are_named_learn_made_questions_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others begin with their makers' weights; one that the run does not have is refused by name."""

    def given(*more: str) -> argparse.Namespace:
        told = (
            "--out",
            str(tmp_path),
            "--pair-base",
            "mpnet+e5_dual",
            "--made",
            str(tmp_path),
            "--unmade",
            *more,
        )
        monkeypatch.setattr("sys.argv", ["policy_gpu", *told])
        return policy_gpu._given()

    every, some = given(), given("--made-kinds", "mpnet")
    assert [policy_gpu.processes(each, "made") for each in (every, some)] == [2, 1]
    assert policy_gpu._kinds(some, "made") == ["mpnet"]
    assert trainings(every).count(("e5_dual", UNMADE)) == 1
    assert [kind for kind, fold in trainings(some) if fold == UNMADE] == ["mpnet"]
    assert not policy_gpu.is_done(some, "made")
    (tmp_path / "pairs_mpnet" / MADE).mkdir(parents=True)
    (tmp_path / "pairs_mpnet" / MADE / "config.json").touch()
    assert policy_gpu.is_done(some, "made") and not policy_gpu.is_done(every, "made")
    with pytest.raises(SystemExit):
        given("--made-kinds", "minilm")


def test_a_folder_that_is_not_whole_is_refused(base: PairBase, tmp_path: Path) -> None:
    """The job may have been ended before its manifest."""
    with pytest.raises(UsageError, match="not whole"):
        train_on_made(tmp_path, base, tmp_path / "pairs", CONFIG, 0, "cpu", quiet)


def test_settings_of_both_trainings_and_the_limit_of_steps() -> None:
    """One pass with fewer candidates, then half the rate; steps end a pass by leaving questions out."""
    wide = replace(CONFIG, candidates=24, epochs=3.0)
    assert (made_config(wide, 9.0).candidates, made_config(wide, 9.0).epochs) == (CANDIDATES, 1.0)
    assert after_made(wide) == replace(wide, lr=LOWER * wide.lr)
    made = questions_with_features()
    assert len(rows_of_pass(made, CONFIG, 0)) == len(made)
    learned, held = held_out(made, 0)
    assert len(held) == 2
    assert sorted([*learned.tolist(), *held.tolist()]) == list(range(20))
    few = rows_of_pass(made, CONFIG, 2)
    assert len(set(few.tolist())) == 8
    np.testing.assert_array_equal(few, rows_of_pass(made, CONFIG, 2))


def test_stages_are_those_of_before_without_made_questions() -> None:
    """`made` stands before `pairs` only where a folder is given."""
    assert policy_gpu._with_made(["material", "made", "pairs", "teach"], False) == [
        "material",
        "pairs",
        "teach",
    ]
    assert policy_gpu._with_made(["material", "pairs"], True) == ["material", "made", "pairs"]
    assert policy_gpu._with_made(["readings"], True) == ["readings"]
    assert policy_gpu._with_made(["made"], True) == ["made"]


def test_the_driver_tells_ranks_with_and_without(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages material and pairs with --made and --unmade, both kinds: three orders of each beside simple ones."""
    out = tmp_path / "state"
    run(
        monkeypatch, "--carried", str(texts), "--out", str(out), "--stage", "material", "pairs", "--worlds", "0",
        "--pair-epochs", "1", "--seconds", "600", "--most", "3", "--made", str(made_folder(tmp_path / "made", 8)),
        "--unmade", "--pair-base", "both", "--decoder-epochs", "1", "--decoder-candidates", "2",
    )  # fmt: skip
    ranks = json.loads((out / "ranks.json").read_text())
    beside = {f"{name}{ending}" for name in ("pair", "pair_decoder") for ending in ("", "_made", "_unmade")}
    assert {"dense", *beside} <= set(ranks["test"]["nq"])
    about = json.loads((out / "pairs" / "fold0" / "config.json").read_text())["about"]
    assert about["after_made"] is True
    assert about["lr"] == pytest.approx(LOWER * PairTrainConfig().lr)
    assert policy_made.STEPS > 0


JOBS = Path(__file__).resolve().parents[3] / "infra" / "gpu_host" / "jobs"


def job(root: Path, **settings: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """policy.sh with a python3 that only writes down what it is called with."""
    for name in ("tree", "bin", "carried", "out"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "carried" / "joined").touch()
    stub = root / "bin" / "python3"
    stub.write_text(f'#!/bin/bash\necho "$@" >> {root}/called\n')
    stub.chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{root / 'bin'}:{os.environ['PATH']}", "LEASE_ROOT": str(root),
        "OUT": str(root / "out"), "SECONDS_LIMIT": "100", "STAGES": "material pairs", **settings,
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(JOBS / "policy.sh")], env=environment, capture_output=True, text=True, timeout=60
    )
    return done, (root / "called").read_text().splitlines()


def test_the_job_makes_material_first_and_passes_made_questions_on(tmp_path: Path) -> None:
    """With MADE=2 also the reader that does without; without MADE nothing is said of them."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "ready").touch()
    done, called = job(tmp_path, MADE="2")
    assert done.returncode == 0
    assert "--stage material --carried" in called[0] and "--made" not in called[0]
    assert f"--made {tmp_path}/made --unmade" in called[1]
    (tmp_path / "called").unlink()
    done, called = job(tmp_path)
    assert len(called) == 3 and "--stage material --carried" in called[0]
    assert not any("made" in line.split() or "--made" in line for line in called)


def test_the_job_goes_on_without_made_questions_that_do_not_come(tmp_path: Path) -> None:
    """It waits as long as it is told, says so, and the run is one without."""
    done, called = job(tmp_path, MADE="1", MADE_WAIT="1")
    assert done.returncode == 0
    assert "pair readers do without" in done.stderr
    assert "--stage material pairs" in called[1] and "--made" not in called[1]


def part(root: Path, name: str, *files: str) -> None:
    """A part that has arrived, of files that say their names."""
    for each in files:
        path = root / "parts" / name / each
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(each)


def test_the_job_goes_on_from_pair_readers_and_made_questions_of_an_earlier_run(tmp_path: Path) -> None:
    """Readers of all folds are put where the stage both finds them; kept scores then come without their sum."""
    part(tmp_path, "policy-made", "manifest.json")
    for at, fold in enumerate(("whole", "fold0", "fold1")):
        part(tmp_path, f"policy-pairs-{at}", f"pairs_mpnet/{fold}/config.json")
    part(tmp_path, "policy-material", "manifest.json")
    kept = tmp_path / "kept_scores.npz"
    kept.touch()
    wanted = {"STAGES": "both teach", "KEPT": str(kept), "PARTS": "policy-material", "MADE": "1"}
    done, called = job(tmp_path, **wanted)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "work" / "policy"
    assert {path.parent.name for path in run.glob("pairs_mpnet/*/config.json")} == {"whole", "fold0", "fold1"}
    assert (run / "material" / "manifest.json").is_file()
    assert "policy_pairs_kept put" in called[0] and "--both" not in called[0]
    assert "--stage both teach" in called[1] and f"--made {tmp_path}/made" in called[1]
    assert (tmp_path / "made" / "ready").read_text().strip().isdigit()
    (run / "pairs_mpnet" / "whole" / "config.json").write_text("trained on")
    (tmp_path / "called").unlink()
    job(tmp_path, **wanted)
    assert (run / "pairs_mpnet" / "whole" / "config.json").read_text() == "trained on", "they are put once"


def test_the_job_takes_the_sum_of_kept_scores_where_no_pair_readers_came(tmp_path: Path) -> None:
    kept = tmp_path / "kept_scores.npz"
    kept.touch()
    (tmp_path / "work" / "policy").mkdir(parents=True)
    done, called = job(tmp_path, STAGES="teach", KEPT=str(kept))
    assert done.returncode == 0, done.stderr
    assert called[0].endswith("--both")


def test_material_that_is_named_is_waited_for_before_any_is_made(tmp_path: Path) -> None:
    """A part that does not come ends the job by name, with nothing made in its place."""
    (tmp_path / "called").touch()
    done, called = job(tmp_path, STAGES="material", PARTS="policy-material", PARTS_WAIT="1")
    assert done.returncode == 2 and "policy-material has not arrived" in done.stderr
    assert not called
