"""Ranks of session replicas: one holder each, free again however that one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from actors.rank_claim import RankClaim
from pipeline.errors import DependencyUnreachable, UsageError

_HOLD = """
import sys, time
from pathlib import Path
from actors.rank_claim import RankClaim
claim = RankClaim.claim(Path(sys.argv[1]), 2, 5)
print(f"held {claim.rank}", flush=True)
time.sleep(60)
"""


def _holder(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """A process that holds a rank, and the rank."""
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = next(line for line in process.stdout if line.startswith("held "))  # after lines of its log
    return process, int(said.removeprefix("held "))


def test_replacement_takes_the_rank_of_the_killed_one(tmp_path: Path) -> None:
    """After kill -9 the next process holds the dead one's rank, and no other's."""
    first, rank0 = _holder(tmp_path)
    second, rank1 = _holder(tmp_path)
    try:
        assert (rank0, rank1) == (0, 1)
        second.send_signal(signal.SIGKILL)
        second.wait(10)
        claim = RankClaim.claim(tmp_path, 2, 5.0)
        assert claim.rank == 1
        claim.release()
    finally:
        for process in (first, second):
            process.kill()
            process.wait(10)


def test_replacement_waits_for_the_one_that_drains(tmp_path: Path) -> None:
    """While the former replica saves its sessions its successor waits, and has that rank once it is let go."""
    held = [RankClaim.claim(tmp_path, 2, 1.0) for _ in range(2)]
    threading.Timer(0.5, held[1].release).start()
    began = time.monotonic()
    claim = RankClaim.claim(tmp_path, 2, 10.0)
    assert claim.rank == 1 and time.monotonic() - began > 0.4
    claim.release()
    held[0].release()


def test_ranks_that_stay_held_are_told_with_their_holders(tmp_path: Path) -> None:
    """A folder that another service uses is an error that names its processes, not a replica without sessions."""
    claim = RankClaim.claim(tmp_path, 1, 1.0)
    with pytest.raises(DependencyUnreachable, match=rf"rank 0: process {os.getpid()} of .*sessions_dir"):
        RankClaim.claim(tmp_path, 1, 0.2)
    claim.release()
    claim.release()
    assert RankClaim.claim(tmp_path, 1, 1.0).rank == 0


def test_disk_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be locked, nothing is held: the setting to change is named."""

    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("actors.rank_claim.fcntl.flock", none)
    with pytest.raises(UsageError, match=r"serve\.sessions_dir"):
        RankClaim.claim(tmp_path, 1, 0.1)


def test_claim_whose_lock_was_lost_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was removed, or that another has locked since (a network disk's lost lease), is held no more."""
    claim = RankClaim.claim(tmp_path, 1, 1.0)
    path = tmp_path / ".ranks" / "0"
    assert claim.held
    path.write_text("process 1 of elsewhere\n")  # as one does that could lock it
    assert not claim.held
    path.write_text("")
    assert claim.held  # a full disk: nobody is named, and nobody else is
    monkeypatch.setattr(Path, "stat", lambda path: os.stat(path / "nothing"))  # a disk that is away: ENOTDIR
    assert claim.held
    monkeypatch.undo()
    path.unlink()
    assert not claim.held
    successor = RankClaim.claim(tmp_path, 1, 1.0)
    assert successor.held and not claim.held
    successor.release()
    assert not successor.held
    claim.release()
