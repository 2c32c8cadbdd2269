"""A short, seeded run of every fuzz target: the same mutations every time."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, seeds

RUNS = {
    "article": 1_500,
    "deletion": 300,
    "feed": 100,
    "html": 400,
    "news_file": 60,
    "wal": 120,
    "codec": 1_500,
    "unpack": 400,
    "snapshot": 300,
    "state": 500,
    "manifest": 200,
}


def mutated(source: random.Random, seed: bytes) -> bytes:
    """A few bytes changed, cut out, doubled or put in."""
    value = bytearray(seed)
    for _ in range(source.choice((1, 1, 2, 6))):
        at = source.randrange(len(value) + 1)
        kind = source.randrange(5)
        if kind == 0 and value:
            value[at % len(value)] ^= 1 << source.randrange(8)
        elif kind == 1:
            del value[at : at + source.randrange(1, 20)]
        elif kind == 2:
            value[at:at] = value[at : at + source.randrange(1, 40)]
        elif kind == 3:
            value[at:at] = source.choice(
                (b"\x00", b"\xff", b"[", b'"', b"\\u", b"<", b"&", b"-1", b"\xf0\x9f")
            )
        else:
            value[at:at] = source.randbytes(source.randrange(1, 9))
    return bytes(value)


@pytest.mark.parametrize("name", TARGETS)
def test_seeded_mutations_never_break_a_parser(name: str) -> None:
    """Every answer is one that the parser promises."""
    source = random.Random(name)
    corpus = list(seeds(name))
    for seed in corpus:
        TARGETS[name](seed)
    for _ in range(RUNS[name]):
        TARGETS[name](mutated(source, source.choice(corpus)))


@pytest.mark.parametrize("name", ["article", "deletion", "html", "codec", "unpack", "snapshot", "state"])
def test_any_bytes_never_break_a_parser(name: str) -> None:
    """Bytes that no seed led to."""

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=400))
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes().map(str),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: _VALUES | st.text(max_size=40) | st.just("2024-05-01T08:00:00Z")
            for name in ("id", "published", "source", "title", "text", "topics", "url", "updated", "stream")
        },
    )
)
def test_any_fields_are_an_article_or_a_bad_record(fields: dict[str, object]) -> None:
    """Of any type and in any mixture."""
    import json

    try:
        data = json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return
    TARGETS["article"](data)
