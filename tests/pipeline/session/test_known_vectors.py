"""pipeline/session/known_vectors.py: the embedder's own vectors, each text embedded once while it is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.session.known_vectors import KnownVectors


class Counting:
    """An embedder that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.away = False

    def __call__(self, texts: Sequence[str]) -> np.ndarray | None:
        """[length, first character] of each text."""
        if self.away:
            return None
        self.asked.append(list(texts))
        rows = [[len(text), ord(text[:1] or "\0")] for text in texts]
        return np.array(rows, np.float32).reshape(len(texts), 2)


def test_a_text_is_embedded_once_and_its_vector_stays_its_own() -> None:
    """In the order asked, doubles included; only what is new is asked for."""
    plain, embed = Counting(), Counting()
    known = KnownVectors(embed)
    for texts in (["one", "three"], ["three", "two", "one", "two"], ["one", "two"]):
        made = known(texts)
        assert made is not None and np.array_equal(made, plain(texts))
    assert embed.asked == [["one", "three"], ["two"]]


def test_the_last_used_are_kept() -> None:
    """Beyond `most` the longest unused are forgotten."""
    embed = Counting()
    known = KnownVectors(embed, most=2)
    for texts in (["a", "b"], ["a", "c"], ["a"], ["b"]):
        known(texts)
    assert embed.asked == [["a", "b"], ["c"], ["b"]]


def test_no_vectors_are_no_vectors() -> None:
    """An embedder that is away gives None, and nothing of that is remembered; no texts are no rows."""
    embed = Counting()
    known = KnownVectors(embed)
    embed.away = True
    assert known(["a"]) is None
    embed.away = False
    made = known(["a"])
    assert made is not None and made.tolist() == [[1.0, 97.0]]
    none = known([])
    assert none is not None and none.shape == (0, 2)
