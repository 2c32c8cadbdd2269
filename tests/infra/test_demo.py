"""What the demo publishes, asks and shows, and how it starts and stops; nothing of it is started here."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from infra.config import load_config
from infra.demo import waiting as waiting_module
from infra.demo.material import DemoQuestion, file_material, newswire_material
from infra.demo.report import around, by_kind, is_right
from infra.demo.start import named_for, start_broker
from infra.demo.usage import TreeUsage
from infra.kafka import Broker
from infra.signals import StoppedBySignal
from pipeline.errors import BadData, StoppedEarly, UsageError


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


def test_stages_tell_both_clocks() -> None:
    """Processor time counts a child's too, also after it has ended; each stage has its own."""
    work = "import time; t = time.process_time()\nwhile time.process_time() - t < 1.0: pass\ninput()"
    with TreeUsage() as usage:
        with usage.stage("idle"):
            pass
        with usage.stage("work"):
            child = subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE)
            deadline = time.monotonic() + 60
            begun = usage.processor_s()
            while usage.processor_s() < begun + 0.8 and time.monotonic() < deadline:
                time.sleep(0.05)
            before = usage.processor_s()
            child.communicate(b"\n", timeout=60)
            assert usage.processor_s() >= before
    stages = usage.stages()
    assert set(stages) == {"idle", "work"} and set(stages["work"]) == {"seconds", "processor_s"}
    assert stages["work"]["processor_s"] >= max(0.7, stages["idle"]["processor_s"])
    assert usage.peak_gb() > 0


def test_a_long_wait_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is over, also where it ends in an error."""
    said: list[str] = []
    monkeypatch.setattr(waiting_module, "say", said.append)
    deadline = time.monotonic() + 30
    with pytest.raises(ValueError, match="over"), waiting_module.waiting("Ray starts", every_s=0.01):
        while len(said) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        raise ValueError("over")
    told = len(said)
    assert told >= 2 and "Ray starts" in said[0]
    time.sleep(0.05)
    assert len(said) == told


def test_the_first_sigterm_ends_the_demo_and_no_later_one_its_stopping() -> None:
    """Nor one that comes while everything is being stopped anyway; afterwards the former handler is back."""
    former = signal.getsignal(signal.SIGTERM)
    with StoppedBySignal():
        with pytest.raises(StoppedEarly):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is former
    with StoppedBySignal() as signals:
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("Ray's handler"))
        signals.stopping()
        signal.raise_signal(signal.SIGTERM)


def test_a_broker_that_has_begun_to_start_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the demo ends: what its thread still starts is waited for, then stopped; the data go."""
    done: list[str] = []
    begun = threading.Event()

    def start(folder: Path, port: int, on_step: object) -> Broker:
        begun.set()
        time.sleep(0.2)
        (folder / "data").mkdir(parents=True)
        done.append("started")
        return Broker(pid=1, port=9, bootstrap_servers="127.0.0.1:9", directory=str(folder), log="l")

    monkeypatch.setattr("infra.kafka.start", start)
    monkeypatch.setattr("infra.kafka.stop", lambda folder: done.append("stopped"))
    monkeypatch.setattr("infra.kafka.jars.java", lambda: "java")
    monkeypatch.setattr("infra.kafka.jars.ensure_jars", lambda on_step: tmp_path)
    monkeypatch.setattr("pipeline.kafka.ensure_topic", lambda kafka: done.append(kafka.bootstrap_servers))
    named = named_for(load_config(None), tmp_path, "run1")
    with pytest.raises(RuntimeError, match="Ray"), contextlib.ExitStack() as cleanup:
        start_broker(named, tmp_path, True, cleanup)
        assert begun.wait(30)
        raise RuntimeError("Ray does not start")
    assert done == ["started", "127.0.0.1:9", "stopped"] and not (tmp_path / "kafka" / "data").exists()
    with contextlib.ExitStack() as cleanup:
        config = start_broker(named, tmp_path, True, cleanup)()
        assert config.kafka.bootstrap_servers == "127.0.0.1:9" and config.kafka.topic.endswith("-demo-run1")
