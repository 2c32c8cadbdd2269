"""On a CUDA device: the checks of the script for GPU hosts, and keys found at 1M tokens.

Judging the shipped weights takes half a minute; the five-minute run, by the newest recipe (chunks that have seen 32
tokens on either side), is made anew only where DYSRA_SUBQ_TRAIN is set. Both read the folder that
`infra.training.subq_pack` wrote; DYSRA_SUBQ_DATA names it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from infra.training.subq_gla import gla_row
from infra.training.subq_gpu import main
from models.shipped import SUBQ

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _device() -> None:
    """Skip where there is no CUDA device."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def test_checks_hold_on_the_device(tmp_path: Path) -> None:
    """bf16 against fp32, streaming against one pass, kernels and mixers against their plain forms."""
    main(["tests", "--data", str(tmp_path), "--work", str(tmp_path), "--out", str(tmp_path)])
    assert json.loads((tmp_path / "tests.json").read_text())["failed"] == []


@pytest.mark.parametrize("length", [64, 1_000, 4_100])
def test_chunk_gla_is_the_recurrence(length: int) -> None:
    """fla's operator, which this device runs, against ours token by token in float64: output, state, gradients."""
    pytest.importorskip("fla", reason="fla-core is not installed")
    row = gla_row(length, "cuda")
    assert row["ok"], row["errors"]


def _data() -> str:
    data = os.environ.get("DYSRA_SUBQ_DATA")
    if not data or not Path(data).is_dir():
        pytest.skip("DYSRA_SUBQ_DATA names no folder of infra.training.subq_pack")
    return data


def test_shipped_weights_find_keys_in_a_million_tokens(tmp_path: Path) -> None:
    """At least 19 of 20 keys of known wording, each among 4 distractors, at 1M tokens."""
    if not (SUBQ / "config.json").is_file():
        pytest.skip("no weights under models/weights/subq")
    main(["needles", "--data", _data(), "--work", str(tmp_path), "--out", str(tmp_path), "--seed", "1",
          "--checkpoint", str(SUBQ), "--lengths", "1M", "--cells", "known-5", "--trials", "20",
          "--keys", "0"])  # fmt: skip
    rows = json.loads((tmp_path / "needles-subq.json").read_text())["rows"]
    assert [row["n"] for row in rows] == [20]
    assert rows[0]["exact"] >= 95.0


@pytest.mark.timeout(1_500)
def test_five_minutes_of_training_find_keys_in_a_million_tokens(tmp_path: Path) -> None:
    """At least 19 of 20 keys of known wording, each among 4 distractors, at 1M tokens after training at 16k."""
    if not os.environ.get("DYSRA_SUBQ_TRAIN"):
        pytest.skip("DYSRA_SUBQ_TRAIN is not set: six minutes of the device")
    data = _data()
    common = ["--data", data, "--work", str(tmp_path), "--out", str(tmp_path), "--seed", "0"]
    common += ["--lookahead", "32", "--lookbehind", "32"]
    main(["train", *common, "--minutes", "5", "--call-seconds", "900"])
    main(["needles", *common, "--lengths", "1M", "--cells", "known-5", "--trials", "20", "--keys", "0"])
    rows = json.loads((tmp_path / "needles-subq-around-0.json").read_text())["rows"]
    assert [row["n"] for row in rows] == [20]
    assert rows[0]["exact"] >= 95.0
