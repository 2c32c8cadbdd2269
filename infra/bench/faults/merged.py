"""One table of several runs of faults that went side by side, each with a seed and a folder of its own.

    python -m infra.bench.faults.merged WORK/1 WORK/2 … --out DIR

WORK/1 is a run's `--work`; what it has of results so far counts. Writes DIR/faults.json, DIR/faults.md and
DIR/faults.jsonl, every single result of all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import platform
import sys
from pathlib import Path
from typing import Any

from infra.bench import page
from infra.bench.faults.kinds import KINDS
from infra.bench.faults.report import FaultResult, figures, read_lines, rows
from infra.bench.measure import commit


def result(results: list[FaultResult], seed: int | list[int]) -> dict[str, Any]:
    """The result as benchmarks keep it."""
    about = {kind.name: kind.about for kind in KINDS.values()}
    ratios = figures(results)
    return {
        "bench": "faults",
        "device": "cpu",
        "machine": f"{platform.machine()}, {multiprocessing.cpu_count()} cores",
        "commit": ", ".join(sorted({one.commit for one in results})) or commit(),
        "seed": seed,
        **ratios,
        "rows": rows(results, about),
        "ratios": ratios,
        "not_held": [dataclasses.asdict(one) for one in results if not one.held][:50],
    }


def merged(parts: dict[Path, list[FaultResult]], seeds: list[int]) -> dict[str, Any]:
    """All results of these runs in one; how many each run has stands beside."""
    whole = result([one for part in parts.values() for one in part], seeds)
    return {**whole, "runs": {folder.name: len(part) for folder, part in parts.items()}}


def shares(parts: int) -> list[str]:
    """The kinds of a cluster dealt to so many runs, each as `--kinds` takes them: together they have all."""
    names = [kind.name for kind in KINDS.values() if kind.place == "cluster"]
    return [",".join(names[part::parts]) for part in range(parts)]


def main() -> None:
    """Read the arguments; with `--shares N` print the kinds of a cluster in N lines instead."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", default="", help="the seeds of the runs, divided by commas, to be told")
    parser.add_argument("--shares", type=int, default=0)
    given = parser.parse_args()
    if given.shares:
        sys.stdout.write("\n".join(shares(given.shares)) + "\n")
        return
    if given.out is None or not given.folders:
        parser.error(
            "given no folders or no --out; name the work folders of the runs, and where the table goes"
        )
    parts = {folder: read_lines(folder / "faults.jsonl") for folder in given.folders}
    whole = merged(parts, [int(seed) for seed in given.seeds.split(",") if seed])
    given.out.mkdir(parents=True, exist_ok=True)
    # What comes home is this folder: without the single results no table can be made with those of another run.
    lines = [json.dumps(dataclasses.asdict(one)) + "\n" for part in parts.values() for one in part]
    (given.out / "faults.jsonl").write_text("".join(lines))
    (given.out / "faults.json").write_text(json.dumps(whole, indent=1))
    (given.out / "faults.md").write_text(page(whole))
    sys.stdout.write(json.dumps({"runs": whole["runs"], **whole["ratios"]}) + "\n")


if __name__ == "__main__":
    main()
