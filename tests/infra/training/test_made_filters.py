"""infra/training/made_filters.py: each filter by a case it takes and one it leaves; the round trip."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from infra.training.made_filters import (
    REASONS,
    Made,
    answered_back,
    copied,
    parsed,
    refused,
    sifted,
    vague,
)
from infra.training.made_sources import Source, span_in
from pipeline.tasks.reading import Voice

SENTENCE = "The Rhine was crossed by Julius Caesar in 55 BC on a wooden bridge."
SOURCE = Source("nq", "p", "Rhine", SENTENCE)


def test_what_the_maker_wrote_is_parsed_or_is_of_no_form() -> None:
    """Answer, line, question; a missing part is no question."""
    assert parsed(SOURCE, " 55 BC  | when was the rhine crossed") == Made(
        SOURCE, "55 BC", "when was the rhine crossed"
    )
    for said in ("", "55 BC", " | when was it", "55 BC | ", "55 BC|when"):
        assert parsed(SOURCE, said) is None


@pytest.mark.parametrize(
    ("answer", "question", "reason"),
    [
        ("Julius Caesar", "who crossed the rhine on a bridge", ""),
        ("55 bc", "when did julius caesar cross the rhine", ""),
        ("Augustus", "who crossed the rhine on a bridge", "span"),
        ("Jul", "who crossed the rhine on a bridge", "span"),
        (SENTENCE, "what is said of the rhine and caesar", "long"),
        ("55 BC", "rhine crossed when", "length"),
        ("55 BC", "when " + "rhine " * 30, "length"),
        ("55 BC", "The Rhine was crossed by Julius Caesar in", "copy"),
        ("Julius Caesar", "what bridge did julius caesar build over the rhine", "tells"),
        ("55 BC", "when did the war of the roses end", "vague"),
    ],
)
def test_each_filter_takes_what_it_is_for(answer: str, question: str, reason: str) -> None:
    """The reason is told; '' for a good question."""
    assert refused(Made(SOURCE, answer, question)) == reason


def test_a_span_is_whole_words_as_the_sentence_spells_them() -> None:
    """The first answer that is there."""
    assert span_in(SENTENCE, ["rome", "julius caesar"]) == "Julius Caesar"
    assert span_in(SENTENCE, ["hine"]) == ""


def test_a_question_of_the_sentences_own_words_in_another_order_is_no_copy() -> None:
    """Only a run of words counts."""
    assert copied("Julius Caesar in 55 BC", SENTENCE)
    assert not copied("in which year was the Rhine crossed by Caesar on a bridge", SENTENCE)


def test_a_question_that_only_points_is_vague() -> None:
    """ "When did he cross it by bridge" needs the sentence; with the title's word it does not."""
    assert vague("when was it crossed on a wooden bridge", SOURCE)
    assert not vague("when was it that the rhine was crossed on a bridge", SOURCE)


def test_repetitions_and_known_questions_go_and_all_are_counted() -> None:
    """The first of two that differ in case only stays; the answer comes in the sentence's spelling."""
    said = [
        "julius caesar | who crossed the rhine by bridge", "Julius Caesar | Who crossed the Rhine by bridge?",
        "55 BC | when was the rhine crossed", "nothing",
    ]  # fmt: skip
    kept, counts = sifted([SOURCE] * 4, said, known=["When was the Rhine crossed?"])
    assert kept == [Made(SOURCE, "Julius Caesar", "who crossed the rhine by bridge")]
    assert set(counts) == set(REASONS)
    assert counts["repeated"] == 2 and counts["form"] == 1 and sum(counts.values()) == 3


class Oracle(torch.nn.Module):
    """A reader that says one fixed answer whatever it is asked; margin by the logit of token 0."""

    def __init__(self, says: list[int], gives_up: float) -> None:
        super().__init__()
        self.says, self.gives_up, self.config = says, gives_up, SimpleNamespace()
        self.step = 0

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        at = self.step if input_ids.shape[1] == 1 else 0
        logits = torch.zeros(len(input_ids), 1, 8)
        logits[:, :, self.says[min(at, len(self.says) - 1)]] = 5.0
        logits[:, :, 0] = self.gives_up if at == 0 else -9.0
        self.step = at + 1
        return SimpleNamespace(logits=logits)


def test_the_round_trip_keeps_what_is_answered_back_without_giving_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Right and sure: kept. Another answer, or leaning to giving up: not, and counted by the reason."""
    import transformers

    monkeypatch.setattr(transformers, "DynamicCache", lambda config: None)
    texts = {2: "55", 3: "BC", 4: "Rome"}

    def back(says: list[int], gives_up: float) -> tuple[list[bool], dict[str, int]]:
        voice = Voice(
            model=Oracle([*says, 1], gives_up),
            encode=lambda text: [1] if text == "\n" else [0] if text == " unknown" else [5, 6],
            decode=lambda ids: " ".join(texts[at] for at in ids),
            begin=(7,),
        )
        return answered_back(voice, [Made(SOURCE, "55 BC", "when was the rhine crossed")], 0.7, 0.0)

    assert back([2, 3], 0.0) == ([True], {"gave_up": 0, "other_answer": 0})
    assert back([4], 0.0) == ([False], {"gave_up": 0, "other_answer": 1})
    assert back([2, 3], 6.0) == ([False], {"gave_up": 1, "other_answer": 0})
