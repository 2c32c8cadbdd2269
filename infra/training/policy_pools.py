"""Questions over news for the policy's run on a GPU host: each with the texts that BM25 finds for it, in one file.

RealTimeQA's corpus is larger than everything else that is carried, and its index takes minutes, so the search is
done here (`pack_news`). A newswire world is made from its seed where it is needed (`newswire_pool`).
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.prepare.pools import TextIndex, pieces
from pipeline.session.prompts import one_line
from pipeline.tasks.qa import Question, SourceText

REACH = 100
"""Texts of a question's pool: BM25's best, which the embedder ranks too."""
NEWS_REACH = 4000
HOPS = ("two_hop", "three_hop")


@dataclass(frozen=True, slots=True)
class Pooled:
    """Questions and, for each, the ids of its texts, best first by BM25.

    `also` are sentences that tell a question beside those of its support.
    """

    questions: tuple[Question, ...]
    pools: tuple[tuple[str, ...], ...]
    texts: dict[str, SourceText]
    also: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not len(self.questions) == len(self.pools) == len(self.also):
            raise ValueError(
                f"pools: given {len(self.pools)} and {len(self.also)} lists of other sentences with "
                f"{len(self.questions)} questions; allowed: one each"
            )

    def save(self, path: Path) -> None:
        """Write one file (JSON, xz), whole or not at all."""
        body = {
            "texts": [asdict(text) for text in self.texts.values()],
            "questions": [asdict(question) for question in self.questions],
            "pools": self.pools,
            "also": self.also,
        }
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
        _pooled(chosen, [source.pool(question, REACH) for question in chosen]),
        _pooled(others, [source.pool(question, REACH) for question in others]),
    )


def newswire_pool(
    seed: int,
    *,
    num_articles: int = 1500,
    num_questions: int = 300,
    kinds: Sequence[str] = (),
    split: str = "",
) -> Pooled:
    """A simulated world's answerable questions, asked at its end over the newest form of every article.

    `support` holds one telling sentence of each hop, the one whose text BM25 finds first; what else tells a hop is
    in `also`. `split` is the newswire's own (entities and wordings apart): of its train split the questions are for
    training; only judged ones (test) may lack a hop in their pool.
    """
    from pipeline.newswire import KINDS, NewsEvent, Truth, generate, questions

    truth, newest = Truth(), dict[str, NewsEvent]()
    for event in generate(seed, num_articles):
        truth.add(event)
        if event.kind == "withdrawal":
            newest.pop(event.record["id"], None)
        else:
            newest[event.record["id"]] = event
    told: dict[str, list[tuple[str, str]]] = {}
    texts: dict[str, SourceText] = {}
    for name, event in newest.items():
        record = event.record
        article = SourceText(
            text_id=name, title=record["title"], text=record["text"], date=record["published"][:10]
        )
        texts |= {piece.text_id: piece for piece in pieces(article)}
        for sentence in event.sentences:
            for fact in sentence.facts:
                told.setdefault(fact.id, []).append((name, one_line(sentence.text)))
    index = TextIndex(list(texts.values()))
    drawn = questions(seed, num_articles, num_questions, tuple(kinds) or KINDS, split=split, truth=truth)
    asked, found, others = [], [], []
    for each in drawn:
        if not each.answerable or not each.hops or each.kind == "count":
            continue
        pool = index.top(each.question, REACH)
        tellings = [_tellings(pool, told.get(hop.fact, ())) for hop in each.hops]
        if split != "test" and not all(tellings):
            continue
        support = tuple(dict.fromkeys(options[0] for options in tellings if options))
        asked.append(
            Question(
                question_id=f"{seed}:{each.id}",
                dataset="newswire",
                text=each.question,
                answers=tuple(each.answers),
                answerable=True,
                titles=tuple(dict.fromkeys(title for title, _ in support)) or (each.entity,),
                support=support,
                asked=each.asked,
                kind=each.kind,
                split="train" if split == "train" else "test",
            )
        )
        found.append(pool)
        others.append(tuple(option[1] for options in tellings for option in options[1:]))
    return _pooled(asked, found, others)


def _tellings(pool: Sequence[SourceText], told: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(title, sentence) of the sentences that tell a fact, as the pool's texts hold them, best text first."""
    by_article: dict[str, list[str]] = {}
    for article, sentence in told:
        by_article.setdefault(article, []).append(sentence)
    return [
        (text.title, sentence)
        for text in pool
        for sentence in by_article.get(text.text_id.rsplit("#", 1)[0], ())
        if sentence in text.text
    ]


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
    )


def _pooled(
    questions: Sequence[Question],
    found: Sequence[Sequence[SourceText]],
    others: Sequence[tuple[str, ...]] = (),
) -> Pooled:
    also = others or [()] * len(questions)
    kept = [each for each in zip(questions, found, also, strict=True) if each[1]]
    return Pooled(
        tuple(question for question, _, _ in kept),
        tuple(tuple(text.text_id for text in pool) for _, pool, _ in kept),
        {text.text_id: text for _, pool, _ in kept for text in pool},
        tuple(each for _, _, each in kept),
    )


def _question(row: dict[str, object]) -> Question:
    plain = {
        name: tuple(tuple(each) if isinstance(each, list) else each for each in value)
        if isinstance(value, list)
        else value
        for name, value in row.items()
    }
    return Question(**plain)  # type: ignore[arg-type]
