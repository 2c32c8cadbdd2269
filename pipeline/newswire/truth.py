"""What was told, where, from when until when: the ground on which questions are asked and judged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.newswire.facts import Fact
from pipeline.newswire.simulate import NewsEvent

FOREVER = 1 << 62


@dataclass(slots=True, eq=False)
class Telling:
    """A sentence of one form of an article that tells a fact, live from `start` until before `end`."""

    article: str
    stream: str
    sentence: str
    start: int
    end: int
    false: bool


@dataclass(slots=True, eq=False)
class Known:
    """A fact and all its tellings, in order of publication."""

    fact: Fact
    tellings: list[Telling]
    wrong: str = ""

    def live(self, asked: int) -> list[Telling]:
        """The true tellings that a reader finds at a time."""
        return [t for t in self.tellings if t.start <= asked < t.end and not t.false]

    def doubtful(self, asked: int) -> bool:
        """Whether a false form stands at that time."""
        return any(t.false and t.start <= asked < t.end for t in self.tellings)


class Truth:
    """Gathers the tellings of a stream of news. Memory grows with the number of told facts."""

    def __init__(self) -> None:
        self.known: dict[str, Known] = {}
        self.by_key: dict[str, list[Known]] = {}
        self.corrected: list[tuple[Known, str, int]] = []  # fact, article, time of the correction
        self.rumours: list[tuple[Known, int]] = []  # facts of withdrawn articles, time of withdrawal
        self.copies: list[tuple[str, str]] = []
        self.first = self.last = 0
        self._open: dict[str, list[Telling]] = {}
        self._stories: dict[str, list[Known]] = {}

    def add(self, event: NewsEvent) -> None:
        """Take the next record of the stream."""
        self.first = self.first or event.time
        self.last = event.time
        article = event.record["id"]
        if event.kind != "article":
            for telling in self._open.pop(article, ()):
                telling.end = event.time
        if event.kind == "withdrawal":
            self.rumours += [(known, event.time) for known in self._stories.pop(article, ())]
            return
        if event.copy_of:
            self.copies.append((article, event.copy_of))
        told = self._open.setdefault(article, [])
        for sentence in event.sentences:
            for fact in sentence.facts:
                # whatever a first form says with the wrong value in the sentence is not to be relied on
                false = event.kind == "article" and event.wrong_slot in sentence.slots
                known = self.known.get(fact.id)
                if known is None:
                    known = self.known[fact.id] = Known(fact, [])
                    self.by_key.setdefault(fact.key, []).append(known)
                telling = Telling(article, event.record["stream"], sentence.text, event.time, FOREVER, false)
                known.tellings.append(telling)
                told.append(telling)
                if fact is event.false_fact:
                    known.wrong = event.wrong
                if fact.attr == "talks":
                    self._stories.setdefault(article, []).append(known)
        if event.kind == "correction" and event.false_fact is not None and event.false_fact.id in self.known:
            self.corrected.append((self.known[event.false_fact.id], article, event.time))

    def state(self, attr: str, subject: str, asked: int) -> Known | None:
        """What is so at a time, if the news has told it by then and nothing false about it stands."""
        known = self.by_key.get(f"{attr}|{subject}|", ())
        current = [k for k in known if k.fact.since <= asked]
        if not current or any(k.doubtful(asked) for k in known):
            return None
        newest = max(current, key=lambda k: k.fact.since)
        return newest if newest.live(asked) else None


def gather(events: Iterable[NewsEvent]) -> Truth:
    """The truth of a whole stream."""
    truth = Truth()
    for event in events:
        truth.add(event)
    return truth
