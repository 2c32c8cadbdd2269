"""Needles told and asked in words of ordinary text, for training only: no form that could be learned by heart.

A frame is a few words of some sentence; owner, noun and secret are put between them at random. What is left to go
by is what every wording has in common: the secret that stands beside this owner is the answer. Frames never hold
three words in a row of a held-out form of `needle_words`, nor a held-out kind (a test compares them).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence

from pipeline.tasks.needle_composition import BASES, WORD_BASES, ComposedGrammar
from pipeline.tasks.needle_grammar import Needle, Split
from pipeline.tasks.needle_words import KINDS_OF_DIGITS, KINDS_OF_WORDS, QUESTIONS, SENTENCES

LONGEST_FRAME = 12
NOUNS = ("{noun}", "the {noun}", "its {noun}", "a {noun}", "their {noun}", "\"{noun}\"", "({noun})", "my {noun}",
         "{noun}:", "the {noun},", "his {noun}", "her {noun}", "this {noun}", "{noun} -")  # fmt: skip
VALUES = ("{value}", "{value}", "{value}", "{value},", "\"{value}\"", "({value})", "= {value}", ": {value}",
          "is {value}", "was {value};", "- {value} -")  # fmt: skip
OWNERS = ("{name}", "{name}", "{name}", "{name},", "of {name}", "for {name}", "{name}'s", "({name})", "{name}:",
          "with {name}", "to {name}", "by {name},")  # fmt: skip
ENDS = (".", ".", ".", "!", ";", "...", '."', "")
ASK_ENDS = ("?", "?", "?", ".", ":", '?"', "", " Answer:", "? It is")


def held_out_runs() -> frozenset[tuple[str, ...]]:
    """Every three words in a row of the held-out forms, owners, nouns and secrets left out."""
    runs = set()
    for table in (SENTENCES, QUESTIONS):
        for pair in table["held_out"]:
            for literal in (part for form in pair for part in re.split(r"\{\w+\}", form)):
                words = plain_words(literal)
                runs |= {tuple(words[at : at + 3]) for at in range(len(words) - 2)}
    return frozenset(runs)


def plain_words(text: str) -> list[str]:
    """Lower-case words without marks."""
    return re.findall(r"[a-z]+", text.lower())


def frames_of(texts: Iterable[str]) -> Iterator[str]:
    """Frames in `texts`: runs of 3 to 12 words inside sentences, without digits, and nothing that is held out."""
    runs = held_out_runs()
    kinds = {*KINDS_OF_DIGITS["held_out"], *KINDS_OF_WORDS["held_out"]}
    for text in texts:
        for sentence in re.split(r"(?<=[.!?;:])\s+|\n+", text):
            words = sentence.split()
            for start in range(0, len(words), LONGEST_FRAME):
                part = words[start : start + LONGEST_FRAME]
                frame = " ".join(part)
                if len(part) < 3 or not re.fullmatch(r"[A-Za-z ,.;:'\"?!-]+", frame):
                    continue
                plain = plain_words(frame)
                if any(tuple(plain[at : at + 3]) in runs for at in range(len(plain) - 2)):
                    continue
                if not any(kind.lower() in frame.lower() for kind in kinds):
                    yield frame.rstrip(".,;:?!\"'- ")


class FramedGrammar(ComposedGrammar):
    """The composed grammar; a `share` of the sentences told and, apart from them, of questions stand in frames.

    `composed` is the share of composed wordings among the others. Other splits than training are as they were.
    """

    def __init__(self, frames: Sequence[str], share: float = 0.5, composed: float = 0.75) -> None:
        super().__init__(composed)
        if len(frames) < 2:
            raise ValueError(
                f"frames: given {len(frames)}; allowed: 2 or more (pipeline.tasks.needle_frames)"
            )
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share: given {share}; allowed: 0 to 1")
        self._frames, self._share = tuple(frames), share

    def sample(
        self,
        rng: random.Random,
        split: Split = "train",
        digits: int | None = 5,
        kind: str | None = None,
        named: bool = True,
    ) -> Needle:
        """As NeedleGrammar.sample."""
        needle = super().sample(rng, split, digits, kind, named)
        if split != "train":
            return needle
        told, asked = needle.sentence, needle.question
        parts = {"noun": needle.kind, "name": needle.name, "value": needle.answer}
        if rng.random() < self._share:
            told = self._told(rng, parts)
        if rng.random() < self._share:
            asked = self._asked(rng, parts)
        framed = Needle(told, asked, needle.answer, needle.kind, needle.form, needle.name)
        # a secret of words may stand in a frame by chance
        return framed if told.count(needle.answer) == 1 and needle.answer not in asked else needle

    def _kind(self, rng: random.Random, words: bool) -> str:
        """Now and then a noun that no list holds: a word of the text before a base."""
        if rng.random() < 0.7:
            return super()._kind(rng, words)
        found = [word for word in plain_words(rng.choice(self._frames)) if 4 <= len(word) <= 10]
        base = rng.choice(WORD_BASES if words else BASES)
        noun = f"{rng.choice(found)} {base}" if found else base
        held = {*KINDS_OF_DIGITS["held_out"], *KINDS_OF_WORDS["held_out"]}
        return base if any(kind.lower() in noun.lower() for kind in held) else noun

    def _told(self, rng: random.Random, parts: dict[str, str]) -> str:
        items = [rng.choice(NOUNS), rng.choice(VALUES)] + ([rng.choice(OWNERS)] if parts["name"] else [])
        text = self._mixed(rng, items, rng.randint(2, LONGEST_FRAME), parts)
        return text + rng.choice(ENDS)

    def _asked(self, rng: random.Random, parts: dict[str, str]) -> str:
        items = [rng.choice(NOUNS)] + ([rng.choice(OWNERS)] if parts["name"] else [])
        text = self._mixed(rng, items, rng.randint(0, LONGEST_FRAME), parts)
        return text.rstrip(",:;- ") + rng.choice(ASK_ENDS)

    def _mixed(self, rng: random.Random, items: list[str], count: int, parts: dict[str, str]) -> str:
        """At most `count` words of a frame, the items between them in any order."""
        words = rng.choice(self._frames).split(" ")[:count]
        rng.shuffle(items)
        places = sorted(rng.randint(0, len(words)) for _ in items)
        for place, item in reversed(list(zip(places, items, strict=True))):
            words.insert(place, item.format(**parts))
        text = " ".join(word for word in words if word)
        # as in compose: a capital in front, but a secret stays as it is spelt
        return text if text.startswith(parts["value"]) else text[0].upper() + text[1:]
