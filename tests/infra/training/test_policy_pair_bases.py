"""infra/training/policy_gpu.py --pair-base both: pair readers over MiniLM and over the decoder, in miniature."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.training import policy_work
from infra.training.policy_collect import collect, unpack
from infra.training.policy_pairs import BOTH, DECODER, FOLDS, MINILM, PLACES, PairBase, kinds_of, with_scores
from infra.training.policy_ranks import ranks_of, table_of
from infra.training.policy_ship import ship
from infra.training.policy_work import pair_config, trainings
from models.retriever.decoder_pair import DecoderPairReader
from models.retriever.pair_reader import PairReader
from models.retriever.table import ALL_FEATURES
from pipeline.tasks.material import Material
from tests.infra.training.test_policy_gpu import carried, questions_with_features, run, texts

__all__ = ["carried", "texts"]  # fixtures


def test_both_are_trained_and_policies_know_the_decoder_s(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Material, both kinds in folds, labels, reward, judging, collecting and shipping, from a few questions."""
    out = tmp_path / "state"
    common = (
        "--carried", str(texts), "--out", str(out), "--seeds", "0", "--warm-steps", "4", "--worlds", "0",
        "--iterations", "1", "--width", "16", "--layers", "1", "--budgets", "48", "--biases", "-4",
        "--pair-epochs", "1", "--decoder-epochs", "1", "--decoder-candidates", "6", "--seconds", "600",
        "--most", "4", "--together", "--pair-base", "both",
    )  # fmt: skip
    run(monkeypatch, *common)
    made = Material.load(out / "material")
    by_kind = {kind: with_scores(made, out / place).tables.features for kind, place in PLACES.items()}
    at = ALL_FEATURES.index("pair")
    assert not np.allclose(by_kind[MINILM][..., at], by_kind[DECODER][..., at])
    told = [json.loads((out / PLACES[kind] / fold / "config.json").read_text()) for kind, fold in trainings(
        argparse.Namespace(pair_base=BOTH, made=None)
    )]  # fmt: skip
    assert [each["kind"] for each in told] == ["decoder"] * 3 + ["bert"] * 3
    assert all(each["about"]["steps"] == each["about"]["steps_planned"] for each in told)

    ranks = json.loads((out / "ranks.json").read_text())
    assert set(ranks) == {"dev", "test"}
    assert set(ranks["test"]["nq"]) == {"dense", "bm25", "hybrid", "pair", "pair_decoder"}
    found = json.loads((out / "evaluation.json").read_text())
    assert found["ranks"] == ranks
    assert found["pair_base"] == "both"
    names = {point["name"] for point in found["sets"]["nq"]["test"]}
    assert names >= {"pair", "pair_decoder", "supervised-0", "reinforce-0", "plain_ppo-0"}

    collect(out, tmp_path / "home")
    home = tmp_path / "unpacked"
    unpack(sorted((tmp_path / "home").iterdir()), home)
    assert (home / "ranks.json").is_file()
    monkeypatch.setattr("models.retriever.decoder_pair.default_folder", lambda: texts)
    base = PairBase(DECODER, texts)
    assert isinstance(base.load(home / "pairs_decoder" / "whole", "cpu"), DecoderPairReader)
    minilm = PairBase(MINILM, texts / "minilm").load(home / "pairs" / "whole", "cpu")
    assert isinstance(minilm, PairReader)
    ship(home, "reinforce-0", tmp_path / "shipped", pair_reader=True)
    assert json.loads((tmp_path / "shipped" / "pair-reader" / "config.json").read_text())["kind"] == "decoder"

    scored = out / "pairs_decoder" / "fold0" / "scores.npz"
    before = (out / "pairs_decoder" / "fold0" / "config.json").stat().st_mtime_ns, scored.read_bytes()
    scored.unlink()
    run(monkeypatch, *common, "--stage", "pairs")
    after = (out / "pairs_decoder" / "fold0" / "config.json").stat().st_mtime_ns
    assert after == before[0], "what is trained only scores"
    assert scored.is_file()


def test_trainings_go_by_steps_and_are_cut_only_at_two_and_a_half_times_their_time() -> None:
    """The limit leaves room to score before the stage ends its processes, at twice its share."""
    given = argparse.Namespace(
        pair_base=BOTH, made=None, pair_epochs=4.0, decoder_epochs=3.0, decoder_candidates=24, decoder_lr=3e-4,
        seconds=1e4,
    )  # fmt: skip
    assert kinds_of(BOTH)[0] == DECODER
    assert len(trainings(given)) == 2 * len(FOLDS)
    for kind in (MINILM, DECODER):
        assert pair_config(given, kind).limit_s == 2.5 * policy_work.PAIR_SECONDS[kind]
        short = argparse.Namespace(**{**vars(given), "seconds": 60.0})
        assert pair_config(short, kind).limit_s == 90.0
    assert pair_config(given, DECODER).candidates == 24
    assert pair_config(given, DECODER).together == 8


def test_ranks_count_the_first_that_tells_and_as_many_as_are_needed() -> None:
    """An order that puts what tells last hits nothing; one that puts it first hits at 1, and `all` wants all."""
    made = questions_with_features()
    tables = replace(made.tables, needs_all=np.ones(len(made), bool))
    made = Material(made.questions, tables)
    told = (tables.labels == 2) & tables.present
    best = np.where(told, 1.0, 0.0).astype(np.float32)
    found = ranks_of(made, {"pair": best, "pair_decoder": -best})["test"]["toy"]
    assert found["pair"]["hit@1"] == 100.0
    assert found["pair"]["all@4"] == 100.0
    assert found["pair"]["all@1"] == round(100 * float((told[12:].sum(1)[told[12:].any(1)] == 1).mean()), 2)
    assert found["pair_decoder"]["hit@1"] == 0.0
    assert "| toy" in table_of({"test": {"toy": found}})
