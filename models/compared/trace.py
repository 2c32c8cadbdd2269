"""What one exact reading of a context leaves for every method: keys, values and queries before rotary embedding.

Methods that are compared get the same trace, so that differences are theirs. The question is not in it.
Shapes: `H` key heads, `n` context tokens, `d` head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from models.cache.layers import SlidingLayer, StoredLayer, ViewLayer
from models.cache.rotating import CacheView
from models.cache.spec import LayerSpec

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone


@dataclass(frozen=True, slots=True, eq=False)
class LayerTrace:
    """One full-attention layer: `keys, values [H, n, d]`, `queries [num_heads, n, d]`.

    `likeness` is the mean cosine of the residual stream before and after this layer's attention.
    """

    spec: LayerSpec
    keys: Tensor
    values: Tensor
    queries: Tensor
    likeness: float = 1.0
    notes: dict[Any, Any] = field(default_factory=dict, repr=False, init=False)
    """What methods have worked out about this layer, so that other budgets need not do it again (`noted`)."""

    def noted(self, name: Any, work_out: Callable[[], Any]) -> Any:
        """What `work_out` returns, computed once a trace for each `name` (hashable); not to be changed in place."""
        if name not in self.notes:
            self.notes[name] = work_out()
        return self.notes[name]

    def __post_init__(self) -> None:
        spec, n = self.spec, self.keys.shape[1] if self.keys.ndim == 3 else -1
        for name, given, heads in (
            ("keys", self.keys, spec.num_kv_heads),
            ("values", self.values, spec.num_kv_heads),
            ("queries", self.queries, spec.num_heads),
        ):
            wanted = (heads, n, spec.head_dim)
            if tuple(given.shape) != wanted or n < 0:
                raise ValueError(
                    f"{name} of layer {spec.index} have shape {tuple(given.shape)}; layer {spec.index} of the "
                    f"model wants [{heads}, tokens, {spec.head_dim}] and as many tokens as keys ({n})"
                )
            if given.dtype != spec.dtype:
                raise ValueError(
                    f"{name} of layer {spec.index} are {given.dtype}, the model's layer is {spec.dtype}"
                )

    @property
    def num_tokens(self) -> int:
        """Tokens of the context."""
        return int(self.keys.shape[1])

    @property
    def pair_bytes(self) -> int:
        """Bytes of one key and value of one head."""
        return 2 * self.spec.head_dim * self.keys.element_size()

    def turned_keys(self) -> Tensor:
        """The keys at their places in the context, in float32."""
        self.spec.rotary.reserve(self.num_tokens)
        places = torch.arange(self.num_tokens, device=self.keys.device)
        return self.spec.rotary.turn(self.keys.float(), places)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A context as read by `model`: its full-attention layers, and the sliding ones as they stand after it."""

    model: str
    num_tokens: int
    layers: tuple[LayerTrace, ...]
    sliding: tuple[SlidingLayer, ...]
    ids: tuple[int, ...] = ()
    """The context's tokens."""
    still: dict[int, ViewLayer] = field(default_factory=dict, repr=False, init=False)
    """Views of the sliding layers that nothing is read into; all compressed contexts share them."""

    @property
    def full_bytes(self) -> int:
        """Bytes that the full-attention layers hold when nothing is compressed."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    @property
    def sliding_bytes(self) -> int:
        """Bytes of the sliding layers' windows: a constant that no method touches."""
        return sum(tensor.nbytes for layer in self.sliding for tensor in layer.tensors().values())


class _RecordingLayer(StoredLayer):  # type: ignore[no-untyped-call]
    """Holds everything, queries too."""

    def __init__(self, spec: LayerSpec, capacity: int) -> None:
        super().__init__(spec)
        like: dict[str, Any] = {"dtype": spec.dtype, "device": spec.device}
        self.all_keys = torch.empty(spec.num_kv_heads, capacity, spec.head_dim, **like)
        self.all_values = torch.empty_like(self.all_keys)
        self.queries = torch.empty(spec.num_heads, capacity, spec.head_dim, **like)
        self.cosine_sum = torch.zeros((), dtype=torch.float64, device=spec.device)

    def tensors(self) -> dict[str, Tensor]:
        """See StoredLayer.tensors."""
        return {"keys": self.all_keys, "values": self.all_values, "queries": self.queries}

    def counters(self) -> dict[str, int]:
        """See StoredLayer.counters."""
        return {"seen": self.seen}

    def set_counters(self, counters: dict[str, int]) -> None:
        """See StoredLayer.set_counters."""
        self.seen = counters["seen"]

    def make_room(self, num_tokens: int) -> None:
        """There is room for the whole context."""

    def get_seq_length(self) -> int:
        """Tokens read."""
        return self.seen

    def visible(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """See StoredLayer.visible."""
        places = torch.arange(self.seen, device=self.spec.device)[None]
        return self.all_keys[:, : self.seen], self.all_values[:, : self.seen], places, self.seen

    def positions(self) -> Tensor:
        """See StoredLayer.positions."""
        return torch.arange(self.seen, device=self.spec.device)[None]

    def erase(self, first: int, end: int) -> dict[str, int]:
        """See StoredLayer.erase."""
        span = slice(max(0, first), max(0, min(end, self.seen)))
        for tensor in self.tensors().values():
            tensor[:, span] = 0
        return {"raw": max(0, span.stop - span.start)}

    def append(self, keys: Tensor, values: Tensor) -> None:
        """See StoredLayer.append."""
        end = self.seen + keys.shape[1]
        self.all_keys[:, self.seen : end], self.all_values[:, self.seen : end] = keys, values
        self.seen = end

    def observe(self, queries: Tensor) -> None:
        """See MemoryLayer.observe; called after the step's pairs are stored."""
        super().observe(queries)
        self.queries[:, self.seen - queries.shape[1] : self.seen] = queries


@torch.no_grad()
def read_exactly(backbone: HfBackbone, ids: Sequence[int]) -> Trace:
    """Read a context with nothing compressed and keep what methods need; raises ValueError for an empty one."""
    if not ids:
        raise ValueError("the context is empty; give at least one token id")
    layers: list[_RecordingLayer | SlidingLayer] = [
        _RecordingLayer(spec, len(ids)) if spec.window is None else SlidingLayer(spec, spec.dtype)
        for spec in backbone.specs
    ]
    recording = [layer for layer in layers if isinstance(layer, _RecordingLayer)]
    hooks = [hook for layer in recording for hook in _watch_residual(backbone, layer)]
    try:
        backbone.run(ids, CacheView(cast("list[ViewLayer]", layers)))
    finally:
        for hook in hooks:
            hook.remove()
    traces = tuple(
        LayerTrace(
            layer.spec, layer.all_keys, layer.all_values, layer.queries, float(layer.cosine_sum) / len(ids)
        )
        for layer in recording
    )
    sliding = tuple(layer for layer in layers if isinstance(layer, SlidingLayer))
    return Trace(backbone.identity, len(ids), traces, sliding, tuple(ids))


def _watch_residual(backbone: HfBackbone, layer: _RecordingLayer) -> list[Any]:
    """Hooks that add up the cosine of the residual stream before attention and after it (before the MLP)."""
    block = backbone.model.get_decoder().layers[layer.spec.index]
    # the norm in front of the MLP sees the stream after attention; Gemma has one more norm than others
    norm = getattr(block, "pre_feedforward_layernorm", None) or getattr(
        block, "post_attention_layernorm", None
    )
    if norm is None:
        return []
    before: list[Tensor] = []

    def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        before[:] = [args[0] if args else kwargs["hidden_states"]]

    def after(_: Any, args: tuple[Any, ...]) -> None:
        layer.cosine_sum += cosine_similarity(before[0].float(), args[0].float(), dim=-1).sum().double()

    return [block.register_forward_pre_hook(enter, with_kwargs=True), norm.register_forward_pre_hook(after)]
