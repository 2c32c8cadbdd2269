"""Timing on a CUDA device, the card's measured ceilings, and what every result names: device, commit, versions."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_FLUSH_BYTES = 256 * 2**20  # several times the L2 of the largest card


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds over `runs` runs: the median, and the 10th and 90th percentile as spread."""

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int

    def row(self, prefix: str) -> dict[str, float]:
        """As columns of a result row."""
        return {
            f"{prefix}_ms": round(self.median_ms, 5),
            f"{prefix}_low_ms": round(self.low_ms, 5),
            f"{prefix}_high_ms": round(self.high_ms, 5),
        }


def time_cuda(
    function: Callable[[], Any],
    *,
    runs: int = 20,
    warmup: int = 3,
    graph: bool = False,
    flush: bool = True,
    clean: bool = False,
) -> Timing:
    """Median time of `function` on the device, by events, the L2 overwritten before every run.

    `graph` captures the calls once and times replays: launch gaps of many small kernels then do not count.
    `clean` fills the L2 by reading: what overwriting leaves in it goes back to memory while `function` runs.
    """
    for _ in range(warmup):
        function()
    torch.cuda.synchronize()
    call = _captured(function) if graph else function
    scratch = torch.zeros(_FLUSH_BYTES // 4, dtype=torch.int32, device="cuda") if flush else None
    starts = [_event() for _ in range(runs)]
    ends = [_event() for _ in range(runs)]
    for start, end in zip(starts, ends, strict=True):
        if scratch is not None:
            _ = scratch.sum() if clean else scratch.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(end) for start, end in zip(starts, ends, strict=True))
    return Timing(
        median_ms=statistics.median(times),
        low_ms=times[len(times) // 10],
        high_ms=times[-1 - len(times) // 10],
        runs=runs,
    )


def fastest(
    candidates: dict[str, Callable[[], Any]], **options: Any
) -> tuple[str, Timing] | tuple[None, None]:
    """Name and timing of the fastest candidate that runs here; (None, None) when none does."""
    best: tuple[str, Timing] | None = None
    for name, function in candidates.items():
        try:
            timing = time_cuda(function, **options)
        except (RuntimeError, torch.cuda.OutOfMemoryError):
            torch.cuda.empty_cache()
            continue
        if best is None or timing.median_ms < best[1].median_ms:
            best = (name, timing)
    return best if best is not None else (None, None)


def copy_bandwidth() -> float:
    """Bytes per second of a large device-to-device copy, read and written bytes both counted."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    timing = time_cuda(lambda: target.copy_(source), flush=False)
    return 2 * source.numel() / (timing.median_ms / 1e3)


def matmul_rate(dtype: torch.dtype = torch.bfloat16, size: int = 8192) -> float:
    """Floating-point operations per second of a large matrix product of random values."""
    a = torch.randn(size, size, device="cuda", dtype=dtype)
    b = torch.randn(size, size, device="cuda", dtype=dtype)
    timing = time_cuda(lambda: a @ b, flush=False)
    return 2 * size**3 / (timing.median_ms / 1e3)


def device_rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes a second of a large copy, read and written both counted, and operations a second of a product (on a CPU
    in float32)."""
    if device.type == "cuda":
        return copy_bandwidth(), matmul_rate(dtype)
    source, square = torch.ones(1 << 24), torch.ones(512, 512)
    target = torch.empty_like(source)
    copied, done = [], []
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        copied.append(time.perf_counter() - began)
        began = time.perf_counter()
        square @ square
        done.append(time.perf_counter() - began)
    return 2 * source.nbytes / min(copied), 2 * 512**3 / min(done)


def floor_ms(num_bytes: float, num_ops: float, bandwidth: float, rate: float) -> float:
    """No version runs faster than its bytes at the copy bandwidth or its operations at the matrix rate."""
    return max(num_bytes / bandwidth, num_ops / rate) * 1e3


def environment() -> dict[str, str]:
    """What a result must name to be read later: device, driver's view, versions, commit."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "device": device,
        "commit": commit(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
    }


def commit() -> str:
    """The checkout's commit (with + where files differ), or DYSRA_COMMIT where there is no git, or "unknown"."""
    if os.environ.get("DYSRA_COMMIT"):
        return os.environ["DYSRA_COMMIT"]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _captured(function: Callable[[], Any]) -> Callable[[], Any]:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function()
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        function()
    return recorded.replay
