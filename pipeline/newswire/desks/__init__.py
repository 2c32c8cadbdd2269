"""Planners: for each kind of event, what happens in the world and which facts it makes."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.newswire.desks import (
    business,
    markets,
    politics,
    science,
    sport,
    technology,
    transport,
    weather,
)
from pipeline.newswire.desks.noise import noise
from pipeline.newswire.facts import Entity, Event
from pipeline.newswire.world import World

__all__ = ["PLANNERS", "Planner", "daily", "noise"]

Planner = Callable[[World, int], Event | None]

PLANNERS: tuple[tuple[Planner, int], ...] = (
    (business.ceo, 5), (business.hq, 3), (business.results, 12), (business.merger, 3), (business.lawsuit, 8),
    (business.staff, 4), (business.rumour, 4),
    (markets.close, 30), (markets.index, 6), (markets.rate, 3), (markets.governor, 1),
    (politics.election, 5), (politics.law, 9), (politics.minister, 3), (politics.census, 3),
    (sport.coach, 3), (sport.transfer, 4), (sport.sponsor, 2),
    (technology.launch, 7), (technology.breach, 9),
    (science.director, 2), (science.join, 3), (science.prize, 2), (science.find, 9),
    (transport.closure, 6), (transport.cargo, 10), (transport.opening, 5),
    (weather.warning, 9), (weather.report, 16), (weather.stations, 3),
)  # fmt: skip
"""What may happen at any hour, and how often against the rest."""


def daily(world: World, begin: int) -> list[tuple[int, Planner]]:
    """What is bound to happen on the day that begins at `begin`, with its time: the matches of the leagues."""
    found: list[tuple[int, Planner]] = []
    for number, (home, away) in enumerate(sport.fixtures(world, begin)):
        kick_off = begin + 16 * 3_600 + number % 4 * 3_600 + number * 300

        def play(world: World, time: int, home: Entity = home, away: Entity = away) -> Event | None:
            return sport.match(world, time, home, away)

        found.append((kick_off, play))
    return found
