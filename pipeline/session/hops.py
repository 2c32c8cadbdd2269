"""Questions that lead over a second article: what the first sentence names is searched for in turn.

"Where is the company based whose shirts the Rovers wear?" finds the sponsor first. Its name stands in the sentence
and not in the question, so a search for it, with what the question still asks, finds the seat. The budget stays the
same: the best sentences of each search take turns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pipeline.session.chooser import Chooser, HybridChooser, fill, reading_order, words
from pipeline.session.sentences import Candidate, without_dateline

Search = Callable[[str], list[Candidate]]

_NAME_WORD = r"(?:[A-Z][\w'’&-]*[\w&]|[A-Z])"
_NAME = re.compile(rf"{_NAME_WORD}(?:\s+(?:(?:of|the|de|and|for)\s+)*{_NAME_WORD})*")
_WORD = re.compile(r"\w+")
_QUESTION_WORD = re.compile(r"\b(?:who|whom|whose|which|what|where|when|that)\b")
_LINK = re.compile(
    r"\b(?:the|a)\s+(?:[a-z-]+\s+){1,4}?(?:of|that|who|which|whose|under|led|run|headed|owned|by"
    r"|in which|to which)\b"
)
_CLAUSE = re.compile(r"\b(?:the|a)\s+(?:[a-z-]+\s+){1,4}?(?:that|whose|under|led|run|headed|to which)\b")
_NO_NAMES = frozenset(
    _WORD.findall(
        """
    monday tuesday wednesday thursday friday saturday sunday january february march april may june july august
    september october november december the a an in on at it he she they this that these those his her its their
    also elsewhere meanwhile but and for from after before when while as with by no not there then i we you
    """
    )
)


def leads_on(question: str) -> bool:
    """Whether a question describes what it asks about by way of something else, as far as its form tells.

    "of the coach of the team of …" and "the town where the company that …" do; "the mayor of Kallerhaven" does not.
    """
    text = question[:1].lower() + question[1:]
    asking, links = len(_QUESTION_WORD.findall(text)), len(_LINK.findall(text))
    return links >= 2 or asking >= 2 or (asking + links >= 2 and links >= 1 and _describes(text))


def _describes(text: str) -> bool:
    """Whether a link is followed by another description rather than by a name."""
    return _CLAUSE.search(text) is not None


def names(text: str) -> list[str]:
    """The names in a text, in order, each once: runs of capitalised words, without days and opening words."""
    found: dict[str, None] = {}
    for match in _NAME.finditer(text):
        parts = match.group().split()
        while parts and parts[0].casefold() in _NO_NAMES:
            parts.pop(0)
        while parts and parts[-1].casefold() in _NO_NAMES:
            parts.pop()
        if parts:
            found[" ".join(parts)] = None
    return list(found)


def new_names(
    candidates: Sequence[Candidate],
    scores: Sequence[float],
    roots: Sequence[str],
    known: frozenset[str],
    most: int,
) -> list[str]:
    """The names that stand beside `roots` in the best sentences, none of them made of `known` words alone.

    A name counts the scores of its sentences; one that opens a sentence must stand inside another one too, or
    it may be any word.
    """
    texts = [without_dateline(c.text) for c in candidates]
    inside = {name for text in texts for name in names(text[:1].lower() + text[1:])}
    weights: dict[str, float] = {}
    for text, score in zip(texts, scores, strict=True):
        if not any(root in text for root in roots):
            continue
        for name in names(text):
            fresh = [word for word in _WORD.findall(name) if word.casefold() not in known]
            single = " " not in name and text.startswith(name) and name not in inside
            if fresh and not single and not any(root in name for root in roots):
                weights[name] = weights.get(name, 0.0) + score
    return sorted(weights, key=lambda name: (-weights[name], name))[:most]


class HopChooser:
    """Searches up to `hops` times, each time for the names that the sentences so far have brought."""

    def __init__(self, chooser: Chooser, hops: int, most_names: int = 1) -> None:
        self._chooser = chooser
        self._ranking = chooser if isinstance(chooser, HybridChooser) else HybridChooser()
        self._hops, self._most = hops, most_names

    def choose(
        self, question: str, found: Sequence[Candidate], budget: int, search: Search
    ) -> list[Candidate]:
        """Sentences of at most `budget` tokens in reading order; `found` are those of the question itself."""
        roots = names(question[:1].lower() + question[1:])
        if self._hops < 2 or not found or not roots or not leads_on(question):
            return self._chooser.choose(question, found, budget)
        asks = question
        for root in roots:
            asks = asks.replace(root, " ")
        known = frozenset(word.casefold() for word in _WORD.findall(question))
        lists: list[list[Candidate]] = []
        text, here, left = question, list(found), asks
        for hop in range(self._hops):
            here = _about([*here, *(c for root in roots for c in search(f"{root} {left}"))], roots)
            if not here:
                break
            scores = self._ranking.scores(text, here)
            order = sorted(range(len(here)), key=lambda i: (-scores[i], i))
            lists.append([here[i] for i in order])
            left = _without(left, lists[-1][0].text)
            if hop + 1 == self._hops:
                break
            roots = new_names(here, scores, roots, known, self._most)
            if not roots:
                break
            known |= {word.casefold() for root in roots for word in _WORD.findall(root)}
            text, here = f"{' , '.join(roots)} {left}", []
        if len(lists) < 2:
            return self._chooser.choose(question, found, budget)
        return reading_order(fill(_in_turn(lists), budget))


def _without(question: str, sentence: str) -> str:
    """The question without the words that a sentence has answered to."""
    told = set(words(sentence))
    return " ".join(word for word in question.split() if not set(words(word)) & told)


def _about(found: Sequence[Candidate], names_: Sequence[str]) -> list[Candidate]:
    """The candidates whose own text holds one of the names, each sentence once."""
    kept = {c.text.casefold(): c for c in reversed(found) if any(name in c.text for name in names_)}
    return list(reversed(kept.values()))


def _in_turn(lists: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """The first of each list, then the second of each, and so on; each sentence once."""
    order: dict[tuple[str, int], Candidate] = {}
    for place in range(max(map(len, lists))):
        for ranked in lists:
            if place < len(ranked):
                order.setdefault((ranked[place].article_id, ranked[place].position), ranked[place])
    return list(order.values())
