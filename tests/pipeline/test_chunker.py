"""Chunks cover the article, keep to the budget by the model's own tokens, and end at sentences where they can."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from models.embed import TextTokenizer, load_tokenizer
from pipeline import chunker
from pipeline.article import Article, BadRecord
from pipeline.chunker import ChunkConfig, chunk_article, chunk_articles, title_context

TOKENIZER: TextTokenizer = load_tokenizer("minilm")
SENTENCE = "The council of the northern district voted seven to two against the new bridge on Monday. "
_PIECES = st.sampled_from(
    [
        "word ",
        "Rain fell. ",
        "3.5% ",
        "\n\n",
        "x" * 300,
        "漢字かな",
        "a-b-c;",
        "“Yes,” she said. ",
        "é",
        " ",
        "##",
        "🙂",
    ]
)
TEXT = st.lists(_PIECES, min_size=1, max_size=80).map("".join).filter(lambda text: text.strip() != "")
_ENDS = st.sampled_from(
    ["word ", "Rain fell. ", "。！", '.)"] ', "... ", "! ", "\n", "? A", ". b", ")", "”\n ", "\u200b", " - "]
)


def _article(text: str, title: str = "A title") -> Article:
    return Article(id="a", published=datetime(2020, 1, 1, tzinfo=UTC), source="s", title=title, text=text)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXT, budget=st.integers(16, 64), title=TEXT)
def test_spans_cover_the_text_and_keep_the_budget(text: str, budget: int, title: str) -> None:
    """Concatenated chunks are the text, ordinals count up, and no embedded text exceeds the budget."""
    config = ChunkConfig(max_tokens=budget, max_title_tokens=budget // 2)
    chunks, texts = chunk_article(_article(text, title), TOKENIZER, config)
    assert "".join(chunk.text for chunk in chunks) == text
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))
    assert all(text[chunk.start : chunk.end] == chunk.text for chunk in chunks)
    assert max(TOKENIZER.count_tokens(texts)) <= budget


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXT, budget=st.integers(24, 64))
def test_overlap_loses_nothing_and_moves_on(text: str, budget: int) -> None:
    """With overlap the spans still cover every character, and each chunk ends after the one before."""
    config = ChunkConfig(max_tokens=budget, max_title_tokens=0, overlap_tokens=budget // 4)
    chunks, _ = chunk_article(_article(text), TOKENIZER, config)
    assert chunks[0].start == 0
    assert chunks[-1].end == len(text)
    for before, after in pairwise(chunks):
        assert before.start <= after.start <= before.end < after.end


def test_overlap_repeats_words_of_the_chunk_before() -> None:
    """A chunk begins with the end of the one before."""
    config = ChunkConfig(max_tokens=64, max_title_tokens=0, overlap_tokens=16)
    chunks, _ = chunk_article(_article(SENTENCE * 10), TOKENIZER, config)
    assert all(after.start < before.end for before, after in pairwise(chunks))


def test_chunks_end_at_sentences() -> None:
    """Where sentences fit the budget, every chunk ends with one."""
    chunks, _ = chunk_article(_article(SENTENCE * 40), TOKENIZER)
    assert len(chunks) > 1
    assert all(chunk.text.endswith("on Monday. ") for chunk in chunks)


def test_sizes_are_even() -> None:
    """A text a little over the budget becomes two halves, not a whole and a crumb."""
    config = ChunkConfig(max_tokens=100, max_title_tokens=0)
    text = "Rain fell. " * 34
    sizes = [chunk.num_tokens for chunk in chunk_article(_article(text), TOKENIZER, config)[0]]
    assert sizes == [51, 51]


def test_short_article_is_one_chunk_with_its_title_as_context() -> None:
    """The title precedes the chunk in what is embedded, not in the chunk."""
    chunks, texts = chunk_article(_article("Rain fell.", "Weather"), TOKENIZER)
    assert [chunk.text for chunk in chunks] == ["Rain fell."]
    assert texts == ["Weather\nRain fell."]


def test_long_title_is_cut_at_a_word() -> None:
    """The context keeps whole words only."""
    config = ChunkConfig(max_tokens=64, max_title_tokens=5)
    context, num_tokens = title_context("Harbourmaster surrenders unconditionally tonight", TOKENIZER, config)
    assert "Harbourmaster surrenders unconditionally tonight".startswith(context)
    assert num_tokens <= 5
    assert context.split()[-1] in ("Harbourmaster", "surrenders", "unconditionally", "tonight")


def test_text_without_tokens_is_one_chunk() -> None:
    """Characters that the tokenizer drops are kept in the chunk."""
    text = "\u200b\u200b"
    assert [chunk.text for chunk in chunk_article(_article(text), TOKENIZER)[0]] == [text]


def test_too_many_chunks_is_a_bad_record() -> None:
    """An article beyond the bound is refused with a reason code for the dead-letter topic."""
    with pytest.raises(BadRecord) as caught:
        chunk_article(_article(SENTENCE * 200), TOKENIZER, ChunkConfig(max_chunks=3))
    assert caught.value.reason == "too_long"


def test_budget_beyond_the_embedder_is_refused() -> None:
    """A chunk that the embedder would cut is a configuration error."""
    with pytest.raises(ValueError, match="254"):
        chunk_article(_article("text"), TOKENIZER, ChunkConfig(max_tokens=400))


@pytest.mark.parametrize(
    "fields", [{"max_tokens": 8}, {"max_title_tokens": 101}, {"overlap_tokens": 51}, {"max_chunks": 0}]
)
def test_wrong_configuration_is_named(fields: dict[str, int]) -> None:
    """The message names the field and the value given."""
    name, value = next(iter(fields.items()))
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        ChunkConfig(**fields)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    texts=st.lists(TEXT, min_size=1, max_size=6),
    budget=st.integers(16, 64),
    embedder=st.sampled_from(["minilm", "none"]),
)
def test_articles_cut_together_are_cut_as_each_alone(texts: list[str], budget: int, embedder: str) -> None:
    """Locating the tokens of many articles at once changes no chunk of any."""
    tokenizer = load_tokenizer(embedder)
    config = ChunkConfig(max_tokens=budget, max_title_tokens=budget // 2, max_chunks=4)
    articles = [_article(text, title) for text, title in zip(texts, reversed(texts), strict=True)]
    alone: list[object] = []
    for article in articles:
        try:
            alone.append(chunk_article(article, tokenizer, config))
        except BadRecord as error:
            alone.append(str(error))
    together = chunk_articles(articles, tokenizer, config)
    assert [str(cut) if isinstance(cut, BadRecord) else cut for cut in together] == alone


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(_ENDS, min_size=8, max_size=40), data=st.data())
def test_sentence_ends_found_near_a_place_are_those_of_the_whole_text(
    pieces: list[str], data: st.DataObject
) -> None:
    """A search that begins beside the place finds the cut that a search through all of the text finds."""
    text = "".join(pieces)
    starts = np.asarray(load_tokenizer("none").offsets(text), dtype=np.int64)[:, 0]
    assume(len(starts) > 3)
    above = data.draw(st.integers(0, len(starts) - 3))
    target = data.draw(st.integers(above + 1, len(starts) - 2))
    limit = data.draw(st.integers(target, len(starts) - 1))
    whole = chunker._choose(chunker._cuts(chunker._SENTENCE_END, text, starts), above, target, limit)
    assert chunker._SentenceCuts(text, starts).choose(above, target, limit) == whole


def test_a_long_run_of_closing_brackets_is_searched_once() -> None:
    """Text made to be looked through again and again takes no longer than its length allows."""
    begun = time.perf_counter()
    chunk_article(_article(")" * 200_000), load_tokenizer("none"), ChunkConfig(max_chunks=5_000))
    assert time.perf_counter() - begun < 10
