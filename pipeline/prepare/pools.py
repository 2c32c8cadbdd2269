"""The texts that compete with a question's gold ones: found by BM25 over a corpus, so they are hard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import bm25s
import numpy as np

from pipeline.session.sentences import split_sentences
from pipeline.tasks.contexts import words
from pipeline.tasks.qa import SourceText


class TextIndex:
    """A lexical index over texts (bm25s, stemmed); titles count as text."""

    def __init__(self, texts: Sequence[SourceText]) -> None:
        if not texts:
            raise ValueError("TextIndex needs at least one text; given none")
        self.texts = list(texts)
        self._index = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
        self._index.index(
            [words(f"{text.title} {text.text}") or ["-"] for text in texts], show_progress=False
        )

    def top(
        self, question: str, k: int, allowed: Callable[[SourceText], bool] | None = None, reach: int = 200
    ) -> list[SourceText]:
        """The best `k` texts for `question`, best first; those not `allowed` are passed over.

        No more than the best `reach` are looked at.
        """
        asked = [word for word in dict.fromkeys(words(question)) if word in self._index.vocab_dict]
        if not asked:
            return []
        scores = self._index.get_scores(asked)
        reach = min(max(k, reach), len(scores))
        best = np.argpartition(-scores, reach - 1)[:reach]
        best = best[np.lexsort((best, -scores[best]))]
        found = [self.texts[at] for at in best if scores[at] > 0]
        return [text for text in found if allowed is None or allowed(text)][:k]


def pieces(text: SourceText, num_words: int = 100) -> list[SourceText]:
    """A long text as pieces of whole sentences, about `num_words` words each; ids are "<id>#<piece>"."""
    found: list[SourceText] = []
    held: list[str] = []
    count = 0
    for sentence in split_sentences(text.text):
        size = len(sentence.split())
        if held and count + size > num_words:
            found.append(replace(text, text_id=f"{text.text_id}#{len(found)}", text=" ".join(held)))
            held, count = [], 0
        held.append(sentence)
        count += size
    if held:
        found.append(replace(text, text_id=f"{text.text_id}#{len(found)}", text=" ".join(held)))
    return found
