"""Keys hidden in long text, asked for at its end: exact match and recall by length, wording and distractors.

A text of N tokens is encoded once. A trial writes its needles into it by encoding again only the chunks that a
needle can change (exact where every lower mixer is a sliding window), asks at the end of a part of the wanted
length, and checks the answer by teacher forcing: all tokens are the likeliest, which is what greedy decoding
writes. A stream row writes all needles into one text, encodes it whole and asks each: every other key distracts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from infra.evaluation.haystack import Haystack, Patches
from models.subq import SubqModel
from models.subq.retrieval_attention import Chosen
from models.subq.router import NEVER, Routing, limits, weigh, with_neighbours
from pipeline.prepare.needle_stream import EncodeSpans, needle_ids, question_ids, renamed
from pipeline.tasks.needle_grammar import Needle, NeedleGrammar

Ids = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One column of the table: which keys, in which words, among how many distractors."""

    name: str = field(metadata={"help": "as the row says it"})
    split: str = field(default="train", metadata={"help": "wordings: see pipeline.tasks.needle_grammar"})
    digits: int | None = field(default=5, metadata={"help": "length of the key; None: two words"})
    distractors: int = field(default=0, metadata={"help": "needles of the same kind and words, other owners"})
    named: bool = field(default=True, metadata={"help": "whether somebody owns the key"})
    real: bool = field(
        default=False, metadata={"help": "sentences, questions and answers of real questions instead"}
    )

    def __post_init__(self) -> None:
        if self.distractors < 0 or (self.distractors and not self.named):
            raise ValueError(
                f"distractors: given {self.distractors} with named {self.named}; allowed: 0 or "
                "more, and only for named"
            )


WORDINGS = {
    "known": "train", "heldout-kinds": "held_out_kinds", "heldout-forms": "held_out_forms", "heldout": "held_out",
}  # fmt: skip
CELLS = (
    Cell(name="single-5", named=False),
    Cell(name="single-16", digits=16, named=False),
    *(
        Cell(
            name=f"{wording}-{digits}" + ("" if others else "-alone"),
            split=split, digits=digits, distractors=others,
        )
        for wording, split in WORDINGS.items()
        for digits in (5, 10, 16)
        for others in (4, 0)
    ),
    Cell(name="real", real=True, distractors=4),
)  # fmt: skip
"""Keys nobody owns; keys of an owner among four others' of the same kind and words, and alone; real questions."""


SHARES = ("exact", "recall", "any", "first")
"""What a row says of its trials in percent."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Needles as (token, ids); the text's tail with question and answer; chunks that hold the key; the answer."""

    needles: tuple[tuple[int, tuple[int, ...]], ...]
    tail: Ids
    gold: tuple[int, int]
    answer: tuple[int, ...]


class PasskeyTest:
    """Trials over one haystack."""

    def __init__(
        self,
        model: SubqModel,
        hay: Haystack,
        encode: EncodeSpans,
        names: Sequence[str],
        grammar: NeedleGrammar | None = None,
        real: Sequence[Needle] = (),
    ) -> None:
        self.model, self.hay, self._encode, self._names = model, hay, encode, tuple(names)
        self._real = tuple(real)
        self._grammar = grammar or NeedleGrammar()
        self._stream: tuple[tuple[Any, ...], Haystack, list[Trial]] | None = None
        size = model.config.chunk
        reach = [model.config.reach(upper=side) or 4_096 for side in (False, True)]
        self.tail = -(-sum(reach) // size) + 1  # chunks: the last one computes what one pass would

    def row(self, cell: Cell, length: int, trials: int, seed: int, batch: int = 8) -> dict[str, Any]:
        """Exact match and recall of `trials` trials at `length` tokens, in percent."""
        if self.model.config.reach(upper=False) is None:
            raise ValueError("trials need lower mixers of sliding windows; ask for stream rows of this model")
        rng = random.Random(f"{seed}:{cell.name}:{length}")
        began, found = time.monotonic(), []
        for start in range(0, trials, batch):
            found += self._patched(cell, length, min(batch, trials - start), rng)
        return self._figures("trials", cell.name, length, found, began)

    def stream_row(
        self, cells: Sequence[Cell], length: int, keys: int, seed: int, batch: int = 8
    ) -> dict[str, Any]:
        """All keys in one text of `length` tokens, of the cells' kinds in turn (distractors: each other).

        Searched by the configuration's index.
        """
        began, chunks = time.monotonic(), length // self.model.config.chunk
        hay, trials = self._streamed(tuple(cells), length, keys, seed)
        hay.search_by(self.model.config.index, self.model.config.probes)
        found = []
        for start in range(0, keys, batch):
            found += self._ask(hay, 0, chunks, trials[start : start + batch], None)
        return self._figures("stream", ",".join(cell.name for cell in cells), length, found, began)

    def _streamed(
        self, cells: tuple[Cell, ...], length: int, keys: int, seed: int
    ) -> tuple[Haystack, list[Trial]]:
        """The text with all its keys, encoded, and their trials; kept until another one is asked for."""
        wanted = (cells, length, keys, seed)
        if self._stream is not None and self._stream[0] == wanted:
            return self._stream[1:]
        self._stream = None  # before the next is encoded: both would be tens of gigabytes
        size, rng = self.model.config.chunk, random.Random(f"{seed}:stream:{length}")
        chunks = length // size
        room = chunks - self.tail - 8
        if room < 2 * keys:
            raise ValueError(
                f"length: given {length} for {keys} keys; allowed: {(2 * keys + self.tail + 8) * size} or more"
            )
        places = rng.sample(range(0, room, 2), keys)
        ids = self.hay.ids[:length].copy()
        trials = [
            self._trial(self._needles(cells[at % len(cells)], rng)[:1], [place], 0, chunks, rng)
            for at, place in enumerate(places)
        ]
        for trial in trials:
            for at, needle in trial.needles:
                ids[at : at + len(needle)] = needle
        self._stream = (wanted, Haystack(self.model, ids), trials)
        return self._stream[1:]

    def _patched(self, cell: Cell, length: int, count: int, rng: random.Random) -> list[dict[str, Any]]:
        size = self.model.config.chunk
        chunks = length // size
        if chunks > self.hay.num_chunks:
            raise ValueError(
                f"length: given {length}; allowed: {self.hay.num_chunks * size} at most, the haystack's"
            )
        first = rng.randrange(self.hay.num_chunks - chunks + 1)
        span = self.hay.patch_chunks
        lead = self.hay.patch_lead
        room = (chunks - self.tail - 8 - lead) // span
        if room < 1 + cell.distractors:
            least = (span * (1 + cell.distractors) + self.tail + 8 + lead) * size
            raise ValueError(
                f"length: given {length}; allowed: {least} or more for {cell.distractors} distractors"
            )
        trials = []
        for _ in range(count):
            # one needle a span, so that no two change the same chunk
            places = [first + lead + span * at for at in rng.sample(range(room), 1 + cell.distractors)]
            trials.append(self._trial(self._needles(cell, rng), places, first, chunks, rng))
        patches = self.hay.patched([trial.needles for trial in trials])
        return self._ask(self.hay, first, chunks, trials, patches)

    def _needles(self, cell: Cell, rng: random.Random) -> list[Needle]:
        """The asked needle, then its distractors, the first of which shares a word of the owner's name."""
        if cell.real:
            if len(self._real) <= cell.distractors:
                raise ValueError(f"cell {cell.name!r} needs real questions; given {len(self._real)}")
            return rng.sample(self._real, 1 + cell.distractors)
        needle = self._grammar.sample(rng, cell.split, cell.digits, named=cell.named)  # type: ignore[arg-type]
        others = self._grammar.distractors(rng, needle, cell.distractors) if cell.distractors else []
        if not cell.named or not self._names:
            return [needle, *others]
        owner = rng.choice(self._names), rng.choice(self._names)
        named = [renamed(needle, " ".join(owner))]
        for at, other in enumerate(others):
            pair = [rng.choice(self._names), rng.choice(self._names)]
            if at == 0:
                side = rng.randrange(2)
                pair[side] = owner[side]
            if tuple(pair) == owner:
                pair[1] = next(name for name in self._names if name != owner[1])
            named.append(renamed(other, " ".join(pair)))
        return named

    def _trial(
        self, needles: Sequence[Needle], places: Sequence[int], first: int, chunks: int, rng: random.Random
    ) -> Trial:
        """Needles written at chunks `places`, asked at the end of chunks first … first + chunks - 1."""
        size = self.model.config.chunk
        written, gold = [], (0, 0)
        for at, (needle, place) in enumerate(zip(needles, places, strict=True)):
            ids, key = needle_ids(self._encode, needle, rng)
            begin = place * size + rng.randrange(size)
            written.append((begin, tuple(ids)))
            if at == 0:
                gold = ((begin + key[0]) // size, (begin + key[1] - 1) // size)
        asked, answer = question_ids(self._encode, needles[0])
        end = (first + chunks) * size
        tail = self.hay.ids[end - self.tail * size : end].copy()
        last = (self.tail - 1) * size + 1  # the question ends on the first token of the last chunk
        answer = answer[: size - 1]
        tail[last - len(asked) : last] = asked
        tail[last : last + len(answer)] = answer
        return Trial(tuple(written), tail, gold, tuple(answer))

    @torch.no_grad()
    def _ask(
        self, hay: Haystack, first: int, chunks: int, trials: Sequence[Trial], patches: Patches | None
    ) -> list[dict[str, Any]]:
        model, config, size = self.model, self.model.config, self.model.config.chunk
        tail = self.tail
        hidden, _ = model.lower(
            torch.from_numpy(np.stack([t.tail for t in trials]).astype(np.int64)).to(hay.device)
        )
        if config.retrieval == "token":
            assert model.encoder is not None
            queries, per_chunk = model.encoder.token_queries(hidden), size
        else:
            codes = model.encode(hidden)
            queries, per_chunk = torch.cat((codes.queries[:, :1] * 0, codes.queries[:, :-1]), 1), 1
        units = torch.arange(tail * per_chunk, device=hay.device) // per_chunk + chunks - tail
        newest = limits(units, config.near)
        scores, indices = hay.search(queries, first, chunks, newest, config.top_k, patches)
        routing = weigh(scores, indices, newest + 1, config, model.scale)
        routing = with_neighbours(routing, config, (first + newest + 1)[:, None])
        keys, values = hay.gather(routing.indices, patches)
        slots = torch.arange(routing.indices.numel(), device=hay.device).view_as(routing.indices)
        chosen = Chosen(
            keys, values, slots.masked_fill(routing.indices < 0, -1), routing.weights, size // per_chunk
        )
        out, _ = model.upper(hidden, chosen)
        begin = (tail - 1) * size
        asking = begin if per_chunk > 1 else tail - 1
        found = []
        for at, trial in enumerate(trials):
            last = Routing(routing.indices[at, -1:], routing.weights[at, -1:])
            copied = hay.copies(last, at, patches)
            logits = model.next_logits(out[at : at + 1, begin : begin + len(trial.answer)], copied)[0]
            told = logits.argmax(-1).cpu().tolist()
            read = set(routing.indices[at, asking].tolist())
            gold = set(trial.gold)
            best = int(indices[at, asking, 0]) if scores[at, asking, 0] > NEVER else -1
            right = told == list(trial.answer)
            found.append(
                {"exact": float(right), "recall": float(gold <= read), "any": float(bool(gold & read)),
                 "first": float(best in gold)}
                | ({} if right else {"miss": _miss(trial, told, routing, (at, asking), first, chunks, size)})
            )  # fmt: skip
        return found

    def _figures(
        self, what: str, cell: str, length: int, found: list[dict[str, Any]], began: float
    ) -> dict[str, Any]:
        mean = {key: round(100 * float(np.mean([each[key] for each in found])), 1) for key in SHARES}
        misses = [{"trial": at, **each["miss"]} for at, each in enumerate(found) if "miss" in each]
        return {
            "what": what, "cell": cell, "length": length, "n": len(found), **mean, "misses": misses,
            "landmark_bytes": length // self.model.config.chunk * self.model.config.landmark_dim * 2,
            "kv_bytes": length // self.model.config.chunk * self.hay.kv_bytes_a_chunk,
            "ids_bytes": length // self.model.config.chunk * self.hay.ids_bytes_a_chunk,
            "peak_bytes": torch.cuda.max_memory_allocated() if self.hay.device.type == "cuda" else 0,
            "seconds": round(time.monotonic() - began, 2),
        }  # fmt: skip


def _miss(
    trial: Trial,
    told: Sequence[int],
    routing: Routing,
    asked: tuple[int, int],
    first: int,
    chunks: int,
    size: int,
) -> dict[str, Any]:
    """What a wrong answer was made of: where the key lies (share of the text before it), token ids told and
    wanted, the needles that hold what was told (0: the asked one, 1: the one that shares a word of its owner), and
    every chunk that was read: its needle (-1: text), whether it holds key digits, its weight."""
    spans = [(at // size, (at + len(ids) - 1) // size) for at, ids in trial.needles]
    read = []
    for chunk, weight in zip(
        routing.indices[asked].tolist(), routing.weights[asked].float().tolist(), strict=True
    ):
        if chunk >= 0:
            of = next((at for at, (low, high) in enumerate(spans) if low <= chunk <= high), -1)
            read.append([of, int(chunk in trial.gold), round(weight, 4)])
    key = tuple(told[:-1])  # its end is the full stop
    return {
        "depth": round((trial.gold[0] - first) / chunks, 4), "straddles": trial.gold[0] != trial.gold[1],
        "told": list(told), "wanted": list(trial.answer),
        "told_by": [at for at, (_, ids) in enumerate(trial.needles) if _within(key, ids)], "read": read,
    }  # fmt: skip


def _within(part: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))


def row_fits(test: PasskeyTest, cell: Cell, length: int) -> bool:
    """Whether the needles of a trial of the cell fit a text of `length` tokens."""
    chunks = test.hay.patch_chunks * (1 + cell.distractors) + test.tail + 8 + test.hay.patch_lead
    return length >= chunks * test.model.config.chunk


def table(
    test: PasskeyTest,
    lengths: Sequence[int],
    cells: Iterable[Cell] = CELLS,
    trials: int = 32,
    seed: int = 0,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """A row for every cell and length that fits; cells whose needles do not fit a length are left out."""
    rows = []
    for length in lengths:
        for cell in cells:
            if not row_fits(test, cell, length):
                continue
            rows.append(test.row(cell, length, trials, seed))
            if report is not None:
                report(rows[-1])
    return rows
