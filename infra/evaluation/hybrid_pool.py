"""The texts that words and meaning find together: BM25's best, fused with the embedder's ranking.

With `reach` 0 the embedder ranks the whole corpus, whose vectors are kept on disk (minutes to an hour the first
time on a CPU, nothing after); else it ranks BM25's best `reach` texts only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.evaluation.qa_sources import QaSource
from pipeline.tasks.qa import Question, SourceText

BM25_REACH = 100
EmbedTexts = Callable[[Sequence[str]], "npt.NDArray[Any]"]


class HybridPool:
    """`pool(question, k)`: the best `k` texts by reciprocal rank fusion of BM25 and the embedder."""

    def __init__(self, source: QaSource, encode: EmbedTexts, reach: int = BM25_REACH) -> None:
        if reach < 0:
            raise ValueError(f"reach: given {reach}; allowed: 0 (the whole corpus) or more")
        self._source, self._encode, self._reach = source, encode, reach
        self._texts: list[SourceText] = []
        self._vectors: npt.NDArray[np.float32] | None = None

    def __call__(self, question: Question, k: int) -> list[SourceText]:
        """The best texts, best first."""
        lexical = self._source.pool(question, max(k, self._reach or BM25_REACH))
        dense = self._whole(question, BM25_REACH) if self._reach == 0 else self._rerank(question, lexical)
        score: dict[str, float] = {}
        found: dict[str, SourceText] = {}
        for ranking in (lexical, dense):
            for at, text in enumerate(ranking):
                found[text.text_id] = text
                score[text.text_id] = score.get(text.text_id, 0.0) + 1 / (60 + at)
        best = sorted(found, key=lambda text_id: -score[text_id])[:k]
        return [found[text_id] for text_id in best]

    def _rerank(self, question: Question, texts: list[SourceText]) -> list[SourceText]:
        if not texts:
            return []
        vectors = np.asarray(
            self._encode([question.text, *(passage_text(text) for text in texts)]), np.float32
        )
        return [texts[at] for at in np.argsort(-(vectors[1:] @ vectors[0]), kind="stable")]

    def _whole(self, question: Question, k: int) -> list[SourceText]:
        if self._vectors is None:
            self._texts = list(self._source.texts.values())
            self._vectors = np.asarray(self._encode([passage_text(text) for text in self._texts]), np.float32)
        query = np.asarray(self._encode([question.text]), np.float32)[0]
        scores = self._vectors @ query
        day = question.asked[:10]
        best = np.argpartition(-scores, min(len(scores) - 1, 20 * k))[: 20 * k]
        best = best[np.argsort(-scores[best], kind="stable")]
        return [self._texts[at] for at in best if not day or self._texts[at].date <= day][:k]


def passage_text(text: SourceText) -> str:
    """What of a passage is embedded: its title on a line of its own, as the store embeds chunks."""
    return f"{text.title}\n{text.text}"
