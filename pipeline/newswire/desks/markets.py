"""Markets desk: closing prices, indexes, key rates, governors."""
# ruff: noqa: E501 - tables of words, a row a line

from __future__ import annotations

from pipeline.newswire.desks.business import company_slots, seat
from pipeline.newswire.facts import Event, EventType, Fact
from pipeline.newswire.grammar import sections
from pipeline.newswire.text import markets as text
from pipeline.newswire.values import DAY_S, count, day_of, long_date, percent, price
from pipeline.newswire.world import World

REASONS = ("stubborn food prices", "a weak harvest", "slower lending", "a strong currency", "rising wages",
           "falling rents", "cooler demand", "a run of dear energy", "thin exports", "calmer prices")  # fmt: skip
TALK = ("a broker's note", "talk of a large order", "a delayed delivery", "a change of guidance", "a quiet newswire",
        "a patent ruling abroad", "rumours about a rival", "the fuel price", "month-end buying",
        "a court date", "a new contract", "a supplier's warning")  # fmt: skip

CLOSE = EventType(
    "close", "markets", ("shares", "companies"), sections(text.CLOSE),
    {"close": frozenset(("company", "price", "date"))}, ("close",), {"close": "price"}, {"close": "closing price"},
)  # fmt: skip
INDEX = EventType(
    "index", "markets", ("shares",), sections(text.INDEX),
    {"index": frozenset(("index", "points", "date"))}, ("index",), {"index": "points"}, {"index": "closing level"},
)  # fmt: skip
RATE = EventType(
    "rate", "markets", ("central banks", "rates"), sections(text.RATE),
    {"rate": frozenset(("land", "new")), "rate_before": frozenset(("land", "new", "old"))},
    ("rate", "rate_before"), {"rate": "new"}, {"rate": "new key rate"},
)  # fmt: skip
GOVERNOR = EventType(
    "governor", "markets", ("central banks", "people"), sections(text.GOVERNOR),
    {"governor": frozenset(("land", "new")), "governor_before": frozenset(("land", "new", "old"))},
    ("governor", "governor_before"), {"governor": "new"}, {"governor": "name"},
)  # fmt: skip


def close(world: World, time: int) -> Event | None:
    """A share closes; each at most once a day, never on a weekend."""
    company, day = world.rng.pick(world.companies), day_of(time)
    if day.weekday() > 4 or company.data.get("closed") == day:
        return None
    company.data["closed"] = day
    old = company.data["cents"]
    new = min(
        90_000, max(300, old + old * world.rng.bell(-520, 540) // 10_000 + world.rng.pick((-7, -3, 2, 5, 9)))
    )
    company.data["cents"] = new
    up = new >= old
    value = price(new, company.data["country"].data["currency"])
    name = long_date(day)
    fact = Fact("dated", "close", company.name.accepted[0], value, time, name, date=name)
    town = seat(world, company)
    slots = {
        **company_slots(world, company, time), "town": town.name, "price": value,
        "pct": percent(max(1, abs(new - old) * 10_000 // old)), "factor": world.rng.pick(TALK),
        "close_verb": "climbs" if up else "slips", "close_past": "gained" if up else "lost",
        "close_up": "up" if up else "down", "close_side": "above" if up else "below",
    }  # fmt: skip
    return Event(CLOSE, time, company, (), town, slots, {"close": fact})


def index(world: World, time: int) -> Event | None:
    """A country's share index closes; once a day."""
    land, day = world.rng.pick(world.countries), day_of(time)
    if day.weekday() > 4 or land.data.get("closed") == day:
        return None
    land.data["closed"] = day
    points = land.data.get("points", 4_000 + 100 * len(land.name.short))
    points = min(19_000, max(1_000, points + points * world.rng.bell(-190, 200) // 10_000))
    land.data["points"] = points
    value, name, date = count(points), f"{land.name.accepted[0]} Twenty", long_date(day)
    slots = {"index": name, "points": value, "land": land.name, "town": land.data["towns"][0].name,
             **world.date_slots(time)}  # fmt: skip
    return Event(INDEX, time, land, (), land.data["towns"][0], slots,
                 {"index": Fact("dated", "index", name, value, time, date, date=date)})  # fmt: skip


def rate(world: World, time: int) -> Event | None:
    """A central bank moves its key rate; not within twenty days of the last move."""
    land = world.rng.pick(world.countries)
    if time - land.changed["rate"] < 20 * DAY_S:
        return None
    old = land.state["rate"].value
    step = world.rng.pick((-50, -25, -25, 25, 25, 50))
    if not 25 <= old.raw + step <= 975:
        step = -step
    new = percent(old.raw + step)
    now, before = world.change(land, "rate", new, time)
    up = step > 0
    slots = {
        "land": land.name, "new": new, "old": old, "governor": land.state["governor"].value,
        "rate_verb": "raises" if up else "cuts", "rate_past": "raised" if up else "cut",
        "reason": world.rng.pick(REASONS), "town": land.data["towns"][0].name, **world.date_slots(time),
    }  # fmt: skip
    return Event(RATE, time, land, (), land.data["towns"][0], slots, {"rate": now, "rate_before": before})


def governor(world: World, time: int) -> Event | None:
    """A central bank gets another governor."""
    land = world.rng.pick(world.countries)
    if time - land.changed["governor"] < 25 * DAY_S:
        return None
    old, new = land.state["governor"].value, world.newcomer()
    now, before = world.change(land, "governor", new, time)
    slots = {
        "land": land.name,
        "new": new,
        "old": old,
        "town": land.data["towns"][0].name,
        **world.date_slots(time),
    }
    return Event(
        GOVERNOR, time, land, (), land.data["towns"][0], slots, {"governor": now, "governor_before": before}
    )
