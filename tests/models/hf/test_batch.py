"""Views read side by side give what each gives alone."""

from __future__ import annotations

import pytest
import torch

from models.cache.rotating import CacheView
from models.compared import method
from models.compared.trace import read_exactly
from models.hf.attention import attend
from models.hf.batch import BatchView, forward, greedy, joined
from tests.models import tiny

NAMES = {
    "full": 1.0,
    "window_sinks": 0.3,
    "razor": 0.8,
    "shared_attention": 0.5,
    "ours_latents": 0.6,
    "snapkv": 0.2,
}


def memories() -> list:
    """A context kept by several methods, and sessions of other lengths."""
    backbone = tiny.backbone()
    trace = read_exactly(backbone, [1, *tiny.ids(89)])
    settings = {"razor": {"copy_tokens": 20}, "snapkv": {"window": 8}}
    kept = [
        method(name, **settings.get(name, {})).prepare(backbone).memory(trace, int(trace.full_bytes * keep))
        for name, keep in NAMES.items()
    ]
    for count in (8, 64):
        cache = backbone.new_cache(tiny.budgets())
        backbone.read(tiny.ids(count, seed=count), cache)
        kept.append(cache)
    return kept


@pytest.mark.parametrize("steps", [(7, 1, 1), (1, 40)])
def test_rows_of_a_batch_read_as_they_do_alone(steps: tuple[int, ...]) -> None:
    """Uneven heads, merged pairs, borrowed weights, latents, sessions of unequal length: the same logits."""
    backbone, held = tiny.backbone(), memories()
    ids = tiny.ids(sum(steps), seed=5)
    batch = BatchView([memory.view(0) for memory in held], sum(steps))
    parts, at = [], 0
    for count in steps:
        parts.append(forward(backbone, ids[at : at + count], batch, count))
        at += count
    together = torch.cat(parts, dim=1)
    for row, memory in enumerate(held):
        torch.testing.assert_close(together[row], backbone.logits(ids, memory), atol=2e-4, rtol=1e-4)
    batch.rewind(sum(steps) - steps[0])
    again = forward(backbone, ids[steps[0] :], batch, sum(steps[1:]))
    torch.testing.assert_close(again, together[:, steps[0] :], atol=2e-4, rtol=1e-4)


def test_greedy_rows_are_those_of_generate() -> None:
    """Token for token, each row ending by itself."""
    backbone, held = tiny.backbone(), memories()
    asked = tiny.ids(9, seed=3)
    batch = BatchView([memory.view(0) for memory in held], len(asked) + 12)
    first = forward(backbone, asked, batch, 1)[:, -1]
    said = greedy(backbone, first, batch, 12, stop="a")
    for row, memory in enumerate(held):
        alone = list(backbone.generate(asked, memory, max_new_tokens=12, stop_texts=("a",)))
        assert said[row] == alone


def test_error_of_a_row_is_that_of_its_attention_output() -> None:
    """Nothing lost: zero. Else as computed by hand from the kept pairs, with the full row's queries."""
    backbone, held = tiny.backbone(), memories()[:3]
    ids = tiny.ids(6, seed=8)
    exact = BatchView([held[0].view(0)], len(ids))
    recorded = exact.record()
    forward(backbone, ids, exact, 1)
    steps = {index: joined(found) for index, found in recorded.items()}
    batch = BatchView([memory.view(0) for memory in held], len(ids))
    errors = batch.errors(steps)
    assert errors.shape == (3, 2) and float(errors[0].max()) < 1e-5 and batch.tail == 0
    layer = CacheView(held[1].view(len(ids)).views).views[1]  # the first full layer, window and sinks
    step = steps[layer.spec.index]
    keys, values = layer.update(step.key, step.value)
    places = torch.arange(layer.query_place, layer.query_place + len(ids))
    late = torch.arange(keys.shape[2]) > torch.arange(keys.shape[2] - len(ids), keys.shape[2])[:, None]
    out = attend(layer.spec.rotary.turn(step.query, places), keys, values, ~late, layer.spec.scaling)
    assert float(errors[1, 0]) == pytest.approx(float((out - step.out).norm() / step.out.norm()), rel=1e-4)


def test_a_batch_says_what_it_cannot_hold() -> None:
    """More tokens than room; no view; views of other models."""
    backbone = tiny.backbone()
    view = backbone.new_cache(tiny.budgets()).view(0)
    with pytest.raises(ValueError, match="room for 2 tokens, given 3"):
        forward(backbone, tiny.ids(3), BatchView([view], 2), 1)
    with pytest.raises(ValueError, match="no view is given"):
        BatchView([], 2)
    with pytest.raises(ValueError, match=r"views of \[1, 4\] layers"):
        BatchView([view, CacheView(view.views[:1])], 2)
