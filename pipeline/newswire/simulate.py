"""Runs the world day by day and writes its news in order of publication, in constant memory.

A day has its quota of articles (50,000 in a year, weekends thinner). Events are drawn until their planned
articles fill it; each waits in one heap until its time, and is written with the state of the world at that
moment, so no article knows the future.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

from pipeline.newswire import markup
from pipeline.newswire.compose import Draft, Sentence, Writer
from pipeline.newswire.desks import PLANNERS, Planner, daily, noise
from pipeline.newswire.facts import Event, Fact
from pipeline.newswire.falsify import falsify, swap
from pipeline.newswire.houses import HOUSES, House
from pipeline.newswire.rng import Rng
from pipeline.newswire.values import DAY_S, day_of, iso, start_of
from pipeline.newswire.world import World

ARTICLES_A_YEAR = 50_000
LAST_YEAR = 2025
_WEEKDAY_SHARES = (8, 8, 8, 8, 8, 5, 5)
"""How fifty articles fall on the days of a week, Monday first."""
_TELLINGS = ((1, 46), (2, 31), (3, 16), (4, 7))
_LENGTHS = (((85, 130), 28), ((140, 250), 47), ((250, 420), 20), ((420, 750), 5))
_HOUSE_SHARES = tuple((house, house.share) for house in HOUSES)


class NewsEvent(NamedTuple):
    """One record of the stream: `time` in seconds since the epoch; `kind` article, update, correction,
    withdrawal or copy; the JSON object; and what its sentences tell (the truth, no part of the record)."""

    time: int
    kind: str
    record: dict[str, Any]
    sentences: tuple[Sentence, ...] = ()
    false_fact: Fact | None = None
    wrong: str = ""
    wrong_slot: str = ""
    event: str = ""
    copy_of: str = ""


@dataclass(slots=True)
class _Story:
    """An article that later forms or copies will need again."""

    id: str
    house: House
    event: Event
    draft: Draft
    published: int
    byline: str


def first_day(num_articles: int) -> date:
    """The default start: the years needed end with 2025, so that no article lies in the future."""
    years = -(-max(1, num_articles) // ARTICLES_A_YEAR)
    return date(max(1, LAST_YEAR + 1 - years), 1, 1)


class Simulation:
    """The news of one world from `start` on, without end."""

    def __init__(self, seed: int, start: date) -> None:
        self.seed, self.start = seed, start_of(start)
        self.world = World(seed, self.start)
        self.writer = Writer(self.world)
        self.rng = Rng(seed, "schedule")
        self._heap: list[tuple[int, int, Callable[[int], Iterator[NewsEvent]]]] = []
        self._serial = self._events = self._numbers = self._shares = self._planned = 0

    def run(self) -> Iterator[NewsEvent]:
        """Every record in order of publication."""
        day = 0
        while True:
            begin = self.start + day * DAY_S
            self._plan_day(begin)
            while self._heap and self._heap[0][0] < begin + DAY_S:
                time, _, act = heapq.heappop(self._heap)
                yield from act(time)
            day += 1

    def _at(self, time: int, act: Callable[[int], Iterator[NewsEvent]]) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (time, self._serial, act))

    def _plan_day(self, begin: int) -> None:
        rng = self.rng
        # exact over any number of days: a year has 365/7 weeks of 50 shares
        self._shares += _WEEKDAY_SHARES[day_of(begin).weekday()]
        due = ARTICLES_A_YEAR * 7 * self._shares // (365 * 50)
        quota, self._planned = due - self._planned, due
        for time, planner in daily(self.world, begin):
            if quota > 0:
                quota -= self._expect(time, (planner,), min(quota, rng.weighted(_TELLINGS)))
        while quota > 0:
            time = begin + 5 * 3_600 + rng.bell(0, 15 * 3_600)
            planners = () if rng.chance(0.09) else tuple(rng.weighted(PLANNERS) for _ in range(4))
            quota -= self._expect(time, planners, min(quota, rng.weighted(_TELLINGS)) if planners else 1)

    def _expect(self, time: int, planners: tuple[Planner, ...], tellings: int) -> int:
        self._at(time, lambda now: self._happen(now, planners, tellings))
        return tellings

    def _happen(self, time: int, planners: tuple[Planner, ...], tellings: int) -> Iterator[NewsEvent]:
        event = None
        for planner in planners:
            event = planner(self.world, time)
            if event is not None:
                break
        if event is None:
            event = noise(self.world, time)
        self._events += 1
        name, rng = f"e{self._events:07d}", self.rng
        if event.withdrawn:
            self._planned -= tellings - 1  # only one house has it; other news fills the next day
            tellings = 1
        house = rng.weighted(_HOUSE_SHARES)
        others = [other for other in HOUSES if other is not house]
        first = time + rng.between(240, 2_400)
        doubtful = not event.withdrawn and rng.chance(0.08)
        if doubtful:
            falsify(self.world, event, rng)
        copies: list[House] = []
        for _ in range(tellings - 1):
            if not others:
                break
            other = others.pop(rng.below(len(others)))
            if rng.chance(0.3) and not event.wrong:
                copies.append(other)
            else:
                self._at(first + rng.between(300, 8_400), self._telling(name, event, other))
        self._at(first, self._telling(name, event, house, lead=True, copies=tuple(copies)))
        return iter(())

    def _telling(
        self, name: str, event: Event, house: House, *, lead: bool = False, copies: tuple[House, ...] = ()
    ) -> Callable[[int], Iterator[NewsEvent]]:
        def publish(time: int) -> Iterator[NewsEvent]:
            number = self._number(house, time)
            rng = Rng(self.seed, "article", number)
            low, high = rng.weighted(_LENGTHS)
            false = bool(event.wrong) and lead
            values = {**event.slots, **event.wrong} if false else event.slots
            draft = self.writer.compose(event, house, rng, rng.between(low, high), values)
            first, last = self.world.names.stranger(rng)
            story = _Story(number, house, event, draft, time, f"{first} {last}")
            shown = draft
            if (
                lead
                and event.facts
                and not false
                and not event.withdrawn
                and len(draft.paragraphs) > 3
                and rng.chance(0.3)
            ):
                shown = markup.shortened(draft, 85)
                if len(shown.paragraphs) < len(draft.paragraphs):
                    self._at(time + rng.between(1_800, 60_000), lambda now: self._update(now, name, story))
            if false:
                self._at(time + rng.between(3_000, 90_000), lambda now: self._correct(now, name, story))
            elif event.withdrawn:
                self._at(time + rng.between(5_000, 130_000), lambda now: self._withdraw(now, name, story))
            elif not event.wrong and not event.tellable:
                self.writer.remember(event)
            for other in copies:
                self._at(time + rng.between(200, 4_000), self._copy(name, story, shown, other))
            text = markup.body(house, event, shown, time, story.byline)
            yield NewsEvent(
                time, "article", markup.record(number, house, event, shown.title, text, time), _flat(shown),
                event.facts[event.false_fact] if false else None,
                *(_mistake(event) if false else ("", "")), name,
            )  # fmt: skip

        return publish

    def _number(self, house: House, time: int) -> str:
        day = day_of(time)
        self._numbers += 1
        return f"{house.code}-{day.year:04d}{day.month:02d}{day.day:02d}-{self._numbers:07d}"

    def _update(self, time: int, name: str, story: _Story) -> Iterator[NewsEvent]:
        event, house = story.event, story.house
        draft = Draft(markup.update_title(house, story.draft.title), self._still_true(event, story.draft))
        text = markup.body(house, event, draft, time, story.byline, markup.update_note(self.rng))
        value = markup.record(story.id, house, event, draft.title, text, story.published, time)
        yield NewsEvent(time, "update", value, _flat(draft), event=name)

    def _still_true(self, event: Event, draft: Draft) -> list[list[Sentence]]:
        """The paragraphs without background that has changed since they were written."""
        own = {id(fact) for fact in event.facts.values()}
        kept = []
        for paragraph in draft.paragraphs:
            sentences = [s for s in paragraph if all(id(f) in own or self._current(f) for f in s.facts)]
            if sentences:
                kept.append(sentences)
        return kept

    def _current(self, fact: Fact) -> bool:
        return fact.kind != "state" or self.world.by_name[fact.subject].state.get(fact.attr) is fact

    def _correct(self, time: int, name: str, story: _Story) -> Iterator[NewsEvent]:
        event, house = story.event, story.house
        draft = swap(Draft(story.draft.title, self._still_true(event, story.draft)), event, house.register)
        note = markup.correction_note(event, house.register, self.rng)
        title = markup.corrected_title(house, draft.title)
        text = markup.body(house, event, draft, story.published, story.byline, note)
        self.writer.remember(event)
        value = markup.record(story.id, house, event, title, text, story.published, time)
        yield NewsEvent(
            time, "correction", value, _flat(draft), event.facts[event.false_fact],
            *_mistake(event), name,
        )  # fmt: skip

    def _withdraw(self, time: int, name: str, story: _Story) -> Iterator[NewsEvent]:
        value = {"id": story.id, "deleted": True, "stream": story.event.type.desk, "source": story.house.name,
                 "published": iso(story.published), "updated": iso(time)}  # fmt: skip
        yield NewsEvent(time, "withdrawal", value, event=name)

    def _copy(
        self, name: str, story: _Story, draft: Draft, house: House
    ) -> Callable[[int], Iterator[NewsEvent]]:
        def publish(time: int) -> Iterator[NewsEvent]:
            number = self._number(house, time)
            kept = Draft(draft.title, self._still_true(story.event, draft))
            note = f"With material from {story.house.name}."
            text = markup.body(house, story.event, kept, time, story.byline, note)
            value = markup.record(number, house, story.event, draft.title, text, time)
            yield NewsEvent(time, "copy", value, _flat(kept), event=name, copy_of=story.id)

        return publish


def _mistake(event: Event) -> tuple[str, str]:
    slot, value = next(iter(event.wrong.items()))
    return value.accepted[0], slot


def _flat(draft: Draft) -> tuple[Sentence, ...]:
    return tuple(sentence for paragraph in draft.paragraphs for sentence in paragraph)


def generate(seed: int, num_articles: int, start: date | None = None) -> Iterator[NewsEvent]:
    """The first `num_articles` articles of a world (copies counted), with the updates, corrections and
    withdrawals published until the last of them. Raises ValueError for a negative number."""
    if num_articles < 0:
        raise ValueError(f"num_articles is {num_articles}; it must be 0 or more")
    written = 0
    if num_articles == 0:
        return
    for event in Simulation(seed, start or first_day(num_articles)).run():
        yield event
        if event.kind in ("article", "copy"):
            written += 1
            if written == num_articles:
                return
