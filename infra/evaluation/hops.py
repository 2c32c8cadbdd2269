"""Questions over two and three articles: one search against several, at equal budget, without a reader.

    python -m infra.evaluation.hops --newswire 2000 --questions 400
    python -m infra.evaluation.hops --data $DYSRA_DATA/qa/hotpotqa.jsonl.zst --limit 200

With `--reader` the reader answers too, as in a session, and `right` counts its answers.

Counts how often all sentences that tell are among those chosen (`all_told`), how often an answer string is
(`holds`), and the tokens read, over a shard searched by words. Prints a line a kind and one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from infra.console import say
from models.embed import load_tokenizer
from pipeline.article import Article, parse_article
from pipeline.chunker import ChunkConfig, chunk_article
from pipeline.newswire import demo_set
from pipeline.session import SessionConfig
from pipeline.session.answer import Lag, Question
from pipeline.session.asking import AskParts, View, answer
from pipeline.session.chooser import HybridChooser
from pipeline.session.hops import HopChooser, leads_on
from pipeline.session.one_shard import OneShardLibrary
from pipeline.session.ports import InlineRunner, Query
from pipeline.session.sentences import Candidate, candidates
from pipeline.store import Coordinate, Delete, Shard, StoreConfig, StoreRecord, Upsert
from pipeline.tasks.scores import exact_match, holds_answer

_DIM = 1
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, its answers, and the texts that tell: sentences, or titles of passages."""

    kind: str
    text: str
    answers: tuple[str, ...]
    evidence: tuple[str, ...]
    streams: frozenset[str] | None = None


class ShardLibrary(OneShardLibrary):
    """One shard of articles (and ids of withdrawn ones), searched by words, as a session sees its store."""

    def __init__(self, records: Sequence[Article | str], folder: Path) -> None:
        self._tokenizer = load_tokenizer("none")
        super().__init__(Shard.open(folder, StoreConfig(path=folder), 0, 1, "none", _DIM))
        for start in range(0, len(records), _BATCH):
            batch = [self._record(start + i, one) for i, one in enumerate(records[start : start + _BATCH])]
            self._shard.append(batch, {("news", 0): start + len(batch)}, 1)
        self._shard.maintain(0)

    def candidates(self, text: str, streams: frozenset[str] | None) -> list[Candidate]:
        """The sentences that a search gives; a model's tokens are taken to be 1.35 a word."""
        found, _ = self.search(Query(text=text, k=20, streams=streams), 5.0)
        return candidates(found, lambda one: round(1.35 * len(self._tokenizer.offsets(one))))

    def _record(self, offset: int, one: Article | str) -> StoreRecord:
        at = Coordinate("news", 0, offset)
        if isinstance(one, str):
            return Delete(coordinate=at, article_id=one)
        cut, _ = chunk_article(one, self._tokenizer, ChunkConfig())
        vectors = np.zeros((len(cut), _DIM), dtype=np.float16)
        return Upsert(coordinate=at, article=one, chunks=cut, vectors=vectors)


def newswire(num_articles: int, num_questions: int, seed: int) -> tuple[list[Article | str], list[Asked]]:
    """Records and questions of a simulated week."""
    drawn = demo_set(seed, num_articles, num_questions)
    records = [r["id"] if r.get("deleted") else parse_article(r) for r in drawn.records]
    asked = [
        Asked(q.kind, q.question, q.answers, q.evidence, None if q.stream is None else frozenset({q.stream}))
        for q in drawn.questions
    ]
    return records, asked


def wikipedia(data: Path, limit: int) -> tuple[list[Article | str], list[Asked]]:
    """Passages as articles, and questions whose gold passages are known."""
    from infra.evaluation.qa_sources import open_source

    source = open_source(data)
    asked = []
    for question in source.questions:
        golds = source.golds(question)
        if question.answerable and len(golds) > 1 and question.answers:
            titles = tuple(dict.fromkeys(f"title:{gold.title}" for gold in golds))
            asked.append(Asked(question.kind or question.dataset, question.text, question.answers, titles))
    records: list[Article | str] = [
        parse_article(
            {
                "id": text.text_id,
                "published": "2020-01-01T00:00:00Z",
                "source": "wiki",
                "title": text.title or "-",
                "text": text.text,
            }
        )
        for text in source.texts.values()
    ]
    return records, asked[:limit]


def told(chosen: Sequence[Candidate], asked: Asked) -> tuple[bool, bool]:
    """Whether all that tells is among the chosen, and whether an answer string is."""
    text = " ".join(" ".join(c.text.split()) for c in chosen)
    titles = {f"title:{c.title}" for c in chosen}
    every = all(
        e in titles if e.startswith("title:") else " ".join(e.split()) in text for e in asked.evidence
    )
    return every, holds_answer(text, asked.answers)


def answered(one: Asked, library: ShardLibrary, reader: Any, hops: int, budget: int) -> bool:
    """Whether a session's answer is right; where the news does not tell, giving up is."""
    parts = AskParts(
        config=SessionConfig(hops=hops, token_budget=budget),
        backbone=reader,
        library=library,
        chooser=HybridChooser(),
        runner=InlineRunner(),
        adapted=True,
    )
    stream = next(iter(one.streams or ("",)))
    view = View(stream=stream, cache=None, session_bytes=0, lag=Lag())
    question = Question(text=one.text, cross_stream=one.streams is None)
    *_, done = answer(question, view, parts)
    if not one.answers:
        return bool(done.data["given_up"])
    return exact_match(str(done.data["text"]), one.answers) == 1.0


def measure(
    records: list[Article | str],
    asked: Sequence[Asked],
    budget: int,
    hops: Sequence[int],
    reader: Any | None = None,
) -> list[dict[str, object]]:
    """A row a kind and number of searches."""
    sums: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0] * 6)
    with TemporaryDirectory() as folder, closing(ShardLibrary(records, Path(folder))) as library:
        search = library.candidates
        for number in hops:
            chooser = HopChooser(HybridChooser(), number)
            for one in asked:
                found = search(one.text, one.streams)
                chosen = chooser.choose(one.text, found, budget, lambda text: search(text, None))
                every, holds = told(chosen, one)
                heads = {c.article_id: c.head_tokens for c in chosen}
                tokens = sum(c.num_tokens for c in chosen) + sum(heads.values())
                row = sums[one.kind, number]
                right = 0.0 if reader is None else answered(one, library, reader, number, budget)
                for i, value in enumerate((1, every, holds, tokens, leads_on(one.text), right)):
                    row[i] += value
    return [
        {
            "kind": kind,
            "searches": number,
            "n": int(n),
            "all_told": round(every / n, 3),
            "holds": round(holds / n, 3),
            "tokens_read": round(tokens / n, 1),
            "leads_on": round(led / n, 3),
            **({} if reader is None else {"right": int(right)}),
        }
        for (kind, number), (n, every, holds, tokens, led, right) in sums.items()
    ]


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--newswire", type=int, default=2_000, help="articles of the simulated week")
    parser.add_argument("--questions", type=int, default=400, help="questions over them, all kinds")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--data", type=Path, help="a question file with gold passages, instead of the newswire"
    )
    parser.add_argument("--limit", type=int, default=200, help="questions of that file")
    parser.add_argument("--budget", type=int, default=128, help="tokens of sentences")
    parser.add_argument("--searches", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--reader", action="store_true", help="let the shipped reader answer too")
    given = parser.parse_args()
    if given.data is None:
        records, asked = newswire(given.newswire, given.questions, given.seed)
    else:
        records, asked = wikipedia(given.data, given.limit)
    reader = None
    if given.reader:
        from models.hf import HfBackbone, HfConfig

        reader = HfBackbone.load(HfConfig())
    rows = measure(records, asked, given.budget, given.searches, reader)
    for row in sorted(rows, key=lambda row: (str(row["kind"]), int(str(row["searches"])))):
        say("  ".join(f"{name} {value}" for name, value in row.items()))
    say(json.dumps({"budget": given.budget, "rows": rows}))


if __name__ == "__main__":
    main()
