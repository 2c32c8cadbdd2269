"""The reader's prompt and answer: the form that trained readers rest on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.session.prompts import parse_answer, reader_prompt, target_text


def test_adapted_prompt_is_the_trained_form() -> None:
    """Readers are trained on exactly these characters: a change here needs them trained anew."""
    sentences = [
        ("Bridge opens", "2024-05-01", "It opened  on Monday."),
        ("Bridge opens", "2024-05-01", "Falk cut\nthe ribbon."),
        ("Orchid", "", "A find."),
    ]
    assert reader_prompt(sentences, "Who opened it? ") == (
        "Bridge opens (2024-05-01): It opened on Monday. Falk cut the ribbon.\n"
        "Orchid: A find.\n"
        "Question: Who opened it?\n"
        "Answer:"
    )
    assert reader_prompt([], "Why?") == "Question: Why?\nAnswer:"


def test_base_prompt_adds_a_worked_example() -> None:
    """The un-adapted form is the adapted one after an example."""
    adapted = reader_prompt([("T", "", "S.")], "Q?")
    base = reader_prompt([("T", "", "S.")], "Q?", "base")
    assert base.endswith("\n\n" + adapted) and base.count("Answer:") == 2


@pytest.mark.parametrize(
    ("generated", "text", "given_up"),
    [
        (" Ines Falk\nQuestion: and?", "Ines Falk", False),
        ("\n Ines  Falk", "Ines Falk", False),
        (" unknown", "", True),
        ("Unknown.", "", True),
        ("", "", True),
        ("\n\n", "", True),
        (" The answer is unknown", "", True),
        (" the unknown soldier", "the unknown soldier", False),
    ],
)
def test_answer_is_the_first_line(generated: str, text: str, given_up: bool) -> None:
    """The first line with text is the answer; "unknown" or nothing is giving up."""
    parsed = parse_answer(generated)
    assert (parsed.text, parsed.given_up) == (text, given_up)


@given(st.text(max_size=50))
def test_target_is_read_back(answer: str) -> None:
    """What a reader is trained to write is read as that answer, or as giving up."""
    parsed = parse_answer(target_text(answer))
    assert parsed.given_up or parsed.text == " ".join(answer.split())
    assert parse_answer(target_text(None)).given_up
