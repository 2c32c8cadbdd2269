"""Shards of made questions: a part of the sentences or links, asked of, sifted and judged, kept as one file.

What an ended run may lose is the shard under way. Several processes, one a device, share a folder: each takes the
shards of its turn, and `gathered` puts together whatever is there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from infra.training.made_filters import REASONS, Made, answered_back, parsed, sifted
from infra.training.made_generator import BETWEEN, MakerConfig, made_of, open_maker
from infra.training.made_hops import JOINED, first_hop, joined
from infra.training.made_sources import Source
from infra.training.policy_voice import open_voice
from infra.training.reader_rows import Coder
from pipeline.tasks.reading import Voice
from pipeline.tasks.scores import normalize_answer

SHARDS = "shards"


@dataclass(frozen=True, slots=True)
class Shard:
    """Sentences or links that are asked of together; the number is its seed's and its file's."""

    number: int
    sources: tuple[Source, ...]


def planned(single: Sequence[Source], links: Sequence[Source], size: int) -> list[Shard]:
    """Shards of `size` sentences, those of links (half as many, as they are asked of thrice) spread among them.

    So a run that the clock ends has both. The same numbers come first whatever is ended.
    """
    few = max(1, size // 2)
    parts = [
        ((at + step / 2) / len(every), every[at : at + step])
        for every, step in ((single, size), (links, few))
        for at in range(0, len(every), step)
    ]
    parts.sort(key=lambda part: part[0])
    return [Shard(number, tuple(sources)) for number, (_, sources) in enumerate(parts)]


class Asker:
    """Makes and judges shards by the tuned maker and the adapted reader, opened when first needed."""

    def __init__(self, reader: Path, coder: Coder, adapter: Path, maker: MakerConfig, device: str) -> None:
        self._reader, self._coder, self._adapter, self._maker = reader, coder, adapter, maker
        self._device = device
        self._model: nn.Module | None = None
        self._voice: Voice | None = None

    def __call__(self, shard: Shard, config: Any, known: Sequence[str]) -> dict[str, Any]:
        """A shard's kept rows, what was written, what the filters took (by style), what failed the round trip."""
        if self._model is None:
            # the saved adapter even where it was tuned just now: an undisturbed run is as one that went on
            self._model, _ = open_maker(self._reader, self._maker, self._device, self._adapter)
        asked, said = self._said(shard, config)
        told: dict[str, Any] = {"written": len(said), "filters": {}, "failed": {}, "judged": 0, "rows": []}
        for style in sorted({each.style for each in asked}):
            own = [at for at, each in enumerate(asked) if each.style == style]
            passed, told["filters"][style] = sifted(
                [asked[at] for at in own], [said[at] for at in own], known
            )
            if self._voice is None and passed:
                self._voice = open_voice(self._reader, self._device)
            if not passed:
                continue
            assert self._voice is not None
            back, told["failed"][style] = answered_back(self._voice, passed, config.f1, config.margin)
            told["judged"] += len(passed)
            told["rows"] += [row_of(each) for each, good in zip(passed, back, strict=True) if good]
        return told

    def _said(self, shard: Shard, config: Any) -> tuple[list[Source], list[str]]:
        """What is written, with what it was made of: links as one question, and as two joined."""

        def ask(sources: Sequence[Source], turn: int, answers: Sequence[str] = ()) -> list[str]:
            assert self._model is not None
            return made_of(
                self._model, self._coder, sources, seed=(config.seed * 100_003 + shard.number) * 3 + turn,
                temperature=config.temperature, new_tokens=config.new_tokens, device=self._device, answers=answers,
                tokens_per_batch=config.tokens_per_batch if self._device.startswith("cuda") else 4096,
            )  # fmt: skip

        sources = list(shard.sources)
        said = ask(sources, 0)
        if not sources or not sources[0].via:
            return sources, said
        firsts = [first_hop(link) for link in sources]
        one = ask([first for first, _ in firsts], 1, [answer for _, answer in firsts])
        # a question of the second sentence alone has to name its title: the way of asking that does so most
        two = ask([replace(link, style="squad", via=()) for link in sources], 2)
        both = [_both(link, a, b) for link, a, b in zip(sources, one, two, strict=True)]
        return [*sources, *(replace(link, style=JOINED) for link in sources)], [*said, *both]


def _both(link: Source, first: str, second: str) -> str:
    """The two questions as one, with the answer of the second; '' where they do not join."""
    a, b = parsed(link, first), parsed(link, second)
    question = joined(a.question, b.question, link.title) if a and b else ""
    return f"{b.answer}{BETWEEN}{question}" if b and question else ""


def row_of(made: Made) -> list[Any]:
    """A kept question as JSON has it."""
    sources = [
        [each.style, each.text_id, each.title, each.sentence] for each in (*made.source.via, made.source)
    ]
    return [sources, made.answer, made.question]


def made_of_row(row: Sequence[Any]) -> Made:
    """The question of a row."""
    *via, last = [Source(*each) for each in row[0]]
    return Made(replace(last, via=tuple(via)), row[1], row[2])


def path_of(out: Path, shard: Shard) -> Path:
    """Where a shard is kept."""
    return out / SHARDS / f"{shard.number:04d}.json"


def gathered(out: Path) -> tuple[list[Made], dict[str, Any]]:
    """The questions of all shards that are there, repetitions among them left out, and all counts."""
    kept: list[Made] = []
    seen: set[str] = set()
    counts: dict[str, dict[str, Counter[str]]] = {"filters": {}, "failed": {}}
    sums: Counter[str] = Counter()
    for path in sorted((out / SHARDS).glob("*.json")):
        told = json.loads(path.read_text())
        sums.update(shards=1, written=told["written"], judged=told["judged"])
        for group, by_style in counts.items():
            for style, found in told[group].items():
                by_style.setdefault(style, Counter()).update(found)
        for row in told["rows"]:
            made = made_of_row(row)
            key = normalize_answer(made.question)
            if key in seen:
                sums["repeated"] += 1
                continue
            seen.add(key)
            kept.append(made)
    filters: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
    failed: Counter[str] = Counter()
    for by_style, total in ((counts["filters"], filters), (counts["failed"], failed)):
        for found in by_style.values():
            total.update(found)
    return kept, {
        "shards": sums["shards"], "written": sums["written"], "judged": sums["judged"], "filters": dict(filters),
        "round_trip": dict(failed), "repeated_elsewhere": sums["repeated"],
        "by_style": {group: {style: dict(n) for style, n in found.items()} for group, found in counts.items()},
        "kept": len(kept), "kept_by_style": dict(Counter(each.source.style for each in kept)),
    }  # fmt: skip
