"""What a session's own cache offers beside the store: its newest articles, in one list, as they stand now."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.session.answer import Lag
from pipeline.session.asking import AskParts, View
from pipeline.session.chooser import HybridChooser
from pipeline.session.sentences import Candidate
from tests.actors.session_support import make_pool
from tests.pipeline.session.support import (
    KEY,
    STREAM,
    ShardLibrary,
    article,
    ask_parts,
    new_session,
    record,
    stocked,
)
from tests.pipeline.session.test_asking import ask, done

UNLIKE = {
    6: "A storm sank two ferries off Brae.",
    7: "Nobody was hurt, Captain Orla Finn told us.",
}
"""Articles that a search for piers does not find."""


@pytest.fixture
def library(tmp_path: Path) -> Iterator[ShardLibrary]:
    """Articles about piers, and two later ones about something else."""
    with stocked(tmp_path / "store", *(article(n) for n in range(1, 6))) as shelf:
        shelf.add(*(article(n, text=text, title=f"News {n}") for n, text in UNLIKE.items()))
        yield shelf


class Listening(HybridChooser):
    """Keeps the list that it was given to choose from."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Candidate] = []

    def choose(self, question: str, candidates: Sequence[Candidate], budget: int) -> list[Candidate]:
        self.given = list(candidates)
        return super().choose(question, candidates, budget)


def asked(
    library: ShardLibrary, text: str = "Which pier opened?", count: int = 2, **bounds: Any
) -> list[str]:
    """The articles of the list from which sentences were chosen, in its order."""
    chooser = Listening()
    parts: AskParts = replace(ask_parts(library, cache_candidates=count), chooser=chooser)
    view = View(
        stream=STREAM, cache=None, session_bytes=0, lag=Lag(), newest=lambda n: ["a7", "a6", "a5"][:n]
    )
    ask(parts, text, view, **bounds)
    return list(dict.fromkeys(candidate.article_id for candidate in chooser.given))


def test_the_cache_and_the_store_stand_in_one_list(library: ShardLibrary) -> None:
    """What the search passes over is there, after what it found, each once; without the setting it is not."""
    assert not {"a6", "a7"} & set(asked(library, count=0))
    found = asked(library, count=3)
    assert (
        found[-2:] == ["a7", "a6"]
        and found.count("a5") == 1
        and set(found[:-2]) <= {f"a{n}" for n in range(1, 6)}
    )
    assert "a6" not in asked(library, count=1)


def test_what_the_cache_alone_has_is_read_and_cited(library: ShardLibrary) -> None:
    """A search that finds nothing leaves the cache to choose from; its articles are sources as others are."""
    library.search = lambda query, deadline_s: ([], False)  # type: ignore[method-assign]
    view = View(stream=STREAM, cache=None, session_bytes=0, lag=Lag(), newest=lambda n: ["a7"][:n])
    events = ask(ask_parts(library, cache_candidates=1, token_budget=200), "Who was hurt?", view)
    assert [source["article_id"] for source in events[0].data["sources"]] == ["a7"]
    assert done(events)["tokens"]["read"] > 0


def test_articles_stand_as_the_store_has_them_now(library: ShardLibrary) -> None:
    """Withdrawn ones and those that moved to another stream are gone; a correction is read in its new words."""
    library.delete("a6")
    library.add(article(7, text="Three were hurt after all.", updated="2024-04-01T00:00:00Z"))
    assert asked(library)[-1] == "a7" and "a6" not in asked(library)
    chooser = Listening()
    view = View(stream=STREAM, cache=None, session_bytes=0, lag=Lag(), newest=lambda n: ["a7"])
    ask(replace(ask_parts(library, cache_candidates=1), chooser=chooser), "Which pier opened?", view)
    assert [c.text for c in chooser.given if c.article_id == "a7"] == ["Three were hurt after all."]
    library.add(article(7, stream="elsewhere", updated="2024-04-02T00:00:00Z"))
    assert "a7" not in asked(library)


def test_the_question_s_bounds_hold_for_the_cache_too(library: ShardLibrary) -> None:
    """Days and sources bound both halves of the list."""
    day = article(7).published_ms
    assert asked(library, since_ms=day)[-1] == "a7" and "a6" not in asked(library, since_ms=day)
    assert "a7" not in asked(library, as_of_ms=day - 1)
    assert asked(library, sources=frozenset({"Nobody"})) == []


def test_a_session_names_the_newest_articles_of_its_cache(library: ShardLibrary, tmp_path: Path) -> None:
    """Newest first, withdrawn ones left out; a running session's questions see them."""
    session = new_session()
    session.read([record(n, article(n)) for n in range(1, 6)])
    assert session.state.newest(3) == ["a5", "a4", "a3"]
    session.state.read["a4"].withdrawn = True
    session.state.read["a5"].let_go()
    assert session.state.newest(2) == ["a3", "a2"] and session.state.newest(0) == []
    pool = make_pool(tmp_path / "sessions", library, [record(n, article(n)) for n in range(4)], "one")
    try:
        resident = pool.open(KEY)
        until = time.monotonic() + 60
        while resident.view().newest(9) != ["a3", "a2", "a1", "a0"]:
            assert time.monotonic() < until, resident.view().newest(9)
            time.sleep(0.05)
    finally:
        pool.close()
