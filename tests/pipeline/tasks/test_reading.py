"""Choices read where the vocabulary has one token for giving up, and where it spells it as any other word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.session.prompts import GIVEN_UP, giving_up_token
from pipeline.tasks.material import ChoiceQuestion, Material
from pipeline.tasks.reading import MaterialReader, Voice
from tests.models import tiny
from tests.rl.toy import tables

LETTERS = ["", *(chr(at) for at in range(32, 127)), "\n"]
WHOLE = len(LETTERS)  # the id of GIVEN_UP where it is one token
READER_MARGIN = 4.0


class Written(nn.Module):
    """Writes one text after every prompt, READER_MARGIN nats before giving up where that is a token of its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.config = tiny.config()
        self.text = [LETTERS.index(letter) for letter in [*text, "\n"]]
        self.at = 0

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        self.at = 0 if input_ids.shape[1] > 1 else self.at + 1
        logits = torch.full((len(input_ids), 1, WHOLE + 1), -20.0)
        logits[..., WHOLE] = -READER_MARGIN
        logits[..., self.text[min(self.at, len(self.text) - 1)]] = 0.0
        return SimpleNamespace(logits=logits)


def voice(text: str, *, one_token: bool) -> Voice:
    """A voice that says `text`; letters are tokens, giving up with `one_token` too."""

    def encode(given: str) -> list[int]:
        if one_token and given == GIVEN_UP:
            return [WHOLE]
        return [LETTERS.index(letter) for letter in given]

    def decode(ids: Sequence[int]) -> str:
        return "".join(GIVEN_UP if at == WHOLE else LETTERS[at] for at in ids)

    return Voice(model=Written(text), encode=encode, decode=decode, begin=(0,))  # type: ignore[arg-type]


def material(answers: tuple[str, ...]) -> Material:
    """One question over a few sentences."""
    batch = tables(1, width=3)
    size = int(batch.present[0].sum())
    question = ChoiceQuestion(
        question_id="q", dataset="toy", split="train", text="Who?", answers=answers, kind="",
        sentences=(("T", "", "The sentence."),) * size, places=tuple((0, at) for at in range(size)),
    )  # fmt: skip
    return Material((question,), batch)


def read(text: str, answers: tuple[str, ...], *, one_token: bool) -> tuple[float, float]:
    """F1 and margin of the reading."""
    reader = MaterialReader(material(answers), voice(text, one_token=one_token), want_loss=False)
    ((f1, loss, margin),) = reader.outcomes([(0, (0,))])
    assert math.isnan(loss)
    return f1, margin


@pytest.mark.parametrize("one_token", [True, False], ids=["a token for giving up", "spelled in letters"])
def test_an_answer_is_paid_by_its_words(one_token: bool) -> None:
    """Also one that begins as giving up does, where that is no token of its own: " u" opens both."""
    for answer in ("up north", "Ann"):
        f1, margin = read(f" {answer}", (answer,), one_token=one_token)
        assert f1 == 1.0
        assert margin == (pytest.approx(-READER_MARGIN) if one_token else -math.inf)


def test_giving_up_that_is_spelled_out_is_told_by_what_is_said() -> None:
    """It is wrong where there is an answer and right where there is none; an answer the other way round."""
    assert read(GIVEN_UP, ("Ann",), one_token=False) == (0.0, math.inf)
    assert read(GIVEN_UP, (), one_token=False) == (1.0, -math.inf)
    assert read(" Ann", (), one_token=False) == (0.0, -math.inf)
    assert read(" Ann", (), one_token=True) == (0.0, -math.inf)


def test_a_token_means_giving_up_alone_or_there_is_none() -> None:
    """The first of several tokens begins other answers too."""
    assert giving_up_token(voice("", one_token=True).encode) == WHOLE
    assert giving_up_token(voice("", one_token=False).encode) is None
