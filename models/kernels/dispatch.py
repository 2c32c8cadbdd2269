"""Which version of an operator runs, and the checks that both versions share."""

from __future__ import annotations

import os
from typing import Literal

import torch

Implementation = Literal["auto", "naive", "fused"]
HEAD_DIMS = (16, 32, 64, 128, 256)
FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def interpreting() -> bool:
    """Whether Triton runs its kernels on the CPU, one program after the other (for tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def use_fused(implementation: Implementation, tensor: torch.Tensor) -> bool:
    """Whether the Triton version runs for inputs on this tensor's device.

    Raises ValueError for an unknown name, RuntimeError where the fused version cannot run.
    """
    if implementation not in ("auto", "naive", "fused"):
        raise ValueError(f"implementation is {implementation!r}; allowed: 'auto', 'naive', 'fused'")
    if implementation == "naive":
        return False
    if implementation == "auto":
        return tensor.is_cuda
    if not tensor.is_cuda and not interpreting():
        raise RuntimeError(
            f"implementation='fused' needs tensors on a CUDA device, got {tensor.device}; "
            "use implementation='auto' (the plain version on a CPU), or set TRITON_INTERPRET=1 "
            "before Triton is imported to run the kernel in Triton's interpreter"
        )
    return True


def check_head_dim(dim: int, smallest: int = 16) -> None:
    """Raise ValueError unless heads have a width that the kernels are written for."""
    allowed = [width for width in HEAD_DIMS if width >= smallest]
    if dim not in allowed:
        raise ValueError(
            f"head width is {dim}; the fused kernel takes {', '.join(map(str, allowed))}: "
            "use implementation='naive'"
        )


def check_same(name: str, tensor: torch.Tensor, reference_name: str, reference: torch.Tensor) -> None:
    """Raise ValueError unless both tensors have one dtype and lie on one device."""
    if tensor.dtype != reference.dtype or tensor.device != reference.device:
        raise ValueError(
            f"{name} is {tensor.dtype} on {tensor.device} but {reference_name} is {reference.dtype} on "
            f"{reference.device}; give both the same dtype and device"
        )


def check_floating(name: str, tensor: torch.Tensor) -> None:
    """Raise ValueError unless the tensor holds numbers that attention can compute with."""
    if tensor.dtype not in FLOATING:
        kinds = ", ".join(str(kind).removeprefix("torch.") for kind in FLOATING)
        raise ValueError(f"{name} is {tensor.dtype}; allowed: {kinds}")


def check_scale(scale: float) -> None:
    """Raise ValueError unless scores are multiplied by something positive."""
    if not scale > 0:
        raise ValueError(f"scale is {scale}; give a positive number")


def last_contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself if its last dimension is dense in memory, else a copy that is."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """What references compute in: float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
