"""What a landmark head is measured against, over the same held-out texts: BM25, an embedder, and both fused.

The embedder's vectors are also cut to the head's width (main directions of the training texts), so that all take
the same bytes a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.prepare.pools import TextIndex
from pipeline.tasks.qa import SourceText

Floats = npt.NDArray[np.float32]
Questions = Sequence[tuple[int, int, tuple[int, ...]]]


def peers_recall(
    texts: Sequence[str], questions: Questions, places: Sequence[int], ks: Sequence[int],
    encode: Callable[[Sequence[str]], Floats] | None = None, train_texts: Sequence[str] = (), dim: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Recall at `ks` by the name of the method; `places` are the texts that are searched."""
    lexical = bm25_ranks(texts, questions, places)
    gold = np.array([list(places).index(at) for _, at, _ in questions])
    found = _recalls("bm25", _place(lexical, gold), ks)
    if encode is None:
        return found
    asked = encode([texts[at] for at, _, _ in questions])
    told = encode([texts[at] for at in places])
    dense = asked @ told.T
    found |= _recalls("minilm", _place(_ranks(dense), gold), ks)
    fused = 1.0 / (60 + _ranks(dense)) + 1.0 / (60 + lexical)
    found |= _recalls("fused", _place(_ranks(fused), gold), ks)
    if dim and len(train_texts) > dim:
        directions = main_directions(encode(list(train_texts)[:4096]), dim)
        cut = _unit(asked @ directions) @ _unit(told @ directions).T
        found |= _recalls(f"minilm{dim}", _place(_ranks(cut), gold), ks)
    return found


def bm25_ranks(texts: Sequence[str], questions: Questions, places: Sequence[int]) -> npt.NDArray[np.int64]:
    """Rank of every searched text for every question [Q, N], from 0; texts without a common word come last."""
    index = TextIndex(
        [SourceText(text_id=str(at), title="", text=texts[place]) for at, place in enumerate(places)]
    )
    ranks = np.full((len(questions), len(places)), len(places), np.int64)
    for row, (question, _, _) in enumerate(questions):
        for rank, text in enumerate(index.top(texts[question], 200)):
            ranks[row, int(text.text_id)] = rank
    return ranks


def main_directions(vectors: Floats, dim: int) -> Floats:
    """The `dim` directions [D, dim] in which the vectors vary most."""
    _, _, right = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    return np.ascontiguousarray(right[:dim].T, np.float32)


def _ranks(scores: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), 1)
    return ranks


def _place(ranks: npt.NDArray[np.int64], gold: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.take_along_axis(ranks, gold[:, None], 1)[:, 0]


def _recalls(name: str, place: npt.NDArray[np.int64], ks: Sequence[int]) -> dict[str, float]:
    return {f"{name}_recall_{k}": round(float((place < k).mean()), 4) for k in ks}


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return unit
