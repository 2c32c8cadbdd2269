"""The page of a two-GPU run: how far one and two workers agree step by step, and what the second GPU brings.

python -m infra.training.two_gpus_report --found OUT/two_gpus.json --bench infra/bench/results/NAME

A result of a call that was cut off makes a page of what is there, and says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from infra.training.kept_page import keep, page_parser

TERMS = (
    ("loss", "loss"), ("language", "language modelling"), ("answers", "answers"), ("contrastive", "contrastive"),
    ("norm", "gradient norm"),
)  # fmt: skip


def page(found: dict[str, Any]) -> str:
    """The figures as tables."""
    workers = found["workers"]
    tried = found.get("sizes", [1, workers])
    sizes = [size for size in tried if f"tokens_per_s_{size}" in found]
    lines = [
        f"# {workers} GPUs against one: the same steps ({found['device']})", "",
        f"The subq recipe, {found['steps_compared']} steps of {found['accumulate']} parts on one worker and on "
        f"{workers} (NCCL, {found['launcher']}, {'eager' if found['eager'] else 'compiled'}, torch "
        f"{found['torch']}). Command: the head of `infra/training/train_two_gpus.py`.", "",
    ]  # fmt: skip
    if len(found.get("ended", tried)) < len(tried):
        done = ", ".join(f"{size}: {len(found['curves'].get(str(size), []))}" for size in tried)
        lines += [f"**Cut off.** Steps done of {found['steps']}, by workers: {done}.", ""]
    if "scaling_efficiency" in found:
        lines += [
            "| relative difference of | first step | most within 10 steps | median | most |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, shown in TERMS:
            if f"{name}_apart_first" in found:
                cells = [found[f"{name}_apart_{what}"] for what in ("first", "within_10", "median", "most")]
                lines.append(f"| {shown} | {' | '.join(f'{value:.1e}' for value in cells)} |")
        lines.append("")
    lines += [
        "| | " + " | ".join("one" if size == 1 else str(size) for size in sizes) + " |",
        "| --- |" + " --- |" * len(sizes),
        *(f"| {shown} | {' | '.join(_cell(found, name, size, form) for size in sizes)} |"
          for shown, name, form in _measured(found)),
    ]  # fmt: skip
    if "scaling_efficiency" in found:
        efficiency = f"{found['scaling_efficiency']:.3f} (tokens a second over {workers} times one's)"
        lines += ["", f"Scaling efficiency {efficiency}."]
    for size in tried[1:-1]:
        if f"scaling_efficiency_{size}" in found:
            lines.append(
                f"On {size}: {found[f'scaling_efficiency_{size}']:.3f}; loss apart from one worker's by "
                f"{found[f'loss_apart_within_10_of_{size}']:.1e} at most within 10 steps, "
                f"{found[f'loss_apart_most_of_{size}']:.1e} in all."
            )
    if found.get("kept") and len(found["kept"]) < len(tried):
        named = ", ".join(map(str, found["kept"]))
        lines += [
            "", f"The run of {named} worker(s) was made in an earlier call than the other: the host may "
            "have been busier in one of them.",
        ]  # fmt: skip
    if found.get("ray_failed"):
        lines += ["", f"Ray did not start there: {found['ray_failed']}"]
    return "\n".join(lines) + "\n"


def _measured(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What the second table shows: how it is called, where it stands, how it is written."""
    return [
        (f"tokens a second (median step, the first {found['skipped']} left out)", "tokens_per_s", ",.0f"),
        ("share of the devices' dense bf16 peak", "peak_share", ".3f"),
        ("most memory of a worker, GB", "peak_bytes", ".1f"),
        ("whole run, s", "seconds", ".0f"),
        ("of that around the steps (imports, data, the model and its writing), s", "around_steps_s", ".0f"),
        ("of that the first step, s", "first_step_s", ".0f"),
    ]


def _cell(found: dict[str, Any], name: str, size: int, form: str) -> str:
    """A figure of one run; empty where a run that was cut off has none."""
    if name == "seconds":
        value = found["seconds"].get(f"whole_{size}")
    elif name.endswith("_s") and name != "tokens_per_s":
        value = found.get(name, {}).get(str(size))
    else:
        value = found.get(f"{name}_{size}")
    if value is not None and name == "peak_bytes":
        value /= 1e9
    return "" if value is None else format(value, form)


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    given = page_parser(__doc__, "two_gpus.json of train_two_gpus").parse_args(arguments)
    found = json.loads(given.found.read_text(encoding="utf-8"))
    keep(given, {"bench": "two_gpus", **found}, page(found))


if __name__ == "__main__":
    main()
