"""Shingles and sketches: the same for a text alone and among others, and as telling as promised."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shingles import sketches, word_shingles

_WORD = st.sampled_from(
    ["rain", "Rain", "ÉTÉ", "été", "漢字", "a_b", "7", "x" * 90, "İzmir", "🙂", "--", "\n"]
)
TEXT = st.lists(_WORD, max_size=40).map(" ".join)


def _parts(texts: list[str], width: int = 3, min_words: int = 1) -> list[list[int]]:
    shingles, counts, _ = word_shingles(texts, width, min_words)
    return [part.tolist() for part in np.split(shingles, np.cumsum(counts)[:-1])]


@settings(deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=8), width=st.integers(1, 5))
def test_a_text_has_the_same_shingles_alone_and_among_others(texts: list[str], width: int) -> None:
    """Nothing of one text reaches into another's shingles."""
    assert _parts(texts, width) == [_parts([text], width)[0] for text in texts]


@settings(deadline=None)
@given(text=TEXT, width=st.integers(1, 4))
def test_shingles_are_the_distinct_runs_of_words(text: str, width: int) -> None:
    """As many as the regular expression's words make, case not counted; a short text is one shingle."""
    words = re.findall(r"\w+", text.lower())
    size = min(width, len(words))
    runs = {tuple(words[at : at + size]) for at in range(len(words) - size + 1)} if words else set()
    shingles, counts, num_words = word_shingles([text], width, 1)
    assert (counts, num_words) == ([len(runs)], [len(words)])
    assert (np.diff(shingles.astype(np.int64)) > 0).all()


def test_word_keeps_its_hash_wherever_it_stands() -> None:
    """The same words in a long text and in a text of other letters give the same shingle."""
    words = "the council voted"
    far = "é " + "other " * 40_000 + words
    assert _parts([words])[0][0] in _parts([far])[0]


def test_text_of_too_few_words_has_no_shingles() -> None:
    """Its words are counted all the same."""
    _, counts, num_words = word_shingles(["one two three", "one two three four"], 3, 4)
    assert (counts, num_words) == ([0, 2], [3, 4])


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=6), rows=st.sampled_from([16, 100, 128]))
def test_sketch_of_a_set_does_not_depend_on_the_others(sizes: list[int], rows: int) -> None:
    """Sets that need few rounds of hashing and sets that need many are sketched together as each alone."""
    draw = np.random.default_rng(sum(sizes))
    sets = [draw.integers(0, 2**32, size=size, dtype=np.uint32) for size in sizes]
    together = sketches(np.concatenate(sets), sizes, rows)
    assert together.shape == (len(sizes), rows)
    for at, one in enumerate(sets):
        assert (together[at] == sketches(one, [len(one)], rows)[0]).all()


@pytest.mark.parametrize("size", [1, 18, 100, 1_000])
def test_estimate_is_unbiased_with_no_more_spread_than_independent_rows(size: int) -> None:
    """The mean error is near zero and its spread is at most that of 128 coin flips, for small sets too."""
    draw = random.Random(size)
    errors, spread = [], []
    for _ in range(300):
        common = [draw.getrandbits(32) for _ in range(size)]
        left, right = ([draw.getrandbits(32) for _ in range(draw.randint(0, size))] for _ in range(2))
        share = size / (size + len(left) + len(right))
        both = np.array(common + left + common + right, dtype=np.uint32)
        one, two = sketches(both, [size + len(left), size + len(right)], 128)
        errors.append(float((one == two).mean()) - share)
        spread.append(share * (1 - share) / 128)
    assert abs(np.mean(errors)) < 0.012
    assert np.std(errors) < 1.15 * np.mean(spread) ** 0.5
