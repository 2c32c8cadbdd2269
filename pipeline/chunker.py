"""Article to chunks: spans under a budget of the embedding model's own tokens, cut at sentence ends.

The spans cover the text from its first to its last character in order, so nothing is lost; with no overlap
their concatenation is the text.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from models.embed import TextTokenizer
from models.embed.embedder import Offsets
from pipeline.article import Article, BadRecord
from pipeline.store.records import Chunk

_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s+(?=[^a-z\s])|\n+\s*|[。！？]+")
_CLAUSE_END = re.compile(r"[;:,，；]\s+|\s[-–—]\s+")
_CLOSERS = frozenset("\"'”’)]")
_MAX_STEPS_BACK = 256
_GROUP_CHARS = 65_536
"""Articles whose tokens are located by one call: about so much text, which stays in the processor's cache."""
_TITLE_JOIN = "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkConfig:
    """How articles are cut. A store keeps the chunks that it was given: changes hold for new articles."""

    max_tokens: int = field(
        default=200, metadata={"help": "tokens of one embedded text: the title as context, and the chunk"}
    )
    max_title_tokens: int = field(
        default=48, metadata={"help": "tokens of the title given as context; 0 embeds chunks without it"}
    )
    overlap_tokens: int = field(default=0, metadata={"help": "tokens that a chunk repeats of the one before"})
    max_chunks: int = field(
        default=2_000, metadata={"help": "chunks of one article; a longer one is dead-lettered (too_long)"}
    )

    def __post_init__(self) -> None:
        if self.max_tokens < 16:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be at least 16")
        if not 0 <= self.max_title_tokens <= self.max_tokens // 2:
            raise ValueError(
                f"max_title_tokens is {self.max_title_tokens}; allowed is 0 to half of max_tokens "
                f"({self.max_tokens // 2})"
            )
        if not 0 <= self.overlap_tokens <= self.max_tokens // 4:
            raise ValueError(
                f"overlap_tokens is {self.overlap_tokens}; allowed is 0 to a quarter of max_tokens "
                f"({self.max_tokens // 4})"
            )
        if self.max_chunks < 1:
            raise ValueError(f"max_chunks is {self.max_chunks}; it must be at least 1")


@runtime_checkable
class _ManyTexts(Protocol):
    """A tokenizer that locates the tokens of many texts by one call."""

    def offsets_many(self, texts: Sequence[str]) -> Sequence[Offsets]: ...


def title_context(title: str, tokenizer: TextTokenizer, config: ChunkConfig) -> tuple[str, int]:
    """What of the title precedes every chunk when it is embedded, and its tokens."""
    return _context(title, tokenizer.offsets(title), config)


def embedding_texts(context: str, chunks: list[Chunk]) -> list[str]:
    """The texts to embed: the title's context on a line of its own before each chunk's text."""
    return [f"{context}{_TITLE_JOIN}{chunk.text}" if context else chunk.text for chunk in chunks]


def chunk_article(
    article: Article, tokenizer: TextTokenizer, config: ChunkConfig | None = None
) -> tuple[list[Chunk], list[str]]:
    """The article's chunks and the text to embed for each; the same article gives the same chunks.

    Raises BadRecord("too_long") where more than `max_chunks` would be needed, and ValueError where the
    budget exceeds what the embedder reads.
    """
    (cut,) = chunk_articles((article,), tokenizer, config)
    if isinstance(cut, BadRecord):
        raise cut
    return cut


def chunk_articles(
    articles: Sequence[Article], tokenizer: TextTokenizer, config: ChunkConfig | None = None
) -> list[tuple[list[Chunk], list[str]] | BadRecord]:
    """`chunk_article` of each, the tokens of many located at once; a BadRecord stands where it would be raised."""
    config = config or ChunkConfig()
    if config.max_tokens > tokenizer.max_tokens:
        raise ValueError(
            f"chunks of {config.max_tokens} tokens are longer than the embedder reads "
            f"({tokenizer.max_tokens}); set chunks.max_tokens to at most {tokenizer.max_tokens}"
        )
    cut: list[tuple[list[Chunk], list[str]] | BadRecord] = []
    for group in _groups(articles):
        places = _offsets(tokenizer, [text for article in group for text in (article.title, article.text)])
        for at, article in enumerate(group):
            cut.append(_cut(article, places[2 * at], places[2 * at + 1], tokenizer, config))
    return cut


def _groups(articles: Sequence[Article]) -> list[Sequence[Article]]:
    groups: list[Sequence[Article]] = []
    begin = size = 0
    for at, article in enumerate(articles):
        size += len(article.title) + len(article.text)
        if size >= _GROUP_CHARS:
            groups.append(articles[begin : at + 1])
            begin, size = at + 1, 0
    return [*groups, articles[begin:]] if begin < len(articles) else groups


def _offsets(tokenizer: TextTokenizer, texts: list[str]) -> Sequence[Offsets]:
    if isinstance(tokenizer, _ManyTexts):
        return tokenizer.offsets_many(texts)
    return [tokenizer.offsets(text) for text in texts]


def _cut(
    article: Article, title_places: Offsets, places: Offsets, tokenizer: TextTokenizer, config: ChunkConfig
) -> tuple[list[Chunk], list[str]] | BadRecord:
    context, context_tokens = _context(article.title, title_places, config)
    budget = config.max_tokens - context_tokens
    text = article.text
    if len(places) <= budget:
        chunks = [Chunk(0, text, len(places), 0, len(text))]
        return chunks, embedding_texts(context, chunks)
    spans = _spans(text, places, tokenizer, budget, config.overlap_tokens)
    if len(spans) > config.max_chunks:
        return BadRecord(
            "too_long",
            f"the text needs {len(spans)} chunks of {budget} tokens; at most {config.max_chunks} are allowed",
        )
    chunks = [
        Chunk(ordinal, text[start:end], num_tokens, start, end)
        for ordinal, (start, end, num_tokens) in enumerate(spans)
    ]
    return chunks, embedding_texts(context, chunks)


def _context(title: str, offsets: Offsets, config: ChunkConfig) -> tuple[str, int]:
    num_tokens = len(offsets)
    if num_tokens > config.max_title_tokens:
        whole_words = [0, *_word_starts(np.asarray(offsets, dtype=np.int64))]
        num_tokens = whole_words[bisect_right(whole_words, config.max_title_tokens) - 1]
    return (title[: offsets[num_tokens - 1][1]], num_tokens) if num_tokens else ("", 0)


def _spans(
    text: str, offsets: Offsets, tokenizer: TextTokenizer, budget: int, overlap: int
) -> list[tuple[int, int, int]]:
    """Spans (start, end, tokens) of at most `budget` tokens that cover a text that has more than that."""
    num_tokens = len(offsets)
    places = np.asarray(offsets, dtype=np.int64)
    starts = places[:, 0]
    sentences = _SentenceCuts(text, starts)
    words: list[int] | None = None
    clauses: list[int] | None = None
    spans: list[tuple[int, int, int]] = []
    first = covered = 0
    while first < num_tokens:
        rest = num_tokens - first
        if rest <= budget:
            spans.append(_span(text, starts, first, num_tokens, first == 0))
            break
        target = first + -(-rest // -(-rest // budget))
        end = sentences.choose(covered, target, first + budget)
        if (end is None or overlap) and words is None:
            words = _word_starts(places)
        if end is None:
            assert words is not None
            clauses = _cuts(_CLAUSE_END, text, starts) if clauses is None else clauses
            end = _choose(clauses, max(covered, first + budget // 2), target, first + budget)
            if end is None:
                end = _choose(words, covered, first + budget, first + budget)
            if end is None:  # one word longer than the budget: cut inside it, and count each piece again
                first = covered
                end = bisect_right(words, first)
                end = words[end] if end < len(words) else num_tokens
                spans += _inside_word(text, tokenizer, starts, first, end, budget)
            else:
                spans.append(_span(text, starts, first, end, first == 0))
        else:
            spans.append(_span(text, starts, first, end, first == 0))
        back = None
        if overlap:
            assert words is not None
            back = _choose(words, max(end - overlap - 1, first), end - overlap, end)
        covered = end
        first = end if back is None else back
    return spans


class _SentenceCuts:
    """The tokens that begin a sentence, looked for only where a cut is wanted.

    Sentence ends do not depend on where before them the search begins, so the text need not be searched whole.
    """

    def __init__(self, text: str, starts: NDArray[np.int64]) -> None:
        self._text = text
        self._starts = starts
        self._all: list[int] | None = None

    def choose(self, above: int, target: int, limit: int) -> int | None:
        """As `_choose`; `limit` is below the number of tokens."""
        starts = self._starts
        floor, place, stop = int(starts[above]), int(starts[target - 1]), int(starts[limit]) + 1
        begin = self._before(place) if self._all is None else -1
        earlier = self._before(floor) if begin >= 0 else -1
        if earlier < 0:
            if self._all is None:
                self._all = _cuts(_SENTENCE_END, self._text, starts)
            return _choose(self._all, above, target, limit)
        for match in _SENTENCE_END.finditer(self._text, begin, stop):
            if match.end() > place:
                cut = bisect_left(starts, match.end(), target, limit + 1)
                if above < cut <= limit:
                    return cut
                break
        last = -1
        for match in _SENTENCE_END.finditer(self._text, earlier, place + 1):
            if match.end() <= place:
                last = match.end()
        return bisect_left(starts, last) if last > floor else None

    def _before(self, place: int) -> int:
        """Where a sentence end that reaches beyond `place` may begin at the earliest; -1 if that is far back."""
        text, begin = self._text, place
        least = place - _MAX_STEPS_BACK
        while begin > 0:
            begin -= 1
            character = text[begin]
            if character not in _CLOSERS and not character.isspace():
                return begin
            if begin < least:
                return -1
        return 0


def _word_starts(places: NDArray[np.int64]) -> list[int]:
    """Tokens that begin a word: what lies before them is not glued to them."""
    begins = np.flatnonzero(places[1:, 0] > places[:-1, 1]) + 1
    result: list[int] = begins.tolist()
    return result


def _cuts(pattern: re.Pattern[str], text: str, starts: NDArray[np.int64]) -> list[int]:
    """The tokens that begin after each match of `pattern`, ascending."""
    ends = np.fromiter((match.end() for match in pattern.finditer(text)), dtype=np.int64)
    tokens: list[int] = np.unique(np.searchsorted(starts, ends)).tolist()
    return [token for token in tokens if 0 < token < len(starts)]


def _choose(cuts: list[int], above: int, target: int, limit: int) -> int | None:
    """The first cut from `target` on, else the last before it, within (above, limit]; else None."""
    index = bisect_left(cuts, target)
    if index < len(cuts) and above < cuts[index] <= limit:
        return cuts[index]
    index -= 1
    return cuts[index] if index >= 0 and above < cuts[index] <= limit else None


def _span(text: str, starts: NDArray[np.int64], first: int, end: int, opening: bool) -> tuple[int, int, int]:
    begin = 0 if opening else int(starts[first])
    return begin, int(starts[end]) if end < len(starts) else len(text), end - first


def _inside_word(
    text: str, tokenizer: TextTokenizer, starts: NDArray[np.int64], first: int, end: int, budget: int
) -> list[tuple[int, int, int]]:
    """Cut the tokens [first, end) of one overlong word; a piece is halved until it fits by its own count."""
    pending = [_span(text, starts, at, min(at + budget, end), at == 0) for at in range(first, end, budget)]
    spans: list[tuple[int, int, int]] = []
    pending.reverse()
    while pending:
        begin, stop, _ = pending.pop()
        count = tokenizer.count_tokens([text[begin:stop]])[0]
        if count <= budget or stop - begin < 2:
            if stop > begin:
                spans.append((begin, stop, count))
            continue
        middle = (begin + stop) // 2
        pending += [(middle, stop, 0), (begin, middle, 0)]
    return spans
