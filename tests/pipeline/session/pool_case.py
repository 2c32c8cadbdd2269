"""A topic, its store, and pools of sessions over one folder, for the tests of pools."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from pipeline.session.pool import SessionPool
from pipeline.session.state import SessionKey
from pipeline.source import Record
from tests.actors.session_support import make_pool
from tests.pipeline.session.support import KEY, ShardLibrary, article, new_session, record, stocked

TOPIC = [record(n, article(n)) for n in range(8)]


@pytest.fixture
def library(tmp_path: Path) -> Iterator[ShardLibrary]:
    """A store with the topic's articles."""
    with stocked(tmp_path / "store", *(article(n) for n in range(8))) as shelf:
        yield shelf


@pytest.fixture
def pool(tmp_path: Path, library: ShardLibrary) -> Iterator[Callable[..., SessionPool]]:
    """Makes pools over one folder of sessions; all are closed at the end."""
    made: list[SessionPool] = []

    def make(topic: list[Record] = TOPIC, owner: str = "one", **changes: Any) -> SessionPool:
        made.append(make_pool(tmp_path / "sessions", library, topic, owner, **changes))
        return made[-1]

    yield make
    for one in made:
        one.close()


def until(true: Callable[[], Any], what: str) -> Any:
    """The first true value of a condition, within half a minute."""
    deadline = time.monotonic() + 30
    while not (value := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return value


def caught_up(pool: SessionPool, key: SessionKey = KEY) -> dict[str, Any]:
    """The session's page once it has read all there is."""
    pool.open(key)
    return until(
        lambda: (page := pool.info(key, digest=True)) and page["state"] == "resident" and page,
        "the session did not catch up",
    )


@lru_cache
def twin_digest() -> str:
    """The digest of a session that read the topic without any disturbance."""
    twin = new_session()
    twin.read(TOPIC)
    return twin.digest()
