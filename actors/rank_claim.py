"""Which rank a session replica holds: the lowest one that no living process has, by locks on files.

Ray Serve's own ranks do not serve for that. While a deployment is changed, Serve starts a replacement as soon
as the former replica begins to drain, and the former one keeps its rank until it has ended: a replacement that
is quicker is given a rank beyond the last one, which owns no sessions, and it is renumbered only when all is
over, without the routers being told. A lock ends with its process, however that ends, and lies beside the
snapshots that it stands for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path

from pipeline.errors import DependencyUnreachable, UsageError
from pipeline.log import get_logger

_FOLDER = ".ranks"
_LOOK_S = 0.1
_NOT_LOCKABLE = (
    "files under {folder} cannot be locked ({error}); put serve.sessions_dir on a disk that supports flock"
)


class RankClaim:
    """A rank held by this process until `release` or its end. Made by `claim`."""

    def __init__(self, rank: int, descriptor: int, path: Path) -> None:
        self.rank = rank
        self._descriptor = descriptor
        self._path = path
        locked = os.fstat(descriptor)
        self._file = (locked.st_dev, locked.st_ino)

    @classmethod
    def claim(cls, sessions_dir: Path, num_ranks: int, timeout_s: float) -> RankClaim:
        """The lowest free rank of `num_ranks`; waits while each has a holder, one of which may be draining.

        DependencyUnreachable names the holders after `timeout_s`; UsageError for a disk without locks.
        """
        folder = sessions_dir / _FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        while True:
            for rank in range(num_ranks):
                descriptor = _lock(folder / str(rank))
                if descriptor is not None:
                    waited_s = round(time.monotonic() - began, 1)
                    get_logger().info("rank_claimed", rank=rank, waited_s=waited_s)
                    return cls(rank, descriptor, folder / str(rank))
            if time.monotonic() - began > timeout_s:
                holders = "; ".join(
                    f"rank {rank}: {_holder(folder / str(rank))}" for rank in range(num_ranks)
                )
                raise DependencyUnreachable(
                    f"each of the {num_ranks} ranks of {sessions_dir} was held for {timeout_s:.0f} s ({holders}); "
                    "stop the other service of this folder, or use another serve.sessions_dir"
                )
            time.sleep(_LOOK_S)

    @property
    def held(self) -> bool:
        """Whether the rank is still this process's alone: no other has locked its file since.

        A lock on a local disk stays until the process ends. One on a network disk ends with the server's patience
        too, and a file that was removed is locked by nobody: a process that was paused meanwhile has to ask.
        """
        if self._descriptor < 0:
            return False
        try:
            there = self._path.stat()
            named = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return False
        except OSError:
            return True  # a disk that is away says nothing; what may be written is for the sessions' leases to say
        same = (there.st_dev, there.st_ino) == self._file
        return same and named in ("", _named())  # nameless: the disk was full when it was locked

    def release(self) -> None:
        """Let another process have the rank; harmless if it was let go before."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock, with this process named in the file; None if another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise UsageError(_NOT_LOCKABLE.format(folder=path.parent, error=error)) from None
    with contextlib.suppress(OSError):  # a full disk: the name is for messages alone
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _named().encode(), 0)
    return descriptor


def _named() -> str:
    return f"process {os.getpid()} of {socket.gethostname()}\n"


def _holder(path: Path) -> str:
    return path.read_text(errors="replace").strip() or "unknown"
