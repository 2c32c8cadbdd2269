"""Training sequences of text with needles and questions written into them, as token ids.

Batch number n depends on the seed and n alone, so a training run goes on exactly where it was ended, and several
workers share the work without talking to each other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.tasks.needle_grammar import REAL, Needle, NeedleGrammar, sample_value

Ids = np.ndarray[Any, np.dtype[Any]]
EncodeSpans = Callable[[str], tuple[list[int], list[tuple[int, int]]]]
QUESTION_FIELDS = ("asking", "gold_first", "gold_last", "first", "last", "anonymous", "position", "length")


@dataclass(frozen=True, kw_only=True, slots=True)
class NeedleStreamConfig:
    """How many tokens a batch holds, how long its sequences are, and how thick the needles lie."""

    tokens: int = field(default=65_536, metadata={"help": "tokens a batch"})
    targets: int = field(default=16_384, metadata={"help": "positions a batch whose next token is learned"})
    phases: tuple[tuple[int, int], ...] = field(
        default=((4_096, 1_200), (16_384, 1_400)), metadata={"help": "(tokens a sequence, batches), in order"}
    )
    longer: float = field(
        default=0.2, metadata={"help": "share of batches with sequences of twice the length"}
    )
    longest: int = field(default=16_384, metadata={"help": "tokens of the longest sequence"})
    chunk: int = field(default=64, metadata={"help": "tokens a chunk of the model"})
    far: int = field(default=6, metadata={"help": "chunks between a needle and its question, at least"})
    per_4096: int = field(default=16, metadata={"help": "needles a sequence of 4,096 tokens, at most"})
    asked: float = field(
        default=0.85, metadata={"help": "share of needles that are asked; the rest distract"}
    )
    alike: float = field(default=0.4, metadata={"help": "share of names that share a word with another's"})
    anonymous: float = field(
        default=0.6, metadata={"help": "chance that a sequence has a needle without an owner"}
    )
    word_keys: float = field(
        default=0.2, metadata={"help": "share of keys that are two words instead of digits"}
    )
    digits: tuple[int, ...] = field(
        default=(5, 10, 16, 0), metadata={"help": "lengths of keys, drawn evenly; 0: any from 4 to 16"}
    )
    twins: float = field(
        default=0.0,
        metadata={"help": "share of needles in the words of another one, owner and key apart"},
    )
    twins_alike: float = field(
        default=0.0,
        metadata={
            "help": "share of twins whose owner shares a word with the owner of the needle that they repeat"
        },
    )
    real: float = field(
        default=0.0, metadata={"help": "share of needles made of real questions, where the data holds some"}
    )
    kinds_alike: float = field(default=0.5, metadata={"help": "share of needles of the kind of another one"})
    split: str = field(
        default="train", metadata={"help": "wordings drawn from (pipeline.tasks.needle_grammar)"}
    )
    seed: int = field(default=0, metadata={"help": "seed of all batches"})

    def __post_init__(self) -> None:
        for length, batches in self.phases:
            if length % self.chunk or self.tokens % length or batches < 1:
                raise ValueError(
                    f"phases: given {(length, batches)}; allowed: lengths of whole chunks of {self.chunk} that "
                    f"divide tokens ({self.tokens}), and 1 batch or more"
                )
            if length < self.chunk * (self.far + 6):
                raise ValueError(
                    f"phases: given length {length}; allowed: {self.chunk * (self.far + 6)} or more, so that a "
                    f"needle, {self.far} chunks and a question fit"
                )
        if not self.phases:
            raise ValueError("phases: given none; allowed: at least one (length, batches)")
        if not 1 <= self.targets <= self.tokens:
            raise ValueError(f"targets: given {self.targets}; allowed: 1 to tokens ({self.tokens})")
        if not self.digits or any(digits and not 2 <= digits <= 32 for digits in self.digits):
            raise ValueError(
                f"digits: given {self.digits}; allowed: lengths of 2 to 32, or 0 for any from 4 to 16"
            )
        for name in (
            "longer", "asked", "alike", "anonymous", "word_keys", "kinds_alike", "real", "twins", "twins_alike",
        ):  # fmt: skip
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 0 to 1")

    @property
    def batches(self) -> int:
        """Batches of all phases."""
        return sum(count for _, count in self.phases)

    def length_of(self, number: int) -> int:
        """Tokens a sequence of the phase that batch `number` belongs to."""
        for length, count in self.phases:
            if number < count:
                return length
            number -= count
        return self.phases[-1][0]


@dataclass(frozen=True, slots=True)
class NeedleBatch:
    """ids int64 [B, T]; of the flat positions `at` [M] the next tokens `targets` [M], `is_answer` [M] among them;
    `questions` int64 [Q, 8] (QUESTION_FIELDS, flat chunk numbers); `anonymous` bool [B * T / chunk]."""

    ids: Ids
    at: Ids
    targets: Ids
    is_answer: Ids
    questions: Ids
    anonymous: Ids


@dataclass(slots=True)
class _Sequence:
    """One sequence while needles are written into it."""

    tokens: Ids  # [T + 1]
    busy: Ids
    silent: Ids  # keys are random: their tokens are no targets
    answers: Ids
    anonymous: Ids  # [chunks]
    questions: list[tuple[int, ...]]


class NeedleStream:
    """Batches over one long text of token ids. Owners are named with two of `names` (none: the grammar's own)."""

    def __init__(
        self,
        text: Ids,
        encode: EncodeSpans,
        config: NeedleStreamConfig,
        names: Sequence[str] = (),
        grammar: NeedleGrammar | None = None,
        real: Sequence[Needle] = (),
    ) -> None:
        longest = max(length for length, _ in config.phases)
        if len(text) < 2 * longest:
            raise ValueError(
                f"the text holds {len(text)} tokens; allowed: at least two sequences ({2 * longest})"
            )
        self._text, self._encode, self.config, self._names = text, encode, config, tuple(names)
        self._grammar, self._real = grammar or NeedleGrammar(), tuple(real)

    def batch(self, number: int) -> NeedleBatch:
        """Batch `number`, always the same."""
        config = self.config
        rng = random.Random(f"{config.seed}:{number}")
        length = config.length_of(number)
        if rng.random() < config.longer and config.tokens % (2 * length) == 0:
            length = min(2 * length, max(length, config.longest))
        rows = [self._sequence(length, rng) for _ in range(config.tokens // length)]
        chunks = length // config.chunk
        ids = np.stack([row.tokens[:-1] for row in rows])
        after = np.concatenate([row.tokens[1:] for row in rows])
        # `answers` and `silent` mark the token itself, targets are looked up one position earlier
        answers = np.concatenate([row.answers[1:] for row in rows])
        silent = np.concatenate([row.silent[1:] for row in rows])
        told = np.flatnonzero(answers)
        draw = np.random.default_rng([config.seed, number])
        if len(told) > config.targets // 2:
            told = np.sort(draw.choice(told, config.targets // 2, replace=False))
        free = np.flatnonzero(~answers & ~silent)
        others = draw.choice(free, min(len(free), config.targets - len(told)), replace=False)
        at = np.concatenate([told, np.sort(others)])
        questions = [
            (
                c + s * chunks,
                g0 + s * chunks,
                g1 + s * chunks,
                a + s * chunks,
                b + s * chunks,
                anon,
                p + s * length,
                n,
            )
            for s, row in enumerate(rows)
            for c, g0, g1, a, b, anon, p, n in row.questions
        ]
        return NeedleBatch(
            ids=ids,
            at=at,
            targets=after[at],
            is_answer=np.arange(len(at)) < len(told),
            questions=np.array(questions, np.int64).reshape(-1, len(QUESTION_FIELDS)),
            anonymous=np.concatenate([row.anonymous for row in rows]),
        )

    def _sequence(self, length: int, rng: random.Random) -> _Sequence:
        config = self.config
        start = rng.randrange(len(self._text) - length)
        tokens = self._text[start : start + length + 1].astype(np.int64)
        busy, silent, answers = (np.zeros(length + 1, bool) for _ in range(3))
        row = _Sequence(tokens, busy, silent, answers, np.zeros(length // config.chunk, bool), [])
        most = max(3, config.per_4096 * length // 4096)
        taken: list[Needle] = []
        if rng.random() < config.anonymous:
            self._write(row, self._grammar.sample(rng, config.split, self._digits(rng), named=False), rng)  # type: ignore[arg-type]
        for _ in range(rng.randint(2, most)):
            if self._real and rng.random() < config.real:
                needle = rng.choice(self._real)
            else:
                needle = self._named(rng, [other for other in taken if other.kind != REAL])
            if all((needle.kind, needle.name) != (other.kind, other.name) for other in taken):
                taken.append(needle)
                self._write(row, needle, rng)
        return row

    def _digits(self, rng: random.Random) -> int:
        return rng.choice(self.config.digits) or rng.randint(4, 16)

    def _named(self, rng: random.Random, taken: Sequence[Needle]) -> Needle:
        config = self.config
        digits = None if rng.random() < config.word_keys else self._digits(rng)
        kind = None
        if taken and rng.random() < config.kinds_alike:
            kind = rng.choice(taken).kind
            if kind not in self._grammar.kinds(config.split, words=digits is None):  # type: ignore[arg-type]
                kind = None
        like: Needle | None = None
        if taken and self._names and rng.random() < config.twins:
            like = rng.choice(taken)
            needle = twin(like, rng)
        else:
            needle = self._grammar.sample(rng, config.split, digits, kind=kind)  # type: ignore[arg-type]
        if not self._names:
            return needle
        first, last = rng.choice(self._names), rng.choice(self._names)
        # the hardest distractor: the same words, and a word of the same name; nothing is drawn where it is not
        # wanted, so that batches stay what they were
        if like is None or not config.twins_alike or rng.random() >= config.twins_alike:
            like = rng.choice(taken) if taken and rng.random() < config.alike else None
        if like is not None:
            other = like.name.split(" ")
            first, last = (other[0], last) if rng.random() < 0.5 else (first, other[-1])
        return renamed(needle, f"{first} {last}")

    def _write(self, row: _Sequence, needle: Needle, rng: random.Random) -> None:
        """Put a needle and perhaps its question into the sequence; nothing happens when there is no room."""
        config, size = self.config, self.config.chunk
        length = len(row.tokens) - 1
        # the same real sentence may stand in another sequence, as an ownerless key may: neither is a wrong choice
        shared = not needle.name or needle.kind == REAL
        told, key = needle_ids(self._encode, needle, rng)
        asked, answer = question_ids(self._encode, needle)
        latest = length - size * (config.far + 2) - len(told)
        if latest < 0:
            return
        for _ in range(8):
            begin = rng.randint(0, latest)
            end = begin + len(told)
            lowest = end // size + config.far
            if lowest > length // size - 1:
                continue
            chunk = length // size - 1 if rng.random() < 0.1 else rng.randint(lowest, length // size - 1)
            # the question's last token is the first of its chunk: the chunk before has seen all but that
            first, last = chunk * size - len(asked) + 1, chunk * size + 1 + len(answer)
            if first <= end or last > length or row.busy[begin:end].any() or row.busy[first:last].any():
                continue
            row.busy[begin:end] = row.busy[first:last] = True
            row.tokens[begin:end] = told
            row.silent[begin + key[0] : begin + key[1]] = True
            if shared:
                row.anonymous[begin // size : (end - 1) // size + 1] = True
            if not needle.name or rng.random() < config.asked:
                row.tokens[first:last] = [*asked, *answer]
                row.answers[chunk * size + 1 : last] = True
                if shared:
                    row.anonymous[chunk - 1 : chunk + 1] = True
                gold = (begin + key[0]) // size, (begin + key[1] - 1) // size
                told_in = begin // size, (end - 1) // size
                row.questions.append((chunk, *gold, *told_in, int(shared), chunk * size, len(answer)))
            return


def renamed(needle: Needle, name: str) -> Needle:
    """The needle with another owner."""

    def swap(text: str) -> str:
        # a name that begins a sentence is written with a capital
        return text.replace(needle.name, name).replace(needle.name[0].upper() + needle.name[1:], name)

    return Needle(
        swap(needle.sentence),
        swap(needle.question),
        needle.answer, needle.kind, needle.form, name,
    )  # fmt: skip


def twin(needle: Needle, rng: random.Random) -> Needle:
    """The needle with another key of the same length."""
    digits = len(needle.answer) if needle.answer.isdigit() else None
    key = sample_value(rng, digits)
    return replace(needle, sentence=needle.sentence.replace(needle.answer, key), answer=key)


def needle_ids(encode: EncodeSpans, needle: Needle, rng: random.Random) -> tuple[list[int], tuple[int, int]]:
    """Ids of a needle's sentence as it stands in text, and from where to where its key goes."""
    before = rng.choice(("\n", " "))
    text = before + needle.sentence + rng.choice(("\n", " "))
    ids, spans = encode(text)
    return ids, _covering(spans, len(before) + needle.sentence.index(needle.answer), len(needle.answer))


def question_ids(encode: EncodeSpans, needle: Needle) -> tuple[list[int], list[int]]:
    """Ids of a question, and of its answer with a full stop, cut where the answer begins."""
    asked = f"\n{needle.question.rstrip()} "
    ids, spans = encode(f"{asked}{needle.answer}.")
    first, _ = _covering(spans, len(asked), len(needle.answer))
    return ids[:first], ids[first:]


def _covering(spans: Sequence[tuple[int, int]], start: int, length: int) -> tuple[int, int]:
    """The tokens (from, to) that cover characters start … start + length."""
    first = next(at for at, (_, end) in enumerate(spans) if end > start)
    last = next(at for at in range(len(spans) - 1, -1, -1) if spans[at][0] < start + length)
    return first, last + 1
