"""Facts of the simulated world, the things they are about, and the events that change them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from pipeline.newswire.grammar import Form
from pipeline.newswire.values import Value


class Fact:
    """`attr` of `subject` is `value` since `since` (seconds since the epoch).

    kind `state`: holds until the next fact of the same key. `dated`: about one day or occasion, named by
    `params`. `before`: what a change replaced; `params` name the new value and the day of the change.
    """

    __slots__ = ("attr", "kind", "label", "params", "since", "subject", "value")

    def __init__(
        self, kind: str, attr: str, subject: str, value: Value, since: int, label: str = "", **params: str
    ) -> None:
        self.kind, self.attr, self.subject, self.value = kind, attr, subject, value
        self.since, self.label, self.params = since, label, params

    @property
    def key(self) -> str:
        """What the fact is about; facts of one key replace each other in time."""
        return f"{self.attr}|{self.subject}|{self.label}"

    @property
    def id(self) -> str:
        """Names this fact in the truth file."""
        return f"{self.attr}|{self.subject}|{self.label}|{self.since}"


class Entity:
    """A company, town, team, institution or country: a name, its state, and what lately happened to it."""

    __slots__ = ("changed", "data", "kind", "name", "past", "state")

    def __init__(self, kind: str, name: Value, **data: Any) -> None:
        self.kind, self.name, self.data = kind, name, data
        self.state: dict[str, Fact] = {}
        self.changed: dict[str, int] = {}
        self.past: deque[Event] = deque(maxlen=5)


@dataclass(slots=True, eq=False)
class Event:
    """Something that happened, ready to be told: slots for the forms, and the facts that they tell."""

    type: EventType
    time: int
    main: Entity
    others: tuple[Entity, ...]
    town: Entity
    slots: dict[str, Any]
    facts: dict[str, Fact]
    wrong: dict[str, Value] = field(default_factory=dict)  # slot -> the false value of the first form
    false_fact: str = ""
    tellable: bool = False  # a true form is out and nothing false about it stands
    withdrawn: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class EventType:
    """A kind of event: its desk, its forms by section, and which slots tell which fact."""

    name: str
    desk: str
    topics: tuple[str, ...]
    sections: dict[str, tuple[Form, ...]]
    tells: dict[str, frozenset[str]]
    core: tuple[str, ...]
    correctable: dict[str, str] = field(default_factory=dict)  # fact -> the slot that a first form gets wrong
    words: dict[str, str] = field(default_factory=dict)  # fact -> what a correction calls it
    _told: dict[Form, tuple[str, ...]] = field(default_factory=dict)

    def correctable_word(self, fact: str) -> str:
        """What a correction calls the thing that was wrong."""
        return self.words.get(fact, "figure")

    def told_by(self, form: Form) -> tuple[str, ...]:
        """The facts that every expansion of a form tells."""
        told = self._told.get(form)
        if told is None:
            told = tuple(fact for fact, needed in self.tells.items() if needed <= form.slots)
            self._told[form] = told
        return told
