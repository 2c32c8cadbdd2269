"""SnapKV: what the last tokens of the context attend to (arXiv 2404.14469)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from models.compared.base import Method, ScoredMethod, attention_weights
from models.compared.kept import Kept
from models.compared.trace import LayerTrace, Trace


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapKV(ScoredMethod):
    """Attention of the last `window` queries, mean over the head group, pooled along the text; the window stays.

    Keys carry their positions when scored. With the question unseen the window is plain text, and the method
    is far weaker than with the question in it.
    """

    source: ClassVar[str] = "arXiv 2404.14469"
    window: int = field(default=64, metadata={"help": "last queries that score, and last tokens that stay"})
    kernel: int = field(default=5, metadata={"help": "tokens that pooling looks at (odd)"})
    pooling: str = field(default="mean", metadata={"help": "mean or max"})

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "max"):
            raise ValueError(f"pooling: given {self.pooling!r}; allowed: mean, max")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel: given {self.kernel}; allowed: odd numbers from 1")
        if self.window < 1:
            raise ValueError(f"window: given {self.window}; allowed: 1 or more")

    def score(self, layer: LayerTrace) -> Tensor:
        """See ScoredMethod.score."""
        n, w = layer.num_tokens, min(self.window, layer.num_tokens)
        scores = torch.full(layer.keys.shape[:2], float("inf"), device=layer.keys.device)
        if w < n:
            places = torch.arange(n - w, n, device=layer.keys.device)
            # the sum of the paper; mean and sum order alike
            mass = sum(weights.sum(2).mean(1) for weights, _ in attention_weights(layer, places))
            assert isinstance(mass, Tensor)
            before = mass[:, None, : n - w]
            pad = self.kernel // 2
            if self.pooling == "mean":
                pooled = avg_pool1d(before, self.kernel, stride=1, padding=pad)
            else:
                pooled = max_pool1d(before, self.kernel, stride=1, padding=pad)
            scores[:, : n - w] = pooled[:, 0]
        return scores

    def compress(self, trace: Trace, budget_bytes: int) -> list[Kept]:
        """See Method.compress; a budget below the window shrinks the window to half of it."""
        from models.compared.base import even_tokens

        count = even_tokens(trace, budget_bytes, self.sinks)
        fitting = self if count > self.window + self.sinks else self.with_window(max(1, count // 2))
        return [fitting.keep_best(layer, count) for layer in trace.layers]

    def with_window(self, window: int) -> SnapKV:
        """The same with another window."""
        from dataclasses import replace

        return replace(self, window=window)


@dataclass(frozen=True, kw_only=True, slots=True)
class PyramidKV(Method):
    """SnapKV with budgets that fall linearly over the layers (arXiv 2406.02069).

    Of the even budget B of a layer, w = `window` tokens stay; the last layer gets (B - w) // beta more, the first
    as much as keeps the sum. With kvpress' window of 64 it is plain SnapKV at small budgets: hence 8.
    """

    source: ClassVar[str] = "arXiv 2406.02069"
    window: int = field(default=8, metadata={"help": "w: last tokens that stay in every layer"})
    beta: int = field(default=20, metadata={"help": "how steep: the least budget is (B - w) // beta"})
    kernel: int = field(default=7, metadata={"help": "tokens that pooling looks at (odd)"})
    sinks: int = field(default=4, metadata={"help": "first tokens that always stay"})

    def compress(self, trace: Trace, budget_bytes: int) -> list[Kept]:
        """See Method.compress."""
        from models.compared.base import even_tokens

        each = even_tokens(trace, budget_bytes, self.window + self.sinks)
        scorer = SnapKV(window=self.window, kernel=self.kernel, pooling="max", sinks=self.sinks)
        counts = self.counts(len(trace.layers), each, trace.num_tokens)
        return [scorer.keep_best(layer, count) for layer, count in zip(trace.layers, counts, strict=True)]

    def counts(self, num_layers: int, each: int, n: int) -> list[int]:
        """Tokens a layer, window included, for an even budget of `each` and a context of `n`.

        Their sum is at most `num_layers * each`: what rounding would add is taken off the first layer.
        """
        w = self.window
        if n <= each:
            return [n] * num_layers
        if num_layers == 1 or n < 2 * (each - w):
            return [each] * num_layers
        least = (each - w) // self.beta
        most = 2 * (each - w) - least
        if most >= n - w:
            most, least = n - w, 2 * (each - w) - (n - w)
        step = (most - least) // (num_layers - 1)
        counts = [most - layer * step + w for layer in range(num_layers)]
        counts[0] -= max(0, sum(counts) - num_layers * each)
        return counts
