"""Questions that lead over a second article, and those that do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.session.answer import Lag, Question
from pipeline.session.asking import View, answer
from pipeline.session.chooser import HybridChooser
from pipeline.session.hops import HopChooser, leads_on, names, new_names
from pipeline.session.sentences import Candidate
from tests.pipeline.session.support import STREAM, ShardLibrary, article, ask_parts, stocked


@pytest.mark.parametrize(
    ("question", "leads"),
    [
        ("Name the town where the company whose name is on the shirts of Delta Rovers is based.", True),
        ("Where is the institute that Orel Tovunner heads housed?", True),
        ("Name the coach of the team of the footballer Wilian Remornik.", True),
        ("In which town does the company led by Dorena Adomlen have its headquarters?", True),
        ("Who is the mayor of Kallerhaven?", False),
        ("Name the latest product of Kestithe Retail.", False),
        ("What was the headcount of Orvoss Rail before 8 January 2025?", False),
        ("Which club is Corek Farulwick under contract with now?", False),
    ],
)
def test_form_of_a_question_tells_whether_it_leads_on(question: str, leads: bool) -> None:
    """Descriptions by way of something else are told from plain ones."""
    assert leads_on(question) is leads


def test_names_are_runs_of_capitals_without_days_and_opening_words() -> None:
    """A name may hold small words inside; days, months and articles are none."""
    text = "On Tuesday the Silvane Institute of Medicine chose Orel Tovunner in January."
    assert names(text) == ["Silvane Institute of Medicine", "Orel Tovunner"]
    assert names("nothing here") == []


def _candidate(text: str, place: int) -> Candidate:
    return Candidate(
        article_id=f"a{place}",
        version_ms=0,
        published_ms=0,
        title="A title",
        source="Courier",
        stream=STREAM,
        url=None,
        text=text,
        position=place,
        rank=place,
        num_tokens=len(text.split()),
        head_tokens=4,
    )


def test_new_name_is_the_one_that_stands_beside_the_root_most_often() -> None:
    """Names of other sentences, of the question, and single opening words do not count."""
    texts = [
        "Zephoss Health sponsors the shirts of Delta Rovers.",
        "Shirts of Delta Rovers carry the name of Zephoss Health.",
        "Injured was the Delta Rovers keeper Orin Bask.",
        "Silvane Lines has ferries.",
    ]
    given = [_candidate(text, i) for i, text in enumerate(texts)]
    known = frozenset({"delta", "rovers", "shirts"})
    assert new_names(given, [1.0, 1.0, 1.0, 9.0], ["Delta Rovers"], known, 1) == ["Zephoss Health"]
    assert "Injured" not in new_names(given, [1.0] * 4, ["Delta Rovers"], known, 9)


@pytest.fixture
def library(tmp_path: Path) -> Iterator[ShardLibrary]:
    """A sponsor in one article, its seat in another, and much that only sounds alike."""
    with stocked(
        tmp_path,
        article(1, title="Shirts", text="The shirts of Delta Rovers carry the name of Zephoss Health."),
        article(2, title="Seats", text="Zephoss Health keeps its seat in Ostisham since last year."),
        *(
            article(n, title="Towns", text=f"The town where company {n} is based is called Quarl{n} by name.")
            for n in range(3, 30)
        ),
    ) as shelf:
        yield shelf


def test_second_search_finds_what_the_first_cannot(library: ShardLibrary) -> None:
    """With two searches the sentence that tells is read within the same budget; with one it is not."""
    question = "Name the town where the company whose name is on the shirts of Delta Rovers is based."
    view = View(stream=STREAM, cache=None, session_bytes=0, lag=Lag())

    def read(hops: int) -> str:
        parts = ask_parts(library, hops=hops, passages=5, token_budget=160)
        first = next(iter(answer(Question(text=question), view, parts)))
        return " ".join(source["quote"] for source in first.data["sources"])

    assert "Ostisham" not in read(1)
    assert "Ostisham" in read(3) and "Zephoss Health" in read(3)


def test_plain_question_is_searched_once() -> None:
    """Where the form leads nowhere, or one search is configured, the chooser alone decides."""
    given = [_candidate("The mayor of Kallerhaven is Orin Bask.", 0), _candidate("It rained.", 1)]

    def never(text: str) -> list[Candidate]:
        raise AssertionError(f"searched again for {text}")

    plain = "Who is the mayor of Kallerhaven?"
    expected = HybridChooser().choose(plain, given, 30)
    assert HopChooser(HybridChooser(), 3).choose(plain, given, 30, never) == expected
    nested = "Where is the company that Orin Bask heads based?"
    expected = HybridChooser().choose(nested, given, 30)
    assert HopChooser(HybridChooser(), 1).choose(nested, given, 30, never) == expected
