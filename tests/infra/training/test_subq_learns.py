"""A tiny backbone learns in minutes on a CPU to find what it was told, also far beyond its trained length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.evaluation.haystack import Haystack
from infra.evaluation.passkey import Cell, PasskeyTest
from infra.training.subq import SubqTrainConfig, SubqTrainer
from models.subq.losses import LossWeights
from tests.infra.training.subq_case import MODEL, STREAM, FewWordings, small_data


@pytest.mark.slow
def test_needles_are_found_at_four_times_the_trained_length(tmp_path: Path) -> None:
    """Trained on 512 tokens, the chunks with the key are chosen at 2,048 tokens among 60 (chance: 3 in 100)."""
    data = small_data(0, 200_000)
    model = replace(MODEL, width=64, kv_heads=2, feed_forward=128, scale_max=30.0)
    stream = replace(
        STREAM, tokens=2_048, targets=384, phases=((512, 400),), digits=(5, 12), anonymous=0.0, asked=0.95
    )
    config = SubqTrainConfig(
        lr=3e-3, muon=False, warmup=30, bank=2_048, save_every=400, losses=LossWeights(language=0.1)
    )
    trainer = SubqTrainer(model, data, stream, config, tmp_path)
    curve = trainer.run()
    assert (
        np.mean([row["language"] for row in curve[-20:]])
        < np.mean([row["language"] for row in curve[:20]]) - 0.5
    )
    trainer.model.eval().requires_grad_(False)
    # another text in the same words
    rng = np.random.default_rng(1)
    pieces = [data.tokens[at : at + 256] for at in rng.integers(0, len(data.tokens) - 256, 64)]
    hay = Haystack(trainer.model, np.concatenate(pieces).astype(np.int64))
    test = PasskeyTest(trainer.model, hay, data.tokenizer.encode_spans, data.names, FewWordings())
    row = test.row(Cell(name="known-5", distractors=1), 2_048, 40, seed=0)
    assert row["recall"] >= 60.0, row
