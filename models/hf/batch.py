"""Many views read side by side: rows of one batch whose memories differ in length, places and weights.

Questions of one context are asked of many compressed caches at once, or one question of many sessions: all rows get
the same tokens, each over its own memory. Rows are padded to the longest; padding weighs nothing. Results are
those of the rows read one by one.

Shapes: `B` rows, `H` key heads, `N` held pairs of the longest row, `T` tokens of a step, `d` head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache

from models.cache.layers import MemoryLayer, ViewLayer
from models.cache.rotating import CacheView
from models.compared.kept import KeptLayer

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone

_NEVER = float("-inf")


class Step(NamedTuple):
    """A layer's work for one row's tokens, not turned: `query [1, heads, T, d]`, `key, value [1, H, T, d]`."""

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor


class BatchLayer(MemoryLayer):  # type: ignore[no-untyped-call]
    """One layer of all rows; `followed` holds, by row, the layer whose attention weights the row borrows."""

    def __init__(self, views: Sequence[ViewLayer], room: int) -> None:
        spec = views[0].spec
        super().__init__(spec)
        self.views, self.lengths = list(views), [view._length for view in views]
        self.held, self.tail, self.num_rows = max(self.lengths), 0, len(views)
        capacity, device = self.held + room, spec.device
        shape = (self.num_rows, spec.num_kv_heads, capacity, spec.head_dim)
        self.held_keys = torch.zeros(shape, dtype=spec.dtype, device=device)
        self.held_values = torch.zeros_like(self.held_keys)
        self.bias = torch.zeros(shape[:3], device=device)
        # places of pairs count only where there is a window
        self.places = torch.zeros(self.num_rows, capacity, dtype=torch.int64, device=device)
        for row, (view, length) in enumerate(zip(views, self.lengths, strict=True)):
            self.held_keys[row, :, :length] = view._keys[0, :, :length]
            self.held_values[row, :, :length] = view._values[0, :, :length]
            self.bias[row, :, length : self.held] = _NEVER
            weighted = getattr(view, "_bias", None)
            if weighted is not None:
                self.bias[row, :, :length] = weighted
            shown = view._shown  # what was withdrawn from a session
            if shown is not None:
                self.bias[row, :, :length].masked_fill_(~shown[:, :length], _NEVER)
            last = view._next_place
            self.places[row, :length] = torch.arange(last - length, last, device=device)
        self.next_place = torch.tensor([view._next_place for view in views], device=device)
        self.leads = any(isinstance(view, KeptLayer) and view._kept.leads for view in views)
        self.followed: dict[int, BatchLayer] = {}
        self.weights: Tensor | None = None
        self.recording: list[Step] | None = None
        self._pair: tuple[Tensor, Tensor] | None = None
        self._farthest = int(self.next_place.max()) + room
        spec.rotary.reserve(self._farthest + 1)

    def get_seq_length(self) -> int:
        """Pairs of the longest row."""
        return self.held + self.tail

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the step's pairs `[B, H, T, d]` and return all pairs, keys turned."""
        steps = key_states.shape[2]
        start, end = self.held + self.tail, self.held + self.tail + steps
        if end > self.held_keys.shape[2]:
            raise ValueError(
                f"the batch has room for {self.held_keys.shape[2] - self.held} tokens, given {self.tail + steps}: "
                "make it with more room"
            )
        places = self.next_place[:, None] + torch.arange(steps, device=self.places.device)
        self.held_keys[:, :, start:end] = self.spec.rotary.turn(key_states, places[:, None])
        self.held_values[:, :, start:end] = value_states
        self.places[:, start:end] = places
        self.next_place = self.next_place + steps
        self.tail += steps
        self._pair = (key_states, value_states)
        return self.held_keys[:, :, :end], self.held_values[:, :, :end]

    def attend_rows(self, query: Tensor, scaling: float, softcap: float | None) -> Tensor:
        """Attention `[B, heads, T, d]` of queries that are not turned over all pairs, the step's own the last."""
        if softcap is not None:
            raise ValueError(
                f"layer {self.spec.index} caps its logits (softcap {softcap}); batches of views are read "
                "without a cap only: read the rows one by one"
            )
        rows, heads, steps, dim = query.shape
        end = self.held + self.tail
        places = self.places[:, end - steps : end]
        turned = self.spec.rotary.turn(query, places[:, None])
        mask = self.bias[:, :, None, :end]
        if steps > 1:
            later = (
                torch.arange(end, device=query.device)
                > torch.arange(end - steps, end, device=query.device)[:, None]
            )
            mask = mask.masked_fill(later, _NEVER)
        if self.spec.window is not None:
            gone = self.places[:, None, :end] <= places[:, :, None] - self.spec.window
            mask = mask.masked_fill(gone[:, None], _NEVER)
        groups = heads // self.held_keys.shape[1]
        grouped = turned.reshape(rows, -1, groups * steps, dim)
        if mask.shape[2] > 1:
            mask = mask.repeat(1, 1, groups, 1)
        mask = mask.to(query.dtype)
        keys, values = self.held_keys[:, :, :end], self.held_values[:, :, :end]
        if self.leads or self.followed:
            scores = (grouped @ keys.transpose(-1, -2)).float() * scaling + mask
            weights = scores.softmax(-1).to(query.dtype)
            for row, leader in self.followed.items():
                weights[row] = self._borrowed(row, leader)
            self.weights = weights if self.leads else None
            out = weights @ values
        else:
            out = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
        found = out.reshape(rows, heads, steps, dim)
        if self.recording is not None:
            assert self._pair is not None
            self.recording.append(Step(query, *self._pair, found))
        return found

    def _borrowed(self, row: int, leader: BatchLayer) -> Tensor:
        """The leader's weights of a row, laid over this layer's padding."""
        given, length = leader.weights, self.lengths[row]
        assert given is not None and leader.lengths[row] == length
        assert given.shape[-1] == leader.held + self.tail
        out = given.new_zeros(*given.shape[1:3], self.held + self.tail)
        out[..., :length] = given[row, ..., :length]
        out[..., self.held :] = given[row, ..., leader.held :]
        return out

    def rewind(self, num_tokens: int) -> None:
        """Forget the newest `num_tokens` tokens of every row."""
        assert 0 <= num_tokens <= self.tail
        self.tail -= num_tokens
        self.next_place = self.next_place - num_tokens

    def replay(self, step: Step, scaling: float) -> Tensor:
        """What every row gives for the tokens of `step` `[B, heads, T, d]`; the rows are left as they were."""
        recording, self.recording = self.recording, None
        self.update(*(part.expand(self.num_rows, -1, -1, -1) for part in (step.key, step.value)))
        out = self.attend_rows(step.query.expand(self.num_rows, -1, -1, -1), scaling, None)
        self.rewind(step.key.shape[2])
        self.recording = recording
        return out


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
            for row, view in enumerate(layer.views):
                leader = getattr(view, "leader", None)
                if leader is not None:
                    layer.followed[row] = of_view[id(leader)]
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

    @torch.no_grad()
    def errors(self, recorded: dict[int, Step]) -> Tensor:
        """Relative error of attention outputs `[B, layers]` against those recorded of a row that holds everything.

        Each layer gets the recorded queries, so an error in one layer does not count again in the next.
        """
        found = []
        for layer in self.rows:
            if layer.spec.index in recorded:
                step = recorded[layer.spec.index]
                lost = layer.replay(step, layer.spec.scaling).float() - step.out.float()
                found.append(lost.flatten(1).norm(dim=1) / step.out.float().norm().clamp_min(1e-12))
        return torch.stack(found, dim=1)


def joined(steps: Sequence[Step]) -> Step:
    """Steps that followed each other as one."""
    return Step(*(torch.cat(parts, dim=2) for parts in zip(*steps, strict=True)))


@torch.no_grad()
def forward(backbone: HfBackbone, ids: Tensor | Sequence[int], batch: BatchView, keep: int) -> Tensor:
    """Logits `[B, keep, vocabulary]` of the last `keep` tokens of `ids` ([T], or [B, T] a row each)."""
    given = torch.as_tensor(ids, device=backbone.device)
    rows = given.expand(batch.num_rows, -1)
    size, total = backbone.config.prompt_block, rows.shape[1]
    out = []
    for start in range(0, total, size):
        block = rows[:, start : start + size]
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
