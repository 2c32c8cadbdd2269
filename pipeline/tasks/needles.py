"""Contexts with a hidden secret: needles of the grammar in a haystack of given texts, of any length.

Deterministic: the same texts, settings and seed give the same cases. Lengths are in tokens of the tokenizer whose
counting function is given; a context is never longer than asked and short of it by less than a piece of text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.errors import UsageError
from pipeline.tasks.needle_grammar import SPLITS, Needle, NeedleGrammar, Split

CountTokens = Callable[[str], int]
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'A-Z0-9])")
_PIECE_CHARS = 240


@dataclass(frozen=True, kw_only=True, slots=True)
class NeedleConfig:
    """What the cases of a file look like."""

    length: int = field(default=4096, metadata={"help": "tokens of a context"})
    count: int = field(default=50, metadata={"help": "cases"})
    digits: tuple[int | None, ...] = field(
        default=(5, 10, 16, None), metadata={"help": "lengths of keys, taken in turn; None: two words"}
    )
    distractors: int = field(
        default=0, metadata={"help": "secrets of other owners in the same words (0 to 4)"}
    )
    split: Split = field(default="held_out", metadata={"help": f"wordings: {', '.join(SPLITS)}"})
    seed: int = field(default=0, metadata={"help": "of texts, wordings and places"})

    def __post_init__(self) -> None:
        if self.length < 128:
            raise ValueError(f"length: given {self.length}; allowed: 128 tokens or more")
        if self.count < 1:
            raise ValueError(f"count: given {self.count}; allowed: 1 or more")
        if not 0 <= self.distractors <= 4:
            raise ValueError(f"distractors: given {self.distractors}; allowed: 0 to 4")
        if self.split not in SPLITS:
            raise ValueError(f"split: given {self.split!r}; allowed: {', '.join(SPLITS)}")
        if not self.digits:
            raise ValueError("digits: given none; allowed: lengths of at least 2, None for words")


@dataclass(frozen=True, slots=True)
class NeedleCase:
    """One case; `depth` is the share of the context before the needle."""

    context: str
    needle: Needle
    depth: float

    def as_json(self, number: int) -> dict[str, object]:
        """The line of a file that `dysra evaluate --task needle` reads, with what it was made of."""
        return {
            "id": f"needle-{number}",
            "context": self.context,
            "question": self.needle.question,
            "answers": [self.needle.answer],
            "kind": self.needle.kind,
            "form": self.needle.form,
            "depth": round(self.depth, 4),
        }


def needle_cases(
    texts: Sequence[str], config: NeedleConfig, count_tokens: CountTokens
) -> Iterator[NeedleCase]:
    """The cases of a configuration; depths run evenly over the context, in a shuffled order.

    Raises UsageError if the texts are too short for one context.
    """
    rng = random.Random(config.seed)
    grammar = NeedleGrammar()
    pieces = [piece for text in texts for piece in _pieces(text)]
    counted: dict[str, int] = {}
    depths = [(at + rng.random()) / config.count for at in range(config.count)]
    rng.shuffle(depths)
    for number, depth in enumerate(depths):
        needle = grammar.sample(rng, config.split, config.digits[number % len(config.digits)])
        others = grammar.distractors(rng, needle, config.distractors)
        used = sum(count_tokens(f"{told.sentence}\n") for told in (needle, *others))
        lines = _haystack(pieces, rng, config.length - used, count_tokens, counted)
        at = round(depth * len(lines))
        # distractors first, so that the needle's place is its own
        for other in others:
            lines.insert(rng.randrange(len(lines) + 1), other.sentence)
        at = min(len(lines), at + sum(1 for line in lines[:at] if any(line == o.sentence for o in others)))
        lines.insert(at, needle.sentence)
        while count_tokens("\n".join(lines)) > config.length:  # joined text may count differently
            drop = next(i for i in range(len(lines) - 1, -1, -1) if not _tells(lines[i], needle, others))
            lines.pop(drop)
            at -= drop < at
        yield NeedleCase("\n".join(lines), needle, at / max(1, len(lines) - 1))


def _tells(line: str, needle: Needle, others: Sequence[Needle]) -> bool:
    return line == needle.sentence or any(line == other.sentence for other in others)


def _haystack(
    pieces: Sequence[str], rng: random.Random, length: int, count_tokens: CountTokens, counted: dict[str, int]
) -> list[str]:
    """Pieces that follow each other in the texts, from a random place on, `length` tokens at most."""
    start, used = rng.randrange(max(1, len(pieces))), 0
    lines: list[str] = []
    for step in range(len(pieces)):
        piece = pieces[(start + step) % len(pieces)]
        if piece not in counted:
            counted[piece] = count_tokens(f"{piece}\n")
        if used + counted[piece] > length:
            return lines
        lines.append(piece)
        used += counted[piece]
    raise UsageError(
        f"the texts hold {used} tokens, less than a context of {length}; give more texts or a smaller --length"
    )


def _pieces(text: str) -> Iterator[str]:
    """Runs of whole sentences of about 240 characters, white space as one space."""
    piece = ""
    for sentence in _SENTENCE_END.split(" ".join(text.split())):
        piece = f"{piece} {sentence}".strip()
        if len(piece) >= _PIECE_CHARS:
            yield piece
            piece = ""
    if piece:
        yield piece
