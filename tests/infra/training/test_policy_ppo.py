"""`train-retriever --algorithm ppo` end to end: RLlib, runners, the reader's actor; in miniature, and real."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from pathlib import Path

import psutil
import pytest

from infra.training.backbone_job import MODEL, BackboneJob, run_here
from infra.training.backbone_loop import LoopConfig
from infra.training.learners.reader import ReaderSpec
from infra.training.policy_train import PolicyTrainConfig, train
from models.hf import HfConfig
from models.retriever import load_policy
from pipeline.errors import UsageError
from rl.reward import RewardConfig
from tests.infra.training.learning_case import material, reader, triples


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.model
@pytest.mark.usefixtures("local_ray")
def test_run_goes_on_when_a_runner_and_the_reader_are_killed(tmp_path: Path) -> None:
    """kill -9 of an env runner and of the reader's actor: both come back, all is done, the return rises."""
    spec = ReaderSpec(
        data=triples(tmp_path / "triples"), backbone=reader(tmp_path), method="full", steps=120, lr=3e-3,
        tokens_per_batch=1024,
    )  # fmt: skip
    run_here(BackboneJob(kind="reader", out=tmp_path / "run", spec=spec, loop=LoopConfig(steps=120)))
    job = PolicyTrainConfig(
        data=(material(tmp_path / "material"),), out=tmp_path / "policy", algorithm="ppo", warm_start="none",
        backbone=HfConfig(model=str(tmp_path / "run" / MODEL), adapter="none", device="cpu"), steps=10, minutes=6.0,
        questions=16, lr=2e-3, reward=RewardConfig(gamma=0.001, gold_weight=1.0),
    )  # fmt: skip
    records: list[dict[str, float]] = []
    killed: list[int] = []

    def kill_both() -> None:
        deadline = time.monotonic() + 300
        while len(records) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        for name in ("SingleAgentEnvRunner", "ReaderActor"):
            # of this run's own Ray alone: others may train on this machine
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if name in " ".join(process.cmdline()):
                        process.kill()
                        killed.append(process.pid)
                        break

    thread = threading.Thread(target=kill_both)
    thread.start()
    figures = train(job, on_step=records.append)
    thread.join(10)
    assert len(killed) == 2 and not any(psutil.pid_exists(pid) for pid in killed)
    assert figures["learning"]["iterations"] == 10
    returns = [row["episode_return"] for row in records if math.isfinite(row.get("episode_return", math.nan))]
    assert max(returns[-3:]) > returns[0] + 0.1, returns
    assert all({"entropy", "stop_rate", "budget_use", "value_error"} <= set(record) for record in records)
    load_policy(tmp_path / "policy")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.model
@pytest.mark.data
def test_verb_trains_on_real_questions_and_records_its_curves(data_dir: Path, tmp_path: Path) -> None:
    """Eight NQ questions, Gemma as the reader, one iteration: figures, a policy, MLflow's curves of health."""
    import subprocess
    import sys

    command = [
        sys.executable, "-m", "infra.cli", "train-retriever", "--data", str(data_dir / "qa/nq_open.jsonl.zst"),
        "--algorithm", "ppo", "--train", "8", "--test", "4", "--steps", "1", "--minutes", "5", "--questions", "4",
        "--warm-steps", "30", "--out", str(tmp_path / "policy"), "--state", str(tmp_path / "state"), "--json",
    ]  # fmt: skip
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["learning"]["iterations"] == 1
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'state' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("dysra").experiment_id])
    for name in ("episode_return", "entropy", "stop_rate", "tokens", "value_error"):
        assert client.get_metric_history(run.info.run_id, name), name


def test_readings_that_are_not_there_are_refused(tmp_path: Path) -> None:
    """The file is named, before anything is loaded or trained."""
    job = PolicyTrainConfig(
        data=(material(tmp_path / "material"),), out=tmp_path / "policy", algorithm="ppo", steps=1,
        readings=tmp_path / "none.npz",
    )  # fmt: skip
    with pytest.raises(UsageError, match="is no file"):
        train(job)
