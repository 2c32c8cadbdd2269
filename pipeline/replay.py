"""Publishes a news file to a topic in time order: at a rate, in event time sped up, or as fast as it goes.

Progress is kept as acknowledgements arrive, so that a replay that was stopped goes on behind the last
article that the brokers hold. After a kill without warning it may repeat up to a second's articles: the same
versions, which ingest links and does not store twice.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson

from pipeline.article import ArticleLimits, from_ms, isoformat
from pipeline.errors import BadData, DependencyUnreachable, DysraError, StoppedEarly, UsageError
from pipeline.log import get_logger
from pipeline.news_file import Entry, Survey, lines_in_time_order, parse_line, survey
from pipeline.publisher import Publisher, RecordTooLarge

_SAVE_EVERY_S = 1.0
_SHOWN_BAD_LINES = 20
_PROGRESS_VERSION = 1
_FLUSH_LIMIT_S = 60.0
_STOP_FLUSH_LIMIT_S = 20.0
_COUNTED_AS = {"article": "articles", "deletion": "deletions", "bad": "raw"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayConfig:
    """What of the file is published, and how fast."""

    rate: float | None = field(default=None, metadata={"help": "articles a second; none: no limit"})
    speed: float | None = field(default=None, metadata={"help": "event time sped up by this factor"})
    limit: int | None = field(default=None, metadata={"help": "most records to publish"})
    stream: str | None = field(default=None, metadata={"help": "stream of every article, for its own"})
    undated: Literal["skip", "now"] = field(
        default="skip", metadata={"help": "articles without a date: left out, or dated now"}
    )
    raw: bool = field(
        default=False, metadata={"help": "publish bad lines as they are, for ingest to dead-letter"}
    )
    start: str | None = field(default=None, metadata={"help": "id of the article to start with"})
    resume: bool = field(default=False, metadata={"help": "go on behind what was acknowledged before"})
    state: Path = field(default=Path(".dysra/replay"), metadata={"help": "folder of the progress files"})

    def __post_init__(self) -> None:
        for name in ("rate", "speed"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be above 0")
        if self.rate is not None and self.speed is not None:
            raise ValueError("rate and speed are both given; give one of them")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; it must be at least 1")
        if self.start is not None and self.resume:
            raise ValueError("start and resume are both given; give one of them")
        if self.undated not in ("skip", "now"):
            raise ValueError(f"undated is {self.undated!r}; skip or now is allowed")


@dataclass(slots=True)
class Progress:
    """How far a file was published to a topic; `position` counts lines in time order, all acknowledged."""

    digest: str
    position: int = 0
    published: int = 0
    last_id: str = ""
    version: int = _PROGRESS_VERSION

    @classmethod
    def load(cls, path: Path) -> Progress | None:
        """The saved progress; None if there is none that can be read. UsageError for one of a later version."""
        try:
            body = orjson.loads(path.read_bytes())
            version = int(body.get("version", _PROGRESS_VERSION))
        except (OSError, AttributeError, TypeError, ValueError):
            return None
        if version > _PROGRESS_VERSION:
            raise UsageError(
                f"{path} has version {version}; this DySRA reads up to {_PROGRESS_VERSION}: upgrade DySRA, or give "
                "another --state to publish from the start"
            )
        try:
            return cls(**body)
        except TypeError:
            return None

    def save(self, path: Path) -> None:
        """Replace the file in one step; DependencyUnreachable where the disk refuses."""
        temporary = path.with_name(path.name + ".new")
        try:
            temporary.write_bytes(orjson.dumps(asdict(self)))
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise DependencyUnreachable(
                f"progress cannot be saved in {path}: {error.strerror}; make room and give --resume: what was "
                "published since the last saving is published again, and stored once"
            ) from error


class _Acks:
    """The longest run of lines, from the start, that are all acknowledged."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.published = 0
        self.last_id = ""
        self._open: deque[list[Any]] = deque()

    def expect(self, article_id: str) -> Callable[[], None]:
        """Count a line that is being sent; call what is returned once it is acknowledged."""
        box: list[Any] = [False, article_id]
        self._open.append(box)
        return lambda: box.__setitem__(0, True)

    def pass_over(self, *, last: bool = False) -> None:
        """Count a line of which nothing is sent; `last`: it is the one expected last, and was refused."""
        if last:
            self._open.pop()
        self._open.append([True, None])

    def advance(self) -> None:
        """Move over all that is acknowledged; called by one thread."""
        while self._open and self._open[0][0]:
            _, article_id = self._open.popleft()
            self.position += 1
            if article_id is not None:
                self.published += 1
                self.last_id = article_id


class Replay:
    """One replay of one file; `run` publishes it and returns the figures."""

    def __init__(
        self,
        path: Path,
        publisher: Publisher,
        config: ReplayConfig | None = None,
        limits: ArticleLimits | None = None,
        *,
        stop: threading.Event | None = None,
        on_progress: Callable[[int], None] | None = None,
        found: Survey | None = None,
    ) -> None:
        self.path = path
        self.publisher = publisher
        self.config = config or ReplayConfig()
        self.limits = limits or ArticleLimits()
        self.stop = stop or threading.Event()
        self.survey = found or survey(path)
        self._on_progress = on_progress or (lambda _: None)
        self._log = get_logger(topic=publisher.topic, file=str(path))
        self._state = self.config.state / f"{publisher.topic}--{path.name}.json"
        self._first_ms: int | None = None
        self._last_ms: int | None = None
        self._counts = {"articles": 0, "deletions": 0, "raw": 0, "undated": 0, "bad_lines": 0}
        self._bad: list[str] = []
        self._acks = _Acks(0)
        self._saved_at = 0.0
        self._first_sent_at: float | None = None
        self._before = 0

    def run(self) -> dict[str, Any]:
        """Publish the file; the figures.

        StoppedEarly (with the figures) once `stop` is set, PublishFailed if the brokers fail: both with the
        progress saved. BadData if the file holds nothing that can be published.
        """
        begin = self._begin()
        self._acks.position = begin
        started = time.monotonic()
        outcome: DysraError | None = None
        try:
            self._publish_from(begin)
            self.publisher.flush(_STOP_FLUSH_LIMIT_S if self.stop.is_set() else _FLUSH_LIMIT_S)
            if self.stop.is_set():
                outcome = StoppedEarly(f"stopped after {self._sent():,} records; go on with --resume")
        except UsageError:
            raise
        except DysraError as error:
            outcome = error
        self._save(force=True)
        figures = self._figures(begin, time.monotonic() - started)
        if outcome is None and not self._sent() and not begin and self.survey.num_lines:
            outcome = BadData(self._nothing_published())
        if outcome is not None:
            outcome.figures = figures  # type: ignore[attr-defined]
            raise outcome
        return figures

    def _publish_from(self, begin: int) -> None:
        config = self.config
        undated = datetime.now(UTC) if config.undated == "now" else None
        searching = config.start is not None
        for index, (number, line) in enumerate(lines_in_time_order(self.path, self.survey)):
            if index < begin:
                continue
            if self.stop.is_set() or (config.limit is not None and self._sent() >= config.limit):
                return
            entry = parse_line(number, line, self.limits, stream=config.stream, undated=undated)
            if searching:
                if entry.article_id != config.start:
                    self._acks.pass_over()
                    continue
                searching = False
            if not self._wait_for(entry):
                return
            self._publish(entry)
            self._save()
            self._on_progress(index + 1)
        if searching:
            raise UsageError(f"{self.path} holds no article with the id {config.start!r}")

    def _publish(self, entry: Entry) -> None:
        if entry.kind == "undated":
            self._counts["undated"] += 1
        if entry.kind == "bad" and not self.config.raw:
            self._note_bad(entry.detail)
        if entry.kind == "undated" or (entry.kind == "bad" and not self.config.raw):
            self._acks.pass_over()
            return
        acked = self._acks.expect(entry.article_id)
        try:
            if entry.kind == "deletion":
                self.publisher.delete(entry.article_id, entry.stream, acked)
            else:
                self.publisher.publish_raw(entry.key, entry.value, stream=entry.stream, on_ack=acked)
        except RecordTooLarge as error:
            self._acks.pass_over(last=True)
            self._note_bad(f"line {entry.number}: {error}")
            return
        # The first send also waits for the topic's metadata: the clock starts behind it.
        self._first_sent_at = self._first_sent_at or time.monotonic()
        self._counts[_COUNTED_AS[entry.kind]] += 1
        if entry.time_ms is not None:
            self._first_ms = entry.time_ms if self._first_ms is None else self._first_ms
            self._last_ms = entry.time_ms

    def _note_bad(self, detail: str) -> None:
        self._counts["bad_lines"] += 1
        if len(self._bad) < _SHOWN_BAD_LINES:
            self._bad.append(detail)

    def _wait_for(self, entry: Entry) -> bool:
        """Wait until the entry is due; false if the replay was stopped meanwhile."""
        due = self._first_sent_at or 0.0
        if self.config.rate is not None:
            due += self._sent() / self.config.rate
        elif self.config.speed is not None and entry.time_ms is not None and self._first_ms is not None:
            due += (entry.time_ms - self._first_ms) / 1_000 / self.config.speed
        while (delay := due - time.monotonic()) > 0:
            self._save()
            if self.stop.wait(min(delay, 0.5)):
                return False
        return True

    def _begin(self) -> int:
        """The position to start at; makes sure that progress can be saved."""
        try:
            self.config.state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"the state folder {self.config.state} cannot be made: {error.strerror}"
            ) from None
        if not self.config.resume:
            return 0
        saved = Progress.load(self._state)
        if saved is None:
            raise UsageError(
                f"there is no progress of {self.path.name} in {self.config.state}; leave out --resume"
            )
        if saved.digest != self.survey.digest:
            raise UsageError(
                f"{self.path} has changed since {self._state} was written; use --start ID instead"
            )
        self._before = saved.published
        self._acks.last_id = saved.last_id
        return saved.position

    def _save(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._saved_at < _SAVE_EVERY_S:
            return
        self._saved_at = now
        self._acks.advance()
        Progress(
            digest=self.survey.digest,
            position=self._acks.position,
            published=self._before + self._acks.published,
            last_id=self._acks.last_id,
        ).save(self._state)

    def _sent(self) -> int:
        return self._counts["articles"] + self._counts["deletions"] + self._counts["raw"]

    def _nothing_published(self) -> str:
        if self._counts["undated"] and not self._bad:
            return f"none of the {self._counts['undated']:,} articles of {self.path} has a date; give --undated now"
        return f"{self.path} holds no article; " + "; ".join(self._bad[:3])

    def _figures(self, begin: int, seconds: float) -> dict[str, Any]:
        acked = self._acks.published
        return {
            "topic": self.publisher.topic,
            "published": acked,
            **self._counts,
            "skipped": self._counts["undated"] + self._counts["bad_lines"],
            "bad": self._bad,
            "bytes": self.publisher.acked_bytes,
            "seconds": round(seconds, 3),
            "articles_per_s": round(acked / seconds, 1) if seconds > 0 else 0.0,
            "first_published": None if self._first_ms is None else isoformat(from_ms(self._first_ms)),
            "last_published": None if self._last_ms is None else isoformat(from_ms(self._last_ms)),
            "resumed_from": begin if self.config.resume else None,
            "position": self._acks.position,
            "lines": self.survey.num_lines,
            "sorted_in_memory": not self.survey.in_order,
            "state": str(self._state),
        }
