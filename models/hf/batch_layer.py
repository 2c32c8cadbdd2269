"""One layer of many views that are read side by side (models/hf/batch.py): rows padded to the longest, padding
weighs nothing.

Shapes: `B` rows, `H` key heads, `N` held pairs of the longest row, `T` tokens of a step, `d` head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from models.cache.layers import MemoryLayer, ViewLayer
from models.compared.kept import KeptLayer

_NEVER = float("-inf")


class Step(NamedTuple):
    """A layer's work for some rows' tokens, not turned: `query [R, heads, T, d]`, `key, value [R, H, T, d]`.

    `pads [R]`: how many of the first tokens of each row only fill it up; None for none.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    pads: Tensor | None = None

    def of(self, rows: Tensor) -> Step:
        """The step of other rows, each standing for the row of this one that `rows` names."""
        return Step(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]


class BatchLayer(MemoryLayer):  # type: ignore[no-untyped-call]
    """One layer of all rows; some may borrow another layer's attention weights (`follow`)."""

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
        same: dict[int, list[int]] = {}
        for row, view in enumerate(views):
            same.setdefault(id(view), []).append(row)
        for rows in same.values():
            at: Any = slice(rows[0], rows[-1] + 1)  # rows of one view mostly follow each other
            if rows[-1] - rows[0] + 1 != len(rows):
                at = torch.tensor(rows, device=device)
            self._lay(at, views[rows[0]])
        self._begin = torch.tensor([view._next_place for view in views], device=device)
        self.next_place = self._begin
        self.pads: Tensor | None = None
        self._followers: Tensor | None = None
        self._lent = torch.zeros(0, dtype=torch.int64, device=device)
        self._leader: BatchLayer | None = None
        # rows whose weights are lent or borrowed are attended by themselves
        leading = [isinstance(view, KeptLayer) and view._kept.leads for view in views]
        self._by_hand = torch.tensor([row for row, leads in enumerate(leading) if leads], device=device)
        self.weights: Tensor | None = None
        self.recording: list[Step] | None = None
        self._pair: tuple[Tensor, Tensor] | None = None
        spec.rotary.reserve(max(view._next_place for view in views) + room + 1)

    def _lay(self, rows: Any, view: ViewLayer) -> None:
        """Write one view's pairs into `rows` (a slice, or indices)."""
        length = view._length
        self.held_keys[rows, :, :length] = view._keys[0, :, :length]
        self.held_values[rows, :, :length] = view._values[0, :, :length]
        shown = torch.full((self.spec.num_kv_heads, self.held), _NEVER, device=self.spec.device)
        weighted = getattr(view, "_bias", None)
        shown[:, :length] = 0.0 if weighted is None else weighted
        if view._shown is not None:  # what was withdrawn from a session
            shown[:, :length].masked_fill_(~view._shown[:, :length], _NEVER)
        self.bias[rows, :, : self.held] = shown
        last = view._next_place
        self.places[rows, :length] = torch.arange(last - length, last, device=self.spec.device)

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
        column = torch.arange(steps, device=self.places.device)
        places = self.next_place[:, None] + column
        if self.pads is None:
            self.bias[:, :, start:end] = 0.0
        else:
            places = (places - self.pads[:, None]).clamp_min(0)
            self.bias[:, :, start:end] = torch.where(column < self.pads[:, None], _NEVER, 0.0)[:, None]
        self.held_keys[:, :, start:end] = self.spec.rotary.turn(key_states, places[:, None])
        self.held_values[:, :, start:end] = value_states
        self.places[:, start:end] = places
        self.next_place = places[:, -1] + 1
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
        out = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
        if len(self._by_hand):
            at = self._by_hand
            weights = ((grouped[at] @ keys[at].transpose(-1, -2)).float() * scaling + mask[at]).softmax(-1)
            self.weights = weights.to(query.dtype)
            out[at] = self.weights @ values[at]
        if self._followers is not None:
            at = self._followers
            out[at] = self._borrowed() @ values[at]
        found = out.reshape(rows, heads, steps, dim)
        if self.recording is not None:
            assert self._pair is not None
            self.recording.append(Step(query, *self._pair, found, self.pads))
        return found

    def follow(self, leaders: dict[int, BatchLayer]) -> None:
        """Let rows borrow the weights that the layers `leaders`, by row, compute for them."""
        if not leaders:
            return
        found = list({id(layer): layer for layer in leaders.values()}.values())
        if len(found) > 1:
            raise ValueError(f"layer {self.spec.index} borrows from {len(found)} layers; allowed: one")
        self._leader, rows = found[0], sorted(leaders)
        lent = {int(row): at for at, row in enumerate(self._leader._by_hand.tolist())}
        device = self.spec.device
        self._followers = torch.tensor(rows, device=device)
        self._lent = torch.tensor([lent[row] for row in rows], device=device)
        assert all(self._leader.lengths[row] == self.lengths[row] for row in rows)

    def _borrowed(self) -> Tensor:
        """The leader's weights of the rows that borrow, laid over this layer's padding."""
        assert self._leader is not None and self._leader.weights is not None
        given, leader = self._leader.weights[self._lent], self._leader
        assert given.shape[-1] == leader.held + self.tail
        out = given.new_zeros(*given.shape[:-1], self.held + self.tail)
        # pairs beyond a row's own length weigh nothing in either layer
        common = min(self.held, leader.held)
        out[..., :common] = given[..., :common]
        out[..., self.held :] = given[..., leader.held :]
        return out

    def rewind(self, num_tokens: int) -> None:
        """Forget the newest `num_tokens` tokens of every row."""
        assert 0 <= num_tokens <= self.tail
        self.tail -= num_tokens
        self.next_place = self.places[:, self.held + self.tail - 1] + 1 if self.tail else self._begin

    def replay(self, step: Step, scaling: float) -> Tensor:
        """What every row gives for the tokens of `step` `[B, heads, T, d]`; the rows are left as they were.

        `step` is one row's, read by all, or as many rows'.
        """
        kept = self.recording, self.pads
        self.recording, self.pads = None, step.pads
        self.update(*(part.expand(self.num_rows, -1, -1, -1) for part in (step.key, step.value)))
        out = self.attend_rows(step.query.expand(self.num_rows, -1, -1, -1), scaling, None)
        self.rewind(step.key.shape[2])
        self.recording, self.pads = kept
        return out
