"""Columns and letters: articles without a fact that anybody asks for."""

from __future__ import annotations

from pipeline.newswire.facts import Event, EventType
from pipeline.newswire.grammar import sections
from pipeline.newswire.text.noise import NOISE, THEMES
from pipeline.newswire.world import World

_DESKS = ("business", "politics", "markets", "sport", "technology", "science", "transport", "weather")
TYPES = {desk: EventType("noise", desk, ("opinion",), sections(NOISE), {}, ()) for desk in _DESKS}


def noise(world: World, time: int) -> Event:
    """A column for one of the desks."""
    rng = world.rng
    town = rng.pick(world.towns)
    theme, other = rng.sample(THEMES, 2)
    slots = {
        "townname": town.name,
        "town": town.name,
        "theme": theme,
        "theme2": other,
        **world.date_slots(time),
    }
    return Event(TYPES[rng.pick(_DESKS)], time, town, (), town, slots, {})
