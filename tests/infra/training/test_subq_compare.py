"""The comparison of language models: equal batches, losses by position, what retrieval gains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.training.subq_compare import METHODS, SIZES, main, ratios_of, settings
from infra.training.subq_compare import _parser as parser
from infra.training.subq_lm import LmConfig, _batch, train_and_judge
from models.subq.baselines import count
from tests.infra.training.subq_case import MODEL, small_data

RUN = LmConfig(tokens=4_096, batch=2, length=512, lr=4e-3, warmup=2, muon=False, judged=2)


def _record(method: str, seed: int, loss: float) -> dict[str, object]:
    return {"method": method, "seed": seed, "loss": loss}


def test_gain_is_taken_seed_by_seed() -> None:
    """Mean, least and spread of what the loss without retrieval is above that with it, for seeds that have both."""
    rows = [
        ("subq", 0, 4.0),
        ("subq", 1, 4.2),
        ("no-retrieval", 0, 4.1),
        ("no-retrieval", 1, 4.5),
        ("gca", 2, 1.0),
    ]
    found = ratios_of([_record(*row) for row in rows])
    assert found["lm_loss_gain_of_retrieval"] == pytest.approx(0.2)
    assert found["lm_loss_gain_of_retrieval_least"] == pytest.approx(0.1)
    assert found["lm_loss_gain_of_retrieval_spread"] == pytest.approx(0.14142)
    assert "lm_loss_gain_of_retrieval_gca" not in found
    assert found["ppl_subq"] == pytest.approx(60.34, abs=0.01) and found["seeds_gca"] == 1


def test_methods_differ_in_their_mixers_alone() -> None:
    """Of equal size within a twentieth, the same run; only subq learns from hindsight."""
    given = parser().parse_args(["--data", "d", "--work", "w", "--out", "o"])
    made = {method: settings(given, method, 1, 2_000) for method in METHODS}
    whole = count(made["subq"][0])
    for method, (model, run) in made.items():
        assert abs(count(model) - whole) < 0.05 * whole
        assert run.hindsight == (0.1 if method == "subq" else 0.0)
        assert replace(run, hindsight=0.0) == made["no-retrieval"][1]
    assert SIZES.rerank and made["transformer"][0].lower_mixers == ("full",)


@pytest.mark.parametrize("hindsight", [0.0, 0.3])
def test_a_run_learns_and_is_judged_by_position(hindsight: float) -> None:
    """The loss falls, buckets of positions average to it; a model that reads is judged without reading too."""
    tokens = small_data().tokens
    model = replace(MODEL, vocabulary=600, context_tokens=512, rerank=True, kernel="plain")
    found = train_and_judge(model, replace(RUN, hindsight=hindsight, tokens=16_384), tokens, tokens, "cpu")
    assert found["tokens"] == 16_384 and found["curve"][-1][0] == 16
    first = train_and_judge(model, replace(RUN, hindsight=hindsight, tokens=1_024), tokens, tokens, "cpu")
    assert found["loss"] < first["loss"] - 0.1
    assert set(found["judged"]) == {"with_retrieval", "without"}
    assert found["judged"]["with_retrieval"]["by_position"] == {"512": pytest.approx(found["loss"], abs=1e-4)}


def test_batches_depend_on_seed_and_step_alone() -> None:
    """Whoever trains sees the same text."""
    tokens = np.arange(5_000, dtype=np.uint16)
    first, again = (_batch(tokens, RUN, 3) for _ in range(2))
    assert first.tolist() == again.tolist() and first.shape == (2, 513)
    assert first.tolist() != _batch(tokens, replace(RUN, seed=1), 3).tolist()
    with pytest.raises(ValueError, match="length: given 512, texts of 100 and 5000 tokens"):
        train_and_judge(MODEL, RUN, tokens[:100], tokens, "cpu")


def test_a_call_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    """Runs that are there are not made again, and stand in the summary."""
    for method in ("subq", "no-retrieval"):
        (tmp_path / f"lm-{method}-0.json").write_text(json.dumps(_record(method, 0, 4.0)))
    main(["--data", "none", "--work", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu",
          "--methods", "subq,no-retrieval", "--seeds", "1", "--seconds", "5"])  # fmt: skip
    summary = json.loads((tmp_path / "out" / "subq-compare.json").read_text())
    assert summary["ratios"]["lm_loss_gain_of_retrieval"] == 0.0 and len(summary["runs"]) == 2
