"""The texts that compete with a question's gold ones: found by BM25 over a corpus, so they are hard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.prepare.bm25_on_cpu import bm25s
from pipeline.session.sentences import split_sentences
from pipeline.tasks.contexts import words
from pipeline.tasks.qa import SourceText


class TextIndex:
    """A lexical index over texts (bm25s, stemmed); titles count as text.

    `bags` are the texts' `words_of`, where they were made elsewhere (in processes).
    """

    def __init__(self, texts: Sequence[SourceText], bags: Sequence[list[str]] | None = None) -> None:
        if not texts:
            raise ValueError("TextIndex needs at least one text; given none")
        if bags is not None and len(bags) != len(texts):
            raise ValueError(f"bags: given {len(bags)} for {len(texts)} texts; allowed: one each")
        self.texts = list(texts)
        self._index = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
        self._index.index(bags or [words_of(text) for text in texts], show_progress=False)

    def top(
        self, question: str, k: int, allowed: Callable[[SourceText], bool] | None = None, reach: int = 200
    ) -> list[SourceText]:
        """The best `k` texts for `question`, best first; those not `allowed` are passed over.

        No more than the best `reach` are looked at.
        """
        scores = self.scores(words(question))
        if scores is None:
            return []
        reach = min(max(k, reach), len(scores))
        best = np.argpartition(-scores, reach - 1)[:reach]
        best = best[np.lexsort((best, -scores[best]))]
        found = [self.texts[at] for at in best if scores[at] > 0]
        return [text for text in found if allowed is None or allowed(text)][:k]

    def scores(self, asked: Sequence[str]) -> npt.NDArray[np.float32] | None:
        """Each text's score for words as `words_of` gives them; None where no text has any of them."""
        known = [word for word in dict.fromkeys(asked) if word in self._index.vocab_dict]
        found: npt.NDArray[np.float32] | None = self._index.get_scores(known) if known else None
        return found


def words_of(text: SourceText) -> list[str]:
    """What a text is found by: the stems of its title and words, never none."""
    return words(f"{text.title} {text.text}") or ["-"]


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
