"""Weather desk: measured days, warnings, lists of stations."""
# ruff: noqa: E501 - tables of words, a row a line

from __future__ import annotations

from typing import Any

from pipeline.newswire.facts import Entity, Event, EventType, Fact
from pipeline.newswire.grammar import forms, sections
from pipeline.newswire.text import weather as text
from pipeline.newswire.values import Value, day_of, degrees, long_date, plain
from pipeline.newswire.world import World

MONTH_HIGHS = (2, 4, 8, 13, 18, 22, 25, 24, 19, 13, 7, 3)
SKIES = ("high cloud", "low cloud", "broken cloud", "a pale sun", "bright sun", "haze", "drifting fog", "long showers",
         "short showers", "a gusty breeze", "sea mist", "heavy skies", "thin drizzle", "clear air")  # fmt: skip
HAZARDS = {0: ("black ice", "heavy snow", "gales", "freezing fog"), 1: ("gales", "flooding", "hail", "dense fog"),
           2: ("thunderstorms", "heat", "forest fires", "hail"), 3: ("gales", "flooding", "dense fog", "landslides")}  # fmt: skip
QUARTERS = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")
LINES = 6

REPORT = EventType(
    "report", "weather", ("weather",), sections(text.REPORT),
    {"high": frozenset(("townname", "high", "date"))}, ("high",), {"high": "high"}, {"high": "temperature"},
)  # fmt: skip
WARNING = EventType(
    "warning", "weather", ("weather", "warnings"), sections(text.WARNING),
    {"warning": frozenset(("townname", "hazard", "date"))}, ("warning",),
)  # fmt: skip


def _list_type() -> EventType:
    lines = "\n".join(
        form.replace("{town}", f"{{t{i}}}").replace("{high}", f"{{h{i}}}").replace("{sky}", f"{{s{i}}}")
        for i in range(LINES)
        for form in text.LIST_LINES
    )
    parts = {**sections(text.LIST_HEAD), "body": forms(lines)}
    tells = {f"high{i}": frozenset((f"t{i}", f"h{i}", "date")) for i in range(LINES)}
    return EventType("weather_list", "weather", ("weather",), parts, tells, tuple(tells))


LIST = _list_type()


def high_of(world: World, town: Entity, time: int) -> Value:
    """The high of a town on a day: one value, whoever reports it."""
    day = day_of(time)
    if town.data.get("measured") != day:
        town.data["measured"] = day
        town.data["high"] = degrees(MONTH_HIGHS[day.month - 1] + town.data["climate"] + world.rng.bell(-6, 6))
    value: Value = town.data["high"]
    return value


def _high_fact(town: Entity, value: Value, time: int) -> Fact:
    date = long_date(day_of(time))
    return Fact("dated", "high", town.name.accepted[0], value, time - time % 86_400, date, date=date)


def report(world: World, time: int) -> Event | None:
    """A town's high of the day; told after three in the afternoon, once by this desk."""
    town = world.rng.pick(world.towns)
    if time % 86_400 < 15 * 3_600 or town.data.get("reported") == day_of(time):
        return None
    town.data["reported"] = day_of(time)
    high = high_of(world, town, time)
    slots = {
        "townname": town.name, "town": town.name, "high": high, "sky": world.rng.pick(SKIES),
        "low": degrees(high.raw - world.rng.between(5, 12)), "quarter": world.rng.pick(QUARTERS), **world.date_slots(time),
    }  # fmt: skip
    return Event(REPORT, time, town, (), town, slots, {"high": _high_fact(town, high, time)})


def stations(world: World, time: int) -> Event | None:
    """A list of several towns' highs."""
    towns = [t for t in world.rng.sample(world.towns, LINES + 3) if t.data.get("reported") != day_of(time)][
        :LINES
    ]
    if len(towns) < LINES:
        return None
    slots: dict[str, Any] = {"town": towns[0].name, **world.date_slots(time)}
    facts = {}
    for i, town in enumerate(towns):
        town.data["reported"] = day_of(time)
        high = high_of(world, town, time)
        slots |= {f"t{i}": town.name, f"h{i}": high, f"s{i}": world.rng.pick(SKIES)}
        facts[f"high{i}"] = _high_fact(town, high, time)
    return Event(LIST, time, towns[0], tuple(towns[1:3]), towns[0], slots, facts)


def warning(world: World, time: int) -> Event | None:
    """A warning for a town, one a day at most."""
    town, day = world.rng.pick(world.towns), day_of(time)
    if town.data.get("warned") == day:
        return None
    town.data["warned"] = day
    hazard = plain(world.rng.pick(HAZARDS[day.month % 12 // 3]))
    date = long_date(day)
    fact = Fact("dated", "warning", town.name.accepted[0], hazard, time, date, date=date)
    slots = {"townname": town.name, "town": town.name, "hazard": hazard, "sky": world.rng.pick(SKIES),
             "level": world.rng.pick(("yellow", "amber")), **world.date_slots(time)}  # fmt: skip
    return Event(WARNING, time, town, (), town, slots, {"warning": fact})
