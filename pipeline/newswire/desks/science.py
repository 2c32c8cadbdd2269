"""Science desk: directors, moves, prizes, finds."""
# ruff: noqa: E501 - tables of words, a row a line

from __future__ import annotations

from pipeline.newswire.facts import Event, EventType, Fact
from pipeline.newswire.grammar import sections
from pipeline.newswire.text import science as text
from pipeline.newswire.values import DAY_S, Value, day_of, long_date, plain
from pipeline.newswire.world import World

SUBJECTS = ("lichen on slate", "deep springs", "singing sand", "frost in walls", "eel migration", "old glass", "star dust",
            "salt crystals", "root fungi", "river clay", "whale hearing", "cloud seeds", "amber insects",
            "bee dances", "quiet earthquakes", "peat layers", "ice cores", "tree rings")  # fmt: skip
PRIZES = ("Larkspur Medal", "Seven Lamps Prize", "Compass Award", "Golden Sextant", "Hollow Hill Prize", "Quarry Medal",
          "Blue Lantern Award", "Cup of the Nine Wells", "Harbour Prize", "Silver Pipette", "Northlight Medal",
          "Ironwood Prize")  # fmt: skip
THINGS = ("a sunken timber road", "a field of copper nodules", "a warm spring", "a bed of fossil ferns", "a ring of stones",
          "a wreck with its bell", "an unknown cave", "a seam of blue clay", "a colony of cold corals", "a buried orchard",
          "a layer of ash", "a hollow pillar", "a raft of old logs", "a chamber of crystals")  # fmt: skip

DIRECTOR = EventType(
    "director", "science", ("research", "people"), sections(text.DIRECTOR),
    {"director": frozenset(("institute", "new")), "director_before": frozenset(("institute", "new", "old"))},
    ("director", "director_before"), {"director": "new"}, {"director": "name"},
)  # fmt: skip
JOIN = EventType(
    "join", "science", ("research", "people"), sections(text.JOIN),
    {"employer": frozenset(("scientist", "new")), "employer_before": frozenset(("scientist", "new", "old"))},
    ("employer", "employer_before"),
)  # fmt: skip
PRIZE = EventType(
    "prize", "science", ("research", "prizes"), sections(text.PRIZE),
    {"prize": frozenset(("prize", "scientist", "year")),
     "prize_for": frozenset(("prize", "scientist", "year", "subject"))}, ("prize", "prize_for"),
)  # fmt: skip
FIND = EventType(
    "find", "science", ("research", "finds"), sections(text.FIND),
    {"depth": frozenset(("institute", "depth", "date")), "find": frozenset(("institute", "thing", "date"))},
    ("depth", "find"), {"depth": "depth"}, {"depth": "depth"},
)  # fmt: skip


def metres(number: int) -> Value:
    """A depth."""
    digits = f"{number:,}"
    shown = f"{digits} metres"
    return Value((shown, shown, f"{digits} m"), digits, (shown, f"{digits} m", digits, str(number), f"{digits} meters"),
                 number, metres)  # fmt: skip


def director(world: World, time: int) -> Event | None:
    """An institute gets another director."""
    institute = world.rng.pick(world.institutes)
    if not world.may_change(institute, "director", time):
        return None
    old, new = institute.state["director"].value, world.newcomer()
    now, before = world.change(institute, "director", new, time)
    town = institute.data["town"]
    slots = {"institute": institute.name, "new": new, "old": old, "town": town.name, **world.date_slots(time)}
    return Event(DIRECTOR, time, institute, (), town, slots, {"director": now, "director_before": before})


def join(world: World, time: int) -> Event | None:
    """A researcher moves to another institute; not twice within three weeks."""
    scientist = world.rng.pick([p for p in world.people if p.kind == "scientist"])
    institute = world.rng.pick(world.institutes)
    old = scientist.state["employer"].value
    if time - scientist.changed["employer"] < 21 * DAY_S or old is institute.name:
        return None
    now, before = world.change(scientist, "employer", institute.name, time)
    town = institute.data["town"]
    slots = {"scientist": scientist.name, "new": institute.name, "old": old, "town": town.name,
             "subject": world.rng.pick(SUBJECTS), **world.date_slots(time)}  # fmt: skip
    return Event(
        JOIN, time, scientist, (institute,), town, slots, {"employer": now, "employer_before": before}
    )


def prize(world: World, time: int) -> Event | None:
    """A prize is awarded; each once a year."""
    name, year = world.rng.pick(PRIZES), str(day_of(time).year)
    given = world.countries[0].data.setdefault("prizes", {})
    if given.get(name) == year:
        return None
    given[name] = year
    scientist = world.rng.pick([p for p in world.people if p.kind == "scientist"])
    institute = world.by_name[scientist.state["employer"].value.accepted[0]]
    subject = plain(world.rng.pick(SUBJECTS))
    facts = {
        "prize": Fact("dated", "prize", name, scientist.name, time, year, year=year),
        "prize_for": Fact(
            "dated", "prize_for", name, subject, time, year, year=year, winner=scientist.name.accepted[0]
        ),
    }
    town = institute.data["town"]
    slots = {"scientist": scientist.name, "prize": name, "subject": subject, "institute": institute.name,
             "town": town.name, **world.date_slots(time)}  # fmt: skip
    return Event(PRIZE, time, scientist, (institute,), town, slots, facts)


def find(world: World, time: int) -> Event | None:
    """An institute announces a find; one a day."""
    institute, date = world.rng.pick(world.institutes), long_date(day_of(time))
    if institute.data.get("found") == date:
        return None
    institute.data["found"] = date
    town, thing, depth = (
        world.rng.pick(world.towns),
        plain(world.rng.pick(THINGS)),
        metres(world.rng.between(12, 3_900)),
    )
    name = institute.name.accepted[0]
    facts = {
        "depth": Fact("dated", "depth", name, depth, time, date, date=date),
        "find": Fact("dated", "find", name, thing, time, date, date=date),
    }
    slots = {"institute": institute.name, "thing": thing, "depth": depth, "townname": town.name, "town": town.name,
             **world.date_slots(time)}  # fmt: skip
    return Event(FIND, time, institute, (town,), town, slots, facts)
