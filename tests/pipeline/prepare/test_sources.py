"""pipeline/prepare/{pools,cloze,newswire}.py: where competing texts and practice sentences come from."""

from __future__ import annotations

import pytest

from pipeline.newswire import questions
from pipeline.prepare.cloze import BLANK, cloze_triples
from pipeline.prepare.newswire import NewswireConfig, newswire_triples
from pipeline.prepare.pools import TextIndex, pieces, words_of
from pipeline.session.prompts import GIVEN_UP
from pipeline.tasks.qa import SourceText


def source(text_id: str, text: str, title: str = "T", date: str = "") -> SourceText:
    """A text with its fields in place."""
    return SourceText(text_id=text_id, title=title, text=text, date=date)


def test_the_index_finds_best_first_and_passes_over_what_is_not_allowed() -> None:
    """Texts with more of the question's words come first; the filter is kept; nothing shared gives nothing."""
    texts = [source("a", "red fox jumps"), source("b", "red fox"), source("c", "blue whale")]
    index = TextIndex(texts)
    assert {text.text_id for text in index.top("the red fox", 2)} == {"a", "b"}
    assert [text.text_id for text in index.top("red fox", 3, lambda t: t.text_id != "b")] == ["a"]
    assert index.top("zebra", 3) == []


def test_an_index_of_words_made_elsewhere_finds_the_same() -> None:
    """Words made in processes give the same index; a number of them that does not fit is named."""
    texts = [source("a", "red fox jumps"), source("b", "red fox"), source("c", "blue whale")]
    index = TextIndex(texts, [words_of(text) for text in texts])
    assert index.top("the red fox", 3) == TextIndex(texts).top("the red fox", 3)
    assert index.scores(["zebra"]) is None
    with pytest.raises(ValueError, match="bags: given 1 for 3 texts"):
        TextIndex(texts, [["a"]])


def test_an_empty_index_is_refused() -> None:
    """No text is a mistake of the caller."""
    with pytest.raises(ValueError, match="at least one text"):
        TextIndex([])


def test_pieces_keep_all_sentences_in_order() -> None:
    """A long text is cut between sentences, nothing lost, ids numbered."""
    text = source("a", " ".join(f"Sentence number {at} has seven words here." for at in range(40)))
    cut = pieces(text, num_words=50)
    assert [piece.text_id for piece in cut] == [f"a#{at}" for at in range(len(cut))]
    assert " ".join(piece.text for piece in cut) == text.text
    assert all(len(piece.text.split()) <= 50 for piece in cut)


def test_a_blank_is_told_by_the_rest_of_its_passage() -> None:
    """The filling stands in the context and no longer in the question; texts without one are left out."""
    told = source(
        "a",
        "The bridge was drawn by Maria Keller for the town. The work of Maria Keller took nine years in all. "
        "It is still in daily use by many people today.",
        title="Bridge",
    )
    found = list(cloze_triples([told, source("b", "One. Two. Three.")], seed=0))
    assert len(found) == 1
    triple = found[0]
    assert BLANK in triple.question
    assert triple.answers[0] not in triple.question
    assert any(triple.answers[0] in text for _, _, text in triple.sentences)


CONFIG = NewswireConfig(seed=11, num_articles=250, num_questions=24)


def test_newswire_targets_follow_the_facts_told() -> None:
    """Every kind of question is there; telling contexts have its answer, others the giving up; dates in order."""
    triples = list(newswire_triples(CONFIG, lambda text: len(text.split())))
    drawn = {f"newswire-11-{q.id}": q for q in questions(11, 250, 24, split="train")}
    assert {triple.kind.split(":")[0] for triple in triples} == {q.kind for q in drawn.values()}
    for triple in triples:
        question = drawn[triple.question_id]
        assert triple.tells == (triple.target != GIVEN_UP)
        if triple.tells:
            assert triple.target.strip() in question.answers
        if triple.kind.endswith(":oracle"):
            read = " ".join(text for _, _, text in triple.sentences)
            assert question.kind == "count" or any(answer in read for answer in question.answers)
        dates = [date for _, date, _ in triple.sentences]
        assert dates == sorted(dates)
    assert not any(t.tells for t in triples if not drawn[t.question_id].answerable)


def test_newswire_triples_repeat_with_their_seed() -> None:
    """The same configuration gives the same triples."""
    one, same = (list(newswire_triples(CONFIG, lambda text: len(text.split()))) for _ in range(2))
    assert one == same


def test_a_world_without_articles_is_refused() -> None:
    """The error names the field."""
    with pytest.raises(ValueError, match="num_articles: given 0"):
        NewswireConfig(seed=1, num_articles=0)
