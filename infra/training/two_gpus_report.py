"""The page of a two-GPU run: how far one and two workers agree step by step, and what the second GPU brings.

python -m infra.training.two_gpus_report --found OUT/two_gpus.json --bench infra/bench/results/NAME
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TERMS = (
    ("loss", "loss"), ("language", "language modelling"), ("answers", "answers"), ("contrastive", "contrastive"),
    ("norm", "gradient norm"),
)  # fmt: skip


def page(found: dict[str, Any]) -> str:
    """The figures as tables."""
    workers = found["workers"]
    one, many = (found[f"tokens_per_s_{size}"] for size in (1, workers))
    lines = [
        f"# {workers} GPUs against one: the same steps ({found['device']})", "",
        f"The subq recipe, {found['steps_compared']} steps of {found['accumulate']} parts on one worker and on "
        f"{workers} (NCCL, {found['launcher']}, {'eager' if found['eager'] else 'compiled'}, torch "
        f"{found['torch']}). Command: the head of `infra/training/train_two_gpus.py`.", "",
        "| relative difference of | first step | most within 10 steps | median | most |",
        "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, shown in TERMS:
        if f"{name}_apart_first" in found:
            cells = [found[f"{name}_apart_{what}"] for what in ("first", "within_10", "median", "most")]
            lines.append(f"| {shown} | {' | '.join(f'{value:.1e}' for value in cells)} |")
    seconds = found["seconds"]
    lines += [
        "", "| | one | " + str(workers) + " |", "| --- | --- | --- |",
        f"| tokens a second (median step, the first {found['skipped']} left out) | {one:,.0f} | {many:,.0f} |",
        f"| share of the devices' dense bf16 peak | {found['peak_share_1']:.3f} | "
        f"{found[f'peak_share_{workers}']:.3f} |",
        f"| most memory of a worker, GB | {found['peak_bytes_1'] / 1e9:.1f} | "
        f"{found[f'peak_bytes_{workers}'] / 1e9:.1f} |",
        f"| whole run, s | {seconds['whole_1']:.0f} | {seconds[f'whole_{workers}']:.0f} |",
        "| of that around the steps (imports, data, the model and its writing), s | "
        f"{_of(found, 'around_steps_s')} |",
        f"| of that the first step, s | {_of(found, 'first_step_s')} |", "",
        f"Scaling efficiency {found['scaling_efficiency']:.3f} (tokens a second over {workers} times one's).",
    ]  # fmt: skip
    if found.get("kept") and len(found["kept"]) == 1:
        lines += [
            "", f"The run of {found['kept'][0]} worker(s) was made in an earlier call than the other: the host may "
            "have been busier in one of them.",
        ]  # fmt: skip
    if found.get("ray_failed"):
        lines += ["", f"Ray did not start there: {found['ray_failed']}"]
    return "\n".join(lines) + "\n"


def _of(found: dict[str, Any], name: str) -> str:
    sizes = ("1", str(found["workers"]))
    return " | ".join(f"{found[name][size]:.0f}" if size in found.get(name, {}) else "" for size in sizes)


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--found", type=Path, required=True, help="two_gpus.json of train_two_gpus")
    parser.add_argument("--bench", type=Path, required=True, help="where results go, without ending")
    parser.add_argument("--note", default="", help="added at the page's end")
    given = parser.parse_args(arguments)
    found = json.loads(given.found.read_text())
    results = {"bench": "two_gpus", **found}
    given.bench.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    given.bench.with_suffix(".md").write_text(page(found) + (f"\n{given.note}\n" if given.note else ""))


if __name__ == "__main__":
    main()
