"""What a landmark head is measured against, over the same held-out texts: BM25, an embedder, and both fused.

The embedder's vectors are also cut to the head's width (main directions of the training texts) and kept in 8 bits,
as the head's, so that both take the same bytes a text. Ranks are counted from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infra.training.learners.landmark_pairs import Pairs

Floats = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Floats]
REACH = 200
_FUSED = 60


class Ranking:
    """The golds' ranks by every method, over the searched texts of one file of pairs."""

    def __init__(self, pairs: Pairs, device: torch.device) -> None:
        self.pairs, self.device = pairs, device
        self.places = pairs.searched()
        at = {place: number for number, place in enumerate(self.places)}
        self._at = at
        self._gold = torch.tensor([at[gold] for _, gold, _ in pairs.questions], device=device)
        self.found: dict[str, Tensor] = {}

    def add(self, name: str, scores: Tensor) -> Tensor:
        """A method's scores [Q, N]; its ranks of all texts, ties by their order."""
        order = scores.argsort(dim=1, descending=True, stable=True)
        ranks = torch.empty_like(order)
        ranks.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
        self.found[name] = ranks.gather(1, self._gold.to(ranks.device)[:, None])[:, 0].cpu()
        return ranks

    def fuse(self, name: str, *ranks: Tensor) -> None:
        """Reciprocal ranks of methods, summed."""
        self.add(name, sum(1.0 / (_FUSED + each.float()) for each in ranks))  # type: ignore[arg-type]

    def lexical(self) -> Tensor:
        """BM25's ranks [Q, N]: as written down, else computed; texts that it did not find come last, alike."""
        known = self.pairs.lexical or bm25_places(self.pairs)
        ranks = torch.full((len(known), len(self.places)), len(self.places), dtype=torch.int64)
        for row, best in enumerate(known):
            ranks[row, [self._at[place] for place in best]] = torch.arange(len(best))
        ranks = ranks.to(self.device)
        self.found["bm25"] = ranks.gather(1, self._gold[:, None])[:, 0].cpu()
        return ranks

    def recalls(self, ks: Sequence[int]) -> dict[str, float]:
        """`<method>_recall_<k>`, shares of all questions."""
        return {
            f"{name}_recall_{k}": round(float((place < k).float().mean()), 4)
            for name, place in self.found.items()
            for k in ks
        }

    def by_group(self, ks: Sequence[int]) -> dict[str, dict[str, Any]]:
        """The same by the questions' sets, with the number of questions."""
        groups = np.array(self.pairs.groups or ["all"] * len(self.pairs.questions))
        out: dict[str, dict[str, Any]] = {}
        for group in sorted(set(groups)):
            rows = torch.from_numpy(np.flatnonzero(groups == group))
            out[str(group)] = {"n": len(rows)} | {
                f"{name}_recall_{k}": round(float((place[rows] < k).float().mean()), 4)
                for name, place in self.found.items()
                for k in ks
            }
        return out


def add_peers(ranking: Ranking, encode: Encode | None, train_texts: Sequence[str], dim: int) -> Tensor:
    """BM25 and, with an embedder, it whole, cut to `dim` in 8 bits, and fused with BM25; BM25's ranks."""
    lexical = ranking.lexical()
    if encode is None:
        return lexical
    pairs, device = ranking.pairs, ranking.device
    asked = encode([pairs.texts[at] for at, _, _ in pairs.questions])
    told = encode([pairs.texts[at] for at in ranking.places])
    dense = ranking.add("minilm", _on(asked, device) @ _on(told, device).T)
    ranking.fuse("fused", dense, lexical)
    if dim and len(train_texts) > dim:
        directions = main_directions(encode(list(train_texts)[:4096]), dim)
        cut, small = _on(_unit(told @ directions), device), _on(_unit(asked @ directions), device)
        ranks = ranking.add(f"minilm{dim}", small @ in_8_bits(cut).T)
        ranking.fuse(f"fused{dim}", ranks, lexical)
    return lexical


def bm25_places(pairs: Pairs) -> list[tuple[int, ...]]:
    """BM25's best places for every question; texts without a common word are left out."""
    from pipeline.prepare.pools import TextIndex
    from pipeline.tasks.qa import SourceText

    index = TextIndex(
        [SourceText(text_id=str(at), title="", text=pairs.texts[at]) for at in pairs.searched()]
    )
    return [
        tuple(int(text.text_id) for text in index.top(pairs.texts[question], REACH))
        for question, _, _ in pairs.questions
    ]


def in_8_bits(vectors: Tensor) -> Tensor:
    """The vectors [N, D] as 8-bit numbers with a scale each give them back."""
    scale = vectors.abs().amax(1, keepdim=True).clamp_min(1e-9) / 127
    return (vectors / scale).round() * scale


def main_directions(vectors: Floats, dim: int) -> Floats:
    """The `dim` directions [D, dim] in which the vectors vary most."""
    _, _, right = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    return np.ascontiguousarray(right[:dim].T, np.float32)


def _on(vectors: Floats, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(vectors, np.float32)).to(device)


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return unit
