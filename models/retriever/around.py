"""How a candidate is handed to a pair reader together with the sentences before and after it in its text.

Imports nothing: what makes candidates (`pipeline/candidate_features.py`) needs no torch for it.
"""

from __future__ import annotations

from collections.abc import Mapping

_BESIDE = "\x1f"
"""Stands between a candidate and the sentences around it."""

Place = tuple[int, int]
"""(which text, which sentence of it)."""


def with_around(text: str, at: Place, said: Mapping[Place, str]) -> str:
    """A candidate with what `said` has before and after its place; `as_read` is its reverse."""
    of, place = at
    return _BESIDE.join((text, said.get((of, place - 1), ""), said.get((of, place + 1), "")))


def as_read(text: str, *, around: bool) -> str:
    """What a pair reader reads of a text: the candidate alone, or with the sentences around it, marked."""
    own, *beside = text.split(_BESIDE)
    named = zip(("before", "after"), beside, strict=False) if around else ()
    return " | ".join([own, *(f"{where}: {what}" for where, what in named if what)])
