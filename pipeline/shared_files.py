"""Files that a crash or another process may meet: replaced whole, and locked while they are changed."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import DysraError

_LOOK_S = 0.05


def replace_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Put `data` at `path` so that after any crash either the old or the new file is there, whole.

    `mode` (less the umask) is that of the new file. What a crash leaves beside it is named `.<name>.<pid>.tmp`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # the rename lasts once the folder's entries do
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def locked(path: Path, limit_s: float, late: type[DysraError], held: Path | None = None) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` across processes, however this one ends.

    Raises `late`, which names `held` (default: `path` itself), where another has it for over `limit_s` seconds.
    """
    deadline = time.monotonic() + limit_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise late(
                        f"another process has held {held or path} for {limit_s:.0f} s; wait for it or end it"
                    ) from None
                time.sleep(_LOOK_S)
        yield
