"""The page of a reader that learned to read its compressed cache: nats an answer token, by how contexts are held.

python -m infra.training.latents_report --found OUT/latents.json --bench infra/bench/results/NAME
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from infra.training.cotrain_report import without_paths
from infra.training.kept_page import keep, page_parser

SHOWN = (("start", "as it is"), ("latents", "trained over compressed"), ("full", "trained over full"))


def ships(found: dict[str, Any]) -> tuple[bool, str]:
    """Whether `latents` is better than start and control in every compressed form and no worse in full, and why.

    A cell counts as better by 0.01 nats and more, full contexts may lose as much.
    """
    if not {"start", "latents", "full"} <= found.keys():
        return False, f"not all runs were judged: {', '.join(sorted(found))}"
    ours = found["latents"]["judged"]
    for other in ("start", "full"):
        for cell, figures in found[other]["judged"].items():
            compressed = cell not in ("full", "golds")
            gain = figures["nats_all"] - ours[cell]["nats_all"]
            if compressed and gain < 0.01:
                return False, f"at {cell} it gains {gain:.3f} nats on `{other}`; wanted 0.01"
            if not compressed and other == "start" and gain < -0.01:
                return False, f"at {cell} it loses {-gain:.3f} nats on `{other}`; allowed 0.01"
    return True, "better in every compressed form, no worse in full"


def page(found: dict[str, Any], device: str) -> str:
    """The figures as tables."""
    runs = [(name, shown) for name, shown in SHOWN if name in found]
    lines = [f"# A reader that reads its compressed cache ({device})", ""]
    for name, shown in runs:
        about = found[name]["about"]
        if about.get("steps"):
            lines.append(
                f"`{name}` ({shown} contexts): {about['steps']} updates of {about['accumulate']} contexts with "
                f"four questions, {about['seconds']} s, seed {about['seed']}, {about.get('groups', 0):,} groups."
            )
    lines += [
        "",
        "Command: the head of `infra/training/reader_latents.py`. Nats an answer token over test contexts of 24 "
        "passages (less is better), share of tokens right in brackets; gain on the start.",
        "",
    ]
    sets = sorted({
        key.removeprefix("nats_") for figures in found[runs[0][0]]["judged"].values() for key in figures
        if key.startswith("nats_") and key != "nats_all"
    })  # fmt: skip
    for part in ("all", *sets):
        lines += [f"## {part}", "", f"| context held | {' | '.join(shown for _, shown in runs)} |"]
        lines.append("| --- |" + " --- |" * len(runs))
        for cell in found[runs[0][0]]["judged"]:
            begun = found["start"]["judged"][cell] if "start" in found else None
            cells = [_cell(found[name]["judged"].get(cell), begun, part, name) for name, _ in runs]
            lines.append(f"| {cell.replace('_', ' ')} | {' | '.join(cells)} |")
        lines.append("")
    good, why = ships(found)
    return "\n".join([*lines, f"{'May ship' if good else 'Does not ship'}: {why}."]) + "\n"


def _cell(figures: dict[str, float] | None, begun: dict[str, float] | None, part: str, name: str) -> str:
    if figures is None or f"nats_{part}" not in figures:
        return ""
    told = f"{figures[f'nats_{part}']:.3f} ({100 * figures[f'right_{part}']:.0f}%)"
    if name == "start" or begun is None:
        return told
    return f"{told}, {begun[f'nats_{part}'] - figures[f'nats_{part}']:+.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    given = page_parser(__doc__, "latents.json of reader_latents", device=True).parse_args(arguments)
    found = without_paths(json.loads(given.found.read_text(encoding="utf-8")))
    good, why = ships(found)
    result = {"bench": "reader_latents", "device": given.device, "ships": good, "why": why, "runs": found}
    keep(given, result, page(found, given.device))


if __name__ == "__main__":
    main()
