"""Evaluation of retrieval, with an embedder of a few words and on the real sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import pytest
import zstandard

from infra.evaluation import retrieval
from infra.evaluation.retrieval import run
from infra.evaluation.vector_cache import VectorCache
from pipeline.errors import BadData

WORDS = ["river", "bridge", "vote", "market", "storm", "ferry", "museum", "harvest"]


class WordEmbedder:
    """Counts of eight words: a real vector space, small enough to check by hand."""

    identity = "words-8"
    dim = 8
    max_tokens = 256
    batch_texts = 8

    def __init__(self) -> None:
        self.num_encoded = 0

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words."""
        return [len(text.split()) for text in texts]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Words again."""
        spans, at = [], 0
        for word in text.split():
            at = text.index(word, at)
            spans.append((at, at + len(word)))
            at += len(word)
        return spans

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Normalised counts."""
        self.num_encoded += len(texts)
        rows = np.array(
            [[text.lower().count(word) + 1e-3 for word in WORDS] for text in texts], dtype=np.float32
        )
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(path: Path, rows: list[dict]) -> Path:
    """A zstd file of JSON lines."""
    path.write_bytes(zstandard.ZstdCompressor().compress(b"\n".join(orjson.dumps(row) for row in rows)))
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Eight questions, each with one gold passage, and eighty other passages."""
    passages = [
        {"id": f"p{n}", "title": word, "text": f"About the {word}, and the {word} again."}
        for n, word in enumerate(WORDS)
    ]
    passages += [
        {"id": f"o{n}", "title": f"Other {n}", "text": f"Nothing much happened here {n}."} for n in range(80)
    ]
    questions = [
        {"id": f"q{n}", "question": f"What of the {word}?", "gold_passage_ids": [f"p{n}"]}
        for n, word in enumerate(WORDS)
    ]
    questions.append({"id": "none", "question": "Unanswerable?", "gold_passage_ids": []})
    return write(tmp_path / "qa.jsonl.zst", questions), write(tmp_path / "corpus.jsonl.zst", passages)


def test_every_method_finds_what_only_one_passage_says(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Through a real shard: recall and MRR are 1, the sample has the gold passages, costs are told."""
    result = run(*files, embedder=WordEmbedder(), half="all", num_passages=30, cache=tmp_path / "cache")
    assert (result["n"], result["passages"]) == (8, 30)
    perfect = {"recall@1": 1.0, "recall@5": 1.0, "recall@20": 1.0, "mrr": 1.0}
    assert result["scores"] == {"bm25": perfect, "dense": perfect, "hybrid": perfect}
    assert set(result["cost"]) == {"bm25", "dense", "hybrid"}


def test_the_halves_share_no_question(files: tuple[Path, Path]) -> None:
    """What tuned the fusion is never reported, and the same seed samples the same questions."""
    questions = retrieval.load_questions(files[0])
    tuning = retrieval.sample_questions(questions, "tuning", 99, 0)
    report = retrieval.sample_questions(questions, "report", 99, 0)
    assert {q.id for q in tuning} | {q.id for q in report} == {q.id for q in questions}
    assert not {q.id for q in tuning} & {q.id for q in report}
    few = [retrieval.sample_questions(questions, "all", 3, 7) for _ in range(2)]
    assert few[0] == few[1]
    assert len(few[0]) == 3


def test_a_text_is_embedded_once(tmp_path: Path) -> None:
    """Also by a later process, and whatever a torn write left."""
    first = WordEmbedder()
    texts = ["a river", "a bridge", "a river"]
    vectors = VectorCache(tmp_path, first).encode(texts)
    assert first.num_encoded == 2
    rows = next(tmp_path.glob("*.f16"))
    rows.write_bytes(rows.read_bytes() + b"torn")
    second = WordEmbedder()
    cache = VectorCache(tmp_path, second)
    np.testing.assert_array_equal(cache.encode(texts), vectors)
    assert second.num_encoded == 0
    cache.encode(["a storm"])
    third = WordEmbedder()
    np.testing.assert_allclose(
        VectorCache(tmp_path, third).encode(["a storm"]), third.encode(["a storm"]), atol=1e-3
    )
    assert third.num_encoded == 1


def test_files_without_gold_and_unknown_methods_are_told(files: tuple[Path, Path], tmp_path: Path) -> None:
    """What was given, and what would do."""
    bare = write(tmp_path / "bare.jsonl.zst", [{"id": "1", "question": "?"}])
    with pytest.raises(BadData, match="gold_passage_ids"):
        run(bare, files[1], embedder=WordEmbedder())
    lost = write(tmp_path / "lost.jsonl.zst", [{"id": "1", "question": "?", "gold_passage_ids": ["nowhere"]}])
    with pytest.raises(BadData, match="nowhere"):
        run(lost, files[1], embedder=WordEmbedder(), half="all")
    with pytest.raises(ValueError, match="allowed: bm25, dense, hybrid"):
        run(*files, ["splade"], embedder=WordEmbedder())
    with pytest.raises(ValueError, match="tuning, report, all"):
        run(*files, embedder=WordEmbedder(), half="both")  # type: ignore[arg-type]


@pytest.mark.data
def test_bm25_finds_most_gold_passages_of_a_real_set(tmp_path: Path) -> None:
    """SQuAD 2 questions among 2,000 Wikipedia passages."""
    root = os.environ.get("DYSRA_DATA")
    if not root:
        pytest.skip("DYSRA_DATA is not set")
    result = run(
        Path(root) / "qa/squad2.jsonl.zst",
        Path(root) / "corpus/passages_wiki.jsonl.zst",
        ["bm25"],
        embedder=WordEmbedder(),
        num_questions=60,
        num_passages=2_000,
        cache=tmp_path,
    )
    assert result["scores"]["bm25"]["recall@20"] > 0.85
