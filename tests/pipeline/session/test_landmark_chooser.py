"""Sentences by landmark: best cosine first, within the budget, and the other chooser where no model is at hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.session.chooser import HybridChooser
from pipeline.session.landmark_chooser import LandmarkChooser
from pipeline.session.sentences import Candidate


class Axes:
    """Landmarks by hand: candidate `n` points along axis `n`, the question where it is told to."""

    def __init__(self, query: list[float] | None, width: int = 3) -> None:
        self.query, self.width = query, width

    def of_question(self, question: str) -> npt.NDArray[np.float32] | None:
        """See Landmarks."""
        return None if self.query is None else np.array(self.query, np.float32)

    def of_candidates(self, candidates: Sequence[Candidate]) -> npt.NDArray[np.float32]:
        """See Landmarks."""
        return np.eye(len(candidates), self.width, dtype=np.float32)


def candidates() -> list[Candidate]:
    """Three sentences of three articles, ten tokens each."""
    return [
        Candidate(
            article_id=f"a{n}", version_ms=0, published_ms=n, title=f"T{n}", source="s", stream="s", url=None,
            text=f"word{n}", position=0, rank=n, num_tokens=8, head_tokens=2,
        )
        for n in range(3)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "budget", "wanted"),
    [([0, 1, 0], 10, ["a1"]), ([0.1, 0.5, 0.9], 20, ["a1", "a2"]), ([1, 0, 0], 9, [])],
)
def test_the_nearest_landmarks_are_read(query: list[float], budget: int, wanted: list[str]) -> None:
    """Cosine decides, the budget holds, the oldest article comes first."""
    chooser = LandmarkChooser(Axes(query), HybridChooser())
    assert [one.article_id for one in chooser.choose("q", candidates(), budget)] == wanted


def test_without_a_query_the_other_chooser_decides() -> None:
    """No model at hand: as HybridChooser."""
    chosen = LandmarkChooser(Axes(None), HybridChooser()).choose("word2", candidates(), 10)
    assert chosen == HybridChooser().choose("word2", candidates(), 10)
    assert LandmarkChooser(Axes([1, 0, 0]), HybridChooser()).choose("q", [], 10) == []


def test_widths_that_differ_are_named() -> None:
    """Landmarks of another head."""
    with pytest.raises(ValueError, match=r"shape \(3, 3\); wanted one of width 2"):
        LandmarkChooser(Axes([1, 0]), HybridChooser()).choose("q", candidates(), 10)
