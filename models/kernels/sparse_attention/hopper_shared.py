# mypy: disable-error-code="no-untyped-def"
# (Triton types the arguments of kernels at launch)
"""What the kernels for Hopper share: descriptors of their tiles, and the rows that the backward pass reads."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from models.kernels.sparse_attention.tuning import HOPPER_ROWS


@triton.jit
def rows_kernel(out_ptr, grad_ptr, lse_ptr, lse_grad_ptr, rows_ptr, num_q, num_heads, DIM: tl.constexpr,
                BLOCK: tl.constexpr, LSE_GRAD: tl.constexpr):  # fmt: skip
    """rows [2, B * Hq, Nq]: lse (infinite where a row saw nothing), and delta as `delta_kernel` has it."""
    pair = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = position < num_q
    line = (pair // num_heads * num_q + position) * num_heads + pair % num_heads
    offsets = line[:, None] * DIM + tl.arange(0, DIM)[None, :]
    out = tl.load(out_ptr + offsets, mask=ok[:, None], other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + offsets, mask=ok[:, None], other=0.0).to(tl.float32)
    delta = tl.sum(out * grad, 1)
    if LSE_GRAD:
        delta -= tl.load(lse_grad_ptr + line, mask=ok, other=0.0)
    lse = tl.load(lse_ptr + line, mask=ok, other=float("inf"))
    lse = tl.where(lse == float("-inf"), float("inf"), lse)
    tl.store(rows_ptr + pair * num_q + position, lse, mask=ok)
    tl.store(rows_ptr + (tl.num_programs(1) + pair) * num_q + position, delta, mask=ok)


def launch_rows(
    out: torch.Tensor, grad: torch.Tensor, lse: torch.Tensor, lse_grad: torch.Tensor | None
) -> torch.Tensor:
    """float32 [2, B * Hq, Nq] from out, grad [B, Nq, Hq, D] and lse in base 2: what a row of p and of ds needs."""
    batch, num_q, heads, dim = out.shape
    rows = torch.empty((2, batch * heads, num_q), dtype=torch.float32, device=out.device)
    rows_kernel[(-(-num_q // 32), batch * heads)](
        out,
        grad,
        lse,
        lse_grad.contiguous() if lse_grad is not None else lse,
        rows,
        num_q,
        heads,
        DIM=dim,
        BLOCK=32,
        LSE_GRAD=lse_grad is not None,
    )
    return rows


def described(*tensors: torch.Tensor) -> list[Any]:
    """Descriptors of [B, N, H, D] as [B * N, H * D] with tiles of 64 tokens of one head."""
    kinds = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}
    dim = tensors[0].shape[3]
    layout = gl.NVMMASharedLayout.get_default_for([HOPPER_ROWS, dim], kinds[tensors[0].dtype])
    return [
        TensorDescriptor.from_tensor(x.view(x.shape[0] * x.shape[1], -1), [HOPPER_ROWS, dim], layout)
        for x in tensors
    ]


def processors(x: torch.Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count
