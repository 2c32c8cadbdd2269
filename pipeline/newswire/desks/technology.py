"""Technology desk: products and breaches."""

from __future__ import annotations

from pipeline.newswire.desks.business import company_slots, seat
from pipeline.newswire.facts import Event, EventType, Fact
from pipeline.newswire.grammar import sections
from pipeline.newswire.text import technology as text
from pipeline.newswire.values import count, day_of, long_date, plain, price
from pipeline.newswire.world import World

LAUNCH = EventType(
    "launch", "technology", ("products", "companies"), sections(text.LAUNCH),
    {"product": frozenset(("company", "new")), "product_before": frozenset(("company", "new", "old")),
     "launch_price": frozenset(("company", "new", "price"))},
    ("product", "product_before", "launch_price"), {"launch_price": "price"}, {"launch_price": "price"},
)  # fmt: skip
BREACH = EventType(
    "breach", "technology", ("security", "companies"), sections(text.BREACH),
    {"breach": frozenset(("company", "accounts", "date"))}, ("breach",), {"breach": "accounts"},
    {"breach": "number of accounts"},
)  # fmt: skip


def launch(world: World, time: int) -> Event | None:
    """A company launches a product."""
    company = world.rng.pick(world.companies)
    if not world.may_change(company, "product", time):
        return None
    old, new = company.state["product"].value, plain(f"{company.name.short} {world.names.product()}")
    now, before = world.change(company, "product", new, time)
    cost = price(
        world.rng.between(19, 899) * 100 + world.rng.pick((0, 50, 90, 95)),
        company.data["country"].data["currency"],
    )
    tag = Fact(
        "dated",
        "launch_price",
        company.name.accepted[0],
        cost,
        time,
        new.accepted[0],
        product=new.accepted[0],
    )
    town = seat(world, company)
    slots = {**company_slots(world, company, time), "town": town.name, "new": new, "old": old, "price": cost,
             "noun": company.data["noun"]}  # fmt: skip
    return Event(
        LAUNCH,
        time,
        company,
        (),
        town,
        slots,
        {"product": now, "product_before": before, "launch_price": tag},
    )


def breach(world: World, time: int) -> Event | None:
    """A break-in becomes public; one a day and company."""
    company, date = world.rng.pick(world.companies), long_date(day_of(time))
    if company.data.get("breached") == date:
        return None
    company.data["breached"] = date
    accounts = count(world.rng.between(1_200, 990_000))
    fact = Fact("dated", "breach", company.name.accepted[0], accounts, time, date, date=date)
    town = seat(world, company)
    slots = {**company_slots(world, company, time), "town": town.name, "accounts": accounts}
    return Event(BREACH, time, company, (), town, slots, {"breach": fact})
