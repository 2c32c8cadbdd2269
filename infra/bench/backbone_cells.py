"""Trained backbones of equal size on the same needles: GCA, linear transformer, Mamba-2, ours, and a transformer.

    python -m infra.bench.backbone_cells pack --data $DYSRA_DATA --out build/backbone-cells [--count 24]
    python -m infra.bench.backbone_cells run --checkpoints WORK/checkpoints --cases build/backbone-cells --out DIR
    python -m infra.bench.backbone_cells report --rows DIR --out infra/bench/results/NAME

They compress no other model's cache, so their cells stand apart from the table of cache methods: each is
`dysra evaluate --task needle --method METHOD --model FOLDER` on files whose lengths are counted in the
checkpoint's own tokens. `--checkpoints` holds folders <method>-<seed> (infra/training/subq_backbones.py trains them
on equal tokens). The transformer keeps every pair and is the full cache here: `quality_drop_at_<percent>_<method>`
are points of needles lost against it on the same cases, told for every budget that the method's own bytes at the
longest file keep to, so that one who holds 1% of them is told for 50, 70, 90 and 95; where the transformer itself
answers fewer than LEAST_EXACT percent there is nothing to lose, and only the bytes are told.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from infra.console import say
from infra.training.kept_page import keep_as
from infra.training.side_by_side import run_side_by_side, write_whole
from models.subq.mixers.fla_pinned import pin
from pipeline.tasks.needle_grammar import Split

FULL = "transformer"
LENGTHS = {"needle4k": 4_000, "needle16k": 16_000}
"""Tokens of a context, which question and answer follow: the checkpoints were trained on 16,384."""
SPLITS: dict[str, Split] = {"known": "train", "held": "held_out"}
BUDGETS = (50, 70, 90, 95)
LEAST_EXACT = 10.0
"""Needles in percent that the full cache must answer before what is lost against it is told."""
Row = dict[str, Any]


def pack(data: Path, out: Path, count: int, tokens_of: Path) -> list[Path]:
    """Write the files of needles, `count` cases each, in tokens of the checkpoint `tokens_of`."""
    from infra.evaluation.needle_file import counter, write
    from pipeline.tasks.needles import NeedleConfig

    out.mkdir(parents=True, exist_ok=True)
    found = []
    for name, length in LENGTHS.items():
        for wording, split in SPLITS.items():
            config = NeedleConfig(
                length=length, count=count, digits=(5, 7, 10, None), split=split, distractors=1
            )
            path = out / f"{name}_{wording}.jsonl"
            write(path, data / "longdoc" / "pg_essays.jsonl.zst", config, counter(str(tokens_of)))
            say(f"{path}: {count} cases of {length} tokens")
            found.append(path)
    return found


def one(
    checkpoint: Path, cases: Path, out: Path, device: str, limit: int, pinned: Path | None = None
) -> None:
    """All cells of one checkpoint, shortest files first; its rows are written after each.

    `pinned`: where fla's kernels get one configuration each; it times all of its own for minutes else.
    """
    import torch

    from infra.evaluation.cell import Cell
    from infra.evaluation.subq_tasks import run

    if pinned and pin(pinned):
        say("fla: one configuration a kernel")
    method, _, seed = checkpoint.name.rpartition("-")
    about = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    cell = Cell(
        # subq-lean has the shape of no compared method: it reads as subq
        task="needle", method="subq" if method.startswith("subq") else method, model=str(checkpoint), data=cases,
        device=device, limit=limit,
    )  # fmt: skip
    rows: list[Row] = []
    for path in sorted(cases.glob("*.jsonl"), key=lambda file: file.stat().st_size):
        began = time.monotonic()
        found = run(replace(cell, data=path))
        found |= {
            "method": method, "seed": int(seed), "about": about.get("about", {}), "torch": torch.__version__,
            "seconds": round(time.monotonic() - began, 1),
        }  # fmt: skip
        rows.append(found)
        write_whole(out / f"rows-{checkpoint.name}.json", json.dumps(rows))
        say(f"{checkpoint.name} {path.name}: {found['scores']} in {found['seconds']} s")


def everything(given: argparse.Namespace) -> int:
    """Every checkpoint in a process of its own; 5 where one has not come to its end."""
    folders = sorted(path.parent for path in given.checkpoints.glob("*/config.json"))
    folders = [each for each in folders if not given.seeds or each.name.rpartition("-")[2] in given.seeds]
    if not folders:
        say(f"no <method>-<seed>/config.json under {given.checkpoints}")
        return 2
    shared = [
        "-m", "infra.bench.backbone_cells", "run", "--checkpoints", str(given.checkpoints), "--cases",
        str(given.cases), "--out", str(given.out), "--device", given.device, "--limit", str(given.limit),
        *(["--pinned", str(given.pinned)] if given.pinned else []),
    ]  # fmt: skip
    commands = {each.name: [*shared, "--one", str(each)] for each in folders}
    codes = run_side_by_side(commands, given.out / "logs", given.seconds, at_once=given.jobs)
    return 5 if len(codes) < len(commands) or any(codes.values()) else 0


def report(rows: Sequence[Row], device: str) -> dict[str, Any]:
    """Scores and bytes by method and file (means over seeds), and what is lost against the full cache."""
    table: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        files = {}
        for name in dict.fromkeys(row["data"] for row in own):
            of = [row for row in own if row["data"] == name]
            scores = {
                key: round(mean(r["scores"][key] for r in of), 4) for key in ("exact", "digits", "nats")
            }
            files[name] = scores | {"n": sum(r["n"] for r in of), "kv_bytes": of[0]["cost"]["kv_bytes"]}
            files[name]["state_bytes"] = of[0]["cost"]["state_bytes"]
        seeds = sorted({row["seed"] for row in own})
        table[method] = {"seeds": seeds, "files": files, "about": own[0]["about"]}
    return {
        "bench": "backbone_cells", "device": device, "torch": rows[0]["torch"] if rows else "", "table": table,
        "ratios": ratios(table),
    }  # fmt: skip


def ratios(table: dict[str, dict[str, Any]]) -> dict[str, float]:
    """`quality_drop_at_…` as the module says, and each method's bytes as a share of the transformer's."""
    full = table.get(FULL)
    if full is None:
        return {}
    found: dict[str, float] = {}
    for method, line in table.items():
        same = [name for name in line["files"] if name in full["files"]]
        if method == FULL or not same:
            continue
        name = method.replace("-", "_")
        longest = max(same, key=lambda file: int(full["files"][file]["kv_bytes"]))
        share = line["files"][longest]["kv_bytes"] / full["files"][longest]["kv_bytes"]
        found[f"bytes_share_{name}"] = round(share, 4)
        lost = {
            key: mean(sign * (full["files"][f][key] - line["files"][f][key]) for f in same)
            for key, sign in (("exact", 1), ("nats", -1))
        }
        for budget in BUDGETS:
            if share <= 1 - budget / 100 and mean(full["files"][f]["exact"] for f in same) >= LEAST_EXACT:
                found[f"quality_drop_at_{budget}_{name}"] = round(lost["exact"], 2)
                found[f"quality_drop_at_{budget}_{name}_nats"] = round(lost["nats"], 4)
    return found


def markdown(result: dict[str, Any]) -> str:
    """The page of a result."""
    files = list(dict.fromkeys(name for line in result["table"].values() for name in line["files"]))
    short = [name.removesuffix(".jsonl") for name in files]
    lines = [
        "# Trained backbones of equal size on needles",
        "",
        f"`python -m infra.bench.backbone_cells`, {result['device']}, torch {result['torch']}. Needles exact in %, "
        "nats an answer token beside; bytes of the whole cache at the longest file.",
        "",
        f"| model | seeds | {' | '.join(short)} | bytes | of them not growing |",
        f"| --- | --- | {' | '.join('---' for _ in short)} | --- | --- |",
    ]
    for method, line in result["table"].items():
        got = [line["files"].get(name) for name in files]
        told = [f"{each['exact']} ({each['nats']:.2f})" if each else "-" for each in got]
        largest = max(line["files"].values(), key=lambda each: each["kv_bytes"])
        cells = [method, ", ".join(map(str, line["seeds"])), *told]
        cells += [f"{largest[key]:,}" for key in ("kv_bytes", "state_bytes")]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"* `{name}` {value}" for name, value in result["ratios"].items()), ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    packs, runs, reports = (verbs.add_parser(name) for name in ("pack", "run", "report"))
    packs.add_argument("--data", type=Path, required=True, help="the data folder")
    packs.add_argument("--count", type=int, default=24, help="cases a file")
    packs.add_argument(
        "--tokens-of", type=Path, default=Path("models/weights/subq"), help="whose tokens count"
    )
    runs.add_argument("--checkpoints", type=Path, required=True, help="folder of <method>-<seed>")
    runs.add_argument("--cases", type=Path, required=True, help="what pack wrote")
    runs.add_argument("--device", default="cuda")
    runs.add_argument("--seconds", type=float, default=90.0, help="the call ends after this")
    runs.add_argument("--jobs", type=int, default=7, help="checkpoints at a time")
    runs.add_argument("--limit", type=int, default=0, help="cases a file, at most (0: all)")
    runs.add_argument("--seeds", nargs="*", default=[], help="of the checkpoints (default: all)")
    runs.add_argument("--pinned", type=Path, help="fla's kernels in one configuration each, written there")
    runs.add_argument("--one", type=Path, help="only this checkpoint, in this process")
    reports.add_argument("--rows", type=Path, required=True, help="folder with rows-*.json")
    reports.add_argument("--device", default="one NVIDIA H200")
    for each in (packs, runs, reports):
        each.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    if given.verb == "pack":
        pack(given.data, given.out, given.count, given.tokens_of)
        return 0
    if given.verb == "run":
        given.out.mkdir(parents=True, exist_ok=True)
        if given.one:
            one(given.one, given.cases, given.out, given.device, given.limit, given.pinned)
            return 0
        return everything(given)
    files = sorted(given.rows.rglob("rows-*.json"))
    if not files:
        parser.error(f"--rows: no rows-*.json under {given.rows}")
    result = report([row for file in files for row in json.loads(file.read_text())], given.device)
    keep_as(given.out, result, markdown(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
