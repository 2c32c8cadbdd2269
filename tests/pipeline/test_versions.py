"""Small files that sources and sessions keep: those of before versions are read, those of a later one refused."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import orjson
import pytest

from pipeline.errors import DependencyUnreachable, DysraError, UsageError
from pipeline.feed_state import FeedRow, FeedState, Seen
from pipeline.replay import Progress
from pipeline.session.places import SessionPlaces


def test_progress_of_a_replay_names_its_version(tmp_path: Path) -> None:
    """A later one is refused by name instead of publishing the file again; one of before versions goes on."""
    path = tmp_path / "one.json"
    Progress("abc", position=7, published=6, last_id="x").save(path)
    assert orjson.loads(path.read_bytes())["version"] == 1
    path.write_bytes(orjson.dumps({"digest": "abc", "position": 7, "published": 6, "last_id": "x"}))
    assert Progress.load(path) == Progress("abc", 7, 6, "x")
    path.write_bytes(orjson.dumps({"digest": "abc", "position": 7, "parts": [], "version": 2}))
    with pytest.raises(UsageError, match=r"one\.json has version 2; this DySRA reads up to 1.*--state"):
        Progress.load(path)
    for broken in (b"", b"[]", b"{", b'{"version": "x"}'):
        path.write_bytes(broken)
        assert Progress.load(path) is None


def test_state_of_feeds_names_its_version(tmp_path: Path) -> None:
    """What was seen before versions were kept is still known; a later state is refused and left as it is."""
    path = tmp_path / "feeds.sqlite"
    state = FeedState(path)
    state.save(FeedRow("http://a"), [Seen("one", "f", 1, 2)])
    state.close()
    with sqlite3.connect(path) as held:
        assert held.execute("pragma user_version").fetchone() == (1,)
        held.execute("pragma user_version = 0")
    again = FeedState(path)
    assert again.seen("http://a", ["one"]) == {"one": Seen("one", "f", 1, 2)}
    again.close()
    with sqlite3.connect(path) as held:
        assert held.execute("pragma user_version").fetchone() == (1,)
        held.execute("pragma user_version = 2")
    with pytest.raises(UsageError, match=r"feeds\.sqlite has version 2; this DySRA reads up to 1.*--state"):
        FeedState(path)
    with sqlite3.connect(path) as held:
        assert held.execute("pragma user_version").fetchone() == (2,)


def test_notes_of_sessions_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    """The sessions of a tenant are listed and resumed from notes of this version and of before versions."""
    notes = {
        "a": {"tenant": "red", "stream": "old", "resident": True},
        "b": {"version": 1, "tenant": "red", "stream": "new", "resident": True},
        "c": {"version": 2, "tenant": "red", "stream": "later", "resident": True},
        "d": ["red"],
    }
    for name, body in notes.items():
        folder = tmp_path / "red" / name
        folder.mkdir(parents=True)
        (folder / "session.json").write_bytes(orjson.dumps(body))
    assert [about["stream"] for about in SessionPlaces(tmp_path).notes()] == ["old", "new"]


def test_feed_state_that_is_damaged_while_it_is_used_is_an_error_of_ours(tmp_path: Path) -> None:
    """A table whose columns are not those that were made: told in words, not by what SQLite raises."""
    path = tmp_path / "feeds.sqlite"
    state = FeedState(path)
    state._db.executescript("drop table feeds; create table feeds (url text primary key);")
    with pytest.raises(DysraError, match="feed state cannot be read: no such column"):
        state.feed("https://example.org/feed")
    state.close()


def test_progress_that_cannot_be_saved_is_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk what was saved last stays, nothing half written is left, and the way on is told."""
    path = tmp_path / "one.json"
    Progress("abc", position=7).save(path)

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        DependencyUnreachable, match=r"one\.json: No space left on device; make room and give --resume"
    ):
        Progress("abc", position=9).save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["one.json"]
    assert Progress.load(path) == Progress("abc", position=7)
