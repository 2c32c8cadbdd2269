"""models/retriever/combined_pair.py: two pair readers as one keep every pair reader's promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.retriever.combined_pair import CombinedPairReader
from models.retriever.pair_base import SCORE_LIMIT, PairRow
from models.retriever.pair_reader import load_pair_reader, save_pair_reader
from tests.models.retriever import decoder_case, pair_case


def both(tmp_path: Path, weights: tuple[float, ...] = (0.7, 0.4)) -> CombinedPairReader:
    """A decoder's and a BERT's, neither trained, with heads that tell rows apart."""
    decoder = decoder_case.reader(tmp_path / "base")
    torch.manual_seed(3)
    torch.nn.init.normal_(decoder.model.head.weight, std=0.5)
    decoder.tuning()
    return CombinedPairReader((decoder, pair_case.reader()), weights)


def test_scores_are_the_weighted_sum_of_both_and_features_follow_from_them(tmp_path: Path) -> None:
    """Every row, with and without what was read; a known first pass gives the same features as both passes."""
    judge = both(tmp_path)
    texts = ["ann has key", "bob has map ann has pen", "cid has hat"]
    found = judge.tokenize(["what ann key", *texts])
    rows = [PairRow(found[0], text, given) for text in found[1:] for given in ((), found[2])]
    wanted = np.zeros(len(rows))
    for reader, weight in zip(judge.readers, judge.weights, strict=True):
        own = reader.tokenize(["what ann key", *texts])
        plain = [PairRow(own[0], text, given) for text in own[1:] for given in ((), own[2])]
        wanted += weight * np.clip(reader.scores(plain), -SCORE_LIMIT, SCORE_LIMIT)
    np.testing.assert_allclose(judge.scores(rows), wanted, atol=1e-4)
    first = judge.scores([PairRow(found[0], text) for text in found[1:]])
    asked = [("what ann key", texts)]
    np.testing.assert_allclose(
        judge.features_after(asked, [first])[0], judge.features_of(asked)[0], atol=1e-5
    )
    assert judge.features("what ann key", []).shape == (0, 6)


def test_it_is_the_same_when_loaded_and_is_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved with both readers beneath it; what is not two weights, or is to learn, is refused."""
    judge = both(tmp_path)
    texts = ["ann has key", "bob has map", "cid has hat"]
    saved = save_pair_reader(judge, tmp_path / "saved", {"fold": "whole"})
    found, about = load_pair_reader(saved, base=tmp_path / "base")
    assert isinstance(found, CombinedPairReader)
    assert (found.weights, about) == (judge.weights, {"fold": "whole"})
    np.testing.assert_allclose(
        found.features("what key", texts), judge.features("what key", texts), atol=0.05
    )
    for wrong in (found.tuning, lambda: found.batches([]), lambda: found.collate([])):
        with pytest.raises((TypeError, ValueError), match="combined pair reader"):
            wrong()
    with pytest.raises(ValueError, match="two readers, trained apart"):
        load_pair_reader(saved, base=tmp_path / "base", learns=True)
    body = json.loads((saved / "config.json").read_text())
    for wrong, told in (([1.0], "a weight for each"), ([-1.0, 2.0], "weights: given")):
        (saved / "config.json").write_text(json.dumps(body | {"weights": wrong}))
        with pytest.raises(ValueError, match=told):
            load_pair_reader(saved, base=tmp_path / "base")


def test_any_number_of_readers_counts_and_is_found_again_under_its_names(tmp_path: Path) -> None:
    """Three readers: scores are their weighted sum, folders bear their names; a name that leads out is refused."""
    readers = [pair_case.reader(seed) for seed in (0, 1, 2)]
    weights, names = (0.5, 0.3, 0.2), ("e5", "bge", "minilm")
    judge = CombinedPairReader(readers, weights, names)
    asked, text, given = judge.tokenize(["what ann key", "ann has key", "bob has map ann has pen"])
    rows = [PairRow(asked, text), PairRow(asked, text, given), PairRow(asked, given)]
    wanted = np.zeros(len(rows))
    for reader, weight in zip(readers, weights, strict=True):
        q, t, g = reader.tokenize(["what ann key", "ann has key", "bob has map ann has pen"])
        wanted += weight * reader.scores([PairRow(q, t), PairRow(q, t, g), PairRow(q, g)])
    np.testing.assert_allclose(judge.scores(rows), wanted, atol=1e-5)

    saved = save_pair_reader(judge, tmp_path / "saved", {})
    assert {path.name for path in saved.iterdir() if path.is_dir()} == set(names)
    found = load_pair_reader(saved)[0]
    assert isinstance(found, CombinedPairReader)
    assert (found.weights, found.parts) == (weights, names)
    np.testing.assert_allclose(found.scores(rows), wanted, atol=0.05)
    body = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(body | {"parts": ["e5", "bge", "../minilm"]}))
    with pytest.raises(ValueError, match=r"parts: given '\.\./minilm'"):
        load_pair_reader(saved)
    with pytest.raises(ValueError, match="as many weights and different names"):
        CombinedPairReader(readers, weights, ("e5", "e5", "minilm"))
