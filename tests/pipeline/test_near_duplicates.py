"""Near-duplicates: found, verified, bounded by stream and time, never an update of the same article."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.article import Article
from pipeline.near_duplicates import (
    Fingerprinter,
    NearDuplicateConfig,
    NearDuplicateIndex,
    estimated,
    jaccard,
)

CONFIG = NearDuplicateConfig()
START = datetime(2024, 5, 1, tzinfo=UTC)
_WORDS = [f"word{number}" for number in range(2_000)]


def _article(
    seed: int, id: str = "", hours: float = 0, stream: str = "wire", changed: int = 0, n: int = 200
) -> Article:
    """A random text of `n` words; `changed` words at its front are others."""
    words = random.Random(seed).choices(_WORDS, k=n)
    words[:changed] = [f"other{seed}x{number}" for number in range(changed)]
    return Article(
        id=id or f"a{seed}",
        published=START + timedelta(hours=hours),
        source="s",
        title="",
        text=" ".join(words),
        stream=stream,
    )


def _index(
    *articles: Article, config: NearDuplicateConfig = CONFIG
) -> tuple[Fingerprinter, NearDuplicateIndex]:
    fingerprinter, index = Fingerprinter(config), NearDuplicateIndex(config)
    for article in articles:
        index.add(fingerprinter.fingerprint(article))
    return fingerprinter, index


def test_same_text_under_another_id_is_found() -> None:
    """A copy is matched with similarity 1."""
    fingerprinter, index = _index(_article(1))
    match = index.match(fingerprinter.fingerprint(_article(1, id="copy")))
    assert match is not None
    assert (match.canonical_id, match.similarity, match.exact) == ("a1", 1.0, True)


def test_similarity_is_the_exact_share_of_common_shingles() -> None:
    """Above the threshold it is linked, below not, by the exact share and not by the estimate."""
    fingerprinter, index = _index(_article(1))
    near, far = _article(1, id="near", changed=10), _article(1, id="far", changed=40)
    match = index.match(fingerprinter.fingerprint(near))
    expected = (198 - 10) / (198 + 10)
    assert match is not None
    assert match.similarity == pytest.approx(expected, abs=1e-3)
    assert index.match(fingerprinter.fingerprint(far)) is None


def test_different_articles_are_not_linked() -> None:
    """A thousand unrelated articles give no link."""
    fingerprinter, index = _index(*(_article(seed, n=60) for seed in range(500)))
    assert [s for s in range(500, 1_000) if index.match(fingerprinter.fingerprint(_article(s, n=60)))] == []


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"stream": "other"}, False),
        ({"published": START + timedelta(hours=71)}, True),
        ({"published": START + timedelta(hours=73)}, False),
        ({"published": START - timedelta(hours=73)}, False),
        ({"id": "a1"}, False),
    ],
    ids=["other stream", "within the window", "after the window", "before the window", "same id"],
)
def test_only_the_same_stream_and_window_is_compared(changes: dict[str, object], found: bool) -> None:
    """Another stream, a far time, and another version of the same article are no duplicates."""
    fingerprinter, index = _index(_article(1))
    copy = replace(_article(1, id="copy"), **changes)  # type: ignore[arg-type]
    assert (index.match(fingerprinter.fingerprint(copy)) is not None) is found


def test_withdrawn_article_is_nobodys_original() -> None:
    """After its removal a copy is stored."""
    fingerprinter, index = _index(_article(1))
    index.remove("a1")
    index.remove("a1")
    assert index.match(fingerprinter.fingerprint(_article(1, id="copy"))) is None
    assert len(index) == 0


def test_new_version_replaces_what_is_compared() -> None:
    """A copy of the old version no longer matches, one of the new version does."""
    fingerprinter, index = _index(_article(1))
    index.add(fingerprinter.fingerprint(_article(2, id="a1")))
    assert index.match(fingerprinter.fingerprint(_article(1, id="copy"))) is None
    match = index.match(fingerprinter.fingerprint(_article(2, id="copy")))
    assert match is not None
    assert match.canonical_id == "a1"


def test_short_articles_are_never_linked() -> None:
    """Two equal notes of a few words are both stored."""
    fingerprinter, index = _index(_article(1, n=19))
    assert len(index) == 0
    assert index.match(fingerprinter.fingerprint(_article(1, id="copy", n=19))) is None


def test_index_rebuilt_from_signatures_fetches_shingles_to_verify() -> None:
    """With signatures only, the store's text decides; without it the estimate does."""
    fingerprinter = Fingerprinter(CONFIG)
    stored = fingerprinter.fingerprint(_article(1))
    asked: list[str] = []

    def fetch(article_id: str) -> bytes:
        asked.append(article_id)
        return stored.shingles

    index = NearDuplicateIndex(CONFIG, fetch=fetch)
    index.add_all([stored._replace(shingles=b"")])
    for _ in range(2):
        match = index.match(fingerprinter.fingerprint(_article(1, id="copy", changed=5)))
        assert match is not None
        assert match.exact
    assert asked == ["a1"]
    blind = NearDuplicateIndex(CONFIG, fetch=lambda _: b"")
    blind.add(stored._replace(shingles=b""))
    match = blind.match(fingerprinter.fingerprint(_article(1, id="copy")))
    assert match is not None
    assert not match.exact


def test_bounds_hold() -> None:
    """No more articles are kept than allowed, and their bands go with them."""
    config = replace(CONFIG, max_articles=10)
    _, index = _index(*(_article(seed) for seed in range(30)), config=config)
    assert len(index) == 10
    assert "a29" in index
    assert "a0" not in index
    for seed in range(20, 30):
        index.remove(f"a{seed}")
    assert index._buckets == {}


def test_estimate_is_unbiased_and_tight() -> None:
    """Over many pairs the estimate's error is that of 128 coin flips."""
    fingerprinter = Fingerprinter(CONFIG)
    errors = []
    for seed in range(150):
        left = fingerprinter.fingerprint(_article(seed))
        right = fingerprinter.fingerprint(_article(seed, changed=seed % 60))
        errors.append(estimated(left.signature, right.signature) - jaccard(left.shingles, right.shingles))
    assert abs(sum(errors) / len(errors)) < 0.01
    assert max(map(abs, errors)) < 0.16


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=25))
def test_same_order_gives_the_same_links(plan: list[tuple[int, int]]) -> None:
    """Two runs over one order agree on every link."""

    def run() -> list[str | None]:
        fingerprinter, index = _index()
        links: list[str | None] = []
        for number, (seed, changed) in enumerate(plan):
            given_one = fingerprinter.fingerprint(_article(seed, id=f"n{number}", changed=changed, n=60))
            match = index.match(given_one)
            if match is None:
                index.add(given_one)
            links.append(match.canonical_id if match else None)
        return links

    assert run() == run()


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": 0.2},
        {"window_hours": 0},
        {"num_permutations": 8},
        {"rows_per_band": 0},
        {"min_words": 0},
    ],
)
def test_wrong_configuration_is_named(fields: dict[str, float]) -> None:
    """The message names the field and the value given."""
    name, value = next(iter(fields.items()))
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        NearDuplicateConfig(**fields)  # type: ignore[arg-type]
