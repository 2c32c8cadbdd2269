"""The comparison of the backbone's choices: one change at a time, the same batches, keys and loss of each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.training import subq_choices, subq_choices_page
from infra.training.subq import SubqTrainConfig, SubqTrainer
from infra.training.subq_choices import _parser as parser
from infra.training.subq_choices import main, settings
from models.subq.baselines import CHOICES, count
from tests.infra.training.subq_case import MODEL, STREAM, small_data
from tests.infra.training.token_files import packed

BASE = ["--data", "d", "--work", "w", "--out", "o"]


def test_choices_differ_in_what_their_names_say() -> None:
    """Of equal size within a hundredth, on the same data; those of the same model differ in their training."""
    given = parser().parse_args(BASE)
    made = {name: settings(given, name, 16_384) for name in CHOICES}
    shape, stream, run = made["subq"]
    whole = count(shape)
    for name, (other, data, training) in made.items():
        assert abs(count(other) - whole) < 0.01 * whole and data == stream
        same = name in ("subq", "subq-routing-first", "subq-end-to-end")
        assert (other == shape) == same and (training == run) == (
            name not in ("subq-routing-first", "subq-end-to-end")
        )
    assert made["subq-routing-first"][2] == replace(run, routing_first=0.25)
    assert made["subq-end-to-end"][2].losses.contrastive == 0
    one_weight = made["subq-one-weight"][0]
    token = replace(made["subq-token"][0], feed_forward=one_weight.feed_forward)
    assert token == replace(one_weight, retrieval="token")


def test_a_first_stage_teaches_what_to_read(tmp_path: Path) -> None:
    """Until its end the loss on tokens counts a tenth, then the contrastive one; without it both are whole."""

    def weights(share: float, progress: float) -> tuple[float, float, float]:
        config = SubqTrainConfig(routing_first=share, bank=8)
        found = SubqTrainer(MODEL, small_data(), STREAM, config, tmp_path / str(share))._weights(progress)
        return found.language, found.answers, found.contrastive

    assert weights(0.25, 0.2) == pytest.approx((0.1, 0.1, 1.0))
    assert weights(0.25, 0.25) == pytest.approx((1.0, 1.0, 0.1))
    alone = SubqTrainConfig(routing_first=0.25, routing_after=1.0, bank=8)
    after = SubqTrainer(MODEL, small_data(), STREAM, alone, tmp_path / "alone")._weights(0.5)
    assert (after.language, after.answers, after.contrastive) == (1.0, 1.0, 1.0)
    assert weights(0.0, 0.0) == weights(0.0, 0.9) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"routing_first: given 1\.5; allowed: 0 to 1"):
        SubqTrainConfig(routing_first=1.5)
    with pytest.raises(ValueError, match=r"routing_after: given -1\.0; allowed: 0 to 1"):
        SubqTrainConfig(routing_after=-1.0)


def test_choices_of_another_job_come_onto_the_kept_page(tmp_path: Path) -> None:
    """A choice that was missing is added, one made again takes the old one's place; other batches are refused."""

    def summary(names: str, nats: float, steps: int = 600) -> dict[str, object]:
        runs = [
            {"choice": name, "seed": 0, "steps": steps, "tokens": 9, "parameters": 7, "train_seconds": 1.0,
             "peak_bytes": 0, "language": {"with_retrieval": nats, "without": nats},
             "rows": [{"length": 4, "n": 2, "exact": 50.0, "recall": 100.0}]}
            for name in names.split()
        ]  # fmt: skip
        return {
            "device": "H",
            "jobs": 7,
            "runs": runs,
            "ratios": {f"loss_{name}": nats for name in names.split()},
        }

    kept, new = tmp_path / "kept.json", tmp_path / "new.json"
    kept.write_text(json.dumps(summary("subq subq-lean", 5.0)))
    new.write_text(json.dumps(summary("subq-linear subq-lean", 4.0)))
    subq_choices_page.main([str(kept), str(new), "--out", str(tmp_path / "page")])
    whole = json.loads((tmp_path / "page.json").read_text())
    assert [run["choice"] for run in whole["runs"]] == ["subq", "subq-lean", "subq-linear"]
    assert whole["ratios"] == {"loss_subq": 5.0, "loss_subq-lean": 4.0, "loss_subq-linear": 4.0}
    assert (tmp_path / "page.md").read_text().count("| 4.0 | 4.0 |") == 2
    with pytest.raises(ValueError, match="subq: given seed, steps, tokens and lengths"):
        subq_choices_page.merged([summary("subq-lean", 5.0), summary("subq", 5.0, steps=500)])


def test_choices_are_trained_on_the_same_batches_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are made once; a choice leaves its loss and its keys; the summary holds what is there so far."""
    data = packed(tmp_path / "data")
    common = ["--data", str(data), "--work", str(tmp_path / "w"), "--out", str(tmp_path / "o"), "--device", "cpu",
              "--tiny", "--steps", "2", "--makers", "0", "--lengths", "16k,32k", "--keys", "4"]  # fmt: skip
    main([*common, "--make"])
    held = sorted((tmp_path / "w" / "batches").glob("*.npz"))
    assert [path.name for path in held] == ["00000.npz", "00001.npz"]
    with np.load(held[1]) as batch:
        assert batch["ids"].shape == (2, 512)
    for name in ("subq-token", "subq-mixed"):
        main([*common, "--choice", name])
    main([*common, "--choices", "subq-token,subq-mixed", "--seconds", "0"])
    summary = json.loads((tmp_path / "o" / "subq-choices.json").read_text())
    assert [run["choice"] for run in summary["runs"]] == ["subq-token", "subq-mixed"]
    assert all(run["tokens"] == 2_048 and len(run["rows"]) == 2 for run in summary["runs"])
    assert {"loss_subq_mixed", "recall_subq_token_32768", "exact_subq_token_16384"} <= set(summary["ratios"])
    assert "| subq-token |" in (tmp_path / "o" / "subq-choices.md").read_text()
    held[1].unlink()
    monkeypatch.setattr(subq_choices, "_WAIT_S", 0.1)
    with pytest.raises(TimeoutError, match=r"00001.npz is not there after 0 s; look at batches.log"):
        main([*common, "--choice", "subq"])
    with pytest.raises(SystemExit, match="--choices: given lstm; allowed: subq"):
        main([*common, "--choices", "lstm"])
