"""The learned ranker as a compared method: keep what it expects later questions to look at."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self

from torch import Tensor

from models.cache.ranker import Ranker, context_features, find_ranker
from models.compared.base import ScoredMethod
from models.compared.trace import LayerTrace

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedRanker(ScoredMethod):
    """An MLP on each token's key and value, a network a layer and KV head (models/cache/ranker.py)."""

    source: ClassVar[str] = "our own; idea of arXiv 2602.10238"
    ranker: str = field(default="shipped", metadata={"help": "shipped, or a ranker's folder"})
    known: Ranker | None = field(default=None, metadata={"help": "a loaded ranker; prepare() loads one"})

    def prepare(self, backbone: HfBackbone) -> Self:
        """See Method.prepare; raises ValueError for a ranker of another model."""
        if self.known is not None:
            self.known.check(backbone.identity)
            return replace(self, model=backbone.identity)
        return replace(self, known=find_ranker(self.ranker, backbone.identity), model=backbone.identity)

    def score(self, layer: LayerTrace) -> Tensor:
        """See ScoredMethod.score."""
        if self.known is None:
            raise ValueError("the ranker is not loaded; call prepare(backbone) first")
        return self.known.score(layer.spec.index, context_features(layer.spec, layer.keys, layer.values))
