"""Runs side by side on one device: a process each, a limit for all, their logs kept; for scripts of a GPU host."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ENVIRONMENT = {
    "OMP_NUM_THREADS": "2",
    "TOKENIZERS_PARALLELISM": "false",
    # batches of many lengths: memory grows by pages and is not left in pieces that nothing fits
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    # importing bm25s calls JAX's top_k: where JAX knows CUDA, that takes three quarters of the device's memory
    "JAX_PLATFORMS": "cpu",
}


def runs_parser(about: str | None, seconds: float, jobs: int = 6) -> argparse.ArgumentParser:
    """The options that scripts of runs side by side share; `about` is the script's docstring, as it is written."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="what a later call goes on from")
    parser.add_argument("--out", type=Path, required=True, help="what comes home")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a try on a CPU")
    parser.add_argument("--seconds", type=float, default=seconds, help="the call ends after this")
    parser.add_argument("--jobs", type=int, default=jobs, help="runs at a time")
    return parser


def codes_by(children: Sequence[subprocess.Popen[bytes]], until: float) -> list[int]:
    """Exit codes of started processes, in order: what has not ended by `until` (monotonic) is killed: 124."""
    codes = []
    for child in children:
        try:
            codes.append(child.wait(timeout=max(1.0, until - time.monotonic())))
        except subprocess.TimeoutExpired:
            child.kill()
            codes.append(124)
    return codes


def run_side_by_side(
    commands: Mapping[str, Sequence[str]],
    logs: Path,
    limit_s: float,
    told_every_s: float = 20.0,
    *,
    at_once: int = 0,
    environment: Mapping[str, str] | None = None,
    on_end: Callable[[dict[str, int]], object] | None = None,
) -> dict[str, int]:
    """Run each command (arguments of this Python) in a process of its own; exit codes by name, -9 at the limit.

    `on_end` is told the codes so far whenever runs have ended: what is gathered then is there whatever comes later.

    At most `at_once` run together (0: all); the next starts when one ends, and those that never started have no
    code. Each has two threads for what it computes on the CPU: all cores for each would be in each other's way.
    """
    variables = os.environ | ENVIRONMENT | dict(environment or {})
    logs.mkdir(parents=True, exist_ok=True)
    began = last = time.monotonic()
    running: dict[str, subprocess.Popen[bytes]] = {}
    waiting = list(commands)
    codes: dict[str, int] = {}
    while (running or waiting) and time.monotonic() - began < limit_s:
        while waiting and (not at_once or len(running) < at_once):
            name = waiting.pop(0)
            with (logs / f"{name}.log").open("a") as log:
                running[name] = subprocess.Popen(
                    [sys.executable, *commands[name]], stdout=log, stderr=subprocess.STDOUT, env=variables
                )
        time.sleep(0.2)
        ended = len(codes)
        for name, process in list(running.items()):
            if (code := process.poll()) is not None:
                codes[name] = code
                del running[name]
                tell(
                    f"{name}: ended with {code} after {time.monotonic() - began:.0f} s\n{tail(logs, name, code)}"
                )
        if on_end is not None and len(codes) > ended:
            on_end(dict(codes))
        if time.monotonic() - last > told_every_s:
            last = time.monotonic()
            for name in running:
                tell(f"[{last - began:4.0f} s] {name}: {tail(logs, name, 0)}")
    for name, process in running.items():
        process.kill()
        codes[name] = process.wait()
        tell(f"{name}: ended at the limit of {limit_s:.0f} s\n{tail(logs, name, 1)}")
    return codes


def limit_memory(share: float, device: str) -> None:
    """Let this process take at most a share of a CUDA device's memory: what it fails by is then its own error.

    cuDNN's attention, which torch 2.11 prefers on Hopper and which fails for masks of odd shapes, is left out.
    """
    if device.startswith("cuda"):
        import torch

        torch.cuda.set_per_process_memory_fraction(share)
        torch.backends.cuda.enable_cudnn_sdp(False)


def tail(logs: Path, name: str, code: int) -> str:
    """The log's last line, or its last 1,500 characters where the run failed."""
    text = (logs / f"{name}.log").read_text(errors="replace").strip()
    return text[-1500:] if code else text.rpartition("\n")[2][-300:]


def pack_results(folders: Mapping[str, Path], target: Path, left_out: Sequence[str] = ()) -> Path:
    """The files of some folders in one tar file, which is there whole or as it was before.

    Files whose name contains one of `left_out` stay behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    with tarfile.open(partial, "w") as packed:
        for name, folder in folders.items():
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                shown = path.relative_to(folder).as_posix()
                if not any(part in shown for part in left_out):
                    packed.add(path, f"{name}/{shown}")
    os.replace(partial, target)
    return target


def write_whole(path: Path, text: str) -> None:
    """A file that is there whole or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


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
