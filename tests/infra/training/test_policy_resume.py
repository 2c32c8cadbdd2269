"""infra/training/policy_resume.py: a killed `train-retriever` of a plain loop ends as the undisturbed one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infra.training import policy_resume
from infra.training.policy_train import PolicyTrainConfig, train
from models.retriever import load_policy
from pipeline.errors import UsageError
from rl.reward import RewardConfig
from tests.rl.test_module import recorded


@pytest.mark.parametrize("algorithm", ["reinforce", "plain_ppo"])
def test_a_run_that_was_ended_goes_on_with_the_same_steps(
    tmp_path: Path, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended in its fourth iteration: the same weights and curve, no warm start again, nothing left behind."""
    monkeypatch.setattr(LoopPlace := policy_resume.LoopPlace, "keep", _every_second(LoopPlace.keep))
    recorded(tmp_path)
    config = PolicyTrainConfig(
        data=(tmp_path / "material",), out=tmp_path / "whole", algorithm=algorithm, warm_steps=5, steps=6,
        questions=8, width=16, readings=tmp_path / "readings.npz", reward=RewardConfig(gamma=0.001), minutes=20.0,
    )  # fmt: skip
    curve: list[dict[str, float]] = []
    whole = train(config, on_step=curve.append)

    told: list[dict[str, float]] = []

    def end(record: dict[str, float]) -> None:
        told.append(record)
        if record.get("iteration") == 4:
            raise KeyboardInterrupt

    cut = replace(config, out=tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        train(cut, on_step=end)
    with pytest.raises(UsageError, match="other settings"):
        train(replace(cut, lr=0.5))
    again: list[dict[str, float]] = []
    figures = train(cut, on_step=again.append)
    assert [row["iteration"] for row in again] == [3, 4, 5, 6]
    assert again == curve[-4:]
    assert figures["learning"]["iterations"] == whole["learning"]["iterations"] == 6
    networks = [load_policy(folder.out)[0].state_dict() for folder in (config, cut)]
    for name, tensor in networks[0].items():
        torch.testing.assert_close(networks[1][name], tensor, rtol=0, atol=0, msg=name)
    assert not list((tmp_path / "cut" / "work").iterdir())


def _every_second(keep):  # type: ignore[no-untyped-def]
    """Kept after iterations 2 and 4, so that a run that was ended has one to make again."""

    def kept(self, loop, warm, learned):  # type: ignore[no-untyped-def]
        self._kept_at = -1e9 if loop.iteration % 2 == 0 else float("inf")
        return keep(self, loop, warm, learned)

    return kept
