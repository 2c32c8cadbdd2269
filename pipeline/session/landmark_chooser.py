"""Sentences chosen by a landmark head: cache, past and store compete in one list, without a second model.

The head is behind a port, so that sessions need no torch: `models/hf/landmarks.py` is one implementation. Sessions
choose by HybridChooser unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.session.chooser import Chooser, fill, reading_order
from pipeline.session.sentences import Candidate


class Landmarks(Protocol):
    """Unit vectors by the session's own model."""

    def of_question(self, question: str) -> npt.NDArray[np.float32] | None:
        """The query `[r]`, or None where no model is at hand."""

    def of_candidates(self, candidates: Sequence[Candidate]) -> npt.NDArray[np.float32]:
        """Landmarks `[len(candidates), r]`, of what has passed and of what the store found alike."""


class LandmarkChooser:
    """Best cosine first until the budget; `otherwise` chooses where there is no query."""

    def __init__(self, landmarks: Landmarks, otherwise: Chooser) -> None:
        self._landmarks, self._otherwise = landmarks, otherwise

    def choose(self, question: str, candidates: Sequence[Candidate], budget: int) -> list[Candidate]:
        """See Chooser.choose. Raises ValueError where query and landmarks differ in width."""
        query = self._landmarks.of_question(question) if candidates else None
        if query is None:
            return self._otherwise.choose(question, candidates, budget)
        rows = self._landmarks.of_candidates(candidates)
        if rows.shape != (len(candidates), len(query)):
            raise ValueError(
                f"landmarks have shape {rows.shape}; wanted one of width {len(query)} for each of "
                f"{len(candidates)} candidates"
            )
        scores = rows @ query
        order = sorted(range(len(candidates)), key=lambda at: (-float(scores[at]), at))
        return reading_order(fill([candidates[at] for at in order], budget))
