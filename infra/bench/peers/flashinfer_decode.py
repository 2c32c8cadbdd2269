"""FlashInfer as a peer of dense attention: one token a row over a stream's pages, where FlashInfer can be imported.

    python3 -m infra.bench.peers.flashinfer_decode NAME      # runs one way of WAYS, so that it is compiled

FlashInfer compiles a module at its first call (62 s for all three on one H200 host, 2026-11-29) and keeps it under
FLASHINFER_WORKSPACE_BASE; infra/gpu_host/jobs/flashinfer.sh has that done before the benchmark begins.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from infra.bench.measure import fastest
from infra.console import say

Way = Callable[[], torch.Tensor]
WAYS = ("single", "single-tensor-cores", "paged-tensor-cores")
SPACE_BYTES = 256 * 2**20
AGREES = 2e-2  # of the expected result's norm; bf16


def ways(
    q: torch.Tensor, key: torch.Tensor, value: torch.Tensor, names: Sequence[str] = WAYS
) -> dict[str, Way]:
    """FlashInfer's ways to attend from `q` [B, heads, D] to `key`, `value` [pages, page, key heads, D], planned.

    Every row reads all pages; its paged cache is the pages as they lie. The `single` ways are for one row.
    """
    import flashinfer

    batch, heads, dim = q.shape
    pages, page, kv_heads, _ = key.shape
    found: dict[str, Way] = {}
    if batch == 1:
        k, v = (x.view(pages * page, kv_heads, dim) for x in (key, value))
        for name, units in (("single", False), ("single-tensor-cores", True)):
            if name in names:
                found[name] = functools.partial(
                    flashinfer.single_decode_with_kv_cache, q[0], k, v, use_tensor_cores=units
                )
    if "paged-tensor-cores" in names:
        space = torch.empty(SPACE_BYTES, dtype=torch.uint8, device=q.device)
        starts = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * pages
        index = torch.arange(pages, dtype=torch.int32, device=q.device).repeat(batch)
        last = torch.full((batch,), page, dtype=torch.int32, device=q.device)
        paged = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            space, "NHD", use_cuda_graph=True, use_tensor_cores=True, paged_kv_indptr_buffer=starts,
            paged_kv_indices_buffer=index, paged_kv_last_page_len_buffer=last,
        )  # fmt: skip
        paged.plan(
            starts, index, last, heads, kv_heads, dim, page, q_data_type=q.dtype, kv_data_type=key.dtype
        )
        found["paged-tensor-cores"] = lambda: paged.run(q, (key, value))
    return found


def timed(
    q: torch.Tensor, key: torch.Tensor, value: torch.Tensor, expected: torch.Tensor, runs: int
) -> dict[str, Any]:
    """Columns of a result row: the fastest way that runs and agrees with `expected` [B, heads, D], or why none."""
    if importlib.util.find_spec("flashinfer") is None:
        return {"flashinfer_backend": "not installed"}
    fitting, errors = {}, []
    for name in WAYS:
        try:
            for way in ways(q, key, value, [name]).values():
                difference = _difference(way(), expected)
                if difference < AGREES:
                    fitting[name] = way
                else:
                    errors.append(f"{name} differs by {difference:.3g}")
        except Exception as error:
            errors.append(f"{name}: {error}"[:120])
    choice, timing = fastest(fitting, runs=runs, graph=True)
    if timing is None:
        return {"flashinfer_backend": f"does not run: {'; '.join(errors)}"[:300]}
    return {**timing.row("flashinfer"), "flashinfer_backend": choice}


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    reference = expected.float()
    return float((found.view(expected.shape).float() - reference).norm() / reference.norm())


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text; 0 where the way runs and agrees with SDPA."""
    from infra.bench import decode as bench

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=WAYS)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    make = functools.partial(torch.randn, device=given.device, dtype=torch.bfloat16)
    q = make(1, bench.HEADS, bench.DIM)
    key, value = (make(16_384 // bench.CHUNK, bench.CHUNK, bench.KV_HEADS, bench.DIM) for _ in range(2))
    found = ways(q, key, value, [given.name])[given.name]()
    k, v = (x.view(1, -1, bench.KV_HEADS, bench.DIM).transpose(1, 2) for x in (key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(
        q[:, None].transpose(1, 2), k, v, enable_gqa=True
    )
    difference = _difference(found, expected.view(q.shape))
    say(f"{given.name}: differs from SDPA by {difference:.3g} after {time.monotonic() - began:.0f} s")
    return 0 if difference < AGREES else 1


if __name__ == "__main__":
    raise SystemExit(main())
