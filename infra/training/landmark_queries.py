"""Queries made of passages, so that a landmark head can be taught by an embedder on far more than asked questions.

Of each passage: a sentence of it under its title (a text to be found), a question with a gap ("who was born in
chicago in 1945"), and either a crop of another sentence or a few words as one types them. Nothing here knows
which test questions there are: the caller gives passages that may be read.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from pipeline.session.prompts import article_head
from pipeline.session.sentences import split_sentences

_WORD = re.compile(r"[\w'’.-]*\w")
_YEAR = re.compile(r"(1[5-9]|20)\d\d")
_PRONOUNS = frozenset(("it", "he", "she", "they", "this", "these", "his", "her", "its", "their"))


@dataclass(frozen=True, slots=True)
class Made:
    """A passage and a sentence of it as a store keeps them, and two queries that it answers."""

    passage: str
    sentence: str
    queries: tuple[str, str]


def shown(title: str, text: str) -> str:
    """A text as a reader sees it: under its title."""
    return f"{article_head(title, '')}: {text}"


def made_of(title: str, text: str, chance: random.Random) -> Made | None:
    """What one passage gives; None where it has no sentence of six words or more."""
    sentences = [sentence for sentence in split_sentences(text) if len(sentence.split()) >= 6]
    if not sentences:
        return None
    sentence, other = chance.choice(sentences), chance.choice(sentences)
    second = typed(title, text, chance) if chance.random() < 0.4 else crop(other, chance)
    return Made(shown(title, text), shown(title, sentence), (gap(title, sentence, chance), second))


def gap(title: str, sentence: str, chance: random.Random) -> str:
    """A question whose answer is a name or a number of the sentence; the sentence's own words around it."""
    words = _WORD.findall(sentence)
    spans = _spans(words)
    if not spans:
        return crop(sentence, chance)
    first, end = chance.choice(spans)
    asked = words[first:end]
    if _YEAR.fullmatch(asked[0]):
        by = chance.choice(("when", "what year"))
    elif asked[0][0].isdigit():
        by = "how many"
    else:
        by = chance.choice(("who", "what", "which", "where"))
    before = words[max(0, first - chance.randint(3, 8)) : first]
    after = words[end : end + chance.randint(3, 8)]
    about = title.split() if (before or after)[0].lower() in _PRONOUNS or chance.random() < 0.3 else []
    query = " ".join((by, *about, *before, *after))
    return query.lower() if chance.random() < 0.5 else query


def crop(sentence: str, chance: random.Random) -> str:
    """Some five to sixteen words of the sentence, in their order."""
    words = sentence.split()
    size = min(len(words), chance.randint(5, 16))
    first = chance.randint(0, len(words) - size)
    return " ".join(words[first : first + size])


def typed(title: str, text: str, chance: random.Random) -> str:
    """The title and a few of the passage's longer words, small: what one types into a search box."""
    words = sorted({word.lower() for word in _WORD.findall(text) if len(word) > 4})
    some = chance.sample(words, min(len(words), chance.randint(2, 5)))
    return " ".join((title.lower(), *some)).strip()


def _spans(words: list[str]) -> list[tuple[int, int]]:
    """Runs of capitalised words, and numbers; a sentence's first word only as part of a longer run."""
    spans, at = [], 0
    while at < len(words):
        end = at
        while end < len(words) and words[end][0].isupper() and end - at < 4:
            end += 1
        if end > at and (at > 0 or end - at > 1) and end - at < len(words):
            spans.append((at, end))
        elif words[at][0].isdigit() and len(words) > 1:
            spans.append((at, at + 1))
        at = max(end, at + 1)
    return spans
