"""The page of infra.training.subq_choices: what each choice of the backbone costs and gives.

    python -m infra.training.subq_choices_page KEPT.json NEW/subq-choices.json --out PAGE   # PAGE.json and PAGE.md

Choices of several jobs on one page, where they were trained on the same batches with as many updates.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SAME = ("seed", "steps", "tokens")


def page(summary: dict[str, Any]) -> str:
    """A line for each choice: size, seconds, nats a token with reading and without, keys by length."""
    runs = summary["runs"]
    lines = [f"# The backbone's choices side by side, {summary['device']}", ""]
    if not runs:
        return "\n".join([*lines, "No choice has been judged yet."]) + "\n"
    lengths = [row["length"] for row in runs[0]["rows"]]
    lines += [
        f"{runs[0]['tokens']:,} tokens in {runs[0]['steps']} updates on the same batches, seed {runs[0]['seed']}; "
        f"{summary['jobs']} at a time on the device, so that seconds compare only roughly. Keys: "
        f"{runs[0]['rows'][0]['n']} of known wording in one text (5 and 16 digits), exact match / every gold chunk "
        "read, %. Nats a token of unseen text, a quarter of context left out.", "",
        "| choice | parameters | seconds | GB | nats | without reading | "
        + " | ".join(f"{n:,}" for n in lengths) + " |",
        "|" + " --- |" * (6 + len(lengths)),
    ]  # fmt: skip
    for run in runs:
        keys = " | ".join(f"{row['exact']} / {row['recall']}" for row in run["rows"])
        lines.append(
            f"| {run['choice']} | {run['parameters']:,} | {run['train_seconds']} | {run['peak_bytes'] / 1e9:.1f} "
            f"| {run['language']['with_retrieval']} | {run['language']['without']} | {keys} |"
        )
    return "\n".join(lines) + "\n"


def merged(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One summary of all choices, a later one in place of an earlier of its name; `jobs` is the first one's.

    ValueError where seed, updates, tokens or lengths differ: such rows do not compare.
    """
    found: dict[str, dict[str, Any]] = {}
    ratios: dict[str, float] = {}
    first: tuple[Any, ...] | None = None
    for summary in summaries:
        ratios |= summary["ratios"]
        for run in summary["runs"]:
            alike = (*(run[name] for name in SAME), [row["length"] for row in run["rows"]])
            first = first or alike
            if alike != first:
                raise ValueError(
                    f"{run['choice']}: given {', '.join(SAME)} and lengths {alike}, but the first choice has "
                    f"{first}; train it on the same batches"
                )
            found[run["choice"]] = run
    return {**summaries[0], "runs": list(found.values()), "ratios": ratios}


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("summaries", type=Path, nargs="+", help="kept result first")
    parser.add_argument("--out", type=Path, required=True, help="page without its ending")
    given = parser.parse_args(arguments)
    whole = merged([json.loads(path.read_text(encoding="utf-8")) for path in given.summaries])
    given.out.with_suffix(".json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    given.out.with_suffix(".md").write_text(page(whole), encoding="utf-8")


if __name__ == "__main__":
    main()
