"""A session's own reading of its stream: where it starts, what comes next, and how far behind it is.

A tail is made, used and closed by one thread. Offsets are the session's own; nothing is committed.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from pipeline.article import Article, ArticleLimits, BadRecord, parse_record
from pipeline.errors import DependencyUnreachable
from pipeline.kafka import KafkaConfig, topic_partitions
from pipeline.publisher import partition_of
from pipeline.session.config import SessionConfig
from pipeline.source import Record, RecordSource, SourceConfig
from pipeline.topics import topic_offsets

_SCAN_BLOCK = 1_000
_SCAN_LIMIT_S = 60.0
_CHECK_S = 2.0


@dataclass(frozen=True, slots=True)
class Start:
    """Where a session begins: an offset a partition, and a sentence about it for a person."""

    offsets: dict[int, int]
    described: str


class StreamTail:
    """Follows one stream of the articles' topic. `open` first.

    Raises DependencyUnreachable if the brokers do not answer, UsageError if there is no such topic.
    """

    def __init__(
        self, kafka: KafkaConfig, session: SessionConfig, limits: ArticleLimits, stream: str
    ) -> None:
        self._kafka = kafka
        self._session = session
        self._limits = limits
        self._stream = stream
        self._source: RecordSource | None = None
        self._held: deque[Record] = deque()
        self._expired = 0

    def open(self, offsets: dict[int, int] | None) -> Start:
        """Begin at `offsets`, or with None where the configuration says.

        Partitions that are not in `offsets` (added since) begin at their first record.
        """
        numbers = topic_partitions(self._kafka, self._kafka.topic)
        if self._session.partition_by == "stream":
            numbers = [partition_of(self._stream, len(numbers))]
        if offsets is not None:
            start = Start({p: offsets[p] for p in numbers if p in offsets}, "")
            begin: dict[int, int | None] = {p: offsets.get(p) for p in numbers}
        else:
            start = self._find_start(numbers)
            begin = dict(start.offsets)
        config = SourceConfig(max_records=500, check_s=_CHECK_S, reset_beyond_end=True)
        self._source = RecordSource(self._kafka, begin, config)
        self._source.end_offsets()
        return start

    def next_records(self, limit: int) -> list[Record]:
        """Up to `limit` of the next records, without waiting; those of a partition in order."""
        source = self._opened()
        if not self._held:
            self._held.extend(source.poll(timeout_s=0.0))
        return [self._held.popleft() for _ in range(min(limit, len(self._held)))]

    def lag(self) -> int:
        """Records of the followed partitions not yet handed out, those of other streams too."""
        return len(self._held) + sum(self._opened().lag().values())

    def ends(self) -> dict[int, int]:
        """The end of each followed partition now; DependencyUnreachable if no broker answers."""
        return self._opened().end_offsets()

    def take_expired(self) -> int:
        """Records that the topic had dropped before they could be read, since last asked."""
        total = self._opened().stats.records_expired
        fresh, self._expired = total - self._expired, total
        return fresh

    def close(self) -> None:
        """Let the connection go; safe to call twice. What was held is read again from the session's offsets."""
        self._held.clear()
        self._expired = 0
        if self._source is not None:
            self._source.close()
            self._source = None

    def _opened(self) -> RecordSource:
        if self._source is None:
            raise RuntimeError(f"the tail of stream {self._stream!r} is not open")
        return self._source

    def _find_start(self, numbers: list[int]) -> Start:
        bounds = topic_offsets(self._kafka, self._kafka.topic)
        first = {p: bounds[p][0] for p in numbers}
        end = {p: bounds[p][1] for p in numbers}
        if self._session.start == "latest":
            return Start(end, "new articles only")
        if self._session.start == "earliest":
            return Start(first, "the first record that the topic holds")
        return self._scan_back(first, end)

    def _scan_back(self, first: dict[int, int], end: dict[int, int]) -> Start:
        """The offsets from which the stream's last `window_articles` articles follow."""
        wanted, budget = self._session.window_articles, self._session.max_scan_records
        low = dict(end)
        # Of each article its newest record: (timestamp, offset, partition).
        found: dict[str, tuple[int, int, int]] = {}
        deadline = time.monotonic() + _SCAN_LIMIT_S
        with RecordSource(self._kafka, dict(end), SourceConfig(max_records=_SCAN_BLOCK)) as source:
            while len(found) < wanted and budget > 0 and any(low[p] > first[p] for p in low):
                block = {p: max(first[p], low[p] - _SCAN_BLOCK) for p in low if low[p] > first[p]}
                for record in self._range(source, block, low, deadline):
                    budget -= 1
                    article = self._article(record)
                    if article is not None:
                        place = (record.timestamp_ms, record.offset, record.partition)
                        found[article.id] = max(place, found.get(article.id, place))
                low.update(block)
        newest = sorted(found.values(), reverse=True)[:wanted]
        if not newest:
            return Start(end, "new articles only: the topic holds none of this stream yet")
        begin = {p: min((o for _, o, q in newest if q == p), default=end[p]) for p in end}
        everything = len(found) <= wanted and all(low[p] <= first[p] for p in low)
        which = "all" if everything else "the last"
        return Start(begin, f"{which} {len(newest)} articles that the topic holds of this stream")

    def _range(
        self, source: RecordSource, begin: dict[int, int], stop: dict[int, int], deadline: float
    ) -> list[Record]:
        """The records from `begin` up to `stop`, partition by partition."""
        source.assign(dict(begin))
        records: list[Record] = []
        while any(position < stop[p] for p, position in source.positions().items()):
            if time.monotonic() > deadline:
                raise DependencyUnreachable(
                    f"looking back for the start of stream {self._stream!r} took over {_SCAN_LIMIT_S:.0f} s; "
                    "lower session.window_articles or session.max_scan_records, or start at latest"
                )
            batch = source.poll(timeout_s=0.2)
            records.extend(r for r in batch if r.offset < stop[r.partition])
            source.pause(p for p, position in source.positions().items() if position >= stop[p])
        return records

    def _article(self, record: Record) -> Article | None:
        try:
            parsed = parse_record(record.key, record.value, record.headers, self._limits)
        except BadRecord:
            return None
        return parsed if isinstance(parsed, Article) and parsed.stream == self._stream else None
