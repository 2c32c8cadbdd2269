"""`dysra train-backbone`, `prepare` and `co-train` from the command line: figures, curves in MLflow, wrong use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from infra.commands import backbone, cotrain, prepare
from tests.infra.training.token_files import token_files


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    """The verbs alone."""
    made = typer.Typer()
    for family in (backbone, cotrain, prepare):
        family.register(made)
    return made


def call(app: typer.Typer, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and figures of a verb."""
    result = CliRunner().invoke(app, [*arguments, "--json"])
    lines = result.stdout.splitlines()
    assert lines, result.output
    return result.exit_code, json.loads(lines[-1])


def test_curves_are_tracked_and_a_finished_run_is_not_trained_again(app: typer.Typer, tmp_path: Path) -> None:
    """Every term, throughput and memory by step in MLflow, and the card; a finished run is not trained again."""
    run = (
        "train-backbone", "--kind", "subq", "--data", str(token_files(tmp_path)), "--tiny", "--steps", "6",
        "--accumulate", "2", "--workers", "0", "--losses", "tokens=0.001,contrastive=0.5", "--fade", "0.5,0.8",
        "--out", str(tmp_path / "out"), "--state", str(tmp_path / "state"),
    )  # fmt: skip
    code, figures = call(app, *run)
    assert code == 0
    assert (figures["step"], figures["tokens"]) == (6, 6 * 2 * 1024)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'state' / 'mlflow.db'}")
    (made,) = client.search_runs([client.get_experiment_by_name("dysra").experiment_id])
    for name in (
        "loss",
        "language",
        "answers",
        "contrastive",
        "tokens",
        "tokens_per_s",
        "peak_share",
        "peak_bytes",
        "norm",
    ):
        steps = [point.step for point in client.get_metric_history(made.info.run_id, name)]
        assert steps == [1, 2, 3, 4, 5, 6], name
    assert [each.path for each in client.list_artifacts(made.info.run_id, "model")] == ["model/README.md"]
    before = (tmp_path / "out" / "curve.jsonl").read_bytes()
    code, again = call(app, *run)
    assert (code, again["step"]) == (0, 6)
    assert (tmp_path / "out" / "curve.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train-backbone", "--data", "{tmp}/absent"), "dysra prepare"),
        (("train-backbone", "--data", "{tmp}", "--kind", "rnn"), "subq, reader, landmark"),
        (("train-backbone", "--data", "{tmp}", "--losses", "bogus=1"), "contrastive"),
        (("train-backbone", "--data", "{tmp}", "--fade", "x"), "a number"),
        (("train-backbone", "--data", "{tmp}", "--steps", "0"), "1 or more"),
        (("train-backbone", "--data", "{tmp}", "--kind", "reader", "--method", "half"), "lora, full"),
        (("co-train", "--data", "{tmp}/absent"), "folder of material"),
        (("co-train", "--data", "{tmp}", "--mode", "both"), "alternating, joint"),
        (("co-train", "--data", "{tmp}", "--arms", "1"), "2 or more"),
        (("co-train", "--data", "{tmp}", "--accumulate", "0"), "1 or more"),
        (("prepare",), "files of texts"),
        (("prepare", "--texts", "{tmp}/absent.jsonl"), "absent.jsonl"),
        (("prepare", "--texts", "{tmp}/x.jsonl", "--vocabulary", "9"), "257"),
        (
            ("train-backbone", "--data", "{tmp}", "--kind", "reader", "--taught", "{tmp}"),
            "allowed: with landmark",
        ),
        (
            ("train-backbone", "--data", "{tmp}", "--kind", "landmark", "--taught", "{tmp}/none"),
            "landmark_taught wrote",
        ),
        (
            ("train-backbone", "--data", "{tmp}", "--kind", "landmark", "--checkpointing"),
            "allowed with lora and mixer",
        ),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else None,
)
def test_wrong_use_is_refused_with_what_to_change(
    app: typer.Typer, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    """Exit code 2, and a line that names what is allowed."""
    filled = [each.replace("{tmp}", str(tmp_path)) for each in arguments]
    more = [] if filled[0] == "prepare" else ["--state", str(tmp_path / "state")]
    code, body = call(app, *filled, "--out", str(tmp_path / "out"), *more)
    assert code == 2
    assert said in body["error"]
