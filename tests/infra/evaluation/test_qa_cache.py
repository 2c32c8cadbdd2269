"""`dysra evaluate --task qa --cache`: staged methods choose from a session's cache beside what the search finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.evaluation.qa import QaConfig
from infra.evaluation.qa_sources import open_source
from pipeline.errors import UsageError
from tests.infra.evaluation.test_qa import data, reader
from tests.infra.evaluation.test_qa_methods import cell, embedder, policy

__all__ = ["data", "embedder", "policy", "reader"]


def told(name: str, hour: int, text: str, stream: str = "harbour", **more: Any) -> dict[str, Any]:
    """A row of the news."""
    return {
        "id": name, "title": f"About {name}", "text": text, "stream": stream, "source": "wire",
        "published": f"2025-01-02T{hour:02d}:00:00Z",
    } | more  # fmt: skip


NEWS = [
    told("pier", 1, "The pier opened on Monday."),
    told("match", 2, "Rovers won by two goals.", "sport"),
    told("gone", 3, "The pier sank."),
    told("storm", 4, "Two ferries were lost off Brae."),
    told("crew", 5, "Nobody was hurt."),
    {"id": "gone", "deleted": True, "stream": "harbour", "updated": "2025-01-02T06:00:00Z"},
    told("storm", 4, "Three ferries were lost off Brae.", updated="2025-01-02T07:00:00Z"),
    told("later", 9, "Trams run again."),
]


@pytest.fixture
def news(tmp_path: Path) -> tuple[Path, Path]:
    """Questions asked at six, at eight, and over several streams at eight; and the news."""
    asked = [("early", "harbour", 5), ("now", "harbour", 8), ("across", None, 8)]
    rows = [
        {
            "id": name, "question": "Which pier opened on Monday?", "answers": ["The pier"], "answerable": True,
            "gold_article_ids": ["pier"], "evidence": ["The pier opened on Monday."], "kind": "now",
            "stream": stream, "asked": f"2025-01-02T{hour:02d}:30:00Z", "split": "test",
        }
        for name, stream, hour in asked
    ]  # fmt: skip
    paths = tmp_path / "questions.jsonl", tmp_path / "news.jsonl"
    for path, found in zip(paths, (rows, NEWS), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return paths


def test_the_cache_holds_what_its_stream_had_read_last(news: tuple[Path, Path]) -> None:
    """In the form of then: withdrawn articles stand before their withdrawal, corrected ones move to the front."""
    source = open_source(*news)
    assert source.newest is not None
    found = {
        question.question_id: [(text.text_id, text.text) for text in source.newest(question, 3)]
        for question in source.questions
    }
    assert [name for name, _ in found["early"]] == ["crew", "storm", "gone"]
    assert found["early"][1][1].startswith("Two")
    assert [name for name, _ in found["now"]] == ["storm", "crew", "pier"]
    assert found["now"][0][1].startswith("Three")
    assert found["across"] == found["now"], "a question over several streams is asked of the largest"


def test_a_policy_chooses_from_both(
    reader: Path, embedder: Path, policy: Path, news: tuple[Path, Path]
) -> None:
    """What the search passes over is read with a cache and not without; the figures say that there was one."""
    common: dict[str, Any] = {
        "method": "policy", "policy": policy, "embedder": str(embedder), "corpus": news[1], "passages": 1,
        "stop_bias": -1e3, "budget": 1500,
    }  # fmt: skip
    without = cell(reader, news[0], **common)
    with_cache = cell(reader, news[0], **common, cache=3)
    assert with_cache["cost"]["tokens_read"] > 2 * without["cost"]["tokens_read"] > 0
    assert with_cache["cache"] == 3 and "cache" not in without


def test_a_cache_without_dated_news_or_a_staged_method_is_refused(
    reader: Path, data: Path, embedder: Path, policy: Path
) -> None:
    """The error names what has one."""
    with pytest.raises(UsageError, match="RealTimeQA"):
        cell(reader, data, method="policy", policy=policy, embedder=str(embedder), cache=2)
    with pytest.raises(ValueError, match="cache: given 2 with method bm25"):
        QaConfig(data=data, method="bm25", cache=2)
