"""RazorAttention: retrieval heads keep everything, other heads sinks, a window and one pair for the rest.

arXiv 2407.15891. Retrieval heads are found once a model, without data: random tokens repeated four times show which
heads look at earlier copies of a token (echo) or at what followed them (induction).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from models.compared.base import Method, attention_weights
from models.compared.kept import Kept
from models.compared.trace import LayerTrace, Trace, read_exactly
from models.compared.window import sinks_and_last

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone

_COUNT_BYTES = 4  # the number of dropped tokens, kept for every head that has dropped some
REPEATS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Razor(Method):
    """Whole heads keep every pair; what the budget leaves is shared evenly by the windows of the others.

    The dropped tokens' mean key (at its place) and mean value become one pair that weighs as many tokens as were
    dropped: its logit gets log N_d. `weighted=False` leaves that out, as the authors' own deployment code
    does; `compensate=False` leaves out the pair. The paper's window is max(4000, n / 5): under 4,000 tokens it
    drops nothing at all, so here the budget decides.
    """

    source: ClassVar[str] = "arXiv 2407.15891"
    sinks: int = field(default=4, metadata={"help": "first tokens that every head keeps"})
    induction_share: float = field(default=0.14, metadata={"help": "heads kept whole for induction, of all"})
    echo_share: float = field(default=0.01, metadata={"help": "heads kept whole for echo, of all"})
    copy_tokens: int = field(
        default=2500, metadata={"help": "random tokens, repeated four times, that find heads"}
    )
    compensate: bool = field(default=True, metadata={"help": "keep the mean pair of the dropped tokens"})
    weighted: bool = field(
        default=True, metadata={"help": "let that pair weigh as many tokens as it stands for"}
    )
    seed: int = field(default=0, metadata={"help": "of the random tokens"})
    whole: Mapping[int, frozenset[int]] | None = field(
        default=None, metadata={"help": "KV heads kept whole, by layer; prepare() finds them"}
    )

    def prepare(self, backbone: HfBackbone) -> Self:
        """See Method.prepare: reads 4 x `copy_tokens` random tokens unless the heads are given."""
        if self.whole is not None and self.model in ("", backbone.identity):
            return replace(self, model=backbone.identity)
        scores = head_scores(backbone, self.copy_tokens, self.seed)
        whole = pick_heads(scores, self.induction_share, self.echo_share)
        return replace(self, whole=whole, model=backbone.identity)

    def compress(self, trace: Trace, budget_bytes: int) -> list[Kept]:
        """See Method.compress."""
        if self.whole is None:
            raise ValueError("the retrieval heads are unknown; call prepare(backbone) first or give `whole`")
        n = trace.num_tokens
        heads = [(layer, head) for layer in trace.layers for head in range(layer.keys.shape[0])]
        short = [(layer, head) for layer, head in heads if head not in self.whole.get(layer.spec.index, ())]
        fixed = sum(layer.pair_bytes * n for layer, _ in heads) - sum(
            layer.pair_bytes * n for layer, _ in short
        )
        one_each = sum(layer.pair_bytes for layer, _ in short)
        extra = len(short) * _COUNT_BYTES if self.compensate else 0
        count = n if budget_bytes >= trace.full_bytes else (budget_bytes - fixed - extra) // max(1, one_each)
        least = self.sinks + 1 + int(self.compensate)
        if count < min(least, n) or fixed > budget_bytes:
            raise ValueError(
                f"the budget of {budget_bytes} bytes is too small for RazorAttention: {len(heads) - len(short)} of "
                f"{len(heads)} heads are kept whole ({fixed} bytes), the others need {least} tokens each; give at "
                f"least {fixed + extra + least * one_each} bytes"
            )
        return [self._layer(layer, int(count)) for layer in trace.layers]

    def _layer(self, layer: LayerTrace, count: int) -> Kept:
        assert self.whole is not None
        rows: tuple[list[Tensor], ...] = ([], [], [], [])
        overhead = 0
        turned = layer.turned_keys()
        n, device = layer.num_tokens, layer.keys.device
        for head in range(layer.keys.shape[0]):
            whole = head in self.whole.get(layer.spec.index, ()) or count >= n
            merged = self.compensate and not whole
            at = (
                torch.arange(n, device=device)
                if whole
                else sinks_and_last(layer, self.sinks, count - int(merged))
            )
            key, value, place = layer.keys[head, at], layer.values[head, at], at
            weight = torch.zeros(len(at), device=device)
            if merged:
                dropped = torch.ones(n, dtype=torch.bool, device=device)
                dropped[at] = False
                # the mean of turned keys stands at place 0, where turning changes nothing
                key = torch.cat((turned[head, dropped].mean(0)[None].to(key.dtype), key))
                value = torch.cat((layer.values[head, dropped].float().mean(0)[None].to(value.dtype), value))
                place = torch.cat((place.new_zeros(1), place))
                mass = math.log(int(dropped.sum())) if self.weighted else 0.0
                weight = torch.cat((weight.new_full((1,), mass), weight))
                overhead += _COUNT_BYTES
            for row, new in zip(rows, (key, value, place, weight), strict=True):
                row.append(new)
        keys, values, places, weights = rows
        return Kept(
            spec=layer.spec,
            keys=keys,
            values=values,
            places=places,
            next_place=n,
            log_weights=weights,
            overhead_bytes=overhead,
        )


@torch.no_grad()
def head_scores(
    backbone: HfBackbone, copy_tokens: int, seed: int
) -> dict[tuple[int, int], tuple[float, float]]:
    """(induction, echo) of every KV head of the full-attention layers, by (layer, head): its best query head's.

    Of a token in repeats 2 to 4: echo is its attention to earlier copies of itself, induction to what
    followed these; both the mean over tokens.
    """
    if copy_tokens < 2:
        raise ValueError(f"copy_tokens: given {copy_tokens}; allowed: 2 or more")
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(backbone.vocabulary, (copy_tokens,), generator=generator).tolist()
    prefix = backbone.bos[:1] or ids[:1]
    trace = read_exactly(backbone, [*prefix, *ids * REPEATS])
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for layer in trace.layers:
        places = torch.arange(1 + copy_tokens, trace.num_tokens, device=layer.keys.device)
        total = torch.zeros(2, *layer.queries.shape[:1], device=layer.keys.device)
        for weights, block in attention_weights(layer, places):
            rows = weights.flatten(0, 1)
            for back in range(1, REPEATS):
                source = block - back * copy_tokens
                held = source >= 1
                for kind, column in enumerate((source + 1, source)):
                    taken = rows.gather(2, column.clamp_min(0)[None, :, None].expand(rows.shape[0], -1, 1))[
                        ..., 0
                    ]
                    total[kind] += (taken * held).sum(1)
        best: Tensor = (total / len(places)).reshape(2, layer.spec.num_kv_heads, -1).amax(2)
        for head in range(layer.spec.num_kv_heads):
            found[layer.spec.index, head] = (float(best[0, head]), float(best[1, head]))
    return found


def pick_heads(
    scores: Mapping[tuple[int, int], tuple[float, float]], induction_share: float, echo_share: float
) -> dict[int, frozenset[int]]:
    """The union of the best heads by induction and by echo, ranked over all layers, at least one by induction.

    A share of less than half a head is none: of a model with three heads the paper's 1% by echo would be 33%.
    """
    chosen: set[tuple[int, int]] = set()
    for kind, (share, least) in enumerate(((induction_share, 1), (echo_share, 0))):
        ranked = sorted(scores, key=lambda head: -scores[head][kind])
        chosen.update(ranked[: max(least, round(share * len(ranked)))] if share > 0 else [])
    return {
        layer: frozenset(head for at, head in chosen if at == layer)
        for layer in sorted({at for at, _ in chosen})
    }
