"""Articles: what is one, what is not, and that no record of any kind stops the stream."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.article import (
    DELETE_ID_HEADER,
    Article,
    ArticleLimits,
    BadRecord,
    Deletion,
    default_stream,
    from_ms,
    parse_article,
    parse_record,
    to_ms,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GOOD: dict[str, Any] = {
    "id": "a-1",
    "published": "2025-03-04T05:06:07Z",
    "source": "North Wire",
    "title": "Rates held",
    "text": "The bank held rates.",
}
TIMES = st.datetimes(min_value=datetime(1800, 1, 1), max_value=datetime(2025, 12, 31), timezones=st.just(UTC))
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).filter(str.strip)
TOPICS = st.lists(TEXTS, max_size=3)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _parse(**changes: Any) -> Article:
    return parse_article({**GOOD, **changes}, now=NOW)


def test_minimal_article_is_read() -> None:
    """The five required fields are enough; the stream is the source's slug."""
    article = _parse()
    assert (article.id, article.stream, article.topics) == ("a-1", "north-wire", ())
    assert article.published == datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC)


@given(
    TEXTS,
    TEXTS,
    TEXTS,
    TIMES,
    st.none() | st.timedeltas(timedelta(0), timedelta(days=1)),
    st.lists(TEXTS, max_size=3),
)
def test_written_article_reads_back_equal(
    article_id: str, title: str, text: str, published: datetime, later: timedelta | None, topics: list[str]
) -> None:
    """What we publish is what we read."""
    article = Article(
        id=article_id[:512],
        published=published,
        source="s",
        title=title[:2000],
        text=text,
        topics=tuple(topics),
        updated=None if later is None else published + later,
        stream="x",
        url="https://example.org/a",
    )
    assert parse_record(b"k", article.to_json(), now=NOW) == article


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, "missing_field"),
        ({"id": " "}, "missing_field"),
        ({"id": 7}, "wrong_type"),
        ({"id": "a\x00b"}, "bad_id"),
        ({"id": "x" * 513}, "bad_id"),
        ({"source": ""}, "missing_field"),
        ({"title": ["t"]}, "wrong_type"),
        ({"title": "t" * 2001}, "bad_title"),
        ({"text": None}, "missing_field"),
        ({"text": "\x01\x02"}, "missing_field"),
        ({"published": None}, "missing_field"),
        ({"published": "yesterday"}, "bad_time"),
        ({"published": 1_700_000_000}, "bad_time"),
        ({"published": "0001-01-01T00:00:00+23:00"}, "bad_time"),
        ({"published": "1200-01-01T00:00:00Z"}, "bad_time"),
        ({"published": "2026-01-03T00:00:01Z"}, "bad_time"),
        ({"updated": "2025-03-04T05:06:06Z"}, "bad_time"),
        ({"topics": "markets"}, "bad_topics"),
        ({"topics": [1]}, "bad_topics"),
        ({"url": 5}, "bad_url"),
        ({"stream": {}}, "wrong_type"),
    ],
)
def test_wrong_field_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    """Each way to be no article has a reason of its own."""
    with pytest.raises(BadRecord) as caught:
        _parse(**changes)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\xff\xfe", "not_utf8"),
        (b"", "not_json"),
        (b"{", "not_json"),
        (b"[]", "not_object"),
        (b"null", "not_object"),
        (b'"text"', "not_object"),
        (b"[" * 100_000, "too_deep"),
        (b'{"a":' * 50_000, "too_deep"),
        (b" " * 1_000_001, "too_large"),
    ],
    ids=["bytes", "empty", "cut", "list", "null", "string", "brackets", "objects", "large"],
)
def test_value_that_is_no_object_is_refused(value: bytes, reason: str) -> None:
    """Bombs and scraps are refused before they are parsed."""
    with pytest.raises(BadRecord) as caught:
        parse_record(b"k", value)
    assert caught.value.reason == reason


def test_brackets_inside_text_are_not_nesting() -> None:
    """A text may hold as many brackets and escaped quotes as it likes."""
    text = '[{"' * 500
    assert _parse(text=text).text == text
    assert parse_record(b"k", orjson.dumps({**GOOD, "text": text + "\\"}), now=NOW).text == text + "\\"  # type: ignore[union-attr]


@given(st.binary() | JSON_VALUES.map(lambda value: json.dumps(value).encode()), st.none() | st.binary())
def test_any_record_is_an_article_a_deletion_or_a_bad_record(value: bytes, key: bytes | None) -> None:
    """Nothing but BadRecord is ever raised, and it always says why."""
    try:
        parse_record(key, value)
    except BadRecord as error:
        assert error.reason and error.detail


@given(st.dictionaries(st.sampled_from([*GOOD, "updated", "topics", "url", "stream"]), JSON_VALUES))
def test_any_field_value_is_read_or_refused(changes: dict[str, Any]) -> None:
    """A field may hold any JSON value without another kind of error."""
    try:
        article = _parse(**changes)
    except BadRecord:
        return
    assert article.id and article.text.strip()


def test_null_value_deletes_what_the_key_or_header_names() -> None:
    """The header wins, for topics that are keyed by stream."""
    assert parse_record(b"a-1", None) == Deletion(id="a-1")
    assert parse_record(b"markets", None, [(DELETE_ID_HEADER, b"a-1")]) == Deletion(id="a-1")
    for key in (None, b"", b"\xff"):
        with pytest.raises(BadRecord):
            parse_record(key, None)


def test_later_update_is_the_newer_version() -> None:
    """The version is the update's time, else the publication's."""
    assert _parse(updated="2025-03-04T05:06:08Z").version_ms == _parse().version_ms + 1000


@given(TIMES)
def test_milliseconds_round_trip(moment: datetime) -> None:
    """Times survive the store's milliseconds exactly."""
    whole = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    assert from_ms(to_ms(whole)) == whole


def test_limits_are_checked() -> None:
    """A limit that nothing could pass is refused with its name."""
    with pytest.raises(ValueError, match="max_depth is 0"):
        ArticleLimits(max_depth=0)
    with pytest.raises(ValueError, match="time zone"):
        ArticleLimits(earliest=datetime(1900, 1, 1))


def test_source_without_letters_has_a_stream() -> None:
    """Every article belongs to some stream."""
    assert default_stream("???") == "unnamed"
