"""What a trained sub-quadratic model costs while it streams, by length: reading, asking, writing, bytes.

    python3 -m infra.training.subq_speed --data DATA --checkpoint FOLDER --out OUT --lengths 16k,1M,16M

Reads the test text of DATA (again from its beginning beyond its end) up to each length in turn, asks there, and
writes 128 tokens, all on forks of one stream, without CUDA graphs. A row for each length; OUT/subq-speed.json is
written after each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.training.subq_data import SubqData
from infra.training.subq_needles import length_of
from models.subq.checkpoint import load_checkpoint
from models.subq.model import SubqModel
from models.subq.streaming import SubqStream

QUESTION, WARM, TOKENS = 24, 8, 128
_PIECE = 1 << 20  # tokens handed over at once


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--lengths", default="16k,64k,256k,1M,4M,16M")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    on_gpu = given.device.startswith("cuda")
    model, described = load_checkpoint(
        given.checkpoint, given.device, torch.bfloat16 if on_gpu else torch.float32
    )
    record: dict[str, Any] = {
        "bench": "subq-speed", "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "model": described["about"], "rows": [],
    }  # fmt: skip
    lengths = sorted(length_of(text) for text in given.lengths.split(","))

    def keep(row: dict[str, Any]) -> None:
        record["rows"].append(row)
        record["ratios"] = ratios_of(record["rows"])
        (given.out / "subq-speed.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        print(json.dumps(row), flush=True)  # noqa: T201

    speed(model, SubqData.load(given.data, "test").tokens, lengths, keep)


def ratios_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How a token's time and the bytes grow from the shortest to the longest length."""
    first, last = rows[0], rows[-1]
    return {
        "subq_token_ms_longest_over_shortest": round(last["token_ms"] / first["token_ms"], 3),
        "subq_state_bytes_longest_over_shortest": round(last["state_bytes"] / first["state_bytes"], 3),
    }


@torch.no_grad()
def speed(model: SubqModel, text: np.ndarray[Any, Any], lengths: Sequence[int], report: Any) -> None:
    """Calls `report` with the row of every length."""
    stream, device = SubqStream(model), model.device
    size = model.config.chunk
    for length in lengths:
        began, before = _now(device), stream.seen
        while stream.seen < length:
            end = min(length, stream.seen + _PIECE)
            places = np.arange(stream.seen, end) % len(text)
            stream.read(torch.from_numpy(text[places].astype(np.int64)))
        read_s = _now(device) - began
        asked = torch.from_numpy(text[:QUESTION].astype(np.int64))
        asks, steps = [], []
        for turn in range(3):  # the first pays for loading
            began, twin = _now(device), stream.fork()
            logits = twin.ask(asked)
            asks.append(_now(device) - began)
            if turn < 2:
                continue
            for at in range(WARM + TOKENS):
                began = _now(device)
                logits = twin.logits(logits.argmax(-1).view(1))[-1]
                if at >= WARM:
                    steps.append(_now(device) - began)
        ordered = sorted(steps)
        report(
            {
                "length": length, "read_tokens_a_second": round((length - before) / max(read_s, 1e-9)),
                "ask_ms": round(1e3 * min(asks), 3), "token_ms": round(1e3 * statistics.mean(steps), 3),
                "token_ms_median": round(1e3 * statistics.median(steps), 3),
                # one in `size` also encodes a chunk and searches
                "token_ms_slowest_64th": round(1e3 * statistics.mean(ordered[-max(1, TOKENS // size):]), 3),
                "state_bytes": stream.state_bytes, **{f"{k}_bytes": v for k, v in stream.memory.nbytes.items()},
                "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
            }
        )  # fmt: skip


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
