"""Mistakes that first forms make and corrections mend: another figure, name or town of the same kind."""

from __future__ import annotations

from typing import Any

from pipeline.newswire.compose import Draft, Sentence
from pipeline.newswire.facts import Event
from pipeline.newswire.rng import Rng
from pipeline.newswire.values import Value
from pipeline.newswire.world import World


def falsify(world: World, event: Event, rng: Rng) -> None:
    """Give the event a wrong value for one of its facts, where its kind allows that."""
    options = [name for name in event.type.correctable if name in event.facts]
    if not options:
        return
    name = rng.pick(options)
    slot = event.type.correctable[name]
    right = event.slots[slot]
    others = [value for key, value in event.slots.items() if key != slot]
    for _ in range(8):
        wrong = _wrong(world, event, right, rng)
        if wrong is not None and not _confusable(wrong, right, others):
            event.wrong, event.false_fact = {slot: wrong}, name
            return


def swap(draft: Draft, event: Event, register: int) -> Draft:
    """The draft with the wrong value replaced by the right one, and nothing else."""
    slot, wrong = next(iter(event.wrong.items()))
    right = event.slots[slot]
    pairs = ((wrong.shown[register], right.shown[register]), (wrong.short, right.short))

    def mend(text: str) -> str:
        for old, new in pairs:
            text = text.replace(old, new)
        return text

    paragraphs = [
        [
            Sentence(mend(sentence.text), sentence.facts, sentence.slots)
            if slot in sentence.slots
            else sentence
            for sentence in paragraph
        ]
        for paragraph in draft.paragraphs
    ]
    return Draft(mend(draft.title), paragraphs)


def _wrong(world: World, event: Event, right: Value, rng: Rng) -> Value | None:
    if right.make is None:
        if right in [town.name for town in world.towns]:
            return rng.pick(world.towns).name
        return world.newcomer()
    raw: Any = right.raw
    if isinstance(raw, tuple):
        if event.type.name == "match":
            return right.make((raw[0] + rng.between(1, 2), raw[1]))
        step = rng.between(3, 19)
        return right.make((raw[0] + step, raw[1] - step)) if raw[1] > step else None
    if abs(raw) < 60:
        return right.make(raw + rng.pick((-3, -2, 2, 3, 4)))
    return right.make(raw * rng.pick((83, 88, 91, 109, 114, 121)) // 100)


def _confusable(wrong: Value, right: Value, others: list[Any]) -> bool:
    """Whether text replacement could touch something else, or a right answer would accept the wrong value."""
    if {form.lower() for form in wrong.accepted} & {form.lower() for form in right.accepted}:
        return True
    if any(a in b or b in a for a, b in zip(wrong.shown, right.shown, strict=True)):
        return True
    if wrong.short in right.short or right.short in wrong.short:
        return True
    texts = [
        text for value in others for text in (value.shown if isinstance(value, Value) else (str(value),))
    ]
    return any(wrong.short in text or right.short in text or text in wrong.shown for text in texts if text)
