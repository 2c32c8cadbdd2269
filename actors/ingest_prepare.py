"""The first half of ingest: records to articles, chunks, near-duplicate verdicts and dead letters, in order."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from actors.ingest_spec import Assignment, IngestSpec
from actors.metrics import metric
from actors.near_duplicates import Verdicts
from models.embed import TextTokenizer
from pipeline.article import Article, BadRecord, Deletion, parse_record
from pipeline.chunker import chunk_articles
from pipeline.dead_letters import DeadLetterWriter
from pipeline.errors import DependencyUnreachable
from pipeline.near_duplicates import Fingerprint, Fingerprinter
from pipeline.placement import shard_of
from pipeline.source import Record
from pipeline.store import Chunk, Coordinate

_GROUP = 128
"""Records that are parsed, cut and fingerprinted together."""
_REMEMBERED = 65_536
"""Articles whose newest version is known here: far more than are under way, the store knows the earlier ones."""

_NEVER = -(2**63)

_ResultT = TypeVar("_ResultT")
Persist = Callable[[Callable[[], _ResultT], str], _ResultT]


@dataclass(slots=True)
class Item:
    """One record on its way: exactly one of `article`, `delete_id` and `reason` is set, or it is `done` already."""

    record: Record
    shard: int = -1
    article: Article | None = None
    delete_id: str | None = None
    reason: str = ""
    detail: str = ""
    done: bool = False
    chunks: list[Chunk] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    fingerprint: Fingerprint | None = None
    settled: bool = False
    """The store has this version or a newer one, or one is under way before it: it is only counted."""
    canonical_id: str | None = None
    similarity: float = 0.0

    @property
    def coordinate(self) -> Coordinate:
        """Where the record lies."""
        record = self.record
        return Coordinate(record.topic, record.partition, record.offset, record.timestamp_ms)

    @property
    def num_bytes(self) -> int:
        """What the record counts against the bytes under way."""
        return record_bytes(self.record)


@dataclass(slots=True)
class Batch:
    """Records in order of reading, `through` the next offset of each partition, and their vectors' reference."""

    items: list[Item]
    through: dict[int, int]
    num_texts: int = 0
    ref: Any = None

    def texts(self) -> list[str]:
        """All texts to embed, in order."""
        return [text for item in self.items for text in item.texts]


def record_bytes(record: Record) -> int:
    """Bytes that a record holds while it is under way."""
    return 512 + len(record.value or b"") + len(record.key or b"")


class Preparer:
    """Turns polled records into batches of about `target()` chunks; used by one thread.

    `persist(attempt, what)` retries an outage of another part until it ends; an outage is never a dead letter.
    """

    def __init__(
        self,
        spec: IngestSpec,
        assignment: Assignment,
        tokenizer: TextTokenizer,
        seen: Callable[[list[str]], dict[str, int]],
        judge: Callable[[list[Fingerprint | str]], Verdicts],
        persist: Persist[Any],
    ) -> None:
        self._spec = spec
        self._durable = assignment.durable
        self._tokenizer = tokenizer
        self._seen = seen
        self._judge = judge
        self._persist = persist
        self._fingerprinter = Fingerprinter(spec.duplicates)
        self._dead_letters = DeadLetterWriter(spec.kafka)
        self._sending = threading.Lock()
        self._newest: OrderedDict[str, int] = OrderedDict()
        """The newest version (ms) of what passed here last: what is under way is not in the store yet."""

    def batches(self, records: list[Record], target: Callable[[], int]) -> Iterator[Batch]:
        """Batches in order; each is complete (judged, dead letters acknowledged) when it is handed out."""
        items: list[Item] = []
        num_chunks = 0
        for begin in range(0, len(records), _GROUP):
            for item in self._items(records[begin : begin + _GROUP]):
                items.append(item)
                num_chunks += len(item.chunks) or 1
                if num_chunks >= target():
                    yield self._finish(items)
                    items, num_chunks = [], 0
        if items:
            yield self._finish(items)

    def close(self) -> None:
        """Let go of the dead-letter topic."""
        self._dead_letters.close()

    def put_aside(self, item: Item, reason: str, detail: str) -> None:
        """Dead-letter an item after all; acknowledged on return."""
        self._send([(item.record, reason, detail)])
        item.reason, item.detail = reason, detail
        item.article, item.chunks, item.texts = None, [], []
        item.shard = dead_letter_shard(item.record, self._spec.store.num_shards)

    def _items(self, records: list[Record]) -> list[Item]:
        items = [self._parsed(record) for record in records]
        fresh = [item for item in items if item.article is not None]
        articles = [item.article for item in fresh if item.article is not None]
        prints = self._fingerprinter.fingerprints(articles)
        cuts = chunk_articles(articles, self._tokenizer, self._spec.chunks)
        for item, cut, fingerprint in zip(fresh, cuts, prints, strict=True):
            if isinstance(cut, BadRecord):
                item.article = None
                self._refuse(item, cut)
            else:
                item.chunks, item.texts = cut
                item.fingerprint = fingerprint
        return items

    def _parsed(self, record: Record) -> Item:
        item = Item(record)
        try:
            if record.unreadable:
                raise BadRecord("unreadable", record.unreadable)
            value = parse_record(record.key, record.value, record.headers, self._spec.articles)
        except BadRecord as error:
            self._refuse(item, error)
            return item
        item.shard = shard_of(value.id, self._spec.store.num_shards)
        if self._is_durable(item):
            return item
        if isinstance(value, Deletion):
            item.delete_id = value.id
        else:
            item.article = value
        return item

    def _refuse(self, item: Item, error: BadRecord) -> None:
        item.reason, item.detail = error.reason, error.detail
        item.shard = dead_letter_shard(item.record, self._spec.store.num_shards)
        self._is_durable(item)

    def _is_durable(self, item: Item) -> bool:
        """Whether the owning shard already has this record: it was read again for another shard's sake."""
        item.done = item.record.offset < self._durable[item.shard].get(item.record.partition, 0)
        return item.done

    def _finish(self, items: list[Item]) -> Batch:
        self._recognise(items)
        self._link(items)
        letters = [(item.record, item.reason, item.detail) for item in items if item.reason and not item.done]
        if letters:
            self._send(letters)
        through = {item.record.partition: item.record.offset + 1 for item in items}
        return Batch(items, through, num_texts=sum(len(item.texts) for item in items))

    def _send(self, letters: list[tuple[Record, str, str]]) -> None:
        def attempt() -> None:
            with self._sending:
                try:
                    self._dead_letters.send_many(letters)
                except DependencyUnreachable:
                    # A publisher that failed stays failed: the next try connects anew.
                    self._dead_letters.close()
                    self._dead_letters = DeadLetterWriter(self._spec.kafka)
                    raise

        self._persist(attempt, "the dead-letter topic")
        for _, reason, _ in letters:
            metric("dead_letters_total").inc(1, {"reason": reason})

    def _recognise(self, items: list[Item]) -> None:
        """Mark updates, which are no duplicates, and versions that change nothing, which nothing is compared with:
        an older one would take the newer one's place. Asked here, of all shards at once: a keeper that asked
        them would let all others wait. What is under way before a batch is known here and not in the store."""
        fresh = [item for item in items if item.article is not None]
        if not fresh:
            return
        stored = self._seen([item.article.id for item in fresh if item.article is not None])
        for item in fresh:
            assert item.article is not None and item.fingerprint is not None
            article_id, version_ms = item.article.id, item.article.version_ms
            if article_id in stored or article_id in self._newest:
                item.fingerprint = item.fingerprint._replace(known=True)
            if version_ms <= stored.get(article_id, _NEVER):
                item.settled, item.chunks, item.texts = True, [], []
            elif version_ms <= self._newest.get(article_id, _NEVER):
                item.settled = (
                    True  # with its texts: a newer one that cannot be stored leaves the place to it
                )
            else:
                self._note(article_id, version_ms)

    def _note(self, article_id: str, version_ms: int) -> None:
        self._newest[article_id] = version_ms
        self._newest.move_to_end(article_id)
        if len(self._newest) > _REMEMBERED:
            self._newest.popitem(last=False)

    def _link(self, items: list[Item]) -> None:
        asked: list[Item] = []
        entries: list[Fingerprint | str] = []
        for item in items:
            if item.delete_id is not None:
                asked.append(item)
                entries.append(item.delete_id)
            elif item.fingerprint is not None and not item.settled:
                asked.append(item)
                entries.append(item.fingerprint)
        if not entries or not self._spec.duplicates.enabled:
            return
        verdicts = self._judge(entries)
        for item, match in zip(asked, verdicts.matches or [], strict=True):
            if match is not None:
                item.canonical_id, item.similarity = match.canonical_id, match.similarity
                item.chunks, item.texts = [], []


def dead_letter_shard(record: Record, num_shards: int) -> int:
    """The shard whose ledger counts a dead letter: chosen by its coordinate."""
    return shard_of(f"{record.topic}:{record.partition}:{record.offset}", num_shards)
