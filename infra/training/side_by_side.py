"""Runs side by side on one device: a process each, a limit for all, their logs kept; for scripts of a GPU host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ENVIRONMENT = {
    "OMP_NUM_THREADS": "2",
    "TOKENIZERS_PARALLELISM": "false",
    # batches of many lengths: memory grows by pages and is not left in pieces that nothing fits
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}


def run_side_by_side(
    commands: Mapping[str, Sequence[str]], logs: Path, limit_s: float, told_every_s: float = 20.0
) -> dict[str, int]:
    """Run each command (arguments of this Python) in a process of its own; exit codes by name, -9 at the limit.

    Each has two threads for what it computes on the CPU: all cores for each would be in each other's way.
    """
    environment = os.environ | ENVIRONMENT
    logs.mkdir(parents=True, exist_ok=True)
    began = last = time.monotonic()
    running = {}
    for name, arguments in commands.items():
        log = (logs / f"{name}.log").open("a")
        running[name] = subprocess.Popen(
            [sys.executable, *arguments], stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        log.close()
    codes: dict[str, int] = {}
    while running and time.monotonic() - began < limit_s:
        time.sleep(0.2)
        for name, process in list(running.items()):
            if (code := process.poll()) is not None:
                codes[name] = code
                del running[name]
                tell(
                    f"{name}: ended with {code} after {time.monotonic() - began:.0f} s\n{tail(logs, name, code)}"
                )
        if time.monotonic() - last > told_every_s:
            last = time.monotonic()
            for name in running:
                tell(f"[{last - began:4.0f} s] {name}: {tail(logs, name, 0)}")
    for name, process in running.items():
        process.kill()
        codes[name] = process.wait()
        tell(f"{name}: ended at the limit of {limit_s:.0f} s\n{tail(logs, name, 1)}")
    return codes


def tail(logs: Path, name: str, code: int) -> str:
    """The log's last line, or its last 1,500 characters where the run failed."""
    text = (logs / f"{name}.log").read_text(errors="replace").strip()
    return text[-1500:] if code else text.rpartition("\n")[2][-300:]


def pack_results(folders: Mapping[str, Path], target: Path, left_out: Sequence[str] = ()) -> Path:
    """The files of some folders in one tar file; those whose name contains one of `left_out` stay behind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w") as packed:
        for name, folder in folders.items():
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                shown = path.relative_to(folder).as_posix()
                if not any(part in shown for part in left_out):
                    packed.add(path, f"{name}/{shown}")
    return target


def read_json(path: Path) -> dict[str, object] | None:
    """An object of a file, or None where it is not there or cut off."""
    try:
        found: dict[str, object] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found


def tell(text: str) -> None:
    """Print at once: the caller reads along."""
    print(text, flush=True)  # noqa: T201


def tell_row(row: Mapping[str, float]) -> None:
    """Print a point of a curve, shortly."""
    tell(json.dumps({name: float(f"{value:.4g}") for name, value in row.items() if value == value}))
