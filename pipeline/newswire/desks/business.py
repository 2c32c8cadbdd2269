"""Business desk: what happens to companies."""
# ruff: noqa: E501 - tables of words, a row a line

from __future__ import annotations

from pipeline.newswire.facts import Entity, Event, EventType, Fact
from pipeline.newswire.grammar import sections
from pipeline.newswire.text import business as text
from pipeline.newswire.values import DAY_S, Value, count, day_of, long_date, money, percent, plain
from pipeline.newswire.world import World

JOBS = ("head of operations", "finance director", "sales chief", "head of research", "general counsel",
        "regional manager", "head of engineering", "chief of staff", "head of purchasing")  # fmt: skip
MATTERS = ("a patent on seals", "unpaid freight bills", "a cancelled supply contract", "the use of a trademark",
           "a leaking warehouse roof", "faulty sensors", "a broken lease", "shared software code", "late deliveries",
           "a bonus scheme", "a joint venture gone sour", "polluted groundwater", "misleading labels")  # fmt: skip
FACTORS = ("a mild winter", "cheaper fuel", "a strong order book", "new contracts abroad", "higher prices",
           "early holiday buying", "lower freight rates", "demand from schools", "a weak currency")  # fmt: skip
BRAKES = ("a strike at two plants", "a recall", "dear energy", "slow ports", "a fire in a depot", "late suppliers",
          "price cuts by rivals", "higher wages", "bad weather")  # fmt: skip

CEO = EventType(
    "ceo", "business", ("companies", "management"), sections(text.CEO),
    {"ceo": frozenset(("company", "new")), "ceo_before": frozenset(("company", "new", "old"))},
    ("ceo", "ceo_before"), {"ceo": "new"}, {"ceo": "name"},
)  # fmt: skip
HQ = EventType(
    "hq", "business", ("companies", "property"), sections(text.HQ),
    {"hq": frozenset(("company", "new")), "hq_before": frozenset(("company", "new", "old"))},
    ("hq", "hq_before"), {"hq": "new"}, {"hq": "town"},
)  # fmt: skip
RESULTS = EventType(
    "results", "business", ("companies", "results"), sections(text.RESULTS),
    {"revenue": frozenset(("company", "quarter", "revenue")), "profit": frozenset(("company", "quarter", "profit"))},
    ("revenue", "profit"), {"revenue": "revenue", "profit": "profit"}, {"revenue": "revenue", "profit": "profit"},
)  # fmt: skip
MERGER = EventType(
    "merger", "business", ("companies", "deals"), sections(text.MERGER),
    {"owner": frozenset(("company", "target")), "deal_price": frozenset(("company", "target", "price"))},
    ("owner", "deal_price"), {"deal_price": "price"}, {"deal_price": "price"},
)  # fmt: skip
LAWSUIT = EventType(
    "lawsuit", "business", ("companies", "courts"), sections(text.LAWSUIT),
    {"claim": frozenset(("company", "plaintiff", "amount")),
     "suit": frozenset(("company", "plaintiff", "matter"))},
    ("claim", "suit"), {"claim": "amount"}, {"claim": "sum"},
)  # fmt: skip
STAFF = EventType(
    "staff", "business", ("companies", "jobs"), sections(text.STAFF),
    {"staff": frozenset(("company", "new")), "staff_before": frozenset(("company", "new", "old"))},
    ("staff", "staff_before"), {"staff": "new"}, {"staff": "number"},
)  # fmt: skip
RUMOUR = EventType(
    "rumour", "business", ("companies", "deals"), sections(text.RUMOUR),
    {"talks": frozenset(("company", "target", "price"))}, ("talks",),
)  # fmt: skip


def company_slots(world: World, company: Entity, time: int) -> dict[str, Value | str]:
    """Slots that every article about a company may use."""
    return {
        "company": company.name, "trade": company.data["trade"], "country": company.data["country"].name,
        "ceo": company.state["ceo"].value, "founded": str(company.data["founded"]), **world.date_slots(time),
    }  # fmt: skip


def seat(world: World, company: Entity) -> Entity:
    """The town of the company's headquarters."""
    return world.by_name[company.state["hq"].value.accepted[0]]


def _event(world: World, kind: EventType, company: Entity, time: int, facts: dict[str, Fact], *others: Entity,
           town: Entity | None = None, **slots: Value | str) -> Event:  # fmt: skip
    town = town or seat(world, company)
    return Event(kind, time, company, others, town, {**company_slots(world, company, time), "town": town.name, **slots},
                 facts)  # fmt: skip


def ceo(world: World, time: int) -> Event | None:
    """A company changes its chief executive."""
    company = world.rng.pick(world.companies)
    if not world.may_change(company, "ceo", time):
        return None
    old, new = company.state["ceo"].value, world.newcomer()
    now, before = world.change(company, "ceo", new, time)
    return _event(world, CEO, company, time, {"ceo": now, "ceo_before": before}, new=new, old=old,
                  oldjob=world.rng.pick(JOBS), years=str(world.rng.between(2, 14)))  # fmt: skip


def hq(world: World, time: int) -> Event | None:
    """A company moves its headquarters."""
    company, town = world.rng.pick(world.companies), world.rng.pick(world.towns)
    old = company.state["hq"].value
    if not world.may_change(company, "hq", time) or old is town.name:
        return None
    now, before = world.change(company, "hq", town.name, time)
    return _event(world, HQ, company, time, {"hq": now, "hq_before": before}, town, new=town.name, old=old)


def results(world: World, time: int) -> Event | None:
    """A company reports the quarter before; each quarter once."""
    day = day_of(time)
    number, year = ((day.month - 1) // 3, day.year) if day.month > 3 else (4, day.year - 1)
    quarter = f"the {('first', 'second', 'third', 'fourth')[number - 1]} quarter of {year}"
    company = world.rng.pick(world.companies)
    if company.data.get("reported") == quarter:
        return None
    company.data["reported"] = quarter
    change = world.rng.bell(-1_200, 1_600)
    company.data["revenue"] = max(300, company.data["revenue"] * (10_000 + change) // 10_000)
    unit = company.data["country"].data["currency"]
    revenue = money(company.data["revenue"], unit)
    profit = money(max(5, company.data["revenue"] * world.rng.between(3, 17) // 100), unit)
    subject = company.name.accepted[0]
    facts = {
        "revenue": Fact("dated", "revenue", subject, revenue, time, quarter, quarter=quarter),
        "profit": Fact("dated", "profit", subject, profit, time, quarter, quarter=quarter),
    }
    up = change >= 0
    return _event(world, RESULTS, company, time, facts, revenue=revenue, profit=profit, quarter=quarter,
                  pct=percent(max(7, abs(change))), rose="rose" if up else "fell", rise="up" if up else "down",
                  factor=world.rng.pick(FACTORS), factor2=world.rng.pick(BRAKES))  # fmt: skip


def merger(world: World, time: int) -> Event | None:
    """One company buys another; a company is bought once in ten years at most."""
    company, target = world.rng.sample(world.companies, 2)
    if target.data["owned"] and time - target.data["owned"] < 3_650 * DAY_S:
        return None
    if company.data["owned"]:
        return None
    if sum(bool(c.data["owned"]) for c in world.companies) >= 24 and not target.data["owned"]:
        return None
    target.data["owned"] = time
    owner = world.set(target, "owner", company.name, time)
    price = money(world.rng.between(400, 80_000), company.data["country"].data["currency"])
    subject = target.name.accepted[0]
    paid = Fact("dated", "deal_price", subject, price, time, company.name.accepted[0],
                buyer=company.name.accepted[0])  # fmt: skip
    return _event(world, MERGER, company, time, {"owner": owner, "deal_price": paid}, target, target=target.name,
                  targettrade=target.data["trade"], price=price)  # fmt: skip


def lawsuit(world: World, time: int) -> Event | None:
    """One company sues another; the same pair does not meet again within two years."""
    company, plaintiff = world.rng.sample(world.companies, 2)
    subject, other = company.name.accepted[0], plaintiff.name.accepted[0]
    suits = company.data.setdefault("suits", {})
    if time - suits.get(other, -(10**12)) < 730 * DAY_S:
        return None
    suits[other] = time
    town = world.rng.pick(company.data["country"].data["towns"])
    amount = money(world.rng.between(20, 9_000), company.data["country"].data["currency"])
    matter = plain(world.rng.pick(MATTERS))
    day = long_date(day_of(time))
    facts = {
        "claim": Fact("dated", "claim", subject, amount, time, f"{other} {day}", plaintiff=other, date=day),
        "suit": Fact("dated", "suit", subject, matter, time, f"{other} {day}", plaintiff=other, date=day),
    }
    return _event(world, LAWSUIT, company, time, facts, plaintiff, town=town, plaintiff=plaintiff.name,
                  amount=amount, matter=matter, court=town.name)  # fmt: skip


def staff(world: World, time: int) -> Event | None:
    """A company reports another number of employees."""
    company = world.rng.pick(world.companies)
    if not world.may_change(company, "staff", time):
        return None
    old = company.state["staff"].value
    new = count(
        max(200, old.raw * world.rng.between(82, 118) // 100 // 10 * 10 + 10 * world.rng.between(1, 9))
    )
    if new.raw == old.raw:
        return None
    now, before = world.change(company, "staff", new, time)
    return _event(
        world,
        STAFF,
        company,
        time,
        {"staff": now, "staff_before": before},
        new=new,
        old=old,
        staff_plan=world.rng.pick(
            ("to cut", "trims", "sheds") if new.raw < old.raw else ("to add", "adds", "creates")
        ),
    )


def rumour(world: World, time: int) -> Event | None:
    """Talk of a takeover that comes to nothing; most such stories are withdrawn."""
    company, target = world.rng.sample(world.companies, 2)
    rumours = company.data.setdefault("rumours", [])
    if rumours and time - rumours[-1] < 30 * DAY_S:
        return None
    company.data["rumours"] = [time]
    price = money(world.rng.between(400, 80_000), company.data["country"].data["currency"])
    day = long_date(day_of(time))
    talks = Fact("dated", "talks", company.name.accepted[0], target.name, time, day, date=day)
    event = _event(world, RUMOUR, company, time, {"talks": talks}, target, target=target.name, price=price)
    event.withdrawn = world.rng.chance(0.8)
    return event
