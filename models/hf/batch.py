"""Many views read side by side: rows of one batch whose memories differ in length, places and weights.

Questions of one context are asked of many compressed caches at once, or one question of many sessions: all rows get
the same tokens, or each tokens of its own filled up on the left (`pads`), over its own memory. Results are those of
the rows read one by one. A view that stands in several rows is laid out once.

Shapes: `B` rows, `H` key heads, `N` held pairs of the longest row, `T` tokens of a step, `d` head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from models.cache.rotating import CacheView
from models.hf.batch_layer import BatchLayer, Step

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone


class BatchView(Cache):
    """The views of `B` rows as one cache."""

    def __init__(self, views: Sequence[CacheView], room: int) -> None:
        """Views as made by `cache.view(0)`, all of one model; `room` further tokens a row."""
        if not views:
            raise ValueError("no view is given; a batch wants one or more")
        shapes = {len(view.views) for view in views}
        if len(shapes) > 1:
            raise ValueError(f"views of {sorted(shapes)} layers cannot be one batch; give views of one model")
        self.rows = [BatchLayer(layers, room) for layers in zip(*(v.views for v in views), strict=True)]
        of_view = {id(view): layer for layer in self.rows for view in layer.views}
        for layer in self.rows:
            leaders = {row: getattr(view, "leader", None) for row, view in enumerate(layer.views)}
            layer.follow({row: of_view[id(view)] for row, view in leaders.items() if view is not None})
        for layer in self.rows:
            layer.views = []  # their memory is not needed any more
        self.num_rows = len(views)
        super().__init__(layers=cast("list[Any]", self.rows))

    @property
    def tail(self) -> int:
        """Tokens read since the views were taken."""
        return self.rows[0].tail

    def rewind(self, num_tokens: int) -> None:
        """Take back the newest `num_tokens` tokens of every row."""
        for layer in self.rows:
            layer.rewind(num_tokens)

    def record(self) -> dict[int, list[Step]]:
        """From now on collect what the full-attention layers compute, by layer index, a `Step` each call."""
        found: dict[int, list[Step]] = {}
        for layer in self.rows:
            if layer.spec.window is None:
                layer.recording = found[layer.spec.index] = []
        return found

    @property
    def pads(self) -> Tensor | None:
        """How many of the first tokens of the next step only fill up their row, `[B]`; None for none."""
        return self.rows[0].pads

    @pads.setter
    def pads(self, given: Tensor | None) -> None:
        for layer in self.rows:
            layer.pads = given

    @torch.no_grad()
    def errors(self, recorded: dict[int, Step], judged: Tensor | None = None) -> Tensor:
        """Relative error of attention outputs `[B, layers]` against those recorded of rows that hold everything.

        Each layer gets the recorded queries, so an error in one layer does not count again in the next. A step of
        one row is read by all rows. `judged [B or 1, T]`: the tokens that count; None for all.
        """
        found = []
        for layer in self.rows:
            if layer.spec.index in recorded:
                step = recorded[layer.spec.index]
                exact = step.out.float()
                lost = layer.replay(step, layer.spec.scaling).float() - exact
                if judged is not None:
                    lost, exact = lost * judged[:, None, :, None], exact * judged[:, None, :, None]
                whole = exact.flatten(1).norm(dim=1).clamp_min(1e-12)
                found.append(lost.flatten(1).norm(dim=1) / whole)
        return torch.stack(found, dim=1)


def joined(steps: Sequence[Step]) -> Step:
    """Steps that followed each other as one."""
    query, key, value, out = (torch.cat([step[at] for step in steps], dim=2) for at in range(4))  # type: ignore[misc]
    return Step(query, key, value, out, steps[0].pads)


@torch.no_grad()
def forward(
    backbone: HfBackbone,
    ids: Tensor | Sequence[int],
    batch: BatchView,
    keep: int,
    pads: Tensor | None = None,
) -> Tensor:
    """Logits `[B, keep, vocabulary]` of the last `keep` tokens of `ids` ([T], or [B, T] a row each).

    The first `pads [B]` tokens of a row fill it up: nothing looks at them, and they take no place.
    """
    given = torch.as_tensor(ids, device=backbone.device)
    rows = given.expand(batch.num_rows, -1)
    size, total = backbone.config.prompt_block, rows.shape[1]
    out = []
    for start in range(0, total, size):
        block = rows[:, start : start + size]
        batch.pads = None
        if pads is not None:
            batch.pads, pads = pads.clamp_max(size), (pads - size).clamp_min(0)
        kept = min(block.shape[1], max(0, start + block.shape[1] - (total - keep)))
        inputs: dict[str, Any] = {
            "input_ids": block,
            "position_ids": torch.zeros_like(block),
            "past_key_values": batch,
            "use_cache": True,
            "memory": batch,
        }
        if kept:
            out.append(backbone.model(**inputs, logits_to_keep=kept).logits)
        else:
            backbone.model.get_decoder()(**inputs)
    batch.pads = None
    return torch.cat(out, dim=1)


@torch.no_grad()
def greedy(
    backbone: HfBackbone, first: Tensor, batch: BatchView, max_new_tokens: int, stop: str = "\n"
) -> list[list[int]]:
    """Greedy tokens of every row up to the text `stop` or the end, from the logits `first [B, vocabulary]`."""
    answers: list[list[int]] = [[] for _ in range(batch.num_rows)]
    open_rows = set(range(batch.num_rows))
    logits = first
    for produced in range(max_new_tokens):
        token = logits.argmax(-1)
        for row, chosen in enumerate(token.tolist()):
            if row in open_rows:
                ended = chosen in backbone.end_ids or stop in backbone.decode([*answers[row][-8:], chosen])
                if ended:
                    open_rows.discard(row)
                else:
                    answers[row].append(chosen)
        if not open_rows or produced + 1 == max_new_tokens:
            break
        logits = forward(backbone, token[:, None], batch, 1)[:, -1]
    return answers
