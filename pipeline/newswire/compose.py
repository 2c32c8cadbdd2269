"""Writes one article: chooses forms in the order of a house, and records which facts each sentence tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.newswire.facts import Entity, Event, Fact
from pipeline.newswire.grammar import Form
from pipeline.newswire.houses import House
from pipeline.newswire.names import Names
from pipeline.newswire.rng import Rng
from pipeline.newswire.text.common import COLOUR, FIRMS, LINKS, ORGS_A, ORGS_B, STATE
from pipeline.newswire.values import count, number_words
from pipeline.newswire.world import World


class Sentence(NamedTuple):
    """A written sentence, the facts it tells, and the slots that were filled in it."""

    text: str
    facts: tuple[Fact, ...]
    slots: frozenset[str]


class Draft(NamedTuple):
    """An article before its markup: a title and paragraphs of sentences."""

    title: str
    paragraphs: list[list[Sentence]]


class Slots(dict[str, Any]):
    """The slots of an event, and passers-by, firms and small numbers invented as forms ask for them."""

    def __init__(self, given: dict[str, Any], names: Names, rng: Rng) -> None:
        super().__init__(given)
        self.names, self.rng = names, rng

    def __missing__(self, name: str) -> Any:
        rng = self.rng
        if name.startswith("analyst"):
            first, last = self.names.stranger(rng)
            self[name] = f"{first} {last}"
            return self[name]
        if name == "org":
            return f"{rng.pick(ORGS_A)} {rng.pick(ORGS_B)}"
        if name == "firm":
            return f"{rng.pick(FIRMS)} {rng.pick(('&', 'and'))} {rng.pick(FIRMS)}"
        if name == "n":
            return number_words(rng.between(3, 9))
        if name == "n20":
            return str(rng.between(11, 98))
        if name == "hundreds":
            return count(rng.between(110, 990)).shown[0]
        raise KeyError(name)


class Writer:
    """Writes articles about the events of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.recent: list[Event] = []  # a ring of the last told events, for stories beside the story
        self._at = 0

    def remember(self, event: Event) -> None:
        """Make a told event available as background."""
        event.tellable = True
        for entity in (event.main, *event.others):
            if event not in entity.past:
                entity.past.append(event)
        if len(self.recent) < 400:
            self.recent.append(event)
        else:
            self.recent[self._at] = event
            self._at = (self._at + 1) % 400

    def compose(self, event: Event, house: House, rng: Rng, words: int, values: dict[str, Any]) -> Draft:
        """A draft of about `words` words. `values` are the event's slots, wrong ones included."""
        job = _Job(self, event, house, rng, values)
        title = job.title()
        for steps in rng.pick(house.opening):
            job.paragraph(steps)
        job.finish_core()
        for steps in house.rest * 2:
            if job.words >= words:
                break
            job.paragraph(steps)
        for _ in range(12):
            if job.words >= words:
                break
            job.roundup()
        return Draft(title, job.paragraphs)

    def state_fact(self, entity: Entity, rng: Rng) -> Fact | None:
        """Something that is so about an entity, if there is a form for it."""
        known = [fact for attr, fact in entity.state.items() if attr in STATE]
        return rng.pick(known) if known else None


_LOWERED = frozenset(("The", "A", "At", "In", "On", "For", "With", "Voters", "Citizens", "Over", "Since",
                      "Borrowing", "Lending", "Home", "Much", "Researcher", "Striker", "Midfielder", "Defender",
                      "Earlier,", "School", "Visitors", "Executives", "Managers", "Aides"))  # fmt: skip


class _Job:
    """One article in the making."""

    def __init__(self, writer: Writer, event: Event, house: House, rng: Rng, values: dict[str, Any]) -> None:
        self.writer, self.event, self.house, self.rng = writer, event, house, rng
        self.slots = Slots(values, writer.world.names, rng)
        if "ceo" in values and event.main.kind == "company" and "ceo" not in event.facts:
            self.slots["ceo"] = event.main.state["ceo"].value
        self.paragraphs: list[list[Sentence]] = []
        self.words = 0
        self.told: set[str] = set()
        self.used: set[Any] = set()

    def title(self) -> str:
        return self._write(self.rng.pick(self.event.type.sections["head"]), self.slots)

    def paragraph(self, steps: str) -> None:
        sentences: list[Sentence] = []
        for step in steps:
            sentence = self._step(step)
            if step == "B":
                while sentence is not None:
                    sentences.append(sentence)
                    sentence = self._step("B")
            elif sentence is not None:
                sentences.append(sentence)
        if sentences:
            self.paragraphs.append(sentences)
            self.words += sum(sentence.text.count(" ") + 1 for sentence in sentences)

    def roundup(self) -> None:
        """Two to five sentences about other stories, said to be so."""
        found = [s for _ in range(self.rng.between(2, 5)) if (s := self._elsewhere()) is not None]
        if not found:
            return
        first = found[0].text
        if first.split(" ", 1)[0] in _LOWERED:
            first = first[0].lower() + first[1:]
        link = self.rng.pick(LINKS)
        found[0] = Sentence(f"{link} {first}", found[0].facts, found[0].slots)
        self.paragraphs.append(found)
        self.words += sum(sentence.text.count(" ") + 1 for sentence in found)

    def finish_core(self) -> None:
        while (sentence := self._step("B")) is not None:
            self.paragraphs[-1].append(sentence)
            self.words += sentence.text.count(" ") + 1

    def _step(self, step: str) -> Sentence | None:
        sections = self.event.type.sections
        if step == "L":
            return self._own(self.rng.pick(sections["lede"]))
        if step == "B":
            return self._untold(sections["body"])
        if step == "D":
            return self._fresh(sections.get("detail", ()))
        if step == "Q":
            return self._fresh(sections.get("quote", ()))
        if step == "S":
            return self._state(self.event.main)
        if step == "P":
            return self._past(list(self.event.main.past))
        if step == "T":
            return self._state(self.rng.pick((*self.event.others, self.event.town)))
        if step == "C":
            return self._fresh(COLOUR[self.event.type.desk])
        raise AssertionError(f"unknown step {step}")

    def _elsewhere(self) -> Sentence | None:
        if self.rng.chance(0.6) and self.writer.recent:
            return self._past([self.rng.pick(self.writer.recent) for _ in range(2)])
        return self._state(self.rng.pick(self.writer.world.notable))

    def _write(self, form: Form, slots: Any) -> str:
        return form.render(slots, self.house.register, self.rng.random)

    def _own(self, form: Form) -> Sentence:
        told = self.event.type.told_by(form)
        self.told.update(told)
        facts = tuple(self.event.facts[name] for name in told if name in self.event.facts)
        self.used.add(form)
        return Sentence(self._write(form, self.slots), facts, form.named)

    def _untold(self, options: Sequence[Form]) -> Sentence | None:
        for name in self.event.type.core:
            if name not in self.told and name in self.event.facts:
                fitting = [form for form in options if name in self.event.type.told_by(form)]
                if not fitting:
                    raise AssertionError(f"no form of {self.event.type.name} tells {name}")
                return self._own(self.rng.pick(fitting))
        return None

    def _fresh(self, options: Sequence[Form]) -> Sentence | None:
        left = [form for form in options if form not in self.used]
        return self._own(self.rng.pick(left)) if left else None

    def _state(self, entity: Entity) -> Sentence | None:
        fact = self.writer.state_fact(entity, self.rng)
        if fact is None or fact.key in self.used or any(f.key == fact.key for f in self.event.facts.values()):
            return None
        self.used.add(fact.key)
        form = self.rng.pick(STATE[fact.attr])
        slots = Slots({"s": entity.name, "v": fact.value}, self.writer.world.names, self.rng)
        return Sentence(self._write(form, slots), (fact,), frozenset())

    def _past(self, events: list[Event]) -> Sentence | None:
        for event in reversed(events):
            if event is self.event or event in self.used or not may_recall(event):
                continue
            self.used.add(id(event))
            self.used.add(event)
            form = self.rng.pick(event.type.sections["recall"])
            slots = Slots(event.slots, self.writer.world.names, self.rng)
            facts = tuple(event.facts[name] for name in event.type.told_by(form) if name in event.facts)
            return Sentence(self._write(form, slots), facts, frozenset())
        return None


def may_recall(event: Event) -> bool:
    """Whether an older event can be retold: told truly, not withdrawn, and what it changed still holds."""
    if not event.tellable or event.withdrawn or "recall" not in event.type.sections:
        return False
    return all(fact.kind != "state" or holds(event, fact) for fact in event.facts.values())


def holds(event: Event, fact: Fact) -> bool:
    """Whether a state fact of an event is still the state of the world."""
    return any(entity.state.get(fact.attr) is fact for entity in (event.main, *event.others))
