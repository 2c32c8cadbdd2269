"""Needles: a secret told in one sentence, and a question for it, in hundreds of wordings.

A wording is a kind of secret (what it is called), a form of sentence and a form of question. Kinds and forms
are split into trained and held-out ones, so that a test can ask whether a model has learned to find
secrets or only these words. The words stand in `needle_words`; the token-level generator of training and the file
writer of evaluation share this grammar.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from pipeline.tasks.needle_words import KINDS_OF_DIGITS, KINDS_OF_WORDS, NAMES, QUESTIONS, SENTENCES, WORDS

Split = Literal["train", "held_out", "held_out_kinds", "held_out_forms"]
SPLITS: dict[str, tuple[str, str]] = {
    "train": ("train", "train"),
    "held_out": ("held_out", "held_out"),
    "held_out_kinds": ("held_out", "train"),
    "held_out_forms": ("train", "held_out"),
}
"""Which part of the kinds and which of the forms a split draws from."""
MAX_DIGITS = 32
REAL = "real"
"""The kind of a needle that was made of a real question instead (pipeline.prepare.real_needles)."""


@dataclass(frozen=True, slots=True)
class Needle:
    """One secret: `answer` stands word for word in `sentence`; `form` is "s<sentence>/q<question>"."""

    sentence: str
    question: str
    answer: str
    kind: str
    form: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Form:
    """A sentence or a question with and without the owner's name, and its number over both parts."""

    number: int
    named: str
    unnamed: str


class NeedleGrammar:
    """Draws needles and their distractors; the same generator state gives the same needle."""

    def kinds(self, split: Split = "train", *, words: bool = False) -> tuple[str, ...]:
        """The kinds of a split: those of digits, or those of words."""
        return (KINDS_OF_WORDS if words else KINDS_OF_DIGITS)[_parts(split)[0]]

    def sentence_forms(self, split: Split = "train") -> tuple[Form, ...]:
        """The forms of sentences of a split."""
        return _forms(SENTENCES, _parts(split)[1])

    def question_forms(self, split: Split = "train") -> tuple[Form, ...]:
        """The forms of questions of a split."""
        return _forms(QUESTIONS, _parts(split)[1])

    def sample(
        self,
        rng: random.Random,
        split: Split = "train",
        digits: int | None = 5,
        kind: str | None = None,
        named: bool = True,
    ) -> Needle:
        """A needle: `digits` long, or two words where `digits` is None; `kind` fixes what it is called.

        Without `named` nobody owns the secret, so that a text can hold only one. Raises ValueError for a
        split, length or kind that there is not.
        """
        _check_digits(digits)
        kinds = self.kinds(split, words=digits is None)
        if kind is not None and kind not in kinds:
            raise ValueError(
                f"kind {kind!r} is not in split {split!r} for {'words' if digits is None else 'digits'}; "
                f"allowed: {', '.join(kinds)}"
            )
        noun = kind or rng.choice(kinds)
        told, asked = rng.choice(self.sentence_forms(split)), rng.choice(self.question_forms(split))
        return _fill(told, asked, noun, rng.choice(NAMES) if named else "", sample_value(rng, digits))

    def distractor(self, rng: random.Random, needle: Needle) -> Needle:
        """Another owner's secret of the same kind, in the same words and of the same length."""
        if not needle.name:
            raise ValueError(
                "a needle without a name cannot be told from a distractor; sample it with named=True"
            )
        told, asked = _by_number(needle.form)
        digits = len(needle.answer) if needle.answer.isdigit() else None
        name = rng.choice([other for other in NAMES if other != needle.name])
        value = needle.answer
        while value == needle.answer:
            value = sample_value(rng, digits)
        return _fill(told, asked, needle.kind, name, value)

    def distractors(self, rng: random.Random, needle: Needle, count: int) -> list[Needle]:
        """`count` distractors whose owners and secrets differ from each other too."""
        if not 0 <= count < len(NAMES):
            raise ValueError(f"distractors: given {count}; allowed: 0 to {len(NAMES) - 1}")
        found: dict[str, Needle] = {}
        while len(found) < count:
            other = self.distractor(rng, needle)
            if other.name not in found and other.answer not in {n.answer for n in found.values()}:
                found[other.name] = other
        return list(found.values())


def num_wordings(split: Split = "train") -> int:
    """Distinct wordings of a split: kinds times forms of sentences times forms of questions."""
    grammar = NeedleGrammar()
    kinds = len(grammar.kinds(split)) + len(grammar.kinds(split, words=True))
    return kinds * len(grammar.sentence_forms(split)) * len(grammar.question_forms(split))


def _parts(split: str) -> tuple[str, str]:
    if split not in SPLITS:
        raise ValueError(f"split: given {split!r}; allowed: {', '.join(SPLITS)}")
    return SPLITS[split]


def _forms(table: dict[str, tuple[tuple[str, str], ...]], part: str) -> tuple[Form, ...]:
    first = 0 if part == "train" else len(table["train"])
    return tuple(Form(first + at, *pair) for at, pair in enumerate(table[part]))


def _by_number(form: str) -> tuple[Form, Form]:
    told, asked = (int(part[1:]) for part in form.split("/"))
    sentences = (*_forms(SENTENCES, "train"), *_forms(SENTENCES, "held_out"))
    questions = (*_forms(QUESTIONS, "train"), *_forms(QUESTIONS, "held_out"))
    return sentences[told], questions[asked]


def _fill(told: Form, asked: Form, noun: str, name: str, value: str) -> Needle:
    def text(form: Form) -> str:
        pattern = form.named if name else form.unnamed
        said = pattern.format(noun=noun, name=name, value=value)
        # a secret stays as it is spelt, also where it begins the sentence
        return said if pattern.startswith("{value}") else said[0].upper() + said[1:]

    return Needle(text(told), text(asked), value, noun, f"s{told.number}/q{asked.number}", name)


def sample_value(rng: random.Random, digits: int | None) -> str:
    """A secret: a number of `digits` digits, or two words."""
    if digits is None:
        return " ".join(rng.sample(WORDS, 2))
    return str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def _check_digits(digits: int | None) -> None:
    if digits is not None and not 2 <= digits <= MAX_DIGITS:
        raise ValueError(f"digits: given {digits}; allowed: 2 to {MAX_DIGITS}, or None for two words")
