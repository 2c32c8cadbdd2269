"""What the harness of faults asks of served sessions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from infra.bench.faults import served
from infra.bench.faults.served import Served


def _served(pages: Iterator[dict[str, Any]]) -> Served:
    made = object.__new__(Served)
    made.due = math.inf
    made._page = lambda stream, digest=False: next(pages)  # type: ignore[method-assign]
    return made


def _page(offset: int) -> dict[str, Any]:
    return {
        "articles_read": 20,
        "lag": {"records": 0},
        "offsets": {"0": offset} if offset else {},
        "digest": str(offset),
    }


def test_a_session_is_compared_once_it_has_passed_the_topics_last_repeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Just restored it has all its articles and no lag, but its digest is of offsets that its twin has left."""
    monkeypatch.setattr(served.time, "sleep", lambda seconds: None)
    pages = iter([_page(0), _page(46), _page(48), _page(49)])
    assert _served(pages)._page_at("desk-a", 48)["digest"] == "48"
    monkeypatch.setattr(served, "_LIMIT_S", -1.0)
    with pytest.raises(TimeoutError, match="session desk-a to pass record 47"):
        _served(iter([_page(46)]))._page_at("desk-a", 48)
