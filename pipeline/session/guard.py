"""Article text is quoted data: what in it is written to a reader's prompt and not to the reader of news.

Two means. The marks that structure a prompt ("Question:", "Answer:", turn tokens) lose their form where they stand
in an article. And sentences that order a language model about are left out before anything is chosen. Neither
helps against a lie told as news: that is what sources and corrections are for.
"""

from __future__ import annotations

import re

_MARK = re.compile(r"\b(q\s*u\s*e\s*s\s*t\s*i\s*o\s*n|a\s*n\s*s\s*w\s*e\s*r)\s*[:：]", re.IGNORECASE)
_TURN = re.compile(
    r"</?\|?\s*(?:[a-z]+_of_[a-z]+|bos|eos|im_start|im_end|system|assistant|user|model)\s*\|?>", re.I
)
_ORDER = re.compile(
    r"""
    \b(?:ignore|disregard|forget|override)\b[^.]{0,60}\b(?:question|instructions?|prompts?|(?:all|the|any|everything)\s+
        (?:above|previous|earlier|prior))\b
    | ^\W*(?:system|assistant|user|human)\s*(?:prompt|message|note)?\s*:
    | \b(?:language\s+models?|chat\s?bots?|(?:ai|virtual)\s+(?:assistants?|models?))\b[^.]{0,40}
        \b(?:when\s+asked|(?:must|should)\s+(?:only\s+)?(?:reply|answer|respond|say|output|write))\b
    | \b(?:only\s+)?(?:correct|right|true)\s+answer\s+to\s+(?:the|this|your|every|any|all)\s+questions?\b
    | \b(?:reply|respond|answer)\s+(?:only\s+|exactly\s+)*with\b[^.]{0,80}
        (?:\band\s+nothing\s+else\b|\bonly\b|\bverbatim\b)
    | \b(?:reply|respond|answer)\s+(?:only|exactly)\s+with\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def is_order(sentence: str) -> bool:
    """Whether a sentence addresses a model that reads it, or poses as a part of its prompt."""
    return bool(_ORDER.search(sentence) or _TURN.search(sentence) or _poses(sentence))


def _poses(sentence: str) -> bool:
    """Whether it holds a question mark of the prompt's with an answer mark after it, or begins with the latter."""
    marks = ["".join(match.group(1).split()).casefold() for match in _MARK.finditer(sentence)]
    begins = _MARK.match(sentence.lstrip(" -*•\"'“‘"))
    return ("question" in marks and "answer" in marks) or (begins is not None and marks[0] == "answer")


def quoted(text: str) -> str:
    """The text as data: the marks of a prompt keep their words and lose their colons, turn tokens go."""
    return _TURN.sub(" ", _MARK.sub(lambda match: f"{match.group(1)} -", text))
