"""The check of gated linear attention that a GPU host runs in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from infra.training import subq_gla


def test_a_length_is_compared_and_kept_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output, state and all gradients agree with the recurrence; an operator that is wrong ends with an error."""
    subq_gla.main(["--out", str(tmp_path), "--lengths", "40,33", "--device", "cpu"])
    record = json.loads((tmp_path / "chunk-gla.json").read_text())
    assert [row["length"] for row in record["rows"]] == [40, 33] and not record["fla"]
    assert set(record["rows"][0]["errors"]) == set(subq_gla.NAMES)
    right = subq_gla.gated_linear

    def wrong(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, last = right(*given)
        return out, 1.1 * last

    monkeypatch.setattr(subq_gla, "gated_linear", wrong)
    with pytest.raises(SystemExit, match=r"errors above 0.01 at \[40\] tokens"):
        subq_gla.main(["--out", str(tmp_path), "--lengths", "40", "--device", "cpu"])


def test_what_training_has_is_compared_in_its_dtype(tmp_path: Path) -> None:
    """bfloat16, no first state; without fla nothing is pinned, and the record says so."""
    told = [
        "--out",
        str(tmp_path),
        "--lengths",
        "70",
        "--device",
        "cpu",
        "--dtype",
        "bfloat16",
        "--heads",
        "1",
    ]
    subq_gla.main([*told, "--pinned", str(tmp_path / "configs")])
    record = json.loads((tmp_path / "chunk-gla.json").read_text())
    assert (record["dtype"], record["pinned"], record["most"]) == ("bfloat16", False, 0.02)
    assert set(record["rows"][0]["errors"]) == set(subq_gla.NAMES) - {"first state"}
