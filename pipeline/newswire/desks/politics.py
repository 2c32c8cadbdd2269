"""Politics desk: elections, laws, ministers, population counts."""
# ruff: noqa: E501 - tables of words, a row a line

from __future__ import annotations

from pipeline.newswire.facts import Event, EventType, Fact
from pipeline.newswire.grammar import sections
from pipeline.newswire.text import politics as text
from pipeline.newswire.values import count, day_of, long_date, tally
from pipeline.newswire.world import PORTFOLIOS, World

ACT_TOPICS = (
    ("Harbour Dues", "fees for berths"), ("Rural Bus", "village bus routes"), ("School Meals", "lunches in schools"),
    ("Night Noise", "quiet hours in towns"), ("Water Meters", "meters in rented flats"),
    ("Apprentice Pay", "wages of apprentices"), ("Dog Licence", "fees for dogs"), ("Data Registers", "public registers"),
    ("Timber Transport", "lorries on forest roads"), ("Shop Hours", "opening on holidays"),
    ("Seed Labelling", "labels on seed"), ("Bridge Tolls", "tolls on old bridges"), ("Home Heating", "aid for heating"),
    ("Clinic Hours", "evening hours of clinics"), ("Fishing Quota", "limits on catches"), ("Tenant Deposit", "deposits"),
    ("Library Lending", "fees on late books"), ("Drone Flight", "drones near airfields"), ("Wage Slip", "pay slips"),
    ("Street Market", "stalls and their rents"), ("Glass Recycling", "deposits on bottles"), ("Ferry Safety", "life rafts"),
)  # fmt: skip

ELECTION = EventType(
    "election", "politics", ("elections", "towns"), sections(text.ELECTION),
    {"mayor": frozenset(("townname", "new")), "mayor_before": frozenset(("townname", "new", "old")),
     "votes": frozenset(("townname", "new", "votes"))},
    ("mayor", "mayor_before", "votes"), {"votes": "votes"}, {"votes": "number of votes"},
)  # fmt: skip
LAW = EventType(
    "law", "politics", ("laws", "parliament"), sections(text.LAW),
    {"tally": frozenset(("house", "act", "tally")), "passed": frozenset(("house", "act", "date"))},
    ("passed", "tally"), {"tally": "tally"}, {"tally": "result of the vote"},
)  # fmt: skip
MINISTER = EventType(
    "minister", "politics", ("government",), sections(text.MINISTER),
    {"minister": frozenset(("land", "portfolio", "new")),
     "minister_before": frozenset(("land", "portfolio", "new", "old"))},
    ("minister", "minister_before"), {"minister": "new"}, {"minister": "name"},
)  # fmt: skip
CENSUS = EventType(
    "census", "politics", ("population", "towns"), sections(text.CENSUS),
    {"population": frozenset(("townname", "new")), "population_before": frozenset(("townname", "new", "old"))},
    ("population", "population_before"), {"population": "new"}, {"population": "number"},
)  # fmt: skip


def election(world: World, time: int) -> Event | None:
    """A town elects another mayor."""
    town = world.rng.pick(world.towns)
    if not world.may_change(town, "mayor", time):
        return None
    old, new = town.state["mayor"].value, world.newcomer()
    now, before = world.change(town, "mayor", new, time)
    subject = town.name.accepted[0]
    votes = count(max(4_000, town.state["population"].value.raw * world.rng.between(17, 39) // 100))
    won = Fact("dated", "votes", subject, votes, time, new.accepted[0], winner=new.accepted[0])
    slots = {
        "townname": town.name,
        "town": town.name,
        "new": new,
        "old": old,
        "votes": votes,
        **world.date_slots(time),
    }
    return Event(ELECTION, time, town, (town.data["country"],), town, slots,
                 {"mayor": now, "mayor_before": before, "votes": won})  # fmt: skip


def law(world: World, time: int) -> Event | None:
    """A parliament passes an act; the title carries a number, so none comes twice."""
    land = world.rng.pick(world.countries)
    title, topic = ACT_TOPICS[land.data["acts"] % len(ACT_TOPICS)]
    land.data["acts"] += world.rng.between(1, 3)
    act = f"{title} Act No. {land.data['acts']}"
    seats = land.data["seats"] - world.rng.between(0, 9)
    ayes = seats // 2 + 1 + world.rng.below(seats // 4)
    result, house, day = tally((ayes, seats - ayes)), land.data["house"], long_date(day_of(time))
    name = house.accepted[0]
    facts = {
        "tally": Fact("dated", "tally", name, result, time, act, act=act, date=day),
        "passed": Fact("dated", "passed", name, world.date_slots(time)["date"], time, act, act=act, date=day),  # type: ignore[arg-type]
    }
    capital = land.data["towns"][0]
    slots = {"house": house, "act": act, "tally": result, "ayes": str(ayes), "topic": topic, "town": capital.name,
             "land": land.name, **world.date_slots(time)}  # fmt: skip
    return Event(LAW, time, land, (), capital, slots, facts)


def minister(world: World, time: int) -> Event | None:
    """A government changes a minister."""
    land, portfolio = world.rng.pick(world.countries), world.rng.pick(PORTFOLIOS)
    attr = f"{portfolio}_minister"
    if not world.may_change(land, attr, time):
        return None
    old, new = land.state[attr].value, world.newcomer()
    now, before = world.change(land, attr, new, time)
    capital = land.data["towns"][0]
    slots = {"land": land.name, "portfolio": portfolio, "new": new, "old": old, "town": capital.name,
             **world.date_slots(time)}  # fmt: skip
    return Event(MINISTER, time, land, (), capital, slots, {"minister": now, "minister_before": before})


def census(world: World, time: int) -> Event | None:
    """A town publishes another population."""
    town = world.rng.pick(world.towns)
    old = town.state["population"].value
    new = count(old.raw * world.rng.between(960, 1_045) // 1_000 + world.rng.between(1, 700))
    if not world.may_change(town, "population", time) or new.raw == old.raw:
        return None
    now, before = world.change(town, "population", new, time)
    slots = {"townname": town.name, "town": town.name, "new": new, "old": old, "mayor": town.state["mayor"].value,
             **world.date_slots(time)}  # fmt: skip
    return Event(CENSUS, time, town, (), town, slots, {"population": now, "population_before": before})
