"""Files that a crash or another process may meet."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest

from pipeline.errors import DependencyUnreachable, UsageError
from pipeline.shared_files import locked, replace_file


def test_file_is_the_old_one_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends before the bytes are on the disk has changed nothing."""
    path = tmp_path / "kept.json"
    replace_file(path, b"old")

    def ends(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", ends)
    with pytest.raises(KeyboardInterrupt):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_and_rename_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new bytes are flushed before they take the place, and the folder after it."""
    path, seen = tmp_path / "kept.json", []
    flush = os.fsync

    def told(descriptor: int) -> None:
        seen.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", told)
    replace_file(path, b"new")
    assert seen == [(False, False), (True, True)]


def test_file_has_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    """What is secret is never readable by others, not even for the time of writing."""
    path = tmp_path / "keys.json"
    path.write_bytes(b"open to all")
    replace_file(path, b"secret", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("late", [DependencyUnreachable, UsageError])
def test_lock_held_by_another_is_waited_for_with_a_limit(
    tmp_path: Path, late: type[DependencyUnreachable | UsageError]
) -> None:
    """A lock that stays taken ends in the caller's kind of error, which names what is held."""
    with (tmp_path / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with (
            pytest.raises(late, match=r"another process has held .*/kept\.json"),
            locked(tmp_path / "lock", 0.2, late, tmp_path / "kept.json"),
        ):
            pass


def test_lock_is_free_once_it_was_left(tmp_path: Path) -> None:
    """Leaving gives the lock back, an error inside included."""
    with pytest.raises(RuntimeError), locked(tmp_path / "lock", 0.2, UsageError):
        raise RuntimeError
    with locked(tmp_path / "lock", 0.2, UsageError):
        pass
