"""What the demo publishes, asks and shows, without starting any of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from infra.demo.material import DemoQuestion, file_material, newswire_material
from infra.demo.report import around, by_kind, is_right
from pipeline.errors import BadData, UsageError


def news_file(path: Path, num_articles: int = 30) -> Path:
    """A news file of short articles, the newest first, each naming its own mayor twice."""
    rows = [
        {
            "id": f"a{number}",
            "published": f"2024-03-{number + 1:02d}T10:00:00Z",
            "source": "Gazette",
            "title": f"Bridge number {number} opens",
            "text": f"The bridge was opened on Monday by Mayor Ines Falk{number} after years of work. "
            f"Crowds came early and cheered for hours. People thanked Ines Falk{number}, who had asked for it "
            "for a long time.",
            "topics": [],
        }
        for number in range(num_articles)
    ]
    path.write_bytes(b"\n".join(orjson.dumps(row) for row in reversed(rows)))
    return path


def test_news_file_is_published_in_time_order_with_questions_of_its_own(tmp_path: Path) -> None:
    """Blanks whose filling stands in the article, and headlines whose article must be cited."""
    material = file_material(news_file(tmp_path / "news.jsonl"), limit=28)
    days = [record.published for record in material.records]  # type: ignore[union-attr]
    assert len(days) == 28 and days == sorted(days)
    kinds = {question.kind for question in material.questions}
    assert kinds == {"blank", "headline"} and len(material.questions) == 24
    texts = " ".join(record.text for record in material.records)  # type: ignore[union-attr]
    for question in material.questions:
        if question.kind == "blank":
            assert "____" in question.question
            assert question.answers[0] in texts and question.answers[0] not in question.question


def test_questions_of_a_file_are_taken(tmp_path: Path) -> None:
    """And one that cannot be read is named with its line."""
    news, questions = news_file(tmp_path / "news.jsonl"), tmp_path / "questions.jsonl"
    questions.write_text('{"question": "Who?", "answers": ["Ines"]}\n', encoding="utf-8")
    (only,) = file_material(news, 10, questions).questions
    assert only.answers == ("Ines",) and only.cross_stream
    questions.write_text('{"question": "Who?"}\n{"ask": 1}\n', encoding="utf-8")
    with pytest.raises(UsageError, match="line 2"):
        file_material(news, 10, questions)


def test_file_without_articles_is_refused(tmp_path: Path) -> None:
    """Rather than a demo of nothing."""
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n", encoding="utf-8")
    with pytest.raises(BadData, match="no dated article"):
        file_material(empty, 10)


def test_newswire_asks_every_kind_of_question() -> None:
    """Facts now and then, changes, hops, counts, corrections, and what the news does not tell."""
    material = newswire_material(700, 24)
    assert material.num_articles >= 700
    kinds = {question.kind for question in material.questions}
    assert {"now", "as_of", "changed", "two_hop", "three_hop", "count", "unanswerable"} <= kinds
    assert newswire_material(700, 24) == material


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        ({"answers": ("Ines Falk",)}, {"text": "Ines Falk"}, True),
        ({"answers": ("Ines Falk",)}, {"text": "It was Mayor Ines Falk"}, True),
        ({"answers": ("Ines Falk",)}, {"text": "Ora Lind"}, False),
        ({"answers": ("2",)}, {"text": " ".join(str(n) for n in range(40))}, False),
        ({"answers": ()}, {"text": "", "given_up": True}, True),
        ({"answers": ()}, {"text": "Ines Falk"}, False),
        ({"article_id": "a1"}, {"text": "x", "sources": [{"article_id": "a1"}]}, True),
        ({"article_id": "a1"}, {"text": "x", "sources": [{"article_id": "a2"}]}, False),
    ],
)
def test_answers_are_judged(question: dict[str, Any], answer: dict[str, Any], right: bool) -> None:
    """Short answers that hold the gold; nothing where the news does not tell; the article where it is asked for."""
    asked = DemoQuestion(kind="k", question="?", stream="s", **question)
    assert is_right(asked, {"given_up": False, "sources": [], **answer}) is right


def test_evidence_is_cut_out_around_the_answer() -> None:
    """At whole words, with marks where something was left out, and not at all where the answer is not quoted."""
    quote = "one two three four five six Ines Falk seven eight nine ten eleven"
    assert around(quote, "ines falk", reach=9) == "…five six Ines Falk seven eight…"
    assert around(quote, "one", reach=3) == "one two…"
    assert around(quote, "eleven", reach=4) == "…ten eleven"
    assert around(quote, "Ora Lind") == "" and around(quote, "") == ""


def test_right_answers_are_counted_by_kind() -> None:
    """As right over asked."""
    asked = [DemoQuestion(kind=kind, question="?", stream="s") for kind in ("now", "now", "count")]
    assert by_kind(asked, [True, False, True]) == {"now": "1/2", "count": "1/1"}
