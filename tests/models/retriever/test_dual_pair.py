"""models/retriever/dual_pair.py: scores of two vectors keep every pair reader's promises, and learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.retriever.combined_pair import put_weights
from models.retriever.dual_pair import DualModel, DualPairReader, Pool
from models.retriever.pair_base import PairRow
from models.retriever.pair_pins import reads_by_decoder
from models.retriever.pair_reader import load_pair_reader, save_pair_reader
from models.retriever.pair_training import PairTexts, PairTrainConfig, train_pairs
from tests.models.retriever import pair_case


def reader(pool: Pool = "mean", asked: str = "what ", told: str = "has ") -> DualPairReader:
    """A small encoder at a scale at which it learns, with words before questions and texts."""
    model = DualModel(pair_case.SIZES, pool)
    model.bert.load_state_dict(pair_case.reader().model.bert.state_dict())
    return DualPairReader(model, pair_case.tokenizer(), asked, told)


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_a_score_is_the_scaled_cosine_of_two_texts_read_apart(pool: Pool) -> None:
    """As by the encoder alone, a text at a time; what was read stands behind the question."""
    judge = reader(pool)
    asked, text, given = judge.tokenize(["what ann key", "ann has key", "bob has map ann has pen"])
    words = pair_case.tokenizer()

    def vector(text: str, more: str = "") -> torch.Tensor:
        ids = [1, *words.encode(text).ids, 2, *([*words.encode(more).ids, 2] if more else [])]
        hidden = judge.model.bert(input_ids=torch.tensor([ids])).last_hidden_state[0]
        return hidden[0] if pool == "first" else hidden.mean(0)

    rows = [PairRow(asked, text), PairRow(asked, text, given), PairRow(asked, given)]
    pairs = [
        (vector("what what ann key"), vector("has ann has key")),
        (vector("what what ann key", "bob has map ann has pen"), vector("has ann has key")),
        (vector("what what ann key"), vector("has bob has map ann has pen")),
    ]
    wanted = [40 * (torch.cosine_similarity(a, b, dim=0).item() - 0.8) for a, b in pairs]
    np.testing.assert_allclose(judge.scores(rows), wanted, atol=0.01)
    # each distinct text once, whatever the number of rows
    assert [len(each) for each in judge.collate(rows)] == [2, 2, 2, 2, 3, 3]


def test_it_is_the_same_when_loaded(tmp_path: Path) -> None:
    """Matrices in 8 bits, the words before texts, pooling, scale and offset come back; the kind is told."""
    judge = reader("first")
    with torch.no_grad():
        judge.model.offset.fill_(0.3)
    folder = save_pair_reader(judge, tmp_path / "saved", {"fold": "whole"})
    found, about = load_pair_reader(folder)
    assert isinstance(found, DualPairReader)
    assert (about, found.before, found.model.pool) == ({"fold": "whole"}, ("what ", "has "), "first")
    texts = ["ann has key", "bob has map", "cid has hat"]
    np.testing.assert_allclose(found.features("what key", texts), judge.features("what key", texts), atol=0.1)
    (folder / "pair_reader.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="pair_reader"):
        load_pair_reader(folder)


def test_it_learns_which_candidate_tells() -> None:
    """From labels the candidate that tells comes first more often than before, and by far more than 1 in 4."""
    judge = reader()
    questions, candidates, tables = pair_case.questions(64, 0)
    texts = PairTexts.of(judge, questions, candidates)
    told = tables.labels == 2

    def right() -> float:
        found = [
            judge.features(question, each)[:, 0] for question, each in zip(questions, candidates, strict=True)
        ]
        return float(np.mean([told[at, int(np.argmax(scores))] for at, scores in enumerate(found)]))

    before = right()
    config = PairTrainConfig(epochs=12, questions=16, candidates=4, lr=2e-3, given=0.0)
    train_pairs(judge, tables, texts, np.arange(64), config)
    assert right() > max(0.6, before)


def test_texts_are_read_once_and_anew_after_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both passes over candidates read each text once; what is kept is bounded, and gone after a step."""
    judge = reader()
    seen: list[int] = []
    read = judge._vectors
    monkeypatch.setattr(judge, "_vectors", lambda whole: (seen.append(len(whole)), read(whole))[1])
    texts = ["ann has key", "bob has map", "cid has hat"]
    first = judge.features("what key", texts)
    assert seen == [1, 3, 1, 0], "question, texts, question with the best text, no text anew"
    np.testing.assert_array_equal(judge.features("what key", texts), first)
    rows = [PairRow(*judge.tokenize(["what key", text])) for text in texts]
    np.testing.assert_allclose(judge.scores(rows), judge._forward(rows).detach(), atol=0.02)
    monkeypatch.setattr("models.retriever.dual_pair.KEPT", 2)
    assert len(judge.scores(rows)) == 3
    assert len(judge._kept) == 2
    judge.learn(rows)
    assert not judge._kept
    assert judge.scores([]).shape == (0,)


def test_it_is_not_taken_for_a_decoder_s(tmp_path: Path) -> None:
    """Alone, and as one with others that are no decoder's; with a decoder among them it is."""
    alone = save_pair_reader(reader(), tmp_path / "alone", {})
    assert not reads_by_decoder(alone)
    together = put_weights(tmp_path / "together", (0.5, 0.5), {}, ("e5_dual", "minilm"))
    assert not reads_by_decoder(together)
    assert reads_by_decoder(put_weights(tmp_path / "other", (0.5, 0.5), {}, ("decoder", "e5_dual")))
    assert reads_by_decoder(put_weights(tmp_path / "default", (0.5, 0.5), {}))


def test_few_bits_give_nearly_the_same_scores(tmp_path: Path) -> None:
    """Saved in 4 and 6 bits it is smaller, loads as any, and is refused MiniLM's words, which are not its own."""
    torch.manual_seed(5)
    model = DualModel(pair_case.SIZES | {"hidden_size": 64, "intermediate_size": 128})
    judge = DualPairReader(model, pair_case.tokenizer())
    plain, few = (save_pair_reader(judge, tmp_path / str(each), {}, few=each) for each in (False, True))
    sizes = [(folder / "pair_reader.safetensors").stat().st_size for folder in (plain, few)]
    assert sizes[1] < sizes[0]
    texts = ["ann has key", "bob has map", "cid has hat"]
    wanted, found = (load_pair_reader(folder)[0].features("what key", texts) for folder in (plain, few))
    np.testing.assert_allclose(found[:, 0], wanted[:, 0], atol=0.1)
    with pytest.raises(ValueError, match="words are not MiniLM's"):
        save_pair_reader(pair_case.reader(), tmp_path / "other", {}, own_words=False)
