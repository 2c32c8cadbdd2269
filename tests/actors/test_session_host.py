"""actors/session_host.py: who chooses the sentences that a session reads."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors import session_host
from actors.serve_settings import ServeSettings
from actors.session_host import SessionHost, chooser_of
from models.retriever.storage import SHIPPED, shipped_policy
from pipeline.errors import UsageError
from pipeline.session import SessionConfig
from pipeline.session.chooser import HybridChooser
from pipeline.session.policy_chooser import PolicyChooser


def no_vectors(texts: object) -> None:
    """No embedder."""


def test_sessions_choose_by_the_shipped_policy_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default the shipped one; "none" is hybrid ranking, nothing shipped is too; a folder is that policy."""
    config = SessionConfig()
    assert isinstance(chooser_of(config, no_vectors), PolicyChooser)
    for none in ("none", "", None):
        assert isinstance(chooser_of(replace(config, policy=none), no_vectors), HybridChooser)
    assert isinstance(chooser_of(replace(config, policy=str(tmp_path)), no_vectors), PolicyChooser)
    monkeypatch.setattr("models.retriever.storage.shipped_policy", lambda: None)
    assert isinstance(chooser_of(config, no_vectors), HybridChooser)


def test_the_shipped_policy_is_found_in_the_cache_where_the_code_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job's uploaded working directory leaves weights out; `make weights` has copied them."""
    assert shipped_policy() == SHIPPED
    monkeypatch.setattr("models.retriever.storage.SHIPPED", tmp_path / "absent" / "retriever")
    monkeypatch.setenv("DYSRA_CACHE", str(tmp_path))
    assert shipped_policy() is None
    folder = tmp_path / "weights" / "retriever"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert shipped_policy() == folder


def test_a_user_config_that_cannot_be_had_takes_nothing_away_from_who_serves() -> None:
    """A replica that starts with it fails, as the deployment must; one that serves keeps its settings and says why,
    until a right one comes."""
    host = object.__new__(SessionHost)
    host._settings, host._current, host._refused, host._rank = ServeSettings(), None, None, 0
    host._changing = asyncio.Lock()
    host._apply = lambda settings: setattr(host, "_current", settings)  # type: ignore[method-assign]
    wrong: dict[str, Any] = {"session": {"max_per_tenants": 2}}
    with pytest.raises(UsageError, match="max_per_tenants"):
        asyncio.run(host.reconfigure(wrong))
    asyncio.run(host.reconfigure({"session": {"hops": 2}}))
    before = host._current
    asyncio.run(host.reconfigure(wrong))
    assert host._current is before and "max_per_tenants" in host._about()["refused"]
    asyncio.run(host.reconfigure({"session": {"hops": 3}}))
    assert host._current is not before and host._about() == {"rank": 0, "pid": os.getpid()}


@pytest.mark.parametrize("lost", [False, True])
def test_a_replica_on_a_node_that_ray_has_given_up_ends(lost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process holds the rank that its successor waits for; nobody else can end it."""
    ended: list[int] = []
    monkeypatch.setattr(session_host, "given_up", lambda: lost)
    monkeypatch.setattr(session_host.os, "_exit", ended.append)
    host = object.__new__(SessionHost)
    host._rank = 0
    asyncio.run(host._end_if_given_up())
    assert ended == ([1] if lost else [])
