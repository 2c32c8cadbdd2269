"""Shared Attention: layers read by the attention weights of an earlier one and store no keys (arXiv 2407.12866)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from models.compared.base import Method
from models.compared.kept import Kept, keep_tokens
from models.compared.trace import Trace
from models.compared.window import sinks_and_last


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedAttention(Method):
    """The last `span` full-attention layers share the first one's weights: values stay, keys of the others do not.

    That alone saves at most half of the shared layers' bytes, so a smaller budget keeps sinks and last tokens only,
    the same in all layers. The context itself is read exactly; weights are shared when it is read again, by the
    question. The model was not trained for it.
    """

    source: ClassVar[str] = "arXiv 2407.12866"
    span: int = field(default=2, metadata={"help": "last full-attention layers that share weights"})
    sinks: int = field(default=4, metadata={"help": "first tokens that always stay"})

    def __post_init__(self) -> None:
        if self.span < 1:
            raise ValueError(f"span: given {self.span}; allowed: 1 (nothing shared) or more")

    def compress(self, trace: Trace, budget_bytes: int) -> list[Kept]:
        """See Method.compress."""
        shapes = {(layer.keys.shape[0], layer.spec.num_heads) for layer in trace.layers}
        if self.span > len(trace.layers) or (self.span > 1 and len(shapes) > 1):
            raise ValueError(
                f"span {self.span} does not fit {trace.model}: it has {len(trace.layers)} full-attention layers of "
                f"{len(shapes)} shapes; share among layers of one shape, at most all of them"
            )
        leader = len(trace.layers) - self.span
        costs = [
            layer.keys.shape[0] * layer.pair_bytes // (2 if at > leader else 1)
            for at, layer in enumerate(trace.layers)
        ]
        count = min(budget_bytes // sum(costs), trace.num_tokens)
        if count <= self.sinks:
            raise ValueError(
                f"the budget of {budget_bytes} bytes holds {count} tokens a head, not more than the {self.sinks} "
                f"sinks; give at least {(self.sinks + 1) * sum(costs)} bytes or pin fewer"
            )
        kept = [
            keep_tokens(layer, [sinks_and_last(layer, self.sinks, count)] * layer.keys.shape[0])
            for layer in trace.layers
        ]
        if self.span > 1:
            kept[leader] = replace(kept[leader], leads=True)
            index = trace.layers[leader].spec.index
            for at in range(leader + 1, len(kept)):
                kept[at] = replace(kept[at], keys=[], leader=index)
        return kept
