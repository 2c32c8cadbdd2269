"""A session's past by landmarks: chunks that pass are filed, a question finds them beside the store's, in one list.

Bytes are fixed when it is made: the newest `most_chunks` landmarks in float16 with their place in the stream. The
hidden states come from the reading itself, by a hook on the head's layer; nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from models.cache.rotating import RotatingCompressiveCache
from models.hf.landmark_head import LandmarkHead, Side, hidden_of, listening

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone


@dataclass(frozen=True, kw_only=True, slots=True)
class PastConfig:
    """How much of the past stays findable."""

    chunk: int = field(default=64, metadata={"help": "tokens of a chunk"})
    most_chunks: int = field(default=65_536, metadata={"help": "landmarks kept, oldest leave first"})

    def __post_init__(self) -> None:
        for name in ("chunk", "most_chunks"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: given {value!r}; allowed: whole numbers of at least 1")


class Found(NamedTuple):
    """One of the list: `source` (past, or as the caller named others), `number` there, cosine to the question."""

    source: str
    number: int
    score: float


class Past:
    """The landmarks of one stream. Chunk `i` is tokens `i * chunk … (i + 1) * chunk - 1` of the stream."""

    def __init__(self, backbone: HfBackbone, head: LandmarkHead, config: PastConfig | None = None) -> None:
        """Raises ValueError for a head of another width or layer count than the backbone."""
        width = int(backbone.model.config.get_text_config(decoder=True).hidden_size)
        if head.config.width != width or head.config.layer >= len(backbone.specs):
            raise ValueError(
                f"the head reads layer {head.config.layer} of width {head.config.width}; {backbone.identity} has "
                f"{len(backbone.specs)} layers of width {width}"
            )
        self.backbone, self.head, self.config = backbone, head, config or PastConfig()
        self.landmarks = torch.zeros(
            self.config.most_chunks, head.config.landmark, dtype=torch.float16, device=backbone.device
        )
        self._open = torch.zeros(self.config.chunk, width, device=backbone.device)
        self.seen = 0

    @property
    def num_chunks(self) -> int:
        """Whole chunks that have passed."""
        return self.seen // self.config.chunk

    @property
    def nbytes(self) -> int:
        """Bytes held, the same for ever."""
        return self.landmarks.nbytes + self._open.nbytes

    @torch.no_grad()
    def read(self, ids: Sequence[int], cache: RotatingCompressiveCache) -> None:
        """Read ids into the cache and file the chunks that are complete; pending tokens are filed when computed."""
        with listening(self.backbone, self.head.config.layer) as steps:
            self.backbone.read(ids, cache)
        for hidden in steps:
            self._pass(hidden)

    def _pass(self, hidden: Tensor) -> None:
        size, most = self.config.chunk, self.config.most_chunks
        inside = self.seen % size
        joined = torch.cat((self._open[:inside], hidden.float()))
        whole = len(joined) // size
        if whole:
            offsets = torch.arange(0, (whole + 1) * size, size, device=joined.device)
            made = self.head(joined[: whole * size], offsets).to(torch.float16)[-most:]
            slots = torch.arange(self.num_chunks + whole - len(made), self.num_chunks + whole) % most
            self.landmarks[slots.to(made.device)] = made
        rest = joined[whole * size :]
        self._open[: len(rest)] = rest
        self.seen += len(hidden)

    def vectors(self, texts: Sequence[Sequence[int]], side: Side = "chunk") -> Tensor:
        """Unit vectors `[len(texts), r]` of texts read by themselves: the store's chunks, or questions."""
        found = []
        for ids in texts:
            hidden = hidden_of(self.backbone, [*self.backbone.bos, *ids], self.head.config.layer)
            own = hidden[len(self.backbone.bos) :]
            found.append(self.head(own, torch.tensor([0, len(own)], device=own.device), side))
        return torch.cat(found)

    def question(self, ids: Sequence[int], cache: RotatingCompressiveCache) -> Tensor:
        """The query `[r]` of a question asked after the cache; the cache is not changed."""
        asked = [*cache.pending, *ids]
        with listening(self.backbone, self.head.config.layer) as steps:
            self.backbone.run(asked, cache.view(len(asked)))
        own = torch.cat(steps)[len(cache.pending) :].float()
        made: Tensor = self.head(own, torch.tensor([0, len(own)], device=own.device), "question")
        return made[0]

    def search(self, query: Tensor, k: int, others: dict[str, Tensor] | None = None) -> list[Found]:
        """The k best of the past and of `others` (landmarks `[m, r]` by source) in one list, best first."""
        size = self.landmarks.shape[1]
        for source, rows in (others or {}).items():
            if rows.ndim != 2 or rows.shape[1] != size:
                raise ValueError(
                    f"landmarks of {source} have shape {tuple(rows.shape)}; the head makes [chunks, {size}]"
                )
        held = min(self.num_chunks, self.config.most_chunks)
        first = self.num_chunks - held
        lists = [("past", self.landmarks[:held]), *(others or {}).items()]
        found: list[Found] = []
        for source, landmarks in lists:
            if not len(landmarks):
                continue
            scores = landmarks.float() @ query.float().to(landmarks.device)
            best = scores.topk(min(k, len(landmarks)))
            for score, at in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                number = at
                if source == "past":  # slot to number
                    number = first + (at - first) % self.config.most_chunks if held else at
                found.append(Found(source, number, score))
        return sorted(found, key=lambda one: -one.score)[:k]
