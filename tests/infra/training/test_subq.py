"""Training a sub-quadratic backbone in miniature: a killed run goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infra.training.subq import CURVE, STATE, SubqTrainConfig, SubqTrainer
from infra.training.subq_data import batches
from models.subq.losses import LossWeights
from tests.infra.training.subq_case import MODEL, STREAM, small_data

CONFIG = SubqTrainConfig(lr=3e-3, warmup=1, bank=256, save_every=2)
TERMS = ("loss", "language", "answers", "contrastive", "norm")


def _curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / CURVE).read_text().splitlines()]


def _same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert {term: row[term] for term in TERMS} == pytest.approx(
            {term: wanted[term] for term in TERMS}, rel=1e-4
        )


def test_run_that_was_stopped_goes_on_with_the_same_curve(tmp_path: Path) -> None:
    """Weights, optimizers, bank and data go on where they were; steps after the last saved state are done again."""
    whole = SubqTrainer(MODEL, small_data(), STREAM, CONFIG, tmp_path / "whole").run()
    first = SubqTrainer(MODEL, small_data(), STREAM, CONFIG, tmp_path / "cut")
    with (tmp_path / "cut" / CURVE).open("w") as lines:
        for number, batch in enumerate(batches(small_data(), STREAM, 0), 1):
            lines.write(json.dumps(first.train_step(batch)) + "\n")
            if number == 2:
                first.save()
            if number == 3:  # killed here: step 3 was never saved
                break
    SubqTrainer(MODEL, small_data(), STREAM, CONFIG, tmp_path / "cut").run()
    _same(_curve(tmp_path / "cut"), whole)


@pytest.mark.slow
def test_run_that_was_killed_goes_on_with_the_same_curve(tmp_path: Path) -> None:
    """kill -9 at any moment: the next call of the same command ends with the undisturbed curve."""
    command = [sys.executable, "-c", (
        "import sys; from pathlib import Path\n"
        "from tests.infra.training.test_subq import *\n"
        "SubqTrainer(MODEL, small_data(), replace(STREAM, phases=((512, 30),)), CONFIG, Path(sys.argv[1])).run()"
    )]  # fmt: skip
    whole = SubqTrainer(
        MODEL, small_data(), replace(STREAM, phases=((512, 30),)), CONFIG, tmp_path / "whole"
    ).run()
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], cwd=Path(__file__).parents[3])
    deadline = time.monotonic() + 120
    curve = tmp_path / "killed" / CURVE
    while not ((tmp_path / "killed" / STATE).exists() and len(curve.read_text().splitlines()) >= 7):
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(timeout=30)
    subprocess.run(
        [*command, str(tmp_path / "killed")], cwd=Path(__file__).parents[3], check=True, timeout=240
    )
    _same(_curve(tmp_path / "killed"), whole)


def test_batches_are_the_same_with_any_number_of_processes() -> None:
    """Several processes make the batches of one, in the same order, from wherever a run goes on."""
    alone = [batch.ids.sum() for batch in batches(small_data(), STREAM, 1)]
    assert [batch.ids.sum() for batch in batches(small_data(), STREAM, 1, workers=2)] == alone
    assert len(set(map(int, alone))) == 5


def test_state_of_another_run_is_refused(tmp_path: Path) -> None:
    """A folder that holds another run's state is not trained on, nor overwritten."""
    SubqTrainer(MODEL, small_data(), STREAM, CONFIG, tmp_path).save()
    with pytest.raises(ValueError, match="holds the state of another run"):
        SubqTrainer(MODEL, small_data(), STREAM, replace(CONFIG, lr=1e-3), tmp_path)


def test_contrastive_term_fades_as_configured(tmp_path: Path) -> None:
    """Between the two shares of the run its weight falls from all to nothing; the others stay."""
    config = replace(CONFIG, contrastive_until=(0.25, 0.75))
    trainer = SubqTrainer(MODEL, small_data(), STREAM, config, tmp_path)
    assert [trainer._weights(p).contrastive for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert trainer._weights(1.0).language == 1.0


@pytest.mark.parametrize("changes", [{"retrieval": "token"}, {"neighbours": True}, {"tied": False}])
def test_every_way_of_retrieval_is_trained(tmp_path: Path, changes: dict[str, object]) -> None:
    """One step changes the landmarks' network and the readers, without numbers that are none."""
    trainer = SubqTrainer(replace(MODEL, **changes), small_data(), STREAM, CONFIG, tmp_path)  # type: ignore[arg-type]
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    stream = small_data().stream(STREAM)
    rows = [trainer.train_step(stream.batch(number)) for number in range(2)]
    changed = [name for name, value in trainer.model.named_parameters() if not value.equal(before[name])]
    assert set(changed) == set(before)
    assert all(value == value for row in rows for value in row.values())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"retrieval": "token"},
        {"lower_mixers": ("gated_linear",), "upper_mixers": ("state_space",)},
        {"lower_mixers": ("full",), "upper_blocks": 0, "retrieval": "none"},
    ],
)
def test_sixteen_bits_train_as_thirty_two(tmp_path: Path, changes: dict[str, object]) -> None:
    """Under autocast (as on a GPU) every term is that of float32 but for rounding; gradients are numbers."""
    trainer = SubqTrainer(replace(MODEL, **changes), small_data(), STREAM, CONFIG, tmp_path)  # type: ignore[arg-type]
    batch = small_data().stream(STREAM).batch(0)
    expected, _, _ = trainer._terms(batch, 0.9)
    with torch.autocast("cpu", torch.bfloat16):
        found, _, _ = trainer._terms(batch, 0.9)
    found.total(LossWeights()).backward()
    for name in ("language", "answers", "contrastive"):
        assert float(getattr(found, name)) == pytest.approx(
            float(getattr(expected, name)), rel=0.05, abs=0.05
        )
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in trainer.model.parameters())


def test_model_and_data_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Chunks of two sizes, or ids that the model has no embedding for: both sides are named."""
    with pytest.raises(ValueError, match="chunk: given 32 for the data and 16 for the model"):
        SubqTrainer(replace(MODEL, chunk=16), small_data(), STREAM, CONFIG, tmp_path)
    with pytest.raises(ValueError, match="vocabulary: given 300, but the text holds id"):
        SubqTrainer(replace(MODEL, vocabulary=300), small_data(), STREAM, CONFIG, tmp_path)
