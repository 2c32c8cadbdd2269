"""Sport desk: two leagues in double rounds, coaches, transfers, sponsors."""
# ruff: noqa: E501 - tables of words, a row a line

from __future__ import annotations

from pipeline.newswire.facts import Entity, Event, EventType, Fact
from pipeline.newswire.grammar import sections
from pipeline.newswire.text import sport as text
from pipeline.newswire.values import DAY_S, Value, day_of, long_date, money, plain, score, start_of
from pipeline.newswire.world import LEAGUES, World

WEATHER = ("light rain", "a cold wind", "warm dusk light", "drifting fog", "bright cold", "heavy air", "a thin drizzle",
           "low sun", "sleet", "still air")  # fmt: skip
_SCORE = {"score": "score"}
_TELLS_MATCH = {
    "score": frozenset(("winner", "loser", "score", "date")),
    "win": frozenset(("winner", "loser", "date")),
}

MATCH = EventType("match", "sport", ("football", "results"), sections(text.MATCH), _TELLS_MATCH, ("score", "win"),
                  _SCORE, _SCORE)  # fmt: skip
DRAW = EventType("draw", "sport", ("football", "results"), sections(text.DRAW),
                 {"score": frozenset(("home", "away", "score", "date"))}, ("score",))  # fmt: skip
COACH = EventType(
    "coach", "sport", ("football", "people"), sections(text.COACH),
    {"coach": frozenset(("team", "new")), "coach_before": frozenset(("team", "new", "old"))},
    ("coach", "coach_before"), {"coach": "new"}, {"coach": "name"},
)  # fmt: skip
TRANSFER = EventType(
    "transfer", "sport", ("football", "transfers"), sections(text.TRANSFER),
    {"team": frozenset(("player", "new")), "team_before": frozenset(("player", "new", "old")),
     "fee": frozenset(("player", "new", "fee"))},
    ("team", "team_before", "fee"), {"fee": "fee"}, {"fee": "fee"},
)  # fmt: skip
SPONSOR = EventType(
    "sponsor", "sport", ("football", "companies"), sections(text.SPONSOR),
    {"sponsor": frozenset(("team", "new")), "sponsor_before": frozenset(("team", "new", "old"))},
    ("sponsor", "sponsor_before"),
)  # fmt: skip


def _slots(world: World, town: Entity, time: int) -> dict[str, Value | str]:
    return {"town": town.name, **world.date_slots(time)}


def fixtures(world: World, begin: int) -> list[tuple[Entity, Entity]]:
    """The matches of the day that begins at `begin`: Wednesday and Saturday, or Thursday and Sunday."""
    day = day_of(begin)
    league = {2: 0, 5: 0, 3: 1, 6: 1}.get(day.weekday())
    if league is None:
        return []
    teams = [team for team in world.teams if team.data["league"] == LEAGUES[league]]
    days = (start_of(day) - world.start) // DAY_S
    turn = days // 7 * 2 + (1 if day.weekday() >= 5 else 0)
    season, turn = divmod(turn, 2 * (len(teams) - 1))
    if turn == 0 and days > 0:
        for team in teams:
            team.data.update(points=0, played=0)
    fixed, rest = teams[0], teams[1:]
    shift = (turn + season) % len(rest)
    order = [fixed, *rest[shift:], *rest[:shift]]
    pairs = [(order[i], order[-1 - i]) for i in range(len(order) // 2)]
    return [
        (b, a) if (turn >= len(rest)) ^ (i == 0 and turn % 2 == 1) else (a, b)
        for i, (a, b) in enumerate(pairs)
    ]


def match(world: World, time: int, home: Entity, away: Entity) -> Event:
    """A match of a league."""
    rng = world.rng
    lean = home.data["skill"] - away.data["skill"] + 12
    goals = [0, 0]
    for _ in range(6):
        if rng.chance(0.46):
            goals[0 if rng.below(100) < 50 + lean // 3 else 1] += 1
    for side, other, team in ((0, 1, home), (1, 0, away)):
        team.data["points"] += 3 if goals[side] > goals[other] else 1 if goals[side] == goals[other] else 0
    date = long_date(day_of(time))
    players = [p for p in world.people if p.kind == "player" and p.state["team"].value is home.name]
    scorer = rng.pick(players).name if players else plain(world.names.first(rng) + " " + "Kettersby")
    town = home.data["town"]
    slots: dict[str, Value | str] = {
        **_slots(world, town, time), "home": home.name, "away": away.name, "league": home.data["league"],
        "homecoach": home.state["coach"].value, "awaycoach": away.state["coach"].value, "weather": rng.pick(WEATHER),
        "homepoints": str(home.data["points"]), "awaypoints": str(away.data["points"]),
    }  # fmt: skip
    names = {"home": home.name.accepted[0], "away": away.name.accepted[0]}
    if goals[0] == goals[1]:
        result = score((goals[0], goals[1]))
        slots |= {"score": result, "scorer": scorer, "scorer2": _stranger(world)}
        fact = Fact(
            "dated",
            "score",
            names["home"],
            result,
            time,
            f"{names['away']} {date}",
            away=names["away"],
            date=date,
        )
        return Event(DRAW, time, home, (away,), town, slots, {"score": fact})
    winner, loser = (home, away) if goals[0] > goals[1] else (away, home)
    result = _winners_first(max(goals), min(goals))
    fact = Fact(
        "dated",
        "score",
        names["home"],
        result,
        time,
        f"{names['away']} {date}",
        away=names["away"],
        date=date,
    )
    win = Fact("dated", "win", winner.name.accepted[0], loser.name, time, date, date=date)
    if winner is away:
        scorer = plain(_stranger(world))
    slots |= {
        "winner": winner.name,
        "loser": loser.name,
        "score": result,
        "scorer": scorer,
        "scorer2": _stranger(world),
    }
    return Event(MATCH, time, home, (away,), town, slots, {"score": fact, "win": win})


def _winners_first(high: int, low: int) -> Value:
    value = score((high, low))
    other = score((low, high))
    return Value(value.shown, value.short, value.accepted + other.accepted, (high, low),
                 lambda raw: _winners_first(*raw))  # fmt: skip


def _stranger(world: World) -> str:
    first, last = world.names.stranger(world.rng)
    return f"{first} {last}"


def coach(world: World, time: int) -> Event | None:
    """A team changes its coach."""
    team = world.rng.pick(world.teams)
    if not world.may_change(team, "coach", time):
        return None
    old, new = team.state["coach"].value, world.newcomer()
    now, before = world.change(team, "coach", new, time)
    slots = {
        **_slots(world, team.data["town"], time),
        "team": team.name,
        "league": team.data["league"],
        "new": new,
        "old": old,
    }
    return Event(COACH, time, team, (), team.data["town"], slots, {"coach": now, "coach_before": before})


def transfer(world: World, time: int) -> Event | None:
    """A player moves to another team; not twice within three weeks."""
    player = world.rng.pick([p for p in world.people if p.kind == "player"])
    team = world.rng.pick(world.teams)
    old = player.state["team"].value
    if time - player.changed["team"] < 21 * DAY_S or team.name is old:
        return None
    now, before = world.change(player, "team", team.name, time)
    unit = team.data["town"].data["country"].data["currency"]
    fee = money(world.rng.between(3, 480), unit)
    name = player.name.accepted[0]
    paid = Fact("dated", "fee", name, fee, time, long_date(day_of(time)), new=team.name.accepted[0],
                date=long_date(day_of(time)))  # fmt: skip
    slots = {
        **_slots(world, team.data["town"], time),
        "player": player.name,
        "new": team.name,
        "old": old,
        "fee": fee,
    }
    return Event(TRANSFER, time, player, (team,), team.data["town"], slots,
                 {"team": now, "team_before": before, "fee": paid})  # fmt: skip


def sponsor(world: World, time: int) -> Event | None:
    """A team changes its shirt sponsor; no company sponsors two teams."""
    team, company = world.rng.pick(world.teams), world.rng.pick(world.companies)
    if not world.may_change(team, "sponsor", time) or any(
        t.state["sponsor"].value is company.name for t in world.teams
    ):
        return None
    old = team.state["sponsor"].value
    now, before = world.change(team, "sponsor", company.name, time)
    slots = {**_slots(world, team.data["town"], time), "team": team.name, "new": company.name, "old": old}
    return Event(
        SPONSOR, time, team, (company,), team.data["town"], slots, {"sponsor": now, "sponsor_before": before}
    )
