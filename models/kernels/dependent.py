# mypy: disable-error-code="no-untyped-def"
# (Triton types the arguments of kernels at launch)
"""Dependent launches: a kernel's start overlaps the end of the one before it, and it waits for that one's results.

On Hopper and later a kernel that is launched so may begin while its predecessor still runs; `begin` lets the
successor do the same and returns once everything that came before is done. A step of four short kernels pays
its launches once instead of four times.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def begin(PDL: tl.constexpr):
    """First line of a kernel: let the next one start, then wait for the results of those before."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def begin_after(PDL: tl.constexpr):
    """As `begin`, but the next kernel starts only after all that came before this one is done.

    So the next may read what is older than this kernel without waiting, and waits (`results`) for this one alone.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def begin_early(PDL: tl.constexpr):
    """First line of a kernel behind one that did `begin_after`: let the next one start, and do not wait yet."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def results(PDL: tl.constexpr):
    """Wait for the results of the kernel before, in a kernel that did `begin_early`.

    Some program must, and the kernel's end then stands for the end of all before it, as elsewhere.
    """
    if PDL:
        gdc_wait()


def dependent(x: torch.Tensor) -> dict[str, Any]:
    """Launch options for a kernel that calls `begin`: dependent where x's device can."""
    return {"PDL": True, "launch_pdl": True} if x.is_cuda and _can(x.device) else {"PDL": False}


@functools.cache
def _can(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] >= 9
