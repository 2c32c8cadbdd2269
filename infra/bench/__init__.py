"""Benchmarks: each module has `run(...) -> dict` with keys bench, device, commit, rows and ratios.

BENCHES names them; `needs_cuda` says which refuse to run without a CUDA device.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """One benchmark: where its `run` is, whether it needs a CUDA device, and what it measures."""

    module: str
    needs_cuda: bool
    about: str


BENCHES: dict[str, Bench] = {
    "sparse-attention": Bench(
        module="infra.bench.sparse_attention",
        needs_cuda=True,
        about="attention over chosen chunks against gather + SDPA, FlexAttention and dense SDPA",
    ),
    "decode": Bench(
        module="infra.bench.decode",
        needs_cuda=True,
        about="one token over ring, latents and chosen chunks against GCA and dense SDPA, 16k to 16M tokens seen",
    ),
    "landmarks": Bench(
        module="infra.bench.landmarks",
        needs_cuda=True,
        about="landmark search with top-k fused against a matrix product and torch.topk",
    ),
    "cache": Bench(
        module="infra.bench.cache",
        needs_cuda=False,
        about="session bytes, share of evictions in decode time, compressors at equal bytes",
    ),
    "subq": Bench(
        module="infra.bench.subq",
        needs_cuda=False,
        about="sub-quadratic backbone: time and bytes by length, and the fit over lengths",
    ),
}


def available() -> dict[str, Bench]:
    """The benchmarks whose module is installed."""
    return {name: bench for name, bench in BENCHES.items() if importlib.util.find_spec(bench.module)}


def load(name: str) -> ModuleType:
    """The module of benchmark `name` (KeyError for an unknown one)."""
    return importlib.import_module(BENCHES[name].module)
