"""How early each pair reader of a run finds what tells, and how it was trained: a kept result with its page.

    python -m infra.training.policy_ranks_page --home build/policy-home --out infra/bench/results/NAME --commit HASH

`--home` is what `policy_collect` unpacked: ranks.json, and the configurations of pair readers and of their sum.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.training.kept_page import DEVICE, keep_lines
from infra.training.policy_pairs import FOLDS, KINDS, PAIRS_BOTH, PLACES
from infra.training.policy_ranks import RANKS, table_of
from models.retriever.pair_reader import CONFIG

FIGURES = ("steps", "steps_planned", "loss", "right", "seconds", "lr", "candidates", "around")
"""Of what a pair reader says about its training, what is kept."""


def result_of(home: Path, device: str, commit: str) -> dict[str, Any]:
    """The ranks, each training's figures and the weights of the sum; FileNotFoundError without ranks.json."""
    trained = {}
    for kind in KINDS:
        for fold in ("made", *FOLDS):
            path = home / PLACES[kind] / fold / CONFIG
            if path.is_file():
                about = json.loads(path.read_text(encoding="utf-8"))["about"]
                trained[f"{kind} {fold}"] = {name: about[name] for name in FIGURES if name in about}
    both = home / PAIRS_BOTH / FOLDS[-1] / CONFIG
    told = json.loads(both.read_text(encoding="utf-8")) if both.is_file() else {"parts": [], "weights": []}
    return {
        "bench": "policy_ranks", "device": device, "commit": commit,
        "weights": dict(zip(told["parts"], told["weights"], strict=True)), "trained": trained,
        "ranks": json.loads((home / RANKS).read_text(encoding="utf-8")),
    }  # fmt: skip


def page(result: Mapping[str, Any], preface: str = "") -> str:
    """The result in Markdown."""
    weights = ", ".join(f"{name} {value:.3f}" for name, value in result["weights"].items())
    lines = [
        f"# Orders of pair readers ({result['device']})", "",
        f"Commit {result['commit']}; command: the head of `infra/training/policy_ranks_page.py`.", "",
        *([preface.rstrip(), ""] if preface else []),
        "How often one that tells is among the first 1, 2, 4 (% of the questions whose candidates hold it):", "",
        table_of(result["ranks"], "test"), "", table_of(result["ranks"], "dev"), "",
        f"Weights of the sum, by likelihood of training questions' labels under folds: {weights or 'no sum'}.", "",
        f"| reader | {' | '.join(FIGURES)} |", "| --- |" + " --- |" * len(FIGURES),
    ]  # fmt: skip
    for name, told in result["trained"].items():
        lines.append(f"| {name} | {' | '.join(str(told.get(figure, '')) for figure in FIGURES)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the result, without ending")
    parser.add_argument("--commit", required=True, help="what was run")
    parser.add_argument("--device", default=DEVICE)
    parser.add_argument("--preface", type=Path, help="a text that stands before the figures")
    given = parser.parse_args(arguments)
    result = result_of(given.home, given.device, given.commit)
    preface = given.preface.read_text(encoding="utf-8") if given.preface else ""
    keep_lines(given.out, result, page(result, preface))


if __name__ == "__main__":
    main()
