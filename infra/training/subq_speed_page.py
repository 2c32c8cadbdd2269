"""The page of a speed run: what a token costs while a stream grows, in time and in bytes.

python -m infra.training.subq_speed_page --found OUT/subq-speed.json --bench infra/bench/results/NAME --note "..."

`--note` is added at the page's end (what else ran on the host, what a figure was spoiled by).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from infra.training.kept_page import keep, page_parser
from infra.training.subq_report import short

TIMED = ("read_tokens_a_second", "ask_ms", "token_ms_median", "token_ms", "token_ms_slowest_64th")
HELD = ("state_bytes", "landmarks_bytes", "device_bytes", "host_bytes", "ids_bytes", "peak_bytes")


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Longest over shortest, of what should stay (a token, the state) and of what grows (the memory of chunks)."""
    first, last = rows[0], rows[-1]
    memory = [sum(row[f"{place}_bytes"] for place in ("landmarks", "device", "host", "ids")) for row in rows]
    return {
        "subq_tokens_longest_over_shortest": last["length"] / first["length"],
        **{
            f"subq_{name}_longest_over_shortest": round(last[name] / first[name], 3)
            for name in ("token_ms_median", "token_ms", "ask_ms", "state_bytes")
        },
        "subq_memory_bytes_longest_over_shortest": round(memory[-1] / memory[0], 3),
        "subq_memory_bytes_a_token": round(memory[-1] / last["length"], 1),
    }


def page(found: dict[str, Any]) -> str:
    """The figures as tables."""
    rows, model = found["rows"], found["model"]
    lines = [
        f"# Streaming with the sub-quadratic backbone, {found['device']}", "",
        f"Seed {model['seed']}, {model['steps']:,} steps, {model['tokens']:,} tokens of training. One stream is "
        "read to each length in turn; a fork of it is asked and writes 128 tokens, one at a time and eagerly, with "
        "nothing captured. Command: the head of `infra/training/subq_speed.py`.", "",
        "| length | tokens read a second | ask, ms (best of three) | a token, ms: median | mean "
        "| mean of the slowest 2 of 128 |",
        "|" + " --- |" * 6,
    ]  # fmt: skip
    for row in rows:
        speed, *times = (row[name] for name in TIMED)
        lines.append(
            f"| {short(row['length'])} | {speed:,} | " + " | ".join(f"{ms:.1f}" for ms in times) + " |"
        )
    lines += ["", "| bytes at | " + " | ".join(short(row["length"]) for row in rows) + " |"]
    lines += ["|" + " --- |" * (1 + len(rows))]
    for name in HELD:
        shown = name.removesuffix("_bytes").replace("device", "keys and values, device")
        lines.append(f"| {shown} | " + " | ".join(f"{row[name]:,}" for row in rows) + " |")
    lines += ["", "| figure | value |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in found["ratios"].items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = page_parser(__doc__, "subq-speed.json of subq_speed")
    given = parser.parse_args(arguments)
    found = json.loads(given.found.read_text(encoding="utf-8"))
    if not found.get("rows"):
        parser.error(
            f"{given.found} has no rows: no length was measured; run infra.training.subq_speed again"
        )
    found = found | {"ratios": ratios(found["rows"])}
    keep(given, found, page(found))


if __name__ == "__main__":
    main()
