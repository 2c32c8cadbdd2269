"""infra/training/policy_gpu.py --pair-base both: pair readers over MiniLM and over the decoder, in miniature."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.training import policy_gpu, policy_work
from infra.training.policy_both import fit_weights, put_both
from infra.training.policy_collect import collect, unpack
from infra.training.policy_pairs import (
    BGE,
    BGE_DUAL,
    BOTH,
    DECODER,
    E5,
    FOLDS,
    KINDS,
    MINILM,
    MPNET,
    PAIRS_BOTH,
    PLACES,
    PairBase,
    kinds_of,
    texts_asked,
    with_scores,
)
from infra.training.policy_ranks import ranks_of, table_of
from infra.training.policy_ship import ship
from infra.training.policy_work import pair_config, trainings
from models.retriever.combined_pair import CombinedPairReader
from models.retriever.decoder_pair import DecoderPairReader
from models.retriever.pair_reader import PairReader, load_pair_reader
from models.retriever.table import ALL_FEATURES
from pipeline.tasks.material import Material
from tests.infra.training.test_policy_gpu import carried, questions_with_features, run, small_bert, texts
from tests.models.retriever.mpnet_case import small_mpnet

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
        "--most", "4", "--together", "--pair-base", "both", "--pair-features", "both",
    )  # fmt: skip
    run(monkeypatch, *common)
    made = Material.load(out / "material")
    by_kind = {
        kind: with_scores(made, out / place).tables.features
        for kind, place in PLACES.items()
        if kind in kinds_of(BOTH)
    }
    at = ALL_FEATURES.index("pair")
    assert not np.allclose(by_kind[MINILM][..., at], by_kind[DECODER][..., at])
    told = [json.loads((out / PLACES[kind] / fold / "config.json").read_text()) for kind, fold in trainings(
        argparse.Namespace(pair_base=BOTH, made=None)
    )]  # fmt: skip
    assert [each["kind"] for each in told] == ["decoder"] * 3 + ["bert"] * 3
    assert all(each["about"]["steps"] == each["about"]["steps_planned"] for each in told)

    ranks = json.loads((out / "ranks.json").read_text())
    assert set(ranks) == {"dev", "test"}
    assert set(ranks["test"]["nq"]) == {"dense", "bm25", "hybrid", "pair", "pair_decoder", "pair_both"}
    found = json.loads((out / "evaluation.json").read_text())
    assert found["ranks"] == ranks
    assert (found["pair_base"], found["pair_features"]) == ("both", "both")
    names = {point["name"] for point in found["sets"]["nq"]["test"]}
    assert names >= {"pair", "pair_decoder", "pair_both", "supervised-0", "reinforce-0", "plain_ppo-0"}

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
    served, _ = load_pair_reader(tmp_path / "shipped" / "pair-reader")
    assert isinstance(served, CombinedPairReader)
    assert served.weights == fit_weights(made, out)
    row = int(made.rows("test")[0])
    columns = served.features_of(texts_asked(made, np.array([row])))[0]
    seen = with_scores(made, out / PAIRS_BOTH).tables.features[row, : len(columns), -6:]
    np.testing.assert_allclose(columns, seen, atol=1e-4)

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
        seconds=1e4, crowded=False,
    )  # fmt: skip
    assert kinds_of(BOTH)[0] == DECODER
    assert len(trainings(given)) == 2 * len(FOLDS)
    for kind in (MINILM, DECODER):
        assert pair_config(given, kind).limit_s == 2.5 * policy_work.PAIR_SECONDS[kind]
        short = argparse.Namespace(**{**vars(given), "seconds": 60.0})
        assert pair_config(short, kind).limit_s == 90.0
        bound = argparse.Namespace(**{**vars(short), "leave": {"pairs": 500.0}})
        assert pair_config(bound, kind).limit_s == 42.0, "training and scoring within the share"
    assert pair_config(given, DECODER).candidates == 24
    assert pair_config(given, DECODER).together == 0
    assert pair_config(argparse.Namespace(**{**vars(given), "crowded": True}), DECODER).together == 8


def test_several_devices_have_a_reader_over_the_decoder_each() -> None:
    """MiniLM's keep off them where a device is left; with one device all are on it, gradients made in halves."""
    given = argparse.Namespace(pair_base=BOTH, made=None, workers=3, seeds=[0])
    for devices, wanted, halves in (
        (1, [0] * 6, True), (2, [0, 1, 0, 1, 0, 1], True), (3, [0, 1, 2, 2, 1, 0], False),
        (4, [0, 1, 2, 3, 3, 3], False), (8, [0, 1, 2, 3, 4, 5], False),
    ):  # fmt: skip
        dealt = policy_gpu.places(given, "pairs", devices)
        assert dealt == wanted
        assert policy_gpu.crowded(given, "pairs", dealt) == halves
    assert policy_gpu.places(given, "made", 4) == [0, 1]
    assert policy_gpu.places(given, "made", 1) == [0, 0]
    assert policy_gpu.places(given, "choose", 2) == [0, 1, 0]


def test_stages_hold_both_only_where_policies_see_both() -> None:
    """It follows the stage pairs; named alone it is run alone."""
    assert policy_gpu._with_both(["material", "pairs", "teach"], True) == [
        "material",
        "pairs",
        "both",
        "teach",
    ]
    assert policy_gpu._with_both(["pairs", "both", "teach"], False) == ["pairs", "teach"]
    assert policy_gpu._with_both(["both"], True) == ["both"]
    assert policy_gpu._with_both(["reward"], True) == ["reward"]


def test_weights_go_to_the_reader_that_knows(tmp_path: Path) -> None:
    """Of a reader that puts first what tells and one that draws, the first has most of the weight."""
    made = questions_with_features()
    told = (made.tables.labels == 2) & made.tables.present
    chance = np.random.default_rng(0)
    rows = np.arange(len(made))
    for kind, good in ((DECODER, True), (MINILM, False)):
        noise = chance.normal(size=(*told.shape, 6)).astype(np.float32) * 0.2
        if good:
            noise[..., 0] += np.where(told, 0.4, -0.4)
        for fold in FOLDS:
            (tmp_path / PLACES[kind] / fold).mkdir(parents=True)
            np.savez(tmp_path / PLACES[kind] / fold / "scores.npz", rows=rows, columns=noise)
    decoder, minilm = fit_weights(made, tmp_path)
    assert decoder > 0.3
    assert minilm < 0.3 * decoder


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


def test_kinds_are_told_by_names_joined() -> None:
    """In the order in which policies would see them, whatever the order given; an unknown one is named."""
    assert kinds_of(BOTH) == (DECODER, MINILM)
    assert kinds_of("minilm+e5") == (E5, MINILM)
    assert kinds_of("minilm+bge+decoder+e5+bge_dual+e5_dual+mpnet") == KINDS
    assert kinds_of("bge") == (BGE,)
    with pytest.raises(ValueError, match="e5large of it unknown"):
        kinds_of("e5large+minilm")


def test_encoders_are_trained_beside_minilm_and_policies_see_all_as_one(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three kinds without a decoder, in miniature: folds, the weighted sum of all, ranks of every mix, shipping."""
    out, others = tmp_path / "state", tmp_path / "encoders"
    for at, kind in enumerate((E5, BGE)):
        small_bert(
            others / kind, ["house", "keeps", "the", "where", "does", *(f"box{n}" for n in range(36))][at:]
        )
    common = (
        "--carried", str(texts), "--out", str(out), "--seeds", "0", "--warm-steps", "4", "--worlds", "0",
        "--iterations", "1", "--width", "16", "--layers", "1", "--budgets", "48", "--biases", "-4",
        "--pair-epochs", "1", "--encoder-epochs", "1", "--encoder-candidates", "6", "--seconds", "600",
        "--most", "4", "--together", "--pair-base", "minilm+bge_dual+e5", "--pair-features", "both",
        "--encoders", str(others),
    )  # fmt: skip
    run(monkeypatch, *common, "--stage", "material", "pairs", "teach", "reward", "judge")
    made = Material.load(out / "material")
    for kind in (E5, BGE_DUAL, MINILM):
        told = [json.loads((out / PLACES[kind] / fold / "config.json").read_text()) for fold in FOLDS]
        assert all(each["about"]["steps"] == each["about"]["steps_planned"] for each in told)
    ranks = json.loads((out / "ranks.json").read_text())["test"]["nq"]
    assert set(ranks) == {
        "dense", "bm25", "hybrid", "pair", "pair_e5", "pair_bge_dual", "pair_both", "pair_mix_e5_bge_dual",
        "pair_mix_e5_minilm", "pair_mix_bge_dual_minilm", "pair_mix_e5_bge_dual_minilm",
    }  # fmt: skip
    assert ranks["pair_mix_e5_bge_dual_minilm"] == ranks["pair_both"], "the same sum by two ways"

    collect(out, tmp_path / "home")
    home = tmp_path / "unpacked"
    unpack([path for folder in tmp_path.glob("home*") for path in folder.iterdir()], home)
    ship(home, "reinforce-0", tmp_path / "shipped", pair_reader=True)
    served, _ = load_pair_reader(tmp_path / "shipped" / "pair-reader")
    assert isinstance(served, CombinedPairReader)
    assert served.parts == (E5, BGE_DUAL, MINILM)
    assert served.weights == fit_weights(made, out, served.parts)
    row = int(made.rows("test")[0])
    columns = served.features_of(texts_asked(made, np.array([row])))[0]
    seen = with_scores(made, out / PAIRS_BOTH).tables.features[row, : len(columns), -6:]
    np.testing.assert_allclose(columns, seen, atol=1e-4)


def test_adapters_over_mpnet_are_trained_beside_minilm(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In miniature: folds, the weighted sum, what comes home is small and is served over the base."""
    out, others = tmp_path / "state", tmp_path / "encoders"
    small_mpnet(others / "mpnet", ["house", "keeps", "the", "where", "does", *(f"box{n}" for n in range(36))])
    common = (
        "--carried", str(texts), "--out", str(out), "--seeds", "0", "--worlds", "0", "--pair-epochs", "1",
        "--encoder-epochs", "2", "--encoder-candidates", "6", "--seconds", "600", "--most", "4", "--together",
        "--pair-base", "mpnet+minilm", "--pair-features", "both", "--encoders", str(others), "--around", "mpnet",
    )  # fmt: skip
    run(monkeypatch, *common, "--stage", "material", "pairs")
    made = Material.load(out / "material")
    told = json.loads((out / PLACES[MPNET] / "whole" / "config.json").read_text())
    assert told["kind"] == "encoder"
    assert (told["about"]["epochs"], told["about"]["lr"], told["about"]["around"]) == (2, 3e-4, True)
    assert "around" not in json.loads((out / PLACES[MINILM] / "whole" / "config.json").read_text())["about"]
    both = json.loads((out / PAIRS_BOTH / "whole" / "config.json").read_text())
    assert both["parts"] == [MPNET, MINILM]
    assert all((out / PAIRS_BOTH / fold / "scores.npz").exists() for fold in FOLDS)

    monkeypatch.setenv("DYSRA_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="encoders mpnet"):
        load_pair_reader(out / PLACES[MPNET] / "whole")
    (tmp_path / "cache" / "encoders").mkdir(parents=True)
    (others / "mpnet").rename(tmp_path / "cache" / "encoders" / "all-mpnet-base-v2-0")
    put_both(out, tmp_path / "served", lambda source, target: Path(shutil.copytree(source, target)))
    served, _ = load_pair_reader(tmp_path / "served", base=texts)
    assert served.around
    row = int(made.rows("test")[0])
    asked = texts_asked(made, np.array([row]), around=True)
    assert texts_asked(made, np.array([row]))[0][1] == [text.split("\x1f")[0] for text in asked[0][1]]
    columns = served.features_of(asked)[0]
    seen = with_scores(made, out / PAIRS_BOTH).tables.features[row, : len(columns), -6:]
    np.testing.assert_allclose(columns, seen, atol=1e-4)


def test_encoders_have_more_of_the_time_than_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same seconds the stage pairs gets more where E5's are trained, and most where the decoder's are."""

    def share(kinds: str) -> float:
        monkeypatch.setattr("sys.argv", ["policy_gpu", "--out", "state", "--together", "--pair-base", kinds])
        return policy_gpu._share(policy_gpu._given(), ["pairs", "teach", "reward"], time.monotonic() + 600.0)

    assert share("minilm") < share("e5_dual+minilm") < share("decoder+e5_dual")
