"""On a CUDA device: the checks of the script for GPU hosts, and the five-minute run that finds keys at 1M tokens.

The run reads the folder that `infra.training.subq_pack` wrote; DYSRA_SUBQ_DATA names it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from infra.training.subq_gpu import main

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


@pytest.mark.timeout(1_500)
def test_five_minutes_of_training_find_keys_in_a_million_tokens(tmp_path: Path) -> None:
    """At least 19 of 20 keys of known wording, each among 4 distractors, at 1M tokens after training at 16k."""
    data = os.environ.get("DYSRA_SUBQ_DATA")
    if not data or not Path(data).is_dir():
        pytest.skip("DYSRA_SUBQ_DATA names no folder of infra.training.subq_pack")
    common = ["--data", data, "--work", str(tmp_path), "--out", str(tmp_path), "--seed", "0"]
    main(["train", *common, "--minutes", "5", "--call-seconds", "900"])
    main(["needles", *common, "--lengths", "1M", "--cells", "known-5", "--trials", "20", "--keys", "0"])
    rows = json.loads((tmp_path / "needles-subq-0.json").read_text())["rows"]
    assert [row["n"] for row in rows] == [20]
    assert rows[0]["exact"] >= 95.0
