"""The small world: countries, towns, companies, teams, institutes and people, and its state on any day."""

from __future__ import annotations

from pipeline.newswire.facts import Entity, Fact
from pipeline.newswire.names import Names
from pipeline.newswire.rng import Rng
from pipeline.newswire.values import DAY_S, Value, count, day_of, day_value, long_date, percent, person, plain

SECTORS: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("software", ("Systems", "Digital", "Software"), "software maker", "app"),
    ("devices", ("Devices", "Instruments", "Electronics"), "electronics maker", "handset"),
    ("foods", ("Foods", "Mills", "Provisions"), "food producer", "range"),
    ("energy", ("Energy", "Power", "Renewables"), "energy company", "home battery"),
    ("shipping", ("Lines", "Freight", "Shipping"), "shipping line", "booking service"),
    ("health", ("Health", "Biologics", "Pharma"), "drug maker", "test kit"),
    ("retail", ("Stores", "Retail", "Outfitters"), "retailer", "store card"),
    ("mobility", ("Motors", "Mobility", "Rail"), "vehicle maker", "van"),
    ("finance", ("Bank", "Capital", "Mutual"), "lender", "savings plan"),
    ("materials", ("Steel", "Chemicals", "Timber"), "materials group", "composite"),
)
CURRENCIES = ("crowns", "talers", "marks", "ducats", "florins")
PORTFOLIOS = ("finance", "health", "transport", "energy", "education")
FIELDS = (
    "Oceanography",
    "Geology",
    "Astronomy",
    "Botany",
    "Materials",
    "Climate Studies",
    "Medicine",
    "Acoustics",
)
NICKNAMES = ("Rovers", "United", "Athletic", "Wanderers", "Harriers", "Albion", "Rangers", "Swifts")
LEAGUES = ("Alder League", "Beacon League")
GAP_S = 4 * DAY_S
"""A state does not change twice within four days: every report of a change is out before the next."""


class World:
    """All entities of a seed, and the changes of their state in time. The same seed makes the same world."""

    def __init__(self, seed: int, start: int = 1_735_689_600) -> None:
        self.seed, self.start, self.now = seed, start, start
        self.names = Names(seed)
        self.rng = Rng(seed, "world")
        self.countries: list[Entity] = []
        self.towns: list[Entity] = []
        self.companies: list[Entity] = []
        self.teams: list[Entity] = []
        self.institutes: list[Entity] = []
        self.people: list[Entity] = []  # scientists (employer) and players (team)
        self._found_countries()
        self._found_companies()
        self._found_teams()
        self._found_institutes()
        self.notable = [
            *self.companies,
            *self.towns,
            *self.teams,
            *self.countries,
            *self.institutes,
            *self.people,
        ]
        self.by_name = {e.name.accepted[0]: e for e in self.notable}

    def newcomer(self) -> Value:
        """A person who holds no post yet."""
        return person(self.names.first(self.rng), self.names.last())

    def set(self, entity: Entity, attr: str, value: Value, since: int) -> Fact:
        """The entity's state from `since` on."""
        fact = Fact("state", attr, entity.name.accepted[0], value, since)
        entity.state[attr] = fact
        entity.changed[attr] = since
        return fact

    def may_change(self, entity: Entity, attr: str, time: int) -> bool:
        """Whether the last change of this state is long enough ago."""
        return time - entity.changed[attr] >= GAP_S

    def change(self, entity: Entity, attr: str, value: Value, time: int) -> tuple[Fact, Fact]:
        """The new state, and the fact of what it replaced."""
        old = entity.state[attr]
        before = Fact(
            "before", f"{attr}_before", old.subject, old.value, time, long_date(day_of(time)),
            new=value.accepted[0], date=long_date(day_of(time)), old_since=str(old.since),
        )  # fmt: skip
        return self.set(entity, attr, value, time), before

    def date_slots(self, time: int) -> dict[str, Value | str]:
        """Slots that name the day of an event."""
        day = day_of(time)
        weekday = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")[
            day.weekday()
        ]
        return {"date": day_value(day), "day": weekday, "fulldate": long_date(day), "year": str(day.year)}

    def _long_ago(self) -> int:
        return self.start - self.rng.between(120, 2_000) * DAY_S

    def _found_countries(self) -> None:
        rng, year = self.rng, day_of(self.start).year
        for currency in CURRENCIES:
            name = self.names.land()
            land = Entity(
                "country", plain(name), adjective=name + "n", currency=currency, acts=0,
                bank=plain(f"Bank of {name}", f"the Bank of {name}", f"{name}n central bank"),
                house=plain(f"{name}n {rng.pick(('Assembly', 'Senate', 'Diet', 'Chamber'))}"),
                seats=rng.between(12, 30) * 10 + 1, towns=[],
            )  # fmt: skip
            self.countries.append(land)
            for index in range(16):
                town = Entity("town", plain(self.names.town()), country=land, climate=rng.between(-4, 5),
                              port=index % 3 == 0, census=year)  # fmt: skip
                self.set(town, "mayor", self.newcomer(), self._long_ago())
                self.set(town, "population", count(rng.between(38_000, 990_000)), self._long_ago())
                land.data["towns"].append(town)
                self.towns.append(town)
            self.set(land, "rate", percent(rng.between(6, 26) * 25), self._long_ago())
            self.set(land, "governor", self.newcomer(), self._long_ago())
            for portfolio in PORTFOLIOS:
                self.set(land, f"{portfolio}_minister", self.newcomer(), self._long_ago())

    def _found_companies(self) -> None:
        rng = self.rng
        for index in range(96):
            key, suffixes, trade, noun = SECTORS[index % len(SECTORS)]
            root = self.names.root()
            home = self.towns[rng.below(len(self.towns))]
            company = Entity(
                "company", plain(f"{root} {rng.pick(suffixes)}", root, short=root), sector=key, trade=trade,
                noun=noun, country=home.data["country"], cents=rng.between(900, 42_000),
                revenue=rng.between(900, 90_000),
                founded=day_of(self.start).year - rng.between(6, 90), owned=False,
            )  # fmt: skip
            self.set(company, "ceo", self.newcomer(), self._long_ago())
            self.set(company, "hq", home.name, self._long_ago())
            self.set(company, "product", plain(f"{root} {self.names.product()}"), self._long_ago())
            self.set(company, "staff", count(rng.between(12, 900) * 50), self._long_ago())
            self.companies.append(company)

    def _found_teams(self) -> None:
        rng = self.rng
        sponsors = rng.sample(self.companies, 32)
        for index, town in enumerate(rng.sample(self.towns, 32)):
            name = f"{town.name.accepted[0]} {NICKNAMES[rng.below(len(NICKNAMES))]}"
            team = Entity("team", plain(name), town=town, league=LEAGUES[index % 2],
                          skill=rng.between(20, 80), points=0, played=0, goals=0, conceded=0, wins=0)  # fmt: skip
            self.set(team, "coach", self.newcomer(), self._long_ago())
            self.set(team, "sponsor", sponsors[index].name, self._long_ago())
            self.teams.append(team)
            for _ in range(3):
                self._person("player", "team", team)

    def _found_institutes(self) -> None:
        rng = self.rng
        for index in range(16):
            site = rng.pick(self.towns)
            field = FIELDS[index % len(FIELDS)]
            root = self.names.root()
            short = f"{root} Institute"
            name = plain(f"{short} of {field}", short, short=short)
            institute = Entity("institute", name, field=field.lower(), town=site)
            self.set(institute, "director", self.newcomer(), self._long_ago())
            self.set(institute, "site", site.name, self._long_ago())
            self.institutes.append(institute)
            for _ in range(3):
                self._person("scientist", "employer", institute)

    def _person(self, kind: str, attr: str, place: Entity) -> None:
        someone = Entity(kind, self.newcomer(), skill=self.rng.between(20, 80))
        self.set(someone, attr, place.name, self._long_ago())
        self.people.append(someone)
