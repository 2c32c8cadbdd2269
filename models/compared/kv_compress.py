"""KV-Compress: whole blocks of a paged cache are evicted by squared attention (arXiv 2410.00161)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from models.compared.base import Method, attention_weights
from models.compared.kept import Kept, keep_tokens
from models.compared.trace import LayerTrace, Trace

_METADATA_BYTES = 8  # float32 metric and int32 position of every slot, which the paper's rates leave out


@dataclass(frozen=True, kw_only=True, slots=True)
class KVCompress(Method):
    """A pair's metric is the squared attention that it got, summed over queries and the head group.

    Pairs of a head are sorted by metric and cut into blocks; a block counts as its largest metric; the least blocks
    of all layers and heads go first. Only full blocks can go, the last tokens are protected. Bytes are those of
    the blocks still allocated, half-empty ones too, with the metadata that eviction needs.
    """

    source: ClassVar[str] = "arXiv 2410.00161"
    block_size: int = field(default=16, metadata={"help": "tokens of a block of the paged cache"})
    protected: int = field(default=32, metadata={"help": "last tokens that are never evicted"})

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size: given {self.block_size}; allowed: 1 or more")

    def compress(self, trace: Trace, budget_bytes: int) -> list[Kept]:
        """See Method.compress."""
        block_bytes = [self.block_size * (layer.pair_bytes + _METADATA_BYTES) for layer in trace.layers]
        ordered = [self._ordered(layer) for layer in trace.layers]
        evictable: list[tuple[float, int, int]] = []
        held = 0
        for at, layer in enumerate(trace.layers):
            heads, n = layer.keys.shape[:2]
            held += heads * -(-n // self.block_size) * block_bytes[at]
            full = n // self.block_size
            # a block's metric is its last one; infinite where it holds a protected token
            last = ordered[at].values[:, self.block_size - 1 : full * self.block_size : self.block_size]
            evictable += [
                (metric, at, head)
                for head, blocks in enumerate(last.tolist())
                for metric in blocks
                if math.isfinite(metric)
            ]
        gone = [[0] * layer.keys.shape[0] for layer in trace.layers]
        for _, at, head in sorted(evictable):
            if held <= budget_bytes:
                break
            gone[at][head] += 1
            held -= block_bytes[at]
        if held > budget_bytes:
            raise ValueError(
                f"the budget of {budget_bytes} bytes is less than the {held} bytes of the blocks that KV-Compress "
                f"must keep ({self.protected} protected tokens a head, blocks of {self.block_size}, metadata)"
            )
        kept = []
        for at, layer in enumerate(trace.layers):
            chosen = [
                order[gone[at][head] * self.block_size :] for head, order in enumerate(ordered[at].indices)
            ]
            slots = sum(-(-len(tokens) // self.block_size) * self.block_size for tokens in chosen)
            empty = slots - sum(len(tokens) for tokens in chosen)
            overhead = slots * _METADATA_BYTES + empty * layer.pair_bytes
            kept.append(keep_tokens(layer, chosen, overhead_bytes=overhead))
        return kept

    def _ordered(self, layer: LayerTrace) -> Any:
        """Metrics and positions, ascending: protected ones last."""
        return layer.noted((KVCompress, self.protected), lambda: self.metric(layer).sort(dim=1))

    def metric(self, layer: LayerTrace) -> Tensor:
        """`[H, n]`, infinite for protected tokens."""
        total = torch.zeros(layer.keys.shape[:2], device=layer.keys.device)
        places = torch.arange(layer.num_tokens, device=layer.keys.device)
        for weights, _ in attention_weights(layer, places):
            total += weights.square().sum((1, 2))
        total[:, max(0, layer.num_tokens - self.protected) :] = float("inf")
        return total
