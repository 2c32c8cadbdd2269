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
    (business.ceo, 7), (business.hq, 5), (business.results, 11), (business.merger, 3), (business.lawsuit, 7),
    (business.staff, 6), (business.rumour, 4),
    (markets.close, 22), (markets.index, 5), (markets.rate, 3), (markets.governor, 1),
    (politics.election, 8), (politics.law, 9), (politics.minister, 5), (politics.census, 5),
    (sport.coach, 5), (sport.transfer, 5), (sport.sponsor, 3),
    (technology.launch, 9), (technology.breach, 7),
    (science.director, 2), (science.join, 4), (science.prize, 2), (science.find, 7),
    (transport.closure, 6), (transport.cargo, 8), (transport.opening, 4),
    (weather.warning, 7), (weather.report, 14), (weather.stations, 3),
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
