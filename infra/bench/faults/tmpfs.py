"""A small file system to fill: a tmpfs of its own where this process may mount one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(folder: Path, size_mb: int) -> Iterator[Path | None]:
    """`folder` as a mounted tmpfs of `size_mb`, unmounted at the end; None where mounting is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.path.ismount(folder):  # left by a run that was killed
        subprocess.run(["umount", "--lazy", str(folder)], check=False, timeout=20, capture_output=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "dysra-faults", str(folder)]
    try:
        mounted = subprocess.run(command, check=False, timeout=20, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, timeout=20, capture_output=True)
