"""Sentences and their choice: nothing lost in cutting, never over budget, the right one first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.session.chooser import HybridChooser, bm25, fill, scaled
from pipeline.session.sentences import MAX_SENTENCE_CHARS, Candidate, candidates, split_sentences
from pipeline.store import Passage


def passage(
    text: str, *, article_id: str = "a", ordinal: int = 0, title: str = "Title", day: int = 1
) -> Passage:
    """A passage of an article."""
    ms = day * 86_400_000
    return Passage(
        chunk_id=hash((article_id, ordinal)),
        article_id=article_id,
        ordinal=ordinal,
        text=text,
        title=title,
        source="Courier",
        stream="s",
        published_ms=ms,
        version_ms=ms,
    )


def count(text: str) -> int:
    """A token a word."""
    return len(text.split())


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Mr. Smith met Dr. J. Doe. They spoke.", ["Mr. Smith met Dr. J. Doe.", "They spoke."]),
        ("The U.S. Senate voted. It passed.", ["The U.S. Senate voted.", "It passed."]),
        ("It rose by 3.5 percent. No. 7 won.", ["It rose by 3.5 percent.", "No. 7 won."]),
        ("“We won.” She left.", ["“We won.”", "She left."]),
        ("Heading\n\nText follows here", ["Heading", "Text follows here"]),
        ("What happened\nTrade stopped", ["What happened", "Trade stopped"]),
        ("A line that somebody wrapped at seventy columns, as of old, in\nLondon.", 1),
        ("• One thing\n• Another", ["• One thing", "• Another"]),
        ("  ", []),
    ],
)
def test_text_is_cut_at_ends_of_sentences(text: str, sentences: list[str] | int) -> None:
    """Abbreviations, initials, decimals and wrapped lines do not end a sentence; quotes and headings do."""
    found = split_sentences(text)
    assert found == sentences if isinstance(sentences, list) else len(found) == sentences


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=2_000))
def test_cutting_loses_nothing(text: str) -> None:
    """Joined again, the sentences are the text but for white space, and none is too long."""
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(0 < len(sentence) <= MAX_SENTENCE_CHARS for sentence in sentences)


def test_same_sentence_is_a_candidate_once() -> None:
    """Overlapping chunks and copied sentences are not read twice."""
    found = candidates([passage("One. Two."), passage("Two. Three.", ordinal=1)], count)
    assert [c.text for c in found] == ["One.", "Two.", "Three."]
    assert [c.rank for c in found] == [0, 0, 1]


_SENTENCES = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 5), st.integers(0, 8)), min_size=0, max_size=30
)


@given(_SENTENCES, st.integers(1, 150))
def test_choice_never_exceeds_the_budget(rows: list[tuple[int, int, int]], budget: int) -> None:
    """Sentences and the heads of their articles, each head once, fit the budget; what is left does not."""
    ranked = [candidate(n, tokens, article, head) for n, (tokens, article, head) in enumerate(rows)]
    heads = {c.article_id: c.head_tokens for c in ranked}
    ranked = [candidate(c.position, c.num_tokens, int(c.article_id), heads[c.article_id]) for c in ranked]
    chosen = fill(ranked, budget)
    cost = sum(c.num_tokens for c in chosen) + sum(heads[a] for a in {c.article_id for c in chosen})
    assert cost <= budget
    picked = {c.article_id for c in chosen}
    for one in ranked:
        if one not in chosen:
            assert cost + one.num_tokens + (
                0 if one.article_id in picked else one.head_tokens
            ) > budget or any(ranked.index(c) > ranked.index(one) for c in chosen)


def test_sentence_with_the_questions_words_is_chosen() -> None:
    """By words alone the sentence that answers comes first, and reading order is the order of time."""
    found = candidates(
        [
            passage("The weather was fine. Trade went on.", article_id="x", day=1),
            passage("The bridge was opened by Mayor Falk.", article_id="y", day=3),
            passage("An orchid was found.", article_id="z", day=2),
        ],
        count,
    )
    best = HybridChooser().choose("Who opened the bridge?", found, 10)
    assert [c.article_id for c in best] == ["y"]
    everything = HybridChooser().choose("Who opened the bridge?", found, 1_000)
    assert [c.article_id for c in everything] == ["x", "x", "z", "y"]
    assert HybridChooser().choose("Who?", [], 100) == []


def test_embedding_finds_what_words_do_not() -> None:
    """Where no word is shared, the sentence that lies near the question in meaning is chosen."""
    found = candidates([passage(f"Sentence {n}.", article_id=str(n)) for n in range(6)], count)

    def embed(texts: list[str]) -> np.ndarray:
        near = [[1.0, 0.0] if i == 0 or "Sentence 4" in text else [0.0, 1.0] for i, text in enumerate(texts)]
        return np.asarray(near, dtype=np.float32)

    assert HybridChooser(embed).choose("Question?", found, 4)[0].text == "Sentence 4."


def test_without_an_embedder_words_decide() -> None:
    """An embedder that does not answer costs quality, never an answer."""
    found = candidates([passage("A harbour. A bridge.")], count)
    assert HybridChooser(lambda texts: None).choose("bridge?", found, 4)[0].text == "A bridge."


def test_rare_words_weigh_more_than_common_ones() -> None:
    """A word that every text holds tells nothing; stems count as the word."""
    scores = bm25("voting on harbours", ["harbour", "harbour vote", "harbour"])
    assert scores[1] > scores[0] == scores[2] >= 0
    assert scaled([2.0, 2.0]) == [0.0, 0.0] and scaled([1.0, 3.0, 2.0]) == [0.0, 1.0, 0.5]


def candidate(position: int, tokens: int, article: int, head: int) -> Candidate:
    """A candidate of given size."""
    return Candidate(
        article_id=str(article),
        version_ms=0,
        published_ms=0,
        title="",
        source="",
        stream="",
        url=None,
        text=f"{position}",
        position=position,
        rank=0,
        num_tokens=tokens,
        head_tokens=head,
    )
