"""Records come out of the bytes as they went in."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.embed import load_tokenizer
from pipeline.article import Article
from pipeline.chunker import ChunkConfig, chunk_article
from pipeline.store import Coordinate, DeadLetter, Delete, Link, StoreRecord, Upsert
from pipeline.store.wire import pack_records, unpack_records

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=400)
_MOMENT = st.datetimes(datetime(1700, 1, 1), datetime(2300, 1, 1)).map(
    lambda moment: moment.replace(tzinfo=UTC)
)
DIM = 3


@st.composite
def _articles(draw: Any) -> Article:
    published = draw(_MOMENT)
    return Article(
        id=draw(_TEXT),
        published=published,
        source=draw(_TEXT),
        title=draw(_TEXT),
        text=draw(_TEXT),
        topics=tuple(draw(st.lists(_TEXT, max_size=3))),
        url=draw(st.none() | _TEXT),
        updated=draw(st.none() | st.just(published + timedelta(microseconds=1))),
        stream=draw(_TEXT),
    )


@st.composite
def _records(draw: Any) -> StoreRecord:
    at = Coordinate(
        draw(_TEXT), draw(st.integers(0, 9)), draw(st.integers(0, 2**62)), draw(st.integers(-1, 2**62))
    )
    kind = draw(st.sampled_from("uldx"))
    if kind == "d":
        return Delete(coordinate=at, article_id=draw(_TEXT))
    if kind == "x":
        return DeadLetter(coordinate=at, reason=draw(_TEXT))
    article = draw(_articles())
    if kind == "l":
        return Link(
            coordinate=at, article=article, canonical_id=article.id + "x", similarity=draw(st.floats(0, 1))
        )
    chunks, _ = chunk_article(article, load_tokenizer("none"), ChunkConfig(max_tokens=16, max_title_tokens=2))
    vectors = np.random.default_rng(at.partition).standard_normal((len(chunks), DIM)).astype(np.float16)
    return Upsert(coordinate=at, article=article, chunks=chunks, vectors=vectors, signature=draw(st.binary()))


@settings(deadline=None, max_examples=150)
@given(records=st.lists(_records(), max_size=5))
def test_records_come_out_as_they_went_in(records: list[StoreRecord]) -> None:
    """Every field of every kind of record, texts of chunks among them."""
    found = unpack_records(pack_records(records), DIM)
    assert [type(one) for one in found] == [type(one) for one in records]
    for one, other in zip(found, records, strict=True):
        for field in fields(one):
            if field.name == "vectors":
                assert (one.vectors == other.vectors).all() and one.vectors.shape == other.vectors.shape
            else:
                assert getattr(one, field.name) == getattr(other, field.name)


def test_no_records_are_no_records() -> None:
    """A fence carries none."""
    assert unpack_records(pack_records([]), DIM) == []
