"""Small models of every kind for tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from models.subq import SubqConfig, SubqModel

SMALL = SubqConfig(
    vocabulary=97, width=32, lower_blocks=2, upper_blocks=2, head_dim=16, kv_heads=1, feed_forward=48, window=12,
    state_dim=8, chunk=8, encoder_heads=4, landmark_dim=16, top_k=3, near=2, context_tokens=128,
)  # fmt: skip


def small_model(**changes: object) -> SubqModel:
    """A model of random weights that do something: the gates are open, the landmarks differ."""
    torch.manual_seed(1)
    model = SubqModel(replace(SMALL, **changes)).eval()  # type: ignore[arg-type]
    if model.copier is not None:
        torch.nn.init.normal_(model.copier.gate.weight, std=0.3)
        torch.nn.init.constant_(model.copier.gate.bias, 0.5)
    return model.requires_grad_(False)


def one_pass(model: SubqModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits [T, vocabulary] of one pass over ids [T], with what is copied."""
    out = model(ids[None])
    return model.next_logits(out.hidden, model.copied(out, ids[None]))[0]
