"""Planners: for each kind of event, what happens in the world and which facts it makes."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.newswire.desks import business, politics
from pipeline.newswire.desks.noise import noise
from pipeline.newswire.facts import Event
from pipeline.newswire.world import World

__all__ = ["PLANNERS", "Planner", "daily", "noise"]

Planner = Callable[[World, int], Event | None]

PLANNERS: tuple[tuple[Planner, int], ...] = (
    (business.ceo, 5), (business.hq, 4), (business.results, 8), (business.merger, 3), (business.lawsuit, 5),
    (business.staff, 4), (business.rumour, 3),
    (politics.election, 5), (politics.law, 5), (politics.minister, 4), (politics.census, 4),
)  # fmt: skip
"""What may happen at any hour, and how often against the rest."""


def daily(world: World, begin: int) -> list[tuple[int, Planner]]:
    """What is bound to happen on the day that begins at `begin`, with its time."""
    return []
