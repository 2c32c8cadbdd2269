"""Our cache at its budget, with what the question asks for brought back from the store of evicted pairs.

What leaves the cache is written to a store outside the session in chunks, with the chunk's words. When a question
comes, the chunks that share its rarest words are fetched and stand at their places in the text again; they are
read by this question alone. The context is compressed unseen of the question as by every other method; what is
fetched is counted beside (`fetched_bytes`), never hidden in the budget.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from models.compared.base import Method, ScoredMethod
from models.compared.kept import CompressedContext, Kept, keep_tokens
from models.compared.learned import LearnedRanker
from models.compared.trace import LayerTrace, Trace

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone

_K1, _B = 1.2, 0.75  # BM25's usual constants


@dataclass(frozen=True, kw_only=True, slots=True)
class BroughtBack(Method):
    """See the module's text. What stays in the cache is chosen by `inner`, the learned ranker if none is given."""

    source: ClassVar[str] = "our own; memory as in DESIGN: session cache and store"
    chunk: int = field(default=64, metadata={"help": "tokens of a chunk of the store"})
    chunks: int = field(default=8, metadata={"help": "chunks that a question brings back, at most"})
    ranker: str = field(default="shipped", metadata={"help": "shipped, or a ranker's folder"})
    inner: ScoredMethod | None = field(
        default=None, metadata={"help": "chooses what stays; prepare() makes it"}
    )

    def __post_init__(self) -> None:
        for name in ("chunk", "chunks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")

    def prepare(self, backbone: HfBackbone) -> Self:
        """See Method.prepare."""
        inner = (self.inner or LearnedRanker(ranker=self.ranker)).prepare(backbone)
        return replace(self, inner=inner, model=backbone.identity)

    def compress(self, trace: Trace, budget_bytes: int) -> list[Kept]:
        """See Method.compress: what stays in the cache."""
        return self._inner().compress(trace, budget_bytes)

    def memory(self, trace: Trace, budget_bytes: int) -> Recalling:
        """See Method.memory; the context can be asked for what was evicted."""
        if not trace.ids:
            raise ValueError("the store needs the context's words; give a trace made by read_exactly")
        kept = Method.memory(self, trace, budget_bytes)
        return Recalling(
            trace, [layer for layer in kept.held if isinstance(layer, Kept)], self.chunk, self.chunks
        )

    def _inner(self) -> ScoredMethod:
        if self.inner is None:
            raise ValueError("who chooses what stays is not known; call prepare(backbone) first")
        return self.inner


class Recalling(CompressedContext):
    """What is in the cache, and the chunks of the store by their words."""

    def __init__(self, trace: Trace, kept: Sequence[Kept], chunk: int, chunks: int) -> None:
        super().__init__(trace, kept)
        self._trace, self._kept, self._chunk, self._chunks = trace, list(kept), chunk, chunks
        self._words = trace.layers[0].noted(("words", chunk), lambda: _count(trace.ids, chunk))
        self._fetched: list[int] = []

    @property
    def fetched_bytes(self) -> int:
        """Bytes of full layers fetched for a question, the mean over those asked."""
        return round(sum(self._fetched) / max(1, len(self._fetched)))

    def for_question(self, ids: Sequence[int]) -> CompressedContext:
        """The same context with the chunks that fit the question `ids` best at their places."""
        best = best_chunks(self._words, ids, self._chunks)
        n = self._trace.num_tokens
        wanted = torch.zeros(n, dtype=torch.bool, device=self._trace.layers[0].keys.device)
        for at in best:
            wanted[at * self._chunk : (at + 1) * self._chunk] = True
        held = [
            _with(layer, kept, wanted) for layer, kept in zip(self._trace.layers, self._kept, strict=True)
        ]
        found = CompressedContext(self._trace, held)
        self._fetched.append(found.nbytes - self.nbytes)
        return found


def _with(layer: LayerTrace, kept: Kept, wanted: Tensor) -> Kept:
    """The kept pairs and all wanted ones, each once."""
    chosen = []
    for places in kept.places:
        here = wanted.clone()
        here[places] = True
        chosen.append(here.nonzero()[:, 0])
    return keep_tokens(layer, chosen, overhead_bytes=kept.overhead_bytes)


def _count(ids: Sequence[int], chunk: int) -> list[Counter[int]]:
    return [Counter(ids[at : at + chunk]) for at in range(0, len(ids), chunk)]


def best_chunks(chunks: Sequence[Counter[int]], question: Sequence[int], most: int) -> list[int]:
    """Up to `most` chunks by BM25 of the question's tokens, best first; none where no token is shared."""
    length = sum(chunk.total() for chunk in chunks) / max(1, len(chunks))
    scores = [0.0] * len(chunks)
    for token in set(question):
        holding = [at for at, chunk in enumerate(chunks) if token in chunk]
        weight = math.log(1 + (len(chunks) - len(holding) + 0.5) / (len(holding) + 0.5))
        for at in holding:
            count = chunks[at][token]
            scores[at] += (
                weight * count * (_K1 + 1) / (count + _K1 * (1 - _B + _B * chunks[at].total() / length))
            )
    ranked = sorted((at for at in range(len(chunks)) if scores[at] > 0), key=lambda at: (-scores[at], at))
    return ranked[:most]
