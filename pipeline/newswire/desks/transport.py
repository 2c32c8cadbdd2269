"""Transport desk: ports, ships, bridges."""
# ruff: noqa: E501, SIM905 - tables of words, a row a line

from __future__ import annotations

from pipeline.newswire.facts import Event, EventType, Fact
from pipeline.newswire.grammar import sections
from pipeline.newswire.text import transport as text
from pipeline.newswire.values import count, day_of, long_date, money, plain
from pipeline.newswire.world import World

CAUSES = ("a drifting barge", "a pilots' strike", "a fuel spill", "a broken lock gate", "an unexploded mine", "high swell",
          "a crane fire", "dense fog", "a computer failure", "a stranded whale")  # fmt: skip
GOODS = ("wheat", "copper ore", "timber", "fertiliser", "steel coils", "soya", "cement", "sugar", "salt", "coffee",
         "bananas", "road salt", "paper", "bricks")  # fmt: skip
SHIP_A = "Amber Bitter Copper Distant Early Faithful Grey Hollow Iron Jolly Late Marsh Northern Patient Quiet Silver".split()
SHIP_B = "Bell Crane Dolphin Egret Falcon Heron Lantern Magpie Otter Petrel Quill Star".split()
KINDS = ("Bridge", "Tunnel", "Viaduct", "Tramway", "Lock", "Bypass")

CLOSURE = EventType(
    "closure", "transport", ("ports", "shipping"), sections(text.CLOSURE),
    {"closure": frozenset(("townname", "cause", "date"))}, ("closure",),
)  # fmt: skip
CARGO = EventType(
    "cargo", "transport", ("ports", "shipping"), sections(text.CARGO),
    {"cargo": frozenset(("ship", "tonnes", "townname", "date")), "goods": frozenset(("ship", "goods", "townname", "date"))},
    ("cargo", "goods"), {"cargo": "tonnes"}, {"cargo": "tonnage"},
)  # fmt: skip
OPENING = EventType(
    "opening", "transport", ("roads", "building"), sections(text.OPENING),
    {"cost": frozenset(("bridge", "cost")), "opened_in": frozenset(("bridge", "townname"))},
    ("cost", "opened_in"), {"cost": "cost"}, {"cost": "cost"},
)  # fmt: skip


def closure(world: World, time: int) -> Event | None:
    """A port closes; once a day."""
    town, date = world.rng.pick([t for t in world.towns if t.data["port"]]), long_date(day_of(time))
    if town.data.get("closed") == date:
        return None
    town.data["closed"] = date
    cause = plain(world.rng.pick(CAUSES))
    fact = Fact("dated", "closure", town.name.accepted[0], cause, time, date, date=date)
    slots = {"townname": town.name, "town": town.name, "cause": cause, "hours": str(world.rng.between(3, 19)),
             **world.date_slots(time)}  # fmt: skip
    return Event(CLOSURE, time, town, (), town, slots, {"closure": fact})


def cargo(world: World, time: int) -> Event | None:
    """A ship unloads; each once a day."""
    rng = world.rng
    town, date = rng.pick([t for t in world.towns if t.data["port"]]), long_date(day_of(time))
    ship = plain(f"{rng.pick(SHIP_A)} {rng.pick(SHIP_B)}")
    name = ship.accepted[0]
    if town.data.setdefault("ships", {}).get("day") != date:
        town.data["ships"] = {"day": date}
    if name in town.data["ships"]:
        return None
    town.data["ships"][name] = True
    tonnes, goods, port = count(rng.between(900, 68_000)), plain(rng.pick(GOODS)), town.name.accepted[0]
    facts = {
        "cargo": Fact("dated", "cargo", name, tonnes, time, f"{port} {date}", port=port, date=date),
        "goods": Fact("dated", "goods", name, goods, time, f"{port} {date}", port=port, date=date),
    }
    slots = {"ship": ship, "tonnes": tonnes, "goods": goods, "townname": town.name, "town": town.name,
             **world.date_slots(time)}  # fmt: skip
    return Event(CARGO, time, town, (), town, slots, facts)


def opening(world: World, time: int) -> Event | None:
    """A bridge or line opens; named after somebody, never the same twice."""
    rng = world.rng
    town = rng.pick(world.towns)
    bridge = plain(f"{world.names.last()} {rng.pick(KINDS)}")
    name = bridge.accepted[0]
    cost = money(rng.between(30, 26_000), town.data["country"].data["currency"])
    facts = {
        "cost": Fact("dated", "cost", name, cost, time, ""),
        "opened_in": Fact("dated", "opened_in", name, town.name, time, ""),
    }
    slots = {
        "bridge": bridge,
        "cost": cost,
        "townname": town.name,
        "town": town.name,
        **world.date_slots(time),
    }
    return Event(OPENING, time, town, (), town, slots, facts)
