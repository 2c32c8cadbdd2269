"""models/retriever/encoder_pair.py: adapters over an encoder that is no part of what is saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.retriever.around import with_around
from models.retriever.combined_pair import CombinedPairReader
from models.retriever.encoder_pair import EncoderPairConfig, EncoderPairReader, from_encoder_folder
from models.retriever.pair_base import PairRow, PairScorer
from models.retriever.pair_pins import reads_by_decoder
from models.retriever.pair_reader import load_pair_reader, save_pair_reader
from models.retriever.pair_training import PairTexts, PairTrainConfig, train_pairs
from tests.models.retriever import pair_case
from tests.models.retriever.mpnet_case import small_mpnet

TEXTS = ["ann has key", "bob has map", "cid has hat ann has pen"]


def trained(judge: PairScorer, lr: float, epochs: float = 8) -> tuple[float, float]:
    """How often what tells comes first, before and after learning 64 questions."""
    questions, candidates, tables = pair_case.questions(64, 0)
    told = tables.labels == 2

    def right() -> float:
        found = [judge.features(q, each)[:, 0] for q, each in zip(questions, candidates, strict=True)]
        return float(np.mean([told[at, int(np.argmax(scores))] for at, scores in enumerate(found)]))

    before = right()
    config = PairTrainConfig(epochs=epochs, questions=16, candidates=4, lr=lr, given=0.0)
    train_pairs(judge, tables, PairTexts.of(judge, questions, candidates), np.arange(64), config)
    return before, right()


def test_rows_score_as_alone_whatever_stands_beside_them(tmp_path: Path) -> None:
    """In any order and beside longer ones: padding is not read, what was read already is."""
    judge = from_encoder_folder(small_mpnet(tmp_path / "base"))
    asked, *texts = judge.tokenize(["what key", *TEXTS])
    rows = [PairRow(asked, text, given) for text in texts for given in ((), texts[1])]
    together = judge.scores(rows)
    np.testing.assert_allclose(together, [float(judge.scores([row])[0]) for row in rows], atol=2e-5)
    np.testing.assert_allclose(judge.scores(rows[::-1])[::-1], together, atol=2e-5)
    np.testing.assert_allclose(judge.learn(rows).detach().numpy(), together, atol=2e-5)
    assert len(set(np.round(together, 5))) == len(rows)


def test_batches_of_rows_that_are_scored_stay_within_their_bytes(tmp_path: Path) -> None:
    """However many rows and however long; every row is in one, and one that is too long for all stands alone."""
    judge = from_encoder_folder(small_mpnet(tmp_path / "base"))
    chance = np.random.default_rng(0)
    rows = [
        PairRow((4,) * int(chance.integers(1, 60)), (5,) * int(chance.integers(1, 150)), (6,) * int(given))
        for given in chance.integers(0, 2, 300) * chance.integers(1, 90, 300)
    ]
    scores = judge.scores(rows)
    judge.rows_per_batch = 1000
    wide = judge.bytes_of(216)
    for most in (40 * wide, 3 * wide, wide // 2):
        judge.batch_bytes = most
        groups = judge.batches(rows)
        assert sorted(at for group in groups for at in group) == list(range(len(rows)))
        taken = [
            (len(group), len(group) * judge.bytes_of(judge.collate([rows[at] for at in group])[0].shape[1]))
            for group in groups
        ]
        assert all(size <= most or count == 1 for count, size in taken)
        if most > wide:
            assert max(size for _, size in taken) > most / 2, "it is filled"
        np.testing.assert_allclose(judge.scores(rows), scores, atol=2e-5)
    assert len(groups) > len(rows) / 2
    assert judge.bytes_of(200) > 2 * judge.bytes_of(100), "attention takes more than its share"


def test_adapters_learn_and_come_back_over_their_base_alone(tmp_path: Path) -> None:
    """They learn; the base stays as it was, is no part of the file, and another one is refused by name."""
    base = small_mpnet(tmp_path / "base")
    judge = from_encoder_folder(base, config=EncoderPairConfig(rank=4, alpha=8.0))
    words = judge.model.bert.embeddings.word_embeddings.weight.detach().clone()
    before, after = trained(judge, 1e-2)
    assert after > max(0.6, before)
    assert torch.equal(judge.model.bert.embeddings.word_embeddings.weight, words)
    folder = save_pair_reader(judge, tmp_path / "saved", {"fold": "whole"})
    assert (folder / "pair_reader.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size
    assert not reads_by_decoder(folder)
    found, about = load_pair_reader(folder, base=base)
    assert isinstance(found, EncoderPairReader)
    assert (about, found.config.rank) == ({"fold": "whole"}, 4)
    wanted = judge.features("what key", TEXTS)
    np.testing.assert_allclose(found.features("what key", TEXTS), wanted, atol=0.1)
    with pytest.raises(ValueError, match="learns=True"):
        found.tuning()
    other = small_mpnet(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="trained over all-mpnet-base-v2"):
        load_pair_reader(folder, base=other)
    again, _ = load_pair_reader(folder, base=base, learns=True)
    np.testing.assert_allclose(again.features("what key", TEXTS), wanted, atol=0.1)
    assert trained(again, 1e-3, 1)[0] > 0.6
    with pytest.raises(ValueError, match="holds 'bert'"):
        (base / "config.json").write_text('{"model_type": "bert"}')
        from_encoder_folder(base)


def test_a_base_packed_in_8_bits_counts_as_itself(tmp_path: Path) -> None:
    """The digest that its folder notes is taken: rounding moves weights, not which encoder it is."""
    base = small_mpnet(tmp_path / "base")
    told = (base / "config.json").read_text().rstrip().removesuffix("}") + ', "digest": "abc"}'
    (base / "config.json").write_text(told)
    assert from_encoder_folder(base).digest == "abc"


def test_a_reader_reads_around_a_candidate_only_where_it_says_so(tmp_path: Path) -> None:
    """Sentences handed over beside a candidate are read, marked, or left out; saying so is saved."""
    judge = pair_case.reader()
    alone, beside = "ann has key", with_around("ann has key", (0, 3), {(0, 2): "bob has map", (1, 4): "cid"})
    assert judge.tokenize([beside]) == judge.tokenize([alone])
    assert judge.text_tokens == 96
    judge.around = True
    assert judge.seen([beside, alone, with_around(alone, (1, 3), {(1, 4): "cid"})]) == [
        "ann has key | before: bob has map", "ann has key", "ann has key | after: cid",
    ]  # fmt: skip
    assert judge.text_tokens == 160
    long = with_around(" ".join(["has"] * 90), (0, 1), {(0, 0): " ".join(["key"] * 90)})
    row = PairRow(*judge.tokenize(["what", long]))
    assert judge.collate([row])[0].shape[1] == 168, (
        "[CLS] what [SEP], 160 of the candidate, [SEP]: whole eights"
    )
    found, about = load_pair_reader(save_pair_reader(judge, tmp_path / "saved", {"fold": "whole"}))
    assert found.around
    assert about == {"fold": "whole", "around": True}
    mixed = CombinedPairReader([judge, pair_case.reader()], (1.0, 1.0), ("one", "other"))
    assert mixed.around
    own = mixed.tokenize([beside])[0]
    assert own[1 + own[0] :] == (3, *pair_case.reader().tokenize([alone])[0]), (
        "the other reads the candidate alone"
    )
