"""A session service over the tiny model and a real shard in one process, its topic replaced by a list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.serve_config import ServeConfig
from actors.session_service import SessionService
from pipeline.session.asking import AskParts
from pipeline.session.chooser import HybridChooser
from pipeline.session.model_thread import QUESTION, ModelThread
from pipeline.session.pool import SessionPool
from pipeline.session.tail import Start
from pipeline.source import Record
from tests.pipeline.session.support import CONFIG, ShardLibrary, backbone, parts


class ListTail:
    """The topic as a list in memory: the broker's part is tested in tests/integration."""

    def __init__(self, records: list[Record]) -> None:
        self._records = records
        self._next = 0
        self.closed = False

    def open(self, offsets: dict[int, int] | None) -> Start:
        """See StreamTail.open."""
        self._next = (offsets or {}).get(0, 0)
        return Start({0: self._next}, "the first record that the topic holds")

    def next_records(self, limit: int) -> list[Record]:
        """See StreamTail.next_records."""
        found = [r for r in list(self._records) if r.offset >= self._next][:limit]
        if found:
            self._next = found[-1].offset + 1
        return found

    def lag(self) -> int:
        """See StreamTail.lag."""
        return sum(r.offset >= self._next for r in list(self._records))

    def ends(self) -> dict[int, int]:
        """See StreamTail.ends."""
        return {0: max((r.offset + 1 for r in list(self._records)), default=0)}

    def take_expired(self) -> int:
        """See StreamTail.take_expired."""
        return 0

    def close(self) -> None:
        """See StreamTail.close."""
        self.closed = True


def make_pool(
    root: Path,
    library: ShardLibrary,
    topic: list[Record],
    owner: str = "one",
    ours: Callable[[], bool] = lambda: True,
    let_go_s: float = 30.0,
    **changes: Any,
) -> SessionPool:
    """A pool whose sessions read `topic`; `changes` are fields of SessionConfig."""
    config = replace(CONFIG, **{"snapshot_every_s": 0.05, **changes})
    model = ModelThread()
    return SessionPool(
        sessions=replace(parts(), config=config),
        asking=AskParts(
            config=config,
            backbone=backbone(),
            library=library,
            chooser=HybridChooser(),
            runner=model.lane(QUESTION),
            adapted=False,
        ),
        tails=lambda stream: ListTail(topic),  # type: ignore[return-value,arg-type]
        root=root,
        owner=owner,
        model=model,
        ours=ours,
        let_go_s=let_go_s,
    )


def make_service(
    root: Path, library: ShardLibrary, topic: list[Record], serve: ServeConfig | None = None, **changes: Any
) -> SessionService:
    """A service over such a pool."""
    config = serve or ServeConfig(no_auth=True, sessions_dir=root)
    return SessionService(make_pool(root, library, topic, **changes), config)
