"""`dysra train-retriever` from the command line in miniature: curves of health, a card, a challenger."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from infra.commands import train
from tests.rl.test_module import recorded

HEALTH = (
    "episode_return",
    "entropy",
    "stop_rate",
    "empty_rate",
    "budget_use",
    "tokens",
    "choices",
    "value_error",
)


def test_curves_of_health_are_tracked_and_the_policy_is_a_challenger(tmp_path: Path) -> None:
    """Every figure of every iteration in MLflow, beside the warm start's; the card names the command's settings."""
    recorded(tmp_path)
    app = typer.Typer()
    train.register(app)
    arguments = (
        "train-retriever", "--data", str(tmp_path / "material"), "--readings", str(tmp_path / "readings.npz"),
        "--algorithm", "reinforce", "--steps", "3", "--questions", "8", "--warm-steps", "12",
        "--out", str(tmp_path / "policy"), "--state", str(tmp_path / "state"), "--json",
    )  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["learning"]["iterations"] == 3
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'state' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("dysra").experiment_id])
    for name in HEALTH:
        assert len(client.get_metric_history(run.info.run_id, name)) == 3, name
    assert client.get_metric_history(run.info.run_id, "loss"), "nothing of the warm start"
    result = CliRunner().invoke(app, ["models", "list", "--state", str(tmp_path / "state"), "--json"])
    (row,) = json.loads(result.stdout.splitlines()[-1])["models"]
    assert str(row["version"]) == str(figures["version"]) and row["aliases"] == ["challenger"]
    card = (tmp_path / "policy" / "README.md").read_text(encoding="utf-8")
    assert "Warm start" in card and "Learning by reward" in card and "seed" in card
