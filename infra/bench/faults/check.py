"""Compares what a store shows with what it must hold: id by id, version by version, chunk by chunk."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from infra.bench.faults.news import Expected, Known

_NOTES = 6


@dataclass(slots=True)
class Differences:
    """How a store differs from what was published; all zero where it does not."""

    lost: int = 0
    doubled: int = 0
    wrong_version: int = 0
    sessions_differing: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def any(self) -> bool:
        """Whether there is a difference at all."""
        return bool(self.lost or self.doubled or self.wrong_version or self.sessions_differing)

    def add(self, field_name: str, note: str, count: int = 1) -> None:
        """Count a difference and keep the first few in words."""
        setattr(self, field_name, getattr(self, field_name) + count)
        if len(self.notes) < _NOTES:
            self.notes.append(f"{field_name}: {note}")


def compare(expected: Expected, dump: dict[str, Any]) -> Differences:
    """The differences of a dump of all ids: articles, chunks in both searches, and the ledger.

    `dump`: `articles` {id: (state, version_ms, article, canonical, num_chunks)}; `dense` and `bm25` lists of
    (chunk_id, article_id, version_ms); `ledger` counts; `keyword_chunks`, the documents of the keyword index.
    """
    found = Differences()
    for article_id, known in expected.articles.items():
        _compare_article(found, article_id, known, dump["articles"].get(article_id))
    live_chunks = sum(row[4] for row in dump["articles"].values() if row[0] == "live")
    for search in ("dense", "bm25"):
        _compare_chunks(found, expected, dump, search)
    if dump["keyword_chunks"] != live_chunks:
        kind = "doubled" if dump["keyword_chunks"] > live_chunks else "lost"
        found.add(kind, f"{dump['keyword_chunks']} chunks in the keyword index, {live_chunks} live")
    _compare_ledger(found, expected, dump["ledger"])
    return found


def _compare_article(found: Differences, article_id: str, known: Known, row: Any) -> None:
    if row is None:
        # A withdrawal of an id that was never stored leaves nothing to know.
        if known.state != "deleted":
            found.add("lost", f"{article_id} is not there")
        return
    state, version_ms, article, canonical, num_chunks = row
    if state != known.state:
        kind = "lost" if state == "deleted" else "wrong_version"
        found.add(kind, f"{article_id} is {state}, must be {known.state}")
    elif (version_ms, article, canonical) != (known.version_ms, known.article, known.canonical):
        found.add("wrong_version", f"{article_id} has version {version_ms}, must be {known.version_ms}")
    elif state == "live" and not num_chunks:
        found.add("lost", f"{article_id} has no chunks")


def _compare_chunks(found: Differences, expected: Expected, dump: dict[str, Any], search: str) -> None:
    seen: dict[str, Counter[int]] = {}
    for chunk_id, article_id, version_ms in dump[search]:
        known = expected.articles.get(article_id)
        if known is None or known.state != "live" or version_ms != known.version_ms:
            found.add("wrong_version", f"{search} search shows {article_id} of version {version_ms}")
            continue
        seen.setdefault(article_id, Counter())[chunk_id] += 1
    for article_id, known in expected.articles.items():
        if known.state != "live":
            continue
        chunks = seen.get(article_id, Counter())
        if chunks and max(chunks.values()) > 1:
            found.add(
                "doubled", f"{search} search shows a chunk of {article_id} {max(chunks.values())} times"
            )
        row = dump["articles"].get(article_id)
        if row is not None and len(chunks) < row[4]:
            found.add("lost", f"{search} search shows {len(chunks)} of {row[4]} chunks of {article_id}")


def _compare_ledger(found: Differences, expected: Expected, ledger: dict[str, int]) -> None:
    if ledger["read"] != expected.num_records:
        kind = "doubled" if ledger["read"] > expected.num_records else "lost"
        many = abs(ledger["read"] - expected.num_records)
        found.add(kind, f"{ledger['read']} records accounted for, {expected.num_records} published", many)
    for outcome, count in expected.outcomes.items():
        if ledger[outcome] != count:
            found.add("wrong_version", f"the ledger counts {ledger[outcome]} {outcome}, must be {count}")
