"""fla's `chunk_gla`, as this device runs it, against the recurrence token by token in float64.

    python3 -m infra.training.subq_gla --out OUT --lengths 4100,1000,64
    python3 -m infra.training.subq_gla --out OUT --lengths 4096,1000 --dtype bfloat16 --pinned WORK/fla-configs

Output, last state and all gradients; the seconds of the first call (fla compiles and times its kernels for minutes,
on one core) and of the second. OUT/chunk-gla.json is written after each length. Without fla, or on a CPU, it is our
own chunked form that is compared, and the record says so. What fla compiles and times goes by dtype and by whether
there is a first state: training has none, and q, k and v in bfloat16, the gate in float32 (`--dtype bfloat16`).
`--pinned`: one configuration a kernel (models/subq/mixers/fla_pinned.py).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from infra.training.subq_checks import relative
from models.subq.mixers.fla_pinned import pin
from models.subq.mixers.gated_linear import gated_linear, gated_linear_naive

NAMES = ("out", "state", "q", "k", "v", "gate", "first state")
MOST = {"float32": 1e-2, "bfloat16": 2e-2}
"""Largest relative error allowed: products in TF32; states between chunks kept in bfloat16."""


def gla_row(
    length: int, device: str, heads: int = 2, dim: int = 64, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Relative errors by name at `length` tokens, seconds of both calls, and whether all errors hold.

    In bfloat16 as training has it: the gate in float32, no first state.
    """
    torch.manual_seed(length)
    shape = (2, length, heads, dim)
    training = dtype == torch.bfloat16
    gate = torch.nn.functional.logsigmoid(torch.randn(*shape, device=device)) / 16
    # drawn in the dtype, so that the recurrence has the very same numbers
    drawn = [*(torch.randn(*shape, device=device).to(dtype) for _ in range(3)), gate]
    if not training:
        drawn.append(torch.randn(2, heads, dim, dim, device=device))
    gradients = torch.randn(*shape, device=device), torch.randn(2, heads, dim, dim, device=device)

    def run(operator: Any, wide: torch.dtype | None) -> tuple[list[torch.Tensor], float]:
        began = _now(device)
        leaves = [x.to(wide or x.dtype).detach().requires_grad_() for x in drawn]
        out, last = operator(*leaves, *([None] if training else []))
        whole = (out * gradients[0]).sum() + (last * gradients[1]).sum()
        found = [out, last, *torch.autograd.grad(whole, leaves)]
        return found, _now(device) - began

    mine, first_s = run(gated_linear, None)
    _, second_s = run(gated_linear, None)
    wanted, naive_s = run(gated_linear_naive, torch.float64)
    names = NAMES[: len(mine)]
    errors = {name: relative(a, b) for name, a, b in zip(names, mine, wanted, strict=True)}
    most = MOST[str(dtype).removeprefix("torch.")]
    return {
        "length": length, "errors": errors, "ok": max(errors.values()) < most, "first_s": round(first_s, 3),
        "second_s": round(second_s, 4), "naive_s": round(naive_s, 3),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; ends with an error where a length fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lengths", default="4100,1000,64")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=tuple(MOST), help="of queries, keys and values")
    parser.add_argument("--pinned", type=Path, help="one configuration a kernel, written into this folder")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    on_gpu = given.device.startswith("cuda")
    pinned = given.pinned is not None and pin(given.pinned)
    record: dict[str, Any] = {
        "bench": "chunk-gla", "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "fla": on_gpu and importlib.util.find_spec("fla") is not None, "most": MOST[given.dtype],
        "dtype": given.dtype, "pinned": pinned, "rows": [],
    }  # fmt: skip
    for length in map(int, given.lengths.split(",")):
        record["rows"].append(
            gla_row(length, given.device, heads=given.heads, dtype=getattr(torch, given.dtype))
        )
        partial = given.out / ".chunk-gla.partial"
        partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
        partial.replace(given.out / "chunk-gla.json")
        print(json.dumps(record["rows"][-1]), flush=True)  # noqa: T201
    failed = [row["length"] for row in record["rows"] if not row["ok"]]
    if failed:
        raise SystemExit(
            f"errors above {record['most']} at {failed} tokens; see {given.out / 'chunk-gla.json'}"
        )


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
