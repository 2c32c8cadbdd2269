"""Recall of BM25, dense and hybrid search by gold passage, through a real shard.

    dysra evaluate --task retrieval --data qa/nq_open.jsonl.zst

Every question with `gold_passage_ids` counts. Passages become articles, cut and embedded as ingest does it,
and appended to a shard; a passage is found when any of its chunks is. Half of the questions (by a hash of their
ids) serve to tune the fusion and are never reported.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import orjson
import xxhash
import zstandard
from numpy.typing import NDArray

from infra.evaluation.recall import CUTS, Each, figures_of_each, gains_over_better, means
from infra.evaluation.vector_cache import VectorCache
from models.embed import Embedder
from models.embed.artifacts import cache_folder
from pipeline.article import Article
from pipeline.chunker import ChunkConfig, chunk_article
from pipeline.errors import BadData
from pipeline.merge import merge_candidates
from pipeline.store import Candidates, Coordinate, SearchConfig, SearchRequest, Shard, StoreConfig, Upsert
from pipeline.store.records import Mode

Half = Literal["tuning", "report", "all"]
METHODS: tuple[Mode, ...] = ("bm25", "dense", "hybrid")
_BATCH = 256
_PUBLISHED = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the ids of the passages that answer it."""

    id: str
    text: str
    gold: frozenset[str]


def run(
    data: Path,
    corpus: Path,
    methods: Sequence[str] = METHODS,
    *,
    embedder: Embedder,
    num_questions: int = 1_000,
    num_passages: int = 20_000,
    seed: int = 0,
    half: Half = "report",
    search: SearchConfig | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure each method on the same questions over the same passages: the gold ones and a seeded sample.

    Returns `n`, `passages`, `scores` {method: {recall@1, recall@5, recall@20, mrr}} and `cost`. Recall is the mean
    share of a question's gold passages in the first k; MRR that of the first gold one among 20 (0 beyond).
    Vectors are kept in the folder `cache` (by default in the embedders' cache) from one run to the next. Raises
    BadData for files that lack gold passages, ValueError for an unknown method.
    """
    return run_sets(
        [data],
        corpus,
        methods,
        embedder=embedder,
        num_questions=num_questions,
        num_passages=num_passages,
        seed=seed,
        half=half,
        search=search,
        cache=cache,
        progress=progress,
    )[0]


def run_sets(
    sets: Sequence[Path],
    corpus: Path,
    methods: Sequence[str] = METHODS,
    *,
    embedder: Embedder,
    num_questions: int = 1_000,
    num_passages: int = 20_000,
    seed: int = 0,
    half: Half = "report",
    search: SearchConfig | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """`run` for several sets over one shard, which holds the gold passages of all of them."""
    chosen = [_method(name) for name in methods]
    asked = [sample_questions(load_questions(path), half, num_questions, seed) for path in sets]
    passages = sample_passages(corpus, [one for questions in asked for one in questions], num_passages, seed)
    results = []
    with RetrievalBench(embedder, cache=cache or cache_folder() / "vectors", progress=progress) as bench:
        bench.add(passages)
        num_chunks = bench.shard.stats()["live_chunks"]
        for path, questions in zip(sets, asked, strict=True):
            bench.embed(questions)
            scores, cost = {}, {}
            each: dict[str, Each] = {}
            for method in chosen:
                begin = time.perf_counter()
                ranked = bench.rank(questions, method, search)
                seconds = time.perf_counter() - begin
                golds = [question.gold for question in questions]
                each[method] = figures_of_each(ranked, golds)
                scores[method] = means(each[method])
                cost[method] = {"ms_per_question": round(1000 * seconds / max(1, len(questions)), 3)}
            results.append(
                {
                    "data": path.name,
                    "corpus": corpus.name,
                    "half": half,
                    "n": len(questions),
                    "passages": len(passages),
                    "chunks": num_chunks,
                    "embedder": embedder.identity,
                    "seed": seed,
                    "scores": scores,
                    "gains": gains_over_better(each, "hybrid", ("bm25", "dense")),
                    "cost": cost,
                }
            )
    return results


class RetrievalBench:
    """A shard in a temporary folder, filled with passages and asked questions."""

    def __init__(
        self,
        embedder: Embedder,
        *,
        cache: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
        root: Path | None = None,
    ) -> None:
        self._embedder = embedder
        self._own_root = root is None
        self._root = root or Path(tempfile.mkdtemp(prefix="dysra-retrieval-"))
        self._cache = VectorCache(cache or self._root / "vectors", embedder)
        self._progress = progress
        config = StoreConfig(lexical_commit_ms=5_000.0)
        self.shard = Shard.open(self._root / "store", config, 0, 1, embedder.identity, embedder.dim)

    def add(self, passages: Sequence[dict[str, Any]]) -> None:
        """Append passages ({id, title, text}) as ingest would."""
        chunked = [
            (article, *chunk_article(article, self._embedder, ChunkConfig()))
            for article in map(_article, passages)
        ]
        texts = [text for _, _, embedded in chunked for text in embedded]
        vectors = self._cache.encode(texts, self._progress)
        records, at = [], 0
        for offset, (article, chunks, _) in enumerate(chunked):
            rows = vectors[at : at + len(chunks)]
            at += len(chunks)
            place = Coordinate("passages", 0, offset)
            records.append(Upsert(coordinate=place, article=article, chunks=chunks, vectors=rows))
        for begin in range(0, len(records), _BATCH):
            batch = records[begin : begin + _BATCH]
            self.shard.append(batch, {("passages", 0): begin + len(batch)}, 1)
        self.shard.maintain(0)

    def embed(self, questions: Sequence[Question]) -> None:
        """Embed questions ahead of timing their search."""
        self._cache.encode([question.text for question in questions])

    def candidates(
        self, questions: Sequence[Question], mode: Mode, depth: int
    ) -> Iterator[tuple[SearchRequest, Candidates]]:
        """The shard's candidates, a batch of questions at a time."""
        vectors: NDArray[np.float32] | None = None
        if mode != "bm25":
            vectors = self._cache.encode([question.text for question in questions]).astype(np.float32)
        for begin in range(0, len(questions), 32):
            batch = questions[begin : begin + 32]
            request = SearchRequest(
                k=depth,
                depth=depth,
                mode=mode,
                vectors=None if vectors is None else vectors[begin : begin + len(batch)],
                texts=[question.text for question in batch],
            )
            yield request, self.shard.candidates(request)

    def rank(
        self, questions: Sequence[Question], mode: Mode, config: SearchConfig | None = None
    ) -> list[list[str]]:
        """For each question the passages' ids, best first, each once."""
        config = config or SearchConfig()
        ranked: list[list[str]] = []
        for request, candidates in self.candidates(questions, mode, max(config.depth, CUTS[-1])):
            for passages in merge_candidates([candidates], request, config):
                ranked.append(list(dict.fromkeys(passage.article_id for passage in passages)))
        return ranked

    def __enter__(self) -> RetrievalBench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shard.close()
        if self._own_root:
            shutil.rmtree(self._root, ignore_errors=True)


def load_questions(path: Path) -> list[Question]:
    """The questions of a file that name gold passages; raises BadData if none does."""
    questions = [
        Question(row["id"], row["question"], frozenset(row["gold_passage_ids"]))
        for row in read_rows(path)
        if row.get("gold_passage_ids")
    ]
    if not questions:
        raise BadData(
            f"{path} holds no question with gold_passage_ids; use nq_open, squad2, hotpotqa or musique"
        )
    return questions


def sample_questions(questions: list[Question], half: Half, number: int, seed: int) -> list[Question]:
    """At most `number` questions of a half, the same ones for the same seed."""
    if half not in ("tuning", "report", "all"):
        raise ValueError(f"half is {half!r}; allowed: tuning, report, all")
    wanted = [q for q in questions if half == "all" or (half == "tuning") == _is_tuning(q.id)]
    if len(wanted) <= number:
        return wanted
    keep = np.random.default_rng(seed).permutation(len(wanted))[:number]
    return [wanted[at] for at in sorted(keep)]


def sample_passages(
    corpus: Path, questions: Sequence[Question], number: int, seed: int
) -> list[dict[str, Any]]:
    """The questions' gold passages and a seeded sample of the others, about `number` in all."""
    rows = list(read_rows(corpus))
    gold = frozenset[str]().union(*(question.gold for question in questions))
    missing = gold - {row["id"] for row in rows}
    if missing:
        raise BadData(f"{corpus} lacks {len(missing)} gold passages of the questions, such as {min(missing)}")
    others = [row for row in rows if row["id"] not in gold]
    room = max(0, number - len(gold))
    if len(others) > room:
        keep = set(np.random.default_rng(seed).permutation(len(others))[:room].tolist())
        others = [row for at, row in enumerate(others) if at in keep]
    return [row for row in rows if row["id"] in gold] + others


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, .zst or plain."""
    data = path.read_bytes()
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    try:
        for line in data.splitlines():
            yield orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadData(f"{path} is not JSON lines: {error}") from None


def _method(name: str) -> Mode:
    for method in METHODS:
        if method == name:
            return method
    raise ValueError(f"method is {name!r}; allowed: {', '.join(METHODS)}")


def _is_tuning(question_id: str) -> bool:
    return xxhash.xxh3_64_intdigest(question_id.encode()) % 2 == 0


def _article(row: dict[str, Any]) -> Article:
    title = row["title"] or row["id"]
    return Article(
        id=row["id"],
        published=_PUBLISHED,
        source="Wikipedia",
        title=title,
        text=row["text"],
        stream="wikipedia",
    )
