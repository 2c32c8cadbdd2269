"""Counters in device memory for kernels whose last program to arrive finishes the work of all.

A kernel finds its counters at zero and leaves them at zero, so no launch is spent on clearing them. Two launches
that may run at the same time must not share counters: every stream has its own, and every launch that is captured
into a CUDA graph gets counters that nobody else will ever use, because the graph may be replayed on any stream.
"""

from __future__ import annotations

import torch

_CAPTURED = 2**20  # counters for captured launches, 4 MiB; a launch of one key head and one row takes three
_pools: dict[torch.device, _Pool] = {}


class _Pool:
    """Zeroed counters of one device: one block for each stream, and a stretch to hand out once each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.streams: dict[int, torch.Tensor] = {}
        self.once = torch.zeros(_CAPTURED, dtype=torch.int32, device=device)
        self.used = 0

    def of_stream(self, stream: int, size: int) -> torch.Tensor:
        held = self.streams.get(stream)
        if held is None or held.numel() < size:
            held = torch.zeros(max(size, 1024), dtype=torch.int32, device=self.device)
            self.streams[stream] = held
        return held

    def handed_out(self, size: int) -> torch.Tensor | None:
        if self.used + size > self.once.numel():
            return None
        self.used += size
        return self.once[self.used - size : self.used]


def counters(device: torch.device, size: int) -> torch.Tensor:
    """int32 [size or more], all zero, for one launch on the current stream; the kernel must leave them zero."""
    if device.type != "cuda":
        return torch.zeros(size, dtype=torch.int32, device=device)
    capturing = torch.cuda.is_current_stream_capturing()
    if device not in _pools:
        if (
            capturing
        ):  # memory taken now would belong to the graph: it clears counters of its own in every replay
            return torch.zeros(size, dtype=torch.int32, device=device)
        _pools[device] = _Pool(device)
    pool = _pools[device]
    if not capturing:
        return pool.of_stream(torch.cuda.current_stream(device).cuda_stream, size)
    own = pool.handed_out(size)
    return own if own is not None else torch.zeros(size, dtype=torch.int32, device=device)
