"""The comparison of language models: equal batches, losses by position, what retrieval gains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.training.subq_compare import METHODS, SIZES, main, ratios_of, settings, wanted
from infra.training.subq_compare import _parser as parser
from infra.training.subq_lm import LmConfig, _batch, train_and_judge
from models.subq.baselines import baseline, count
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
        assert run.hindsight == (0.1 if method in ("subq", "subq-lean") else 0.0)
        assert replace(run, hindsight=0.0) == made["no-retrieval"][1]
    assert SIZES.rerank and made["transformer"][0].lower_mixers == ("full",)


def test_lean_reading_leaves_the_blocks_what_it_saves() -> None:
    """Of a like size, a lean reader's feed-forward networks are as wide as without retrieval, within a tenth."""
    given = parser().parse_args(["--data", "d", "--work", "w", "--out", "o"])
    full, lean, none = (settings(given, name, 0, 16_384)[0] for name in ("subq", "subq-lean", "no-retrieval"))
    assert full.feed_forward < 0.7 * none.feed_forward
    assert 0.9 * none.feed_forward < lean.feed_forward < none.feed_forward
    assert abs(count(lean) - count(none)) < 0.005 * count(none)


def test_runs_are_begun_in_the_order_that_is_asked_for() -> None:
    """--runs names methods and seeds; what is no method is refused."""
    base = ["--data", "d", "--work", "w", "--out", "o", "--runs"]
    given = parser().parse_args([*base, "mamba-2:2", "subq-lean:0,1"])
    assert wanted(given) == [("mamba-2", 2), ("subq-lean", 0), ("subq-lean", 1)]
    with pytest.raises(SystemExit, match=r"--runs: given 'lstm:0'; allowed: METHOD:SEED"):
        wanted(parser().parse_args([*base, "lstm:0"]))


@pytest.mark.parametrize(("hindsight", "lean"), [(0.0, False), (0.3, False), (0.3, True)])
def test_a_run_learns_and_is_judged_by_position(hindsight: float, lean: bool) -> None:
    """The loss falls, buckets of positions average to it; a model that reads is judged without reading too."""
    tokens = small_data().tokens
    model = replace(MODEL, vocabulary=600, context_tokens=512, rerank=True, kernel="plain")
    model = baseline("subq-lean", model) if lean else model
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
