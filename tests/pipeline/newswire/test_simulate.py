"""The stream of records: reproducible, in order, valid, in constant memory, and what links its forms."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from collections import Counter
from datetime import date
from pathlib import Path

import orjson
import pytest

from pipeline.article import Article, ArticleLimits, parse_article
from pipeline.newswire import NewsEvent, World, demo_set, first_day, generate
from pipeline.newswire.houses import HOUSES
from pipeline.newswire.values import from_iso

PREFIX = 1_500
PREFIX_SHA256 = "6e93d695e93d5ad4c2e184ebe908fe7157588a3ff077c57300b223a9222ff534"
YEAR_SHA256 = "1ad83ccede1bd3addc5616348aff21cc5465ee5311d1fe10b3bef83cb632b5e8"


@pytest.fixture(scope="module")
def events() -> list[NewsEvent]:
    return list(generate(2025, PREFIX))


def digest(seed: int, num_articles: int) -> str:
    lines = hashlib.sha256()
    for event in generate(seed, num_articles):
        lines.update(orjson.dumps(event.record) + b"\n")
    return lines.hexdigest()


def test_the_bytes_of_the_default_seed_are_those_of_the_card(events: list[NewsEvent]) -> None:
    """The first 1,500 articles have the checksum that docs/newswire.md states."""
    lines = b"".join(orjson.dumps(event.record) + b"\n" for event in events)
    assert hashlib.sha256(lines).hexdigest() == PREFIX_SHA256


@pytest.mark.slow
def test_the_bytes_of_the_year_are_those_of_the_card() -> None:
    """All 50,000 articles of the default seed have the checksum that docs/newswire.md states."""
    assert digest(2025, 50_000) == YEAR_SHA256


def test_the_card_states_the_checksums() -> None:
    """docs/newswire.md and these tests name the same bytes."""
    card = (Path(__file__).parents[3] / "docs" / "newswire.md").read_text(encoding="utf-8")
    assert PREFIX_SHA256 in card and YEAR_SHA256 in card


def test_the_hash_seed_of_the_interpreter_changes_nothing() -> None:
    """Two interpreters with other hash seeds, locale and time zone write the same bytes."""
    code = (
        "import hashlib, orjson\nfrom pipeline.newswire import generate, questions\nh = hashlib.sha256()\n"
        "for e in generate(5, 120): h.update(orjson.dumps(e.record))\n"
        "for q in questions(5, 300, 40, asked='spread'): h.update(orjson.dumps(q.to_dict()))\nprint(h.hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed, zone in (("1", "UTC"), ("777", "Asia/Tokyo"))
    }
    assert len(outputs) == 1


def test_a_longer_run_begins_with_the_shorter_one() -> None:
    """Within one number of years, asking for more articles adds records and changes none."""
    short, long = list(generate(3, 200)), list(generate(3, 420))
    assert [e.record for e in short] == [e.record for e in long[: len(short)]]
    assert sum(e.kind in ("article", "copy") for e in long) == 420


def test_another_seed_is_another_world() -> None:
    """Seeds share no company."""
    first, second = ({c.name.accepted[0] for c in World(seed).companies} for seed in (1, 2))
    assert len(first) == 96
    assert len(first & second) < 5


def test_records_come_in_order_of_publication(events: list[NewsEvent]) -> None:
    """Times never go back, and each record carries its event's time."""
    assert all(a.time <= b.time for a, b in itertools.pairwise(events))
    for event in events:
        stamp = event.record.get("updated") or event.record["published"]
        assert from_iso(stamp) == event.time


def test_every_record_is_a_valid_article_that_reads_back_equal(events: list[NewsEvent]) -> None:
    """Ingest accepts each record, and `to_dict` of what it read is the record."""
    for event in events:
        if event.kind == "withdrawal":
            assert event.record["deleted"] is True and event.record["id"] and event.record["stream"]
            continue
        article = parse_article(event.record, ArticleLimits())
        assert isinstance(article, Article)
        assert article.to_dict() == event.record


def test_articles_have_80_to_850_words_and_about_225_on_average(events: list[NewsEvent]) -> None:
    """First forms keep to the stated lengths (the last paragraph may run over)."""
    lengths = [len(e.record["text"].split()) for e in events if e.kind == "article"]
    assert min(lengths) >= 80
    assert max(lengths) <= 850
    assert 180 <= sum(lengths) / len(lengths) <= 270


def test_eight_streams_five_sources_every_kind_of_record(events: list[NewsEvent]) -> None:
    """No desk, house or kind of record is missing or marginal."""
    streams = Counter(e.record["stream"] for e in events)
    assert len(streams) == 8 and min(streams.values()) > 40
    sources = Counter(e.record["source"] for e in events if e.kind == "article")
    assert set(sources) == {house.name for house in HOUSES} and min(sources.values()) > 80
    kinds = Counter(e.kind for e in events)
    assert set(kinds) == {"article", "copy", "update", "correction", "withdrawal"}
    assert min(kinds.values()) >= 8


def test_later_forms_follow_their_first_form(events: list[NewsEvent]) -> None:
    """Updates, corrections and withdrawals name an article that is out, keep its times, and updates are fuller."""
    out: dict[str, dict[str, str]] = {}
    for event in events:
        record = event.record
        if event.kind in ("article", "copy"):
            assert record["id"] not in out
        else:
            first = out[record["id"]]
            assert record["published"] == first["published"] and record["stream"] == first["stream"]
            assert record["updated"] > first.get("updated", first["published"])
        if event.kind == "update":
            assert len(record["text"]) > len(first["text"])
        if event.kind == "withdrawal":
            del out[record["id"]]
        else:
            out[record["id"]] = record


def test_a_correction_replaces_the_wrong_value_and_says_so(events: list[NewsEvent]) -> None:
    """The first form holds the wrong value; the corrected one tells the right one and names both in its note."""
    first = {e.record["id"]: e for e in events if e.kind == "article" and e.wrong}
    corrections = [e for e in events if e.kind == "correction"]
    assert len(corrections) >= 15
    for event in corrections:
        before, fact = first[event.record["id"]], event.false_fact
        assert fact is not None and before.wrong == event.wrong
        false = [s.text for s in before.sentences if before.wrong_slot in s.slots and fact in s.facts]
        assert false and all(text in before.record["text"] for text in false)
        assert not any(text in event.record["text"] for text in false)
        assert any(form in event.record["text"] for form in fact.value.accepted)


def test_copies_are_near_duplicates_of_what_they_name(events: list[NewsEvent]) -> None:
    """A copy shares most five-word runs with its original and has another id, source and later time."""
    records = {}
    compared = 0
    for event in events:
        if event.kind == "copy":
            original = records[event.copy_of]
            assert original["source"] != event.record["source"]
            assert original["published"] < event.record["published"]
            a, b = (runs(record["text"]) for record in (original, event.record))
            compared += len(a & b) / len(a | b) >= 0.7
        elif event.kind == "article":
            records[event.record["id"]] = event.record
    copies = sum(e.kind == "copy" for e in events)
    assert copies > 60 and compared >= 0.9 * copies


def test_the_same_event_is_told_in_other_words_by_other_houses(events: list[NewsEvent]) -> None:
    """Independent accounts of one event share few five-word runs."""
    by_event: dict[str, list[set[str]]] = {}
    for event in events:
        if event.kind == "article" and event.sentences:
            by_event.setdefault(event.event, []).append(runs(event.record["text"]))
    pairs = [(a, b) for told in by_event.values() for a, b in itertools.combinations(told, 2)]
    assert len(pairs) > 200
    shares = sorted(len(a & b) / len(a | b) for a, b in pairs)
    assert shares[len(shares) // 2] < 0.1
    assert shares[-1] < 0.7


def runs(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[i : i + 5]) for i in range(len(words) - 4)}


def test_at_most_a_fifth_of_eight_word_runs_repeat(events: list[NewsEvent]) -> None:
    """In the first 1,500 articles, copies and later forms aside, four of five runs of eight words are new."""
    seen: set[tuple[str, ...]] = set()
    repeated = total = 0
    for event in events:
        if event.kind != "article":
            continue
        words = event.record["text"].split()
        for i in range(len(words) - 7):
            run = tuple(words[i : i + 8])
            total += 1
            repeated += run in seen
            seen.add(run)
    assert repeated / total < 0.2


def test_a_long_run_ends_with_2025() -> None:
    """The default start leaves room for every year needed, so that nothing lies in the future."""
    assert first_day(50_000) == date(2025, 1, 1)
    assert first_day(50_001) == date(2024, 1, 1)
    assert first_day(1_000_000) == date(2006, 1, 1)


def test_a_negative_number_of_articles_is_refused() -> None:
    """ValueError names what was given."""
    with pytest.raises(ValueError, match="num_articles is -1"):
        next(generate(1, -1))


def test_the_demo_has_every_kind_of_question_asked_at_its_end() -> None:
    """A thousand articles and 24 questions, three of every kind, as of the last record."""
    drawn = demo_set(7)
    assert sum("text" in record and "updated" not in record for record in drawn.records) == 1_000
    assert Counter(q.kind for q in drawn.questions) == dict.fromkeys({q.kind for q in drawn.questions}, 3)
    assert len({q.kind for q in drawn.questions}) == 8
    last = drawn.records[-1]
    assert {q.asked for q in drawn.questions} == {last.get("updated") or last["published"]}
