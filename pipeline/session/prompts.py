"""The text that a reader is given, and how its answer is read: one definition for training and for serving.

`adapted` is the form that our tuned readers are trained on; `base` puts one worked example before it, for a
model that was never tuned (measured: one example reads better than none or three).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from pipeline.session.guard import quoted as as_data

PromptForm = Literal["base", "adapted"]
Sentence = tuple[str, str, str]
"""(title, date, text) of one sentence; an empty date is left out."""

GIVEN_UP = " unknown"
"""What a tuned reader answers where the news does not tell."""
STOP_TEXTS = ("\n",)
"""An answer is one line."""

_SPACES = re.compile(r"\s+")
_UNKNOWN = re.compile(
    r"(the answer is )?(unknown|not known|not stated|not mentioned|n/a|i do(n't| not) know)\.?", re.IGNORECASE
)
_EXAMPLE = (
    "Harbour bridge opens to traffic (2023-05-04): The bridge opened on Thursday, two years late. "
    "Mayor Ines Falk cut the ribbon.\n"
    "Question: Who opened the bridge?\n"
    "Answer: Ines Falk\n\n"
)


def reader_prompt(
    sentences: Iterable[Sentence], question: str, form: PromptForm = "adapted", *, quoted: bool = False
) -> str:
    """The prompt for `question` over the chosen sentences, ending in "Answer:" without a space.

    One line an article in the order given; following sentences of the same article share its line. With `quoted`
    nothing in them can pass for a part of the prompt.
    """
    if quoted:
        sentences = [(as_data(title), date, as_data(text)) for title, date, text in sentences]
    lines: list[str] = []
    last: tuple[str, str] | None = None
    for title, date, text in sentences:
        head = (one_line(title), date)
        if head == last:
            lines[-1] += f" {one_line(text)}"
        else:
            lines.append(f"{article_head(title, date)}: {one_line(text)}")
        last = head
    body = "".join(f"{line}\n" for line in lines)
    example = _EXAMPLE if form == "base" else ""
    return f"{example}{body}Question: {one_line(question)}\nAnswer:"


def article_head(title: str, date: str = "") -> str:
    """How an article is named before its text: "Title (date)"."""
    return f"{one_line(title)} ({date})" if date else one_line(title)


def giving_up_token(encode: Callable[[str], list[int]]) -> int | None:
    """The id that means giving up and begins no other answer (Gemma has one); `encode` adds no special tokens.

    None where the vocabulary spells GIVEN_UP in several tokens: the first of them begins other answers too, so it
    must neither be barred nor taken for giving up; what is said tells then (`parse_answer`).
    """
    first, *more = encode(GIVEN_UP)
    return None if more else first


def target_text(answer: str | None) -> str:
    """What a tuned reader is trained to write after the prompt; None where the news does not tell."""
    return GIVEN_UP if answer is None else f" {one_line(answer)}"


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """An answer as read off the generated text; `text` is empty when the reader gave up."""

    text: str
    given_up: bool


def parse_answer(generated: str) -> ParsedAnswer:
    """The first line of the generated text; "unknown" or nothing means that the reader gave up."""
    text = one_line(generated.lstrip().split("\n", 1)[0])
    if not text or _UNKNOWN.fullmatch(text):
        return ParsedAnswer("", True)
    return ParsedAnswer(text, False)


def one_line(text: str) -> str:
    """`text` with every run of white space as one space, ends trimmed."""
    return _SPACES.sub(" ", text).strip()
