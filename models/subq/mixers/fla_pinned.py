"""Fixed configurations for the kernels of fla's `chunk_gla`: its first call compiles ten kernels, not 262.

fla times every configuration of every kernel at its first call (346 s on an H200), anew for other dtypes. It offers
to take them from files instead (FLA_CONFIG_DIR, FLA_CACHE_MODE), but two of the kernels are decorated by Triton's
own autotune unless fla's `configure_fla_cache_autotune` was called before they are imported, and that stands in a
module whose package imports them. So that module is loaded by its path first. Nothing of fla is changed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

CACHE = "fla.ops.utils.cache"
PINNED: dict[str, tuple[dict[str, int], int, int]] = {
    "chunk_local_cumsum_vector_kernel": ({"BS": 32}, 4, 2),
    "chunk_fwd_kernel_h": ({"BK": 32, "BV": 32}, 4, 3),
    "chunk_bwd_kernel_dh": ({"BK": 32, "BV": 32}, 4, 3),
    "chunk_gla_fwd_A_kernel_intra_sub_inter": ({"BK": 64}, 4, 3),
    "chunk_gla_fwd_A_kernel_intra_sub_intra": ({}, 4, 3),
    "chunk_gla_fwd_kernel_o": ({"BK": 64, "BV": 64}, 4, 3),
    "chunk_gla_bwd_kernel_intra": ({}, 4, 3),
    "chunk_gla_bwd_kernel_dA": ({}, 4, 3),
    "chunk_gla_bwd_kernel_dv": ({"BK": 32, "BV": 64}, 4, 3),
    "chunk_gla_bwd_kernel_inter": ({"BK": 32, "BV": 64}, 4, 3),
}
"""Kernel: (tile sizes, warps, stages), each among those that fla itself would time for heads of 64."""


def write_configs(folder: Path) -> None:
    """The files that fla reads, one a kernel."""
    folder.mkdir(parents=True, exist_ok=True)
    for kernel, (tiles, warps, stages) in PINNED.items():
        config = {"kwargs": tiles, "num_warps": warps, "num_stages": stages, "num_ctas": 1}
        path = folder / f"{kernel}.json"
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"kernel_name": kernel, "default_config": config}), encoding="utf-8")
        partial.replace(path)


def pin(folder: Path) -> bool:
    """Have fla take its configurations from `folder`, which is written; whether fla is there at all.

    Call it before anything of fla is imported: RuntimeError afterwards, for fla has made its choice by then.
    """
    found = importlib.util.find_spec("fla")
    if found is None or found.origin is None:
        return False
    if "fla" in sys.modules:
        raise RuntimeError("pin: fla is imported already; call pin before the first gated linear attention")
    write_configs(folder)
    os.environ["FLA_CONFIG_DIR"], os.environ["FLA_CACHE_MODE"] = str(folder), "default"
    spec = importlib.util.spec_from_file_location(CACHE, Path(found.origin).parent / "ops/utils/cache.py")
    if spec is None or spec.loader is None:
        raise RuntimeError(f"pin: {found.origin} has no ops/utils/cache.py; install fla-core 0.6")
    cache = importlib.util.module_from_spec(spec)
    sys.modules[CACHE] = cache
    spec.loader.exec_module(cache)
    cache.configure_fla_cache_autotune()
    try:
        importlib.import_module("fla.ops.gla")
    finally:
        cache.restore_autotune_backend()
    return True
