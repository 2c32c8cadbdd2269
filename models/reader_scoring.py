"""Teacher-forced loss of gold answers, many at once: one pass without decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from models.reader_training import ReadingRows, collate


@torch.inference_mode()
def answer_losses(
    model: nn.Module,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    tokens_per_batch: int = 65536,
    device: str = "cpu",
) -> list[float]:
    """Mean loss in nats a token of each target after its prompt, in the order given.

    Rows of like length share a batch; logits are made for answer places only. An empty target is an error.
    """
    if not pairs:
        return []
    if any(not len(target) for _, target in pairs):
        raise ValueError("pairs: every target needs at least one token")
    model.eval()
    rows = ReadingRows.of(pairs)
    place = torch.device(device)
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    order = np.argsort(rows.lengths, kind="stable")
    out = np.zeros(len(rows))
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and int(rows.lengths[order[end]]) * (end + 1 - start) <= tokens_per_batch:
            end += 1
        chosen = order[start:end]
        batch = collate(rows, chosen, place)
        with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda"):
            hidden = base.model(input_ids=batch.ids, use_cache=False).last_hidden_state
            logits = base.lm_head(hidden[batch.predicts]).float()
        losses = F.cross_entropy(logits, batch.ids[:, 1:][batch.predicts[:, :-1]], reduction="none")
        owner = batch.predicts.nonzero()[:, 0]
        sums = torch.zeros(len(chosen), device=place).index_add_(0, owner, losses)
        counts = torch.bincount(owner, minlength=len(chosen))
        out[chosen] = (sums / counts).cpu().numpy()
        start = end
    return [float(value) for value in out]
