"""FlashInfer's modules that the decode benchmark loads, compiled where there is no GPU, for a part of a lease.

    python -m infra.bench.peers.flashinfer_modules --cuda FOLDER --work FOLDER --out build/flashinfer/part-aot

Wants FlashInfer on PYTHONPATH (its own apache-tvm-ffi for this Python before it), and under --cuda the compiler as
its wheels unpack it (`pip install --target` of nvidia-cuda-nvcc, nvidia-nvvm, nvidia-cuda-crt, nvidia-cuda-runtime,
nvidia-cuda-cccl; FOLDER is their nvidia/cu13). Ten minutes of a slow core; infra/gpu_host/jobs/flashinfer.sh
takes the modules where they load and compiles them on the host where not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from infra.bench.peers.flashinfer_decode import WAYS, ways
from infra.console import say


class _Asked(Exception):
    """A module was asked for; that is all we want to know."""


def asked_modules(heads: int, kv_heads: int, dim: int, page: int) -> list[Any]:
    """What FlashInfer would compile for every way of WAYS at these shapes in bf16; nothing runs."""
    from flashinfer.jit.core import JitSpec, jit_spec_registry

    def ask(spec: Any) -> None:
        raise _Asked(spec.name)

    q = torch.zeros(1, heads, dim, dtype=torch.bfloat16)
    pair = torch.zeros(2, 4, page, kv_heads, dim, dtype=torch.bfloat16)
    load, empty = JitSpec.build_and_load, torch.empty
    JitSpec.build_and_load = ask
    torch.empty = lambda *size, pin_memory=False, **given: empty(*size, **given)  # pinning wants a driver
    try:
        for name in WAYS:
            try:
                for way in ways(q, pair[0], pair[1], [name]).values():
                    way()
            except _Asked:
                continue
            raise RuntimeError(f"FlashInfer's way {name} asked for no module; is this FlashInfer 0.5.3?")
    finally:
        JitSpec.build_and_load, torch.empty = load, empty
    return list(jit_spec_registry.get_all_specs().values())


def prepare(cuda: Path) -> None:
    """The names that a linker asks for, which the compiler's wheels lack (the driver's library as an empty one)."""
    lib = cuda / "lib"
    stubs = lib / "stubs"
    stubs.mkdir(exist_ok=True)
    for link, target in ((cuda / "lib64", "lib"), (lib / "libcudart.so", "libcudart.so.13")):
        if not link.exists():
            link.symlink_to(target)
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "/dev/null", "-Wl,-soname,libcuda.so.1", "-o"]
    subprocess.run([*command, str(stubs / "libcuda.so")], check=True, timeout=60)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    from infra.bench import decode as bench

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuda", type=Path, required=True, help="the compiler's folder")
    parser.add_argument("--work", type=Path, required=True, help="where FlashInfer compiles")
    parser.add_argument("--out", type=Path, required=True, help="the part")
    parser.add_argument("--arch", default="9.0a", help="the GPU's (9.0a: H100, H200)")
    given = parser.parse_args(arguments)
    if not (given.cuda / "bin" / "nvcc").exists():
        parser.error(f"--cuda: given {given.cuda}; allowed: a folder with bin/nvcc (pip's nvidia/cu13)")
    prepare(given.cuda)
    os.environ |= {
        "CUDA_HOME": str(given.cuda.resolve()),
        "FLASHINFER_CUDA_ARCH_LIST": given.arch,
        "FLASHINFER_WORKSPACE_BASE": str(given.work.resolve()),
        "MAX_JOBS": os.environ.get("MAX_JOBS", "1"),
    }
    specs = asked_modules(bench.HEADS, bench.KV_HEADS, bench.DIM, bench.CHUNK)
    from flashinfer.jit.core import build_jit_specs

    build_jit_specs(specs)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(given.out, "w:xz") as packed:
        for spec in specs:
            packed.add(spec.jit_library_path, f"{spec.name}/{spec.name}.so")
    say(f"{given.out}: {len(specs)} modules, {given.out.stat().st_size >> 10} KiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
