"""Passages cut into sentences: the unit that a reader is given, a few at a time.

Few sentences beat many passages: what more text adds in recall it takes back in distraction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.article import from_ms
from pipeline.session.prompts import article_head, one_line
from pipeline.store.records import Passage

_END = re.compile(
    r"""[.!?…]+["'”’)\]]*\s+(?=["'“‘(\[]?[A-Z0-9À-ÖØ-Þ])|\n{2,}|\n(?=[-*•])|\n(?=["“A-ZÀ-ÖØ-Þ])"""
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"“‘'])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|Sen|Rep|Gov|Gen|Col|Lt|Sgt|Capt|Rev|Hon|St|Mt|Ft|Jr|Sr|No|Nos|vs|"
    r"Inc|Corp|Ltd|Co|Bros|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec|approx|est|fig|pp|[A-Z]\.[A-Z]"
    r"|[A-Z]\.[A-Z]\.[A-Z]|e\.g|i\.e)\.$"
)
_DATELINE = re.compile(
    r"(?:•\s*)?[A-ZÀ-Þ][\w./'’ -]{1,40}(?:, [\w. ]{2,30})?(?: \([^)]{1,40}\))? (?:-|--|—|–) (?=\S+ \S+ \S+)"
)
_HEADING_CHARS = 40
MAX_SENTENCE_CHARS = 600
"""Longer "sentences" (tables, lists) are cut at a space."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One sentence that may be read, with where it stands.

    `position` orders the sentences of an article; `rank` is the place (from 0) of its passage in the search;
    `num_tokens` counts the sentence, `head_tokens` the line's "Title (date):", paid once an article.
    """

    article_id: str
    version_ms: int
    published_ms: int
    title: str
    source: str
    stream: str
    url: str | None
    text: str
    position: int
    rank: int
    num_tokens: int
    head_tokens: int

    @property
    def date(self) -> str:
        """The day of publication, as the reader sees it."""
        return from_ms(self.published_ms).date().isoformat()


def split_sentences(text: str) -> list[str]:
    """The sentences of `text`, in order, each on one line; nothing is lost but white space."""
    sentences: list[str] = []
    start = 0
    for match in _END.finditer(text):
        if match.group().startswith(".") and _ABBREVIATION.search(text[start : match.start() + 1]):
            continue
        if match.group() == "\n" and not _is_heading(text[start : match.start()]):
            continue
        _append(sentences, text[start : match.end()])
        start = match.end()
    _append(sentences, text[start:])
    return sentences


def candidates(passages: Sequence[Passage], count_tokens: Callable[[str], int]) -> list[Candidate]:
    """Every sentence of the passages once, in the order of the search.

    Where chunks of an article overlap, or two articles carry the same sentence, the first stands.
    """
    found: list[Candidate] = []
    seen: set[str] = set()
    heads: dict[str, int] = {}
    for rank, passage in enumerate(passages):
        date = from_ms(passage.published_ms).date().isoformat()
        if passage.article_id not in heads:
            heads[passage.article_id] = count_tokens(article_head(passage.title, date) + ":")
        for place, sentence in enumerate(split_sentences(passage.text)):
            key = sentence.casefold()
            if key in seen:
                continue
            seen.add(key)
            found.append(
                Candidate(
                    article_id=passage.article_id,
                    version_ms=passage.version_ms,
                    published_ms=passage.published_ms,
                    title=passage.title,
                    source=passage.source,
                    stream=passage.stream,
                    url=passage.url,
                    text=sentence,
                    position=passage.ordinal * 10_000 + place,
                    rank=rank,
                    num_tokens=count_tokens(" " + sentence),
                    head_tokens=heads[passage.article_id],
                )
            )
    return found


def without_dateline(sentence: str) -> str:
    """The sentence without the place, day and agency that wire reports begin with."""
    match = _DATELINE.match(sentence)
    return sentence[match.end() :] if match else sentence


def _is_heading(line: str) -> bool:
    """Whether a line that just ends, without a mark, stands alone: short, where wrapped text would go on."""
    line = line.rpartition("\n")[2].strip()
    return 0 < len(line) <= _HEADING_CHARS and line[-1] not in ",;:-–—"


def _append(sentences: list[str], text: str) -> None:
    text = one_line(text)
    while len(text) > MAX_SENTENCE_CHARS:
        cut = text.rfind(" ", 1, MAX_SENTENCE_CHARS)
        cut = cut if cut > 0 else MAX_SENTENCE_CHARS
        sentences.append(text[:cut].strip())
        text = text[cut:].strip()
    if text:
        sentences.append(text)
