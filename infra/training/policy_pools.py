"""Questions over news for the policy's run on a GPU host: each with the texts that BM25 finds for it, in one file.

RealTimeQA's corpus is larger than everything else that is carried, and its index takes minutes, so the search is
done here (`pack_news`). A newswire world is made from its seed where it is needed (`policy_worlds`).
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.tasks.cached import CACHED
from pipeline.tasks.qa import Question, SourceText

REACH = 100
"""Texts of a question's pool: BM25's best, which the embedder ranks too."""
HOPS = ("two_hop", "three_hop")


@dataclass(frozen=True, slots=True)
class Cached:
    """What the session that a question is asked of has read last: ids of whole texts, newest first (or none).

    `tellings`: for each hop the (title, sentence)s that tell it in the question's pool and there, best first.
    """

    articles: tuple[str, ...]
    tellings: tuple[tuple[tuple[str, str], ...], ...]


@dataclass(frozen=True, slots=True)
class Pooled:
    """Questions and, for each, the ids of its texts, best first by BM25.

    `also` are sentences that tell a question beside those of its support; `caches`, one each or none at all, what
    is offered beside the pool.
    """

    questions: tuple[Question, ...]
    pools: tuple[tuple[str, ...], ...]
    texts: dict[str, SourceText]
    also: tuple[tuple[str, ...], ...]
    caches: tuple[Cached, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.questions) == len(self.pools) == len(self.also):
            raise ValueError(
                f"pools: given {len(self.pools)} and {len(self.also)} lists of other sentences with "
                f"{len(self.questions)} questions; allowed: one each"
            )
        if len(self.caches) not in (0, len(self.questions)):
            raise ValueError(
                f"caches: given {len(self.caches)} with {len(self.questions)} questions; allowed: one each, or none"
            )

    def save(self, path: Path) -> None:
        """Write one file (JSON, xz), whole or not at all."""
        body: dict[str, Any] = {
            "texts": [asdict(text) for text in self.texts.values()],
            "questions": [asdict(question) for question in self.questions],
            "pools": self.pools,
            "also": self.also,
        }
        if self.caches:
            body["caches"] = [asdict(each) for each in self.caches]
        part = path.with_suffix(".part")
        part.write_bytes(lzma.compress(json.dumps(body, ensure_ascii=False).encode(), preset=6))
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Pooled:
        """Read a file that `save` wrote."""
        body = json.loads(lzma.decompress(path.read_bytes()))
        texts = [SourceText(**row) for row in body["texts"]]
        return cls(
            tuple(_question(row) for row in body["questions"]),
            tuple(tuple(pool) for pool in body["pools"]),
            {text.text_id: text for text in texts},
            tuple(tuple(each) for each in body["also"]),
            tuple(_cached(row) for row in body.get("caches", ())),
        )


def pack_news(data: Path, most: int = 400, dev: int = 0, seed: int = 0) -> tuple[Pooled, Pooled]:
    """RealTimeQA: `most` test questions, over news published up to the day that they were asked; and `dev` others.

    Nothing is trained on any of them: reader and policy meet its kind of news in test alone. The others, split
    "dev", are drawn by the same hash behind the test ones, which stay the same whatever their number.
    """
    from infra.evaluation.qa_sources import open_source

    source = open_source(data / "qa" / "realtimeqa.jsonl.zst")
    order = sorted(
        source.questions,
        key=lambda q: hashlib.blake2b(f"{seed}:{q.question_id}".encode(), digest_size=8).digest(),
    )
    chosen = order[:most]
    others = [replace(question, split="dev") for question in order[most : most + dev]]
    return (
        pooled_of(chosen, [source.pool(question, REACH) for question in chosen]),
        pooled_of(others, [source.pool(question, REACH) for question in others]),
    )


def both_ways(pooled: Pooled, share: float, seed: int) -> Pooled:
    """Training questions with their cache for a `share` of them (by seed), else without; others both ways.

    Training questions with a hop that the cache alone tells keep it. Of others a second one follows each, in a set
    of its own ("newswire_cached"). Pools without caches stay as they are.
    """
    if not pooled.caches:
        return pooled
    rows: list[tuple[Question, int, Cached]] = []
    for at, (question, cached) in enumerate(zip(pooled.questions, pooled.caches, strict=True)):
        bare = replace(cached, articles=())
        if question.split == "train":
            digest = hashlib.blake2b(f"{seed}:cache:{question.question_id}".encode(), digest_size=7).digest()
            drawn = int.from_bytes(digest, "big") < share * 2.0**56
            texts = [pooled.texts[name] for name in pooled.pools[at]]
            rows.append((question, at, cached if drawn or not _told(texts, cached) else bare))
        else:
            rows += [
                (question, at, bare),
                (replace(question, dataset=f"{question.dataset}{CACHED}"), at, cached),
            ]
    return replace(
        pooled,
        questions=tuple(question for question, _, _ in rows),
        pools=tuple(pooled.pools[at] for _, at, _ in rows),
        also=tuple(pooled.also[at] for _, at, _ in rows),
        caches=tuple(cached for _, _, cached in rows),
    )


def _told(texts: Sequence[SourceText], cached: Cached) -> bool:
    """Whether every hop is told by one of the texts."""
    return all(
        any(text.title == title and sentence in text.text for text in texts for title, sentence in options)
        for options in cached.tellings
    )


def join(parts: Sequence[Pooled]) -> Pooled:
    """Several together; worlds name their articles alike, so texts are told apart by the part."""
    return Pooled(
        tuple(question for part in parts for question in part.questions),
        tuple(tuple(f"{at}/{name}" for name in pool) for at, part in enumerate(parts) for pool in part.pools),
        {
            f"{at}/{name}": replace(text, text_id=f"{at}/{name}")
            for at, part in enumerate(parts)
            for name, text in part.texts.items()
        },
        tuple(each for part in parts for each in part.also),
        tuple(
            Cached(tuple(f"{at}/{name}" for name in each.articles), each.tellings)
            for at, part in enumerate(parts)
            for each in part.caches or (Cached((), ()),) * len(part.questions)
        )
        if any(part.caches for part in parts)
        else (),
    )


def pooled_of(
    questions: Sequence[Question],
    found: Sequence[Sequence[SourceText]],
    others: Sequence[tuple[str, ...]] = (),
    caches: Sequence[Cached] = (),
) -> Pooled:
    """Questions with the texts found for each; those for which nothing was found are left out."""
    also = others or [()] * len(questions)
    kept = [at for at, pool in enumerate(found) if pool]
    return Pooled(
        tuple(questions[at] for at in kept),
        tuple(tuple(text.text_id for text in found[at]) for at in kept),
        {text.text_id: text for at in kept for text in found[at]},
        tuple(also[at] for at in kept),
        tuple(caches[at] for at in kept) if caches else (),
    )


def _cached(row: dict[str, Any]) -> Cached:
    tellings = (tuple((title, sentence) for title, sentence in options) for options in row["tellings"])
    return Cached(tuple(row["articles"]), tuple(tellings))


def _question(row: dict[str, object]) -> Question:
    plain = {
        name: tuple(tuple(each) if isinstance(each, list) else each for each in value)
        if isinstance(value, list)
        else value
        for name, value in row.items()
    }
    return Question(**plain)  # type: ignore[arg-type]
