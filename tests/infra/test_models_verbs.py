"""`dysra train-retriever` and `dysra models`: registered, promoted only when better, rolled back in one command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from infra.commands import train as command
from infra.promotion import NotBetter, contest, freshest
from models.retriever import TableBatch, load_policy, save_policy
from models.retriever.pair_reader import save_pair_reader
from models.retriever.trust import Combination
from models.retriever.trust_files import put_trust, trust_beside
from pipeline.errors import UsageError
from pipeline.tasks.material import Material
from tests.models.retriever.pair_case import reader
from tests.pipeline.session.test_policy_chooser import policy
from tests.rl.toy import material, tables


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    """The verbs alone."""
    made = typer.Typer()
    command.register(made)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Material to train on, and held-back material to judge by."""
    root = tmp_path_factory.mktemp("material")
    for name, seed, split in (("train", 0, "train"), ("held", 9, "test")):
        made = material(_harder(tables(64, seed=seed)))
        questions = tuple(replace(question, split=split) for question in made.questions)
        Material(questions, made.tables).save(root / name, {})
    return root


def _harder(batch: TableBatch) -> TableBatch:
    """Fifteen features, of which only the vectors tell: hybrid ranking by the sixth knows nothing."""
    noise = np.random.default_rng(1).random((*batch.present.shape, 15)).astype(np.float32)
    return TableBatch(**(batch.arrays() | {"features": noise}))


def call(app: typer.Typer, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and figures of a verb."""
    result = CliRunner().invoke(app, [*arguments, "--json"])
    lines = result.stdout.splitlines()
    assert lines, result.output
    return result.exit_code, json.loads(lines[-1])


def test_a_worse_challenger_is_refused_and_a_rollback_brings_the_champion_back(
    app: typer.Typer, data: Path, tmp_path: Path
) -> None:
    """Trained beats hybrid and serves; an untrained one is refused; a second good one serves, then not any more."""
    state = ("--state", str(tmp_path))
    train = ("train-retriever", "--data", str(data / "train"), "--algorithm", "supervised", *state)
    promote = ("models", "promote", "--data", str(data / "held"), "--by", "recall", "--budget", "100", *state)

    code, figures = call(app, *train, "--out", str(tmp_path / "good"), "--warm-steps", "90")
    assert (code, figures["version"]) == (0, 1)
    code, won = call(app, *promote)
    assert code == 0, won
    assert won["champion"] == 1
    assert won["gain"] > 0
    assert won["tokens"] <= 1.02 * won["tokens_before"]
    pointer = json.loads(Path(won["pointer"]).read_text())
    assert pointer["version"] == 1
    load_policy(Path(pointer["folder"]))

    call(app, *train, "--out", str(tmp_path / "bad"), "--warm-steps", "1", "--seed", "3")
    code, refused = call(app, *promote)
    assert code == 4
    assert "version 2 does not beat version 1 at equal cost" in refused["error"]
    _, listed = call(app, "models", "list", *state)
    assert {row["version"]: row["aliases"] for row in listed["models"]} == {
        2: ["challenger"],
        1: ["champion"],
    }

    from infra.registry import Registry
    from infra.tracking import TrackingConfig

    Registry(TrackingConfig(), tmp_path).promote(2)
    code, back = call(app, "models", "rollback", *state)
    assert (code, back) == (0, {"champion": 1, "before": 2})
    assert json.loads(Path(won["pointer"]).read_text())["version"] == 1

    # a policy that reads apart brings its trust and its verifier: they are promoted with it
    good, registry = tmp_path / "good", Registry(TrackingConfig(), tmp_path)
    verifier = save_pair_reader(reader(), tmp_path / "verifier", {})
    put_trust(good, Combination(("whole", "verified"), (1.0, 2.0), 0.0), 0.9, verifier, 15)
    registry.promote(registry.add(good, registry.versions()[0]["run_id"], {}))
    served = trust_beside(Path(json.loads(Path(won["pointer"]).read_text())["folder"]), 15)
    assert served.enough == 0.9 and served.verifier is not None


def test_a_contest_may_be_held_over_the_newest_days_alone(tmp_path: Path) -> None:
    """Seven days are the newest and the six before; undated questions are left out; all undated is refused."""
    days = ["2024-03-10", "2024-03-04T10:00:00Z", "2024-03-03", "", "2023-01-01"]
    assert freshest(days, 7, tmp_path).tolist() == [0, 1]
    assert freshest(days, 8, tmp_path).tolist() == [0, 1, 2]
    assert freshest(days, 1, tmp_path).tolist() == [0]
    with pytest.raises(UsageError, match="dated news"):
        freshest(["", ""], 7, tmp_path)
    with pytest.raises(UsageError, match="--days"):
        freshest(days, -1, tmp_path)


class _Shelf:
    """A registry with one challenger and no champion."""

    stop_bias = 0.0

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def version_of(self, alias: str) -> int | None:
        """None serves yet."""
        return None

    def fetch(self, version: int, target: Path) -> Path:
        """The challenger's folder."""
        return self._folder


def test_the_freshest_week_decides_where_the_news_has_dates(tmp_path: Path) -> None:
    """Better over all the news and worse over its last week: refused, unless all of it is asked for."""
    # it goes by words (the fourth feature), hybrid ranking by the sixth; the last week is told by the sixth
    network, _ = load_policy(policy(tmp_path / "made", 3))
    with torch.no_grad():  # low enough that STOP can be moved beyond it
        network.prior.weight *= 0.2
        network.stop[-1].bias.fill_(0.0)
    challenger = save_policy(network, tmp_path / "one", {})
    made = material(_harder(tables(64, seed=9)))
    labels = np.zeros_like(made.tables.labels)
    questions = []
    for row, question in enumerate(made.questions):
        new = row < 20
        features = made.tables.features[row, :, 5 if new else 3]
        labels[row, np.where(made.tables.present[row], features, -1.0).argmax()] = 2
        day = "2024-03-10" if new else "2024-02-01"
        dated = tuple((title, day, text) for title, _, text in question.sentences)
        questions.append(replace(question, sentences=dated, split="test"))
    batch = TableBatch(**(made.tables.arrays() | {"labels": labels}))
    Material(tuple(questions), batch).save(tmp_path / "dated", {})
    asked: dict[str, Any] = {"budget": 40, "by": "recall"}
    shelf: Any = _Shelf(challenger)
    with pytest.raises(NotBetter, match="over 20 questions of the newest 7 days"):
        contest(shelf, 1, tmp_path / "dated", **asked)
    won = contest(shelf, 1, tmp_path / "dated", days=0, **asked)
    assert (won["n"], won["days"]) == (64, 0) and won["gain"] > 0
    undated = tuple(replace(q, sentences=tuple((t, "", x) for t, _, x in q.sentences)) for q in questions)
    Material(undated, batch).save(tmp_path / "undated", {})
    assert contest(shelf, 1, tmp_path / "undated", **asked)["days"] == 0


def test_undated_material_cannot_be_judged_by_days(app: typer.Typer, data: Path, tmp_path: Path) -> None:
    """The verb says so and promotes nothing."""
    state = ("--state", str(tmp_path))
    call(
        app, "train-retriever", "--data", str(data / "train"), "--algorithm", "supervised", *state,
        "--out", str(tmp_path / "one"), "--warm-steps", "1",
    )  # fmt: skip
    code, told = call(
        app, "models", "promote", "--data", str(data / "held"), "--by", "recall", "--days", "7", *state
    )
    assert code != 0
    assert "dated news" in told["error"]


def test_nothing_to_promote_or_to_go_back_to_is_said(app: typer.Typer, data: Path, tmp_path: Path) -> None:
    """Wrong use ends with 2 and says what to do."""
    state = ("--state", str(tmp_path))
    code, told = call(app, "models", "promote", "--data", str(data / "held"), *state)
    assert code == 2
    assert "there is no challenger; train one" in told["error"]
    code, told = call(app, "models", "rollback", *state)
    assert code == 2
    assert "no champion before this one" in told["error"]
    code, told = call(
        app, "train-retriever", "--data", str(tmp_path / "absent"), "--algorithm", "supervised", *state
    )
    assert code == 2
    assert "does not exist" in told["error"]
    code, told = call(app, "train-retriever", "--data", str(data / "train"), "--algorithm", "magic", *state)
    assert code == 2
    assert "algorithm: given 'magic'; allowed" in told["error"]
