"""A summary of a stream: what its recent articles report most, in their own words, each line with its source.

Sentences are taken, not written: a small model that rewrites news changes facts, and a reader of a summary
cannot see which. Articles are ranked by how much the others of the period speak of the same (degree
centrality over TF-IDF or embeddings, as in LexRank, cs/0109021), and picked so that lines do not repeat.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.article import Article, from_ms, isoformat
from pipeline.errors import UsageError
from pipeline.session.answer import Source
from pipeline.session.asking import AskParts, View
from pipeline.session.chooser import words
from pipeline.session.guard import is_order, quoted
from pipeline.session.prompts import one_line
from pipeline.session.sentences import split_sentences, without_dateline

_NEIGHBOURS = 5
_NOVELTY = 0.6
_RECENCY = 0.15
_LEAD_WORDS = 6
_OPENING = 6
_EARLY = 0.3
_QUOTES = "\"'“‘«„•-–—"


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryRequest:
    """A period (None: open) and a length."""

    since_ms: int | None = None
    until_ms: int | None = None
    sentences: int | None = None

    def __post_init__(self) -> None:
        if self.sentences is not None and not 1 <= self.sentences <= 50:
            raise UsageError(f"sentences is {self.sentences}; allowed: 1 to 50")
        if self.since_ms is not None and self.until_ms is not None and self.since_ms > self.until_ms:
            raise UsageError("'since' lies after 'until'; the period is empty")


def summarize(request: SummaryRequest, view: View, parts: AskParts) -> dict[str, Any]:
    """The JSON object of a summary: text, sources, the period, and how many articles it looked at."""
    began = time.monotonic()
    until = None if request.until_ms is None else request.until_ms + 1
    recent = parts.library.recent(
        view.stream, parts.config.summary_articles, until, parts.config.search_deadline_s
    )
    articles = [a for a in recent if request.since_ms is None or a.published_ms >= request.since_ms]
    guard = parts.config.guard
    # Of an article that only orders its reader about there is nothing to quote, however central it is.
    leads = {a.id: sentence for a in articles if (sentence := lead(a, guard=guard))}
    quotable = [a for a in articles if a.id in leads]
    picked = pick(quotable, leads, request.sentences or parts.config.summary_sentences, parts)
    lines = []
    sources = []
    for number, article in enumerate(sorted(picked, key=lambda a: (a.published_ms, a.id)), start=1):
        sentence = leads[article.id]
        said = without_dateline(sentence).lstrip("• ")
        lines.append(f"{article.published.date().isoformat()}: {said} [{number}]")
        sources.append(_source(article, sentence))
    return {
        "stream": view.stream,
        "text": "\n".join(lines),
        "sources": [asdict(source) for source in sources],
        "articles_considered": len(articles),
        "since": isoformat(articles[-1].published) if articles else None,
        "until": isoformat(articles[0].published) if articles else None,
        "method": "lead sentences of the period's most central articles, quoted",
        "lag": asdict(view.lag),
        "session_bytes": view.session_bytes,
        "latency_ms": round(1_000 * (time.monotonic() - began), 1),
    }


def pick(
    articles: Sequence[Article], leads: Mapping[str, str], wanted: int, parts: AskParts
) -> list[Article]:
    """Up to `wanted` articles that the others are closest to, each unlike those already picked.

    Articles come newest first; the newer of two that are equally central is preferred.
    """
    if len(articles) <= 1:
        return list(articles)
    near = _similarity([f"{a.title}. {leads[a.id]}" for a in articles], parts)
    np.fill_diagonal(near, 0.0)
    closest = np.sort(near, axis=1)[:, -_NEIGHBOURS:].mean(axis=1)
    spread = closest.max() - closest.min()
    central = (closest - closest.min()) / spread if spread > 0 else np.zeros(len(articles))
    score = central + _RECENCY * np.linspace(1.0, 0.0, len(articles))
    picked: list[int] = []
    while len(picked) < min(wanted, len(articles)):
        repeated = near[:, picked].max(axis=1) if picked else np.zeros(len(articles))
        worth = score - _NOVELTY * repeated * 2
        worth[picked] = -np.inf
        best = int(np.argmax(worth))
        # What says nearly the same as a line already there adds nothing.
        if picked and repeated[best] > 0.9:
            break
        picked.append(best)
    return [articles[i] for i in picked]


def lead(article: Article, *, guard: bool = True) -> str:
    """The opening sentence that says what the title says; the title itself where none does.

    Openings are often a place line, a heading or somebody's words: the title tells which one carries the news. With
    `guard` no sentence that orders a reading model about is taken (then "", if the title is one too), and the marks
    of a prompt lose their form, as for answers: a summary is read by models as well.
    """
    wanted = set(words(article.title))
    title = one_line(article.title)
    best, best_score = "" if guard and is_order(title) else title, 0.0
    for place, sentence in enumerate(split_sentences(article.text)[:_OPENING]):
        bare = without_dateline(sentence)
        if len(bare.split()) < _LEAD_WORDS or bare[0] in _QUOTES:
            continue
        if guard and (is_order(sentence) or is_order(bare)):
            continue
        shared = len(wanted & set(words(bare))) / max(1, len(wanted))
        score = shared + _EARLY / (1 + place)
        if score > best_score:
            best, best_score = sentence, score
    return quoted(best) if guard else best


def _similarity(texts: Sequence[str], parts: AskParts) -> npt.NDArray[np.float64]:
    vectors = parts.library.embed(texts, parts.config.search_deadline_s)
    if vectors is None:
        vectors = _tf_idf(texts)
    matrix: npt.NDArray[np.float64] = np.asarray(vectors @ vectors.T, dtype=np.float64)
    return np.clip(matrix, 0.0, 1.0)


def _tf_idf(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    bags = [words(text) for text in texts]
    vocabulary = {word: i for i, word in enumerate(sorted({word for bag in bags for word in bag}))}
    counts = np.zeros((len(texts), max(1, len(vocabulary))), dtype=np.float32)
    for row, bag in enumerate(bags):
        for word in bag:
            counts[row, vocabulary[word]] += 1.0
    weights = np.log((1.0 + len(texts)) / (1.0 + (counts > 0).sum(axis=0))) + 1.0
    weighted = np.log1p(counts) * weights
    norms = np.linalg.norm(weighted, axis=1, keepdims=True)
    result: npt.NDArray[np.float32] = weighted / np.maximum(norms, 1e-9)
    return result


def _source(article: Article, quote: str) -> Source:
    return Source(
        article_id=article.id,
        title=one_line(article.title),
        source=article.source,
        stream=article.stream,
        published=isoformat(article.published),
        version=isoformat(from_ms(article.version_ms)),
        url=article.url,
        quote=quote,
    )
