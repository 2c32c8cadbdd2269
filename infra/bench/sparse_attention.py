"""Sparse attention over chosen chunks: our kernels against gather + SDPA, FlexAttention and dense SDPA.

A segment of up to 16,384 queries (16 heads of 128 over 2 key heads, bf16) reads k chunks of 64 per block of 64
queries out of a context of N tokens; every head of a block reads the same chunks, drawn uniformly.
Times are CUDA graph replays, so that no contender pays for its launches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from infra.bench.measure import Timing, copy_bandwidth, environment, fastest, floor_ms, matmul_rate, time_cuda
from models.kernels.sparse_attention import sparse_attention

CHUNK = 64
BLOCK_Q = 64
HEADS, KV_HEADS, DIM = 16, 2, 128
MAX_QUERIES = 16_384
LENGTHS = (4_096, 16_384, 65_536, 262_144, 1_048_576)
CHOSEN = (8, 16, 32, 64)
_DENSE = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
_DENSE_LIMIT = 262_144  # longer rows would take seconds each and only confirm a straight line


class Case:
    """Inputs of one length and k, and each contender as a function of (q, k, v)."""

    def __init__(self, length: int, chosen: int) -> None:
        self.length, self.chosen = length, chosen
        self.num_q = min(length, MAX_QUERIES)
        make = functools.partial(torch.randn, device="cuda", dtype=torch.bfloat16)
        self.q = make(1, self.num_q, HEADS, DIM).requires_grad_()
        self.k = make(1, length, KV_HEADS, DIM).requires_grad_()
        self.v = make(1, length, KV_HEADS, DIM).requires_grad_()
        self.grad = make(1, self.num_q, HEADS, DIM)
        self.blocks, self.chunks = self.num_q // BLOCK_Q, length // CHUNK
        scores = torch.rand(self.blocks, self.chunks, device="cuda")
        self.indices = scores.topk(chosen).indices.int().view(1, self.blocks, 1, chosen)

    def ours(self, tiles: dict[str, Any] | None = None) -> torch.Tensor:
        """The kernel of this repository."""
        out = sparse_attention(self.q, self.k, self.v, self.indices, block_q=BLOCK_Q, tiles=tiles)
        assert isinstance(out, torch.Tensor)
        return out

    def gathered(self) -> torch.Tensor:
        """The chosen chunks copied out for each block of queries, then SDPA with the blocks as batch."""
        flat = self.indices.flatten()
        keys, values = (
            x.view(self.chunks, CHUNK * KV_HEADS * DIM)
            .index_select(0, flat)
            .view(self.blocks, self.chosen * CHUNK, KV_HEADS, DIM)
            .transpose(1, 2)
            for x in (self.k, self.v)
        )
        queries = self.q.view(self.blocks, BLOCK_Q, HEADS, DIM).transpose(1, 2)
        out = F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)
        return out.transpose(1, 2).reshape(1, self.num_q, HEADS, DIM)

    def dense(self) -> torch.Tensor:
        """Every query reads the whole context."""
        q, k, v = (x.transpose(1, 2) for x in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)

    def flex(self) -> Callable[[], torch.Tensor]:
        """FlexAttention, compiled, with the same blocks given as full blocks (no mask function runs)."""
        from torch.nn.attention.flex_attention import BlockMask

        dense_index = torch.zeros(1, 1, self.blocks, self.chunks, dtype=torch.int32, device="cuda")
        dense_index[..., : self.chosen] = self.indices.transpose(1, 2).sort(-1).values
        counts = torch.full((1, 1, self.blocks), self.chosen, dtype=torch.int32, device="cuda")
        mask = BlockMask.from_kv_blocks(
            torch.zeros_like(counts),
            dense_index,
            counts,
            dense_index,
            BLOCK_SIZE=(BLOCK_Q, CHUNK),
            seq_lengths=(self.num_q, self.length),
        )
        compiled = _compiled_flex()

        def call() -> torch.Tensor:
            q, k, v = (x.transpose(1, 2) for x in (self.q, self.k, self.v))
            out = compiled(q, k, v, block_mask=mask, enable_gqa=True)
            assert isinstance(out, torch.Tensor)
            return out.transpose(1, 2)

        return call

    def with_backward(self, forward: Callable[[], torch.Tensor]) -> Callable[[], None]:
        """Forward and backward of q, k and v."""

        def call() -> None:
            torch.autograd.grad(forward(), (self.q, self.k, self.v), self.grad)

        return call

    def disagreement(self) -> float:
        """Largest relative difference from gather + SDPA over the output and the three gradients."""
        found, expected = (
            (out.detach(), *torch.autograd.grad(out, (self.q, self.k, self.v), self.grad))
            for out in (self.ours(), self.gathered())
        )
        errors = [
            ((a.float() - b.float()).norm() / b.float().norm()).item()
            for a, b in zip(found, expected, strict=True)
        ]
        return float(round(max(errors), 5))

    def floors(self, bandwidth: float, rate: float) -> tuple[float, float]:
        """Floors in ms of forward and of forward + backward: inputs read once, outputs written once."""
        ops = 4 * self.num_q * HEADS * self.chosen * CHUNK * DIM
        rows = self.q.numel() * 2
        touched = int(torch.unique(self.indices).numel()) * CHUNK * KV_HEADS * DIM * 2 * 2
        grads = self.length * KV_HEADS * DIM * 2 * 2
        forward = floor_ms(2 * rows + touched, ops, bandwidth, rate)
        backward = floor_ms(4 * rows + touched + grads, 2.5 * ops, bandwidth, rate)
        return forward, forward + backward


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    """FlexAttention, tuned: with blocks of 64 its untuned backward has no configuration on Hopper."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True, mode="max-autotune-no-cudagraphs")  # type: ignore[no-any-return]


def run(
    *,
    lengths: Sequence[int] = LENGTHS,
    chosen: Sequence[int] = CHOSEN,
    runs: int = 20,
    peers: bool = True,
    ceilings: tuple[float, float] | None = None,
    between: Callable[[], Any] | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Rows for every length and k, and the named ratios; `report` gets each row as it is ready.

    `between` is called once after all contenders compiled and before anything is timed.
    """
    cases = [Case(length, k) for length in lengths for k in chosen if k * CHUNK <= length]
    contenders = [_contenders(case, peers) for case in cases]
    if between is not None:
        between()
    bandwidth, rate = ceilings or (copy_bandwidth(), matmul_rate())
    rows: list[dict[str, Any]] = []
    for case, functions in zip(cases, contenders, strict=True):
        known = [row for row in rows if row["context"] == case.length]
        if known:
            functions.pop("dense", None)  # the same for every k
        row = _time(case, functions, bandwidth, rate, runs)
        if known:
            row.update({key: value for key, value in known[0].items() if "_dense_" in key})
        rows.append(row)
        if report is not None:
            report(row)
    return {
        "bench": "sparse-attention",
        **environment(),
        "copy_bandwidth_gb_s": round(bandwidth / 1e9, 1),
        "matmul_tflop_s": round(rate / 1e12, 1),
        "rows": rows,
        "ratios": ratios(rows),
    }


def compile_ours(chosen: int) -> None:
    """Compile our kernels for this k into Triton's cache, by the shortest case."""
    case = Case(LENGTHS[0], chosen)
    case.with_backward(case.ours)()
    torch.cuda.synchronize()


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The named ratios, each over its worst row."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for form, suffix in (("forward", ""), ("both", "_with_backward")):
            ours = row[f"{form}_ours_ms"]
            if row["context"] >= 65_536:
                found.setdefault(f"sparse_over_floor_64k{suffix}", []).append(-ours / row[f"{form}_floor_ms"])
            for peer, name in (("gather", "gather_sdpa"), ("flex", "flex")):
                if row.get(f"{form}_{peer}_ms"):
                    key = f"sparse_speedup_over_{name}_min{suffix}"
                    found.setdefault(key, []).append(row[f"{form}_{peer}_ms"] / ours)
    return {name: round(abs(min(values)), 3) for name, values in sorted(found.items())}


def _contenders(case: Case, peers: bool) -> dict[str, Callable[[], torch.Tensor]]:
    functions: dict[str, Callable[[], torch.Tensor]] = {"ours": case.ours}
    if peers:
        functions["gather"] = case.gathered
        if case.length <= _DENSE_LIMIT:
            functions["dense"] = case.dense
        try:
            flex = case.flex()
            case.with_backward(flex)()
            functions["flex"] = flex
        except Exception as error:
            functions["flex_error"] = lambda error=error: error  # type: ignore[misc]
    case.with_backward(case.ours)()
    torch.cuda.synchronize()
    return functions


def _time(
    case: Case, functions: dict[str, Callable[[], torch.Tensor]], bandwidth: float, rate: float, runs: int
) -> dict[str, Any]:
    forward_floor, both_floor = case.floors(bandwidth, rate)
    worst = case.disagreement() if "gather" in functions else None
    row: dict[str, Any] = {
        "context": case.length,
        "queries": case.num_q,
        "chunks": case.chosen,
        "forward_floor_ms": round(forward_floor, 5),
        "both_floor_ms": round(both_floor, 5),
        "worst_difference_from_gather": worst,
    }
    if "flex_error" in functions:
        row["flex_error"] = str(functions.pop("flex_error")())[:200]
    for name, function in functions.items():
        for form, call in (("forward", _no_grad(function)), ("both", case.with_backward(function))):
            timing: Timing | None
            if name in ("gather", "dense"):
                choices = {backend: _with_backend(call, backend) for backend in _DENSE}
                slow = name == "dense" and case.length > 65_536
                choice, timing = fastest(choices, runs=5 if slow else runs, graph=True)
                row[f"{form}_{name}_backend"] = choice
            else:
                timing = _time_captured(call, runs)
            if timing is not None:
                row.update(timing.row(f"{form}_{name}"))
    return row


def _time_captured(call: Callable[[], Any], runs: int) -> Timing:
    try:
        return time_cuda(call, runs=runs, graph=True)
    except RuntimeError:  # a contender that cannot be captured is timed with its launches
        torch.cuda.synchronize()
        return time_cuda(call, runs=runs)


def _no_grad(function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with torch.no_grad():
            return function()

    return call


def _with_backend(function: Callable[[], Any], backend: str) -> Callable[[], Any]:
    def call() -> Any:
        with sdpa_kernel(_DENSE[backend]):
            return function()

    return call
