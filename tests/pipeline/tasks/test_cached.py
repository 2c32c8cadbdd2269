"""pipeline/tasks/cached.py: a question's candidates with a session's cache, as the session itself lists them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.session.answer import Lag
from pipeline.session.asking import View
from pipeline.session.ports import Query
from pipeline.tasks.cached import article_of, offered, told_among
from pipeline.tasks.contexts import Candidate
from pipeline.tasks.qa import Question, SourceText
from tests.pipeline.session.support import STREAM, ShardLibrary, article, ask_parts
from tests.pipeline.session.test_asking import ask
from tests.pipeline.session.test_cached import UNLIKE, Listening


def text(name: str, words: str, title: str = "News") -> SourceText:
    """A text of one day."""
    return SourceText(text_id=name, title=title, text=words, date="2024-01-02")


def test_the_list_is_the_session_s_own(tmp_path: Path) -> None:
    """The same sentences in the same order, at the same places, as a session with `cache_candidates` offers."""
    library = ShardLibrary(tmp_path / "store")
    added = [article(n) for n in range(1, 6)]
    added += [article(n, text=words, title=f"News {n}") for n, words in UNLIKE.items()]
    library.add(*added)
    chooser = Listening()
    parts = replace(ask_parts(library, cache_candidates=3), chooser=chooser)
    names = ["a7", "a6", "a5"]
    view = View(stream=STREAM, cache=None, session_bytes=0, lag=Lag(), newest=lambda n: names[:n])
    ask(parts, "Which pier opened?", view)
    passages, _ = library.search(
        Query(text="Which pier opened?", k=parts.config.passages, streams=frozenset({STREAM})), 5.0
    )
    found = [
        text(f"{passage.article_id}#{passage.ordinal}", passage.text, passage.title) for passage in passages
    ]
    known = {each.id: text(each.id, each.text, each.title) for each in added}
    made = offered("Which pier opened?", found, [known[name] for name in names], parts.count_tokens)
    library.close()
    assert {"a6", "a7"} < {each.article_id for each in chooser.given}
    assert [(c.source.title, c.text, c.place) for c in made] == [
        (c.title, c.text, (c.rank, c.position % 10_000)) for c in chooser.given
    ]


def test_articles_that_were_found_and_sentences_that_stand_are_not_offered_again() -> None:
    """Pieces and later forms belong to their article; a sentence stands where the search has it."""
    assert [article_of(name) for name in ("a#3", "a@v2#0", "a@v1", "a@b", "0/a")] == [
        "a",
        "a",
        "a",
        "a@b",
        "0/a",
    ]
    found = [text("a@v1#1", "The pier opened. It rained."), text("b#0", "Trams ran late.")]
    newest = [
        text("a@v1", "The pier opened. It rained. Nobody came."),
        text("c", "It rained. Two ferries sank.", "Storm"),
        text("d", "Trams ran late."),
    ]
    made = offered("Did it rain?", found, newest, lambda words: len(words.split()))
    assert [(c.source.text_id, c.text, c.place) for c in made] == [
        ("a@v1#1", "The pier opened.", (0, 0)),
        ("a@v1#1", "It rained.", (0, 1)),
        ("b#0", "Trams ran late.", (1, 0)),
        ("c", "Two ferries sank.", (2, 1)),
    ]


@pytest.mark.parametrize(
    ("there", "named"), [(("Storm", "Harbour"), "Storm"), (("Harbour",), "Harbour"), ((), "Storm")]
)
def test_what_tells_a_hop_is_what_is_offered(there: tuple[str, ...], named: str) -> None:
    """The first telling that stands among the candidates, else the first of all; the others are told of."""
    question = Question(
        question_id="q", dataset="newswire", text="How many sank?", answers=("two",), answerable=True,
        support=(("Storm", "Two sank."),),
    )  # fmt: skip
    options = [("Storm", "Two sank."), ("Harbour", "It lost two.")]
    words = dict(options)
    choices = [Candidate(text("x", words[title], title), words[title], (0, 0)) for title in there]
    told, others = told_among(question, [options, []], choices)
    assert told.support == ((named, words[named]),)
    assert others == tuple(sentence for title, sentence in options if title != named)
