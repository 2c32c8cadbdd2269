"""Greedy answers of one reader to every judged reading, on a GPU host.

    python3 -m infra.training.reader_judge --reader /tmp/reader --rows rows --name near16 --adapter WORK/near16 \\
        --out OUT

Writes OUT/judged-<name>.npz: rows, margins of giving up, and the answers' token ids in
Gemma's whole vocabulary. The answer is what the reader says when it must; where the margin is above 0 it would have
given up instead.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from infra.training.reader_fast import load_packed_rows
from infra.training.reader_gpu import judged_rows, load_base
from infra.training.reader_rows import Coder
from models.reader_decoding import greedy_answers
from models.reader_lowrank import ADAPTER_CONFIG, LowRank

WEIGHTS = "weights.safetensors"


def open_judged(reader: Path, adapter: Path | None, device: str) -> nn.Module:
    """The base model with an adapter merged, or with the weights of full tuning, or as it is."""
    from safetensors.torch import load_file

    model = load_base(reader, torch.bfloat16 if device.startswith("cuda") else torch.float32).to(device)
    if adapter is None:
        return model
    if (adapter / WEIGHTS).exists():
        model.load_state_dict(load_file(adapter / WEIGHTS), strict=False)
        return model
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    LowRank(model, rank=int(config["r"]), alpha=float(config["lora_alpha"])).start_from(adapter)
    return model


def judge(
    model: nn.Module,
    rows_folder: Path,
    coder: Coder,
    device: str,
    *,
    base: bool = False,
    longest: int = 240,
    most: int = 0,
    tokens_per_batch: int = 196608,
) -> dict[str, np.ndarray[Any, Any]]:
    """What is written: rows, margins, lengths (all [n]) and ids of the answers; seconds."""
    rows, _ = load_packed_rows(rows_folder / "judged.npz")
    chosen = judged_rows(rows, most, longest)
    prompts: list[Any] = [rows.row(at)[: rows.answer_starts[at]] for at in chosen]
    if base:
        example = np.array(coder.example(), np.int64)
        prompts = [np.concatenate([prompt[:1], example, prompt[1:]]) for prompt in prompts]
    began = time.monotonic()
    answers = greedy_answers(
        model,
        prompts,
        stop_id=coder.stop,
        give_up_id=coder.give_up,
        may_give_up=False,
        max_new_tokens=14,
        tokens_per_batch=tokens_per_batch,
        device=device,
    )
    said = [coder.vocabulary[list(answer.ids)] for answer in answers]
    return {
        "rows": np.array(chosen, np.int32),
        "margins": np.array([answer.margin for answer in answers], np.float16),
        "lengths": np.array([len(ids) for ids in said], np.uint8),
        "ids": np.concatenate(said or [np.zeros(0)]).astype(np.int32),
        "seconds": np.array(time.monotonic() - began),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("reader", "rows", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--adapter", type=Path, help="left out: the base model, with one worked example")
    parser.add_argument("--longest", type=int, default=240, help="long prompts (over 1,500 tokens), at most")
    parser.add_argument("--most", type=int, default=0, help="rows, for a try (0: all)")
    parser.add_argument("--tokens-decoded", type=int, default=196608)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)
    model = open_judged(given.reader, given.adapter, given.device)
    found = judge(
        model,
        given.rows,
        Coder(given.reader),
        given.device,
        base=given.adapter is None,
        longest=given.longest,
        most=given.most,
        tokens_per_batch=given.tokens_decoded,
    )
    np.savez_compressed(given.out / f"judged-{given.name}.npz", **found)  # type: ignore[arg-type]
    print(f"{given.name}: {len(found['rows']):,} readings in {float(found['seconds']):.0f} s", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
