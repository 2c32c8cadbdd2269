"""Checks of the backbone on the device at hand: what was compared, the error, its bound, and whether it held."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.subq import SubqConfig, SubqModel, SubqStream
from models.subq.memory import MemoryConfig
from models.subq.mixers.gated_linear import gated_linear, gated_linear_chunked
from models.subq.retrieval_attention import Chosen, read_chunks

BOUNDS = {torch.float32: 2e-3, torch.bfloat16: 6e-2}


def checks(device: str, tiny: bool = False) -> Iterator[dict[str, Any]]:
    """All checks, one after the other; a check that raises is a row too."""
    small = replace(
        SubqConfig(), vocabulary=1_000, width=128 if tiny else 512, window=64, feed_forward=256, kernel="auto",
        head_dim=32 if tiny else 64,
    )  # fmt: skip
    length = 700 if tiny else 5_000
    plan: dict[str, Callable[[], tuple[float, float, dict[str, Any]]]] = {
        "bf16 against fp32": lambda: _dtypes(small, length, device),
        "streaming, sliding": lambda: _streaming(small, length, device, torch.float32),
        "streaming, lookahead": lambda: _streaming(
            replace(small, lookahead=32, lookbehind=32, rerank=True), length, device, torch.float32
        ),
        "streaming, gated linear": lambda: _streaming(
            replace(small, lower_mixers=("gated_linear",)), length, device, torch.float32
        ),
        "streaming, state space": lambda: _streaming(
            replace(small, lower_mixers=("state_space",)), length, device, torch.float32
        ),
        "streaming, bf16": lambda: _streaming(small, length, device, torch.bfloat16),
        "memory in 8 bits on the host": lambda: _streaming(
            small, length, device, torch.float32, MemoryConfig(device_bytes=0), bound=3e-2
        ),
        "memory encoded again": lambda: _streaming(
            small, length, device, torch.float32, MemoryConfig(device_bytes=0, host_bytes=0), bound=1e-2
        ),
        "chunk kernel against plain": lambda: _kernel(device, tiny),
        "gated linear against the chunked form": lambda: _gated(device, tiny),
    }
    for name, check in plan.items():
        began = time.monotonic()
        try:
            error, bound, more = check()
        except Exception as problem:  # a broken check must not hide the others
            yield {"check": name, "ok": False, "problem": f"{type(problem).__name__}: {problem}"[:500]}
            continue
        seconds = round(time.monotonic() - began, 2)
        yield {"check": name, "ok": error <= bound, "error": error, "bound": bound, "seconds": seconds} | more


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected; infinite where something is no number."""
    if not bool(found.isfinite().all()):
        return float("inf")
    found, expected = found.detach(), expected.detach()
    return float((found.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-20))


def _model(config: SubqConfig, device: str, dtype: torch.dtype) -> SubqModel:
    torch.manual_seed(0)
    return SubqModel(config).eval().requires_grad_(False).to(device, dtype)


def _dtypes(config: SubqConfig, length: int, device: str) -> tuple[float, float, dict[str, Any]]:
    """The lower half and what a chunk leaves behind (what is chosen may differ by rounding, and so the rest)."""
    ids = torch.randint(0, config.vocabulary, (1, length), device=device)
    codes = []
    for dtype in (torch.float32, torch.bfloat16):
        model = _model(config, device, dtype)
        codes.append(model.encode(model.lower(ids)[0]))
    errors = {name: relative(getattr(codes[1], name), getattr(codes[0], name)) for name in codes[0]._fields}
    return max(errors.values()), BOUNDS[torch.bfloat16], {"errors": errors}


def _streaming(
    config: SubqConfig,
    length: int,
    device: str,
    dtype: torch.dtype,
    memory: MemoryConfig | None = None,
    bound: float = 0.0,
) -> tuple[float, float, dict[str, Any]]:
    model = _model(config, device, dtype)
    ids = torch.randint(0, config.vocabulary, (length,), device=device)
    with torch.no_grad():
        expected = model.logits(model(ids[None]).hidden[0])
    stream, parts, start = SubqStream(model, memory or MemoryConfig(landmark_dtype="float32")), [], 0
    for size in (1, 63, 64, 200, 17, length):
        parts.append(stream.logits(ids[start : start + size]))
        start += size
    error = relative(torch.cat(parts), expected)
    return error, bound or BOUNDS[dtype], {"tokens": length}


def _kernel(device: str, tiny: bool) -> tuple[float, float, dict[str, Any]]:
    """Forward and gradients of both forms in the training's shape, and their times."""
    on_gpu = device.startswith("cuda")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    chunks, heads, dim = (8, 4, 32) if tiny else (1_024, 8, 64)
    torch.manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype).requires_grad_()

    q, keys, values = draw(1, chunks * 64, heads, dim), draw(chunks, 64, 2, dim), draw(chunks, 64, 2, dim)
    weights = torch.rand(1, chunks, 8, device=device).requires_grad_()
    indices = torch.randint(0, chunks, (1, chunks, 8), device=device)
    chosen, leaves = Chosen(keys, values, indices, weights, 64), (q, keys, values, weights)
    gradient = torch.randn_like(q)
    found: dict[str, Any] = {}
    kernels = ("plain", "fused") if on_gpu else ("plain", "naive")
    for kernel in kernels:

        def both(kernel: str = kernel) -> tuple[Tensor, ...]:
            out = read_chunks(q, chosen, 2.0 * dim**-0.5, kernel)
            return (out, *torch.autograd.grad(out, leaves, gradient))

        found[kernel] = both()
        found[f"{kernel}_ms"] = _milliseconds(both, on_gpu)
    plain, other = (found[kernel] for kernel in kernels)
    errors = [relative(a, b) for a, b in zip(other, plain, strict=True)]
    return max(errors), BOUNDS[dtype], {
        "errors": errors, "plain_ms": found["plain_ms"], "other": kernels[1], "other_ms": found[f"{kernels[1]}_ms"],
    }  # fmt: skip


def _gated(device: str, tiny: bool) -> tuple[float, float, dict[str, Any]]:
    """What the mixer runs here (fla's operator on CUDA, where it is) against our chunked form, with gradients.

    Times are of both directions over one sequence of 16,384 tokens, states carried.
    """
    torch.manual_seed(0)
    on_gpu = device.startswith("cuda")
    shape = (1, 100, 2, 32) if tiny else (1, 16_384, 8, 64)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    q, k, v = (torch.randn(*shape, device=device, dtype=dtype).requires_grad_() for _ in range(3))
    gate = (torch.nn.functional.logsigmoid(torch.randn(*shape, device=device)) / 16).requires_grad_()
    gradient = torch.randn(*shape, device=device, dtype=dtype)
    results, times = [], {}
    for name, operator in (("operator_ms", gated_linear), ("chunked_ms", gated_linear_chunked)):

        def both(operator: Callable[..., tuple[Tensor, Tensor]] = operator) -> tuple[Tensor, ...]:
            out, last = operator(q, k, v, gate, None)
            return (out, last, *torch.autograd.grad(out, (q, k, v, gate), gradient))

        results.append(both())
        times[name] = _milliseconds(both, on_gpu)
    errors = [relative(a, b) for a, b in zip(*results, strict=True)]
    fla = on_gpu and importlib.util.find_spec("fla") is not None
    more: dict[str, Any] = {"errors": errors, "fla": fla} | times
    if not fla:  # tests/models/subq/test_gpu.py skips there
        more["note"] = "fla is not installed (or there is no GPU): the chunked form was compared with itself"
    return max(errors), BOUNDS[dtype], more


def _milliseconds(function: Callable[[], Any], on_gpu: bool, runs: int = 10) -> float:
    """Median time of `function`."""
    if on_gpu:
        from infra.bench.measure import time_cuda

        return time_cuda(function, runs=runs).median_ms
    began = time.perf_counter()
    function()
    return round(1e3 * (time.perf_counter() - began), 3)
