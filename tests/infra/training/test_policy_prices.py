"""infra/training/policy_prices.py: policies alike but for a token's price, over the toy and a tiny reader."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from infra.training import policy_prices, policy_prices_page
from infra.training.policy_pack import main_directions, turn
from infra.training.policy_stages import PolicyJob, reward_of, train_one
from models.retriever import load_policy
from pipeline.tasks.material import Material
from rl.episodes import Readings
from tests.infra.training.test_policy_gpu import carried, questions_with_features

__all__ = ["carried"]


@pytest.fixture
def run(carried: Path, tmp_path: Path) -> Path:
    """A run of `policy_gpu` after its stage teach: the material and a supervised policy."""
    import numpy as np

    folder = tmp_path / "run"
    made = questions_with_features()
    projection = main_directions(made, 6)
    turn(made, projection).save(folder / "material", {}, int8=True)
    np.save(folder / "material" / "projection.npy", projection)
    material = Material.load(folder / "material")
    train_one(
        material, material.rows("train", answerable=True), Readings(None),
        PolicyJob(kind="supervised", algorithm="supervised", seed=0), out=folder / "policies", seconds=60,
        device="cpu", say=lambda text: None, projection=projection, width=16, layers=1, warm_steps=4,
    )  # fmt: skip
    return folder


def test_policies_differ_in_nothing_but_the_price_and_are_judged_once(
    run: Path, carried: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each begins with the run's, is judged by its own STOP and told on a page; a second start does nothing."""
    done: list[str] = []

    def here(commands: dict[str, list[str]], *args: Any, **options: Any) -> dict[str, int]:
        for name, command in commands.items():
            done.append(name)
            policy_prices.main(command[2:])
        return dict.fromkeys(commands, 0)

    monkeypatch.setattr(policy_prices, "run_side_by_side", here)
    out = tmp_path / "prices"
    own = [
        "--run", str(run), "--carried", str(carried), "--out", str(out), "--gammas", "0", "0.01", "--betas", "0.01",
        "--iterations", "1", "--warm-steps", "4", "--width", "16", "--layers", "1", "--budgets", "48", "96",
        "--workers", "2", "--seconds", "400", "--device", "cpu",
    ]  # fmt: skip
    policy_prices.main(own)
    assert done == ["minimal", "picker", "terminal-0", "stepwise-0"]
    rows = {row["kind"]: row for row in json.loads((out / "prices.json").read_text())["rows"]}
    assert {kind: (row["form"], row["price"]) for kind, row in rows.items() if "mma" in kind or "beta" in kind} == {
        "beta0.01": ("stepwise", 0.01), "gamma0": ("terminal", 0.0), "gamma0.01": ("terminal", 0.01),
    }  # fmt: skip
    assert all("warm_loss" not in rows[kind] for kind in ("beta0.01", "gamma0")), (
        "they begin with the run's policy"
    )
    assert all(set(cells) == {"48", "96"} for row in rows.values() for cells in row["sets"].values())
    assert all(
        cell["tokens"] <= 96
        for row in rows.values()
        for cells in row["sets"].values()
        for cell in cells.values()
    )
    assert (
        load_policy(out / "policies" / "gamma0.01-0" / "policy")[0].config.dim
        == questions_with_features().tables.dim
    )

    policy_prices.main(own)
    assert len(done) == 4, "nothing is left to do"
    (out / "rows" / "gamma0-0.json").unlink()
    trained = (out / "policies" / "gamma0-0" / "loop.pt").read_bytes()
    policy_prices.main(own)
    assert done[4:] == ["terminal-0"], "only the group of what is missing"
    again = {row["kind"]: row for row in json.loads((out / "prices.json").read_text())["rows"]}
    assert again == rows and (out / "policies" / "gamma0-0" / "loop.pt").read_bytes() == trained
    policy_prices_page.main(["--found", str(out / "prices.json"), "--bench", str(tmp_path / "page")])
    told = json.loads((tmp_path / "page.json").read_text())
    dataset = next(iter(rows["gamma0"]["sets"]))
    assert told["ratios"][f"price_gamma0_f1_{dataset}"] == rows["gamma0"]["sets"][dataset]["96"]["forced_f1"]
    text = (tmp_path / "page.md").read_text()
    assert "| 0.01 |" in text and "| minimal sets, ours |" in text and "iterations: 1." in text
    ended = [
        row | {"alarm": ["the return fell"], "iterations": 7} if "gamma" in row["kind"] else row
        for row in rows.values()
    ]
    text = policy_prices_page.page(ended, "cpu")
    assert (
        "iterations: 1." in text
        and "gamma0.01, seed 0, was ended after 7 by its alarm: the return fell." in text
    )


def test_a_policy_that_was_ended_in_its_middle_goes_on_to_as_many_iterations_as_the_others(
    run: Path, carried: Path, tmp_path: Path
) -> None:
    """Cut by the clock after its first: what is missing is done by the next start, from its checkpoint."""
    out = tmp_path / "prices"
    own = [
        "--run", str(run), "--carried", str(carried), "--out", str(out), "--gammas", "0.01", "--betas",
        "--width", "16", "--layers", "1", "--device", "cpu", "--group", "terminal-0",
    ]  # fmt: skip
    shutil.copytree(run / "policies" / "supervised-0", out / "policies" / "supervised-0")
    for iterations in ("1", "3"):
        (out / "rows" / "gamma0.01-0.json").unlink(missing_ok=True)
        policy_prices.main([*own, "--iterations", iterations])
        record = json.loads((out / "policies" / "gamma0.01-0" / "record.json").read_text())
        assert record["iterations"] == int(iterations)
    assert [each["iteration"] for each in record["curve"]] == [2, 3]


def test_a_shared_reader_changes_nothing_but_who_reads(run: Path, carried: Path, tmp_path: Path) -> None:
    """A group that asks a reader in another process has the weights and figures that it has with its own."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="read-") as sockets:
        common = [
            "--run", str(run), "--carried", str(carried), "--gammas", "0.01", "--betas", "--iterations", "2",
            "--width", "16", "--layers", "1", "--budgets", "48", "--device", "cpu",
        ]  # fmt: skip
        shared = [*common, "--sockets", sockets, "--out", str(tmp_path / "shared")]
        server = threading.Thread(
            target=policy_prices.main, args=([*shared, "--seconds", "90", "--serve", "shipped"],), daemon=True
        )
        server.start()
        for name, own in (("shared", shared), ("own", [*common, "--out", str(tmp_path / "own")])):
            out = tmp_path / name
            shutil.copytree(run / "policies" / "supervised-0", out / "policies" / "supervised-0")
            policy_prices.main([*own, "--group", "terminal-0"])
            row = json.loads((out / "rows" / "gamma0.01-0.json").read_text())
            weights = (out / "policies" / "gamma0.01-0" / "carried" / "policy.safetensors").read_bytes()
            rows.append((row["sets"], row["iterations"], weights))
        (Path(sockets) / "shipped").unlink()
        server.join(10)
    assert rows[0] == rows[1] and not server.is_alive()


def test_the_price_is_what_is_paid() -> None:
    """Gamma in the terminal form, beta in the stepwise one; every price of both, and three warm starts, a seed."""
    made = {job.name: job for job in policy_prices.jobs((0.0, 0.002), (0.001,), (0, 1))}
    assert len(made) == 2 * (3 + 3)
    assert reward_of(made["gamma0.002-1"]).gamma == 0.002
    stepwise = reward_of(made["beta0.001-0"])
    assert (stepwise.form, stepwise.beta) == ("stepwise", 0.001)


def test_a_run_without_its_supervised_policy_is_refused(tmp_path: Path) -> None:
    """The error names the stage that makes it."""
    with pytest.raises(SystemExit, match="stage teach"):
        policy_prices.main(
            ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--device", "cpu"]
        )
