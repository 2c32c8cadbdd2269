"""The page of a landmark run: recall by corpus and set, beside methods of equal and of more bytes.

python -m infra.training.landmark_report --found OUT/landmark.json --bench infra/bench/results/NAME
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.training.kept_page import keep, page_parser

METHODS = (
    ("", "head, float32"),
    ("int8", "head, 8 bits"),
    ("minilm128", "MiniLM cut to 128, 8 bits"),
    ("minilm", "MiniLM, float32"),
    ("bm25", "BM25"),
    ("fused_ours", "head in 8 bits + BM25"),
    ("fused128", "MiniLM cut to 128 + BM25"),
    ("fused", "MiniLM + BM25"),
)
KS = (1, 5, 20)


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """Recall@5 of each run's head in 8 bits over that of MiniLM at the same bytes, by corpus."""
    return {
        f"landmark_recall5_over_minilm128_{run}_{corpus}": round(
            judged["all"]["int8_recall_5"] / judged["all"]["minilm128_recall_5"], 4
        )
        for run, figures in found.items()
        for corpus, judged in figures["judged"].items()
        if judged["all"].get("minilm128_recall_5")
    }


def page(found: dict[str, Any]) -> str:
    """The figures as tables."""
    lines = ["# Landmark head of Gemma-3-270M (H200)", ""]
    for run, figures in found.items():
        about = figures["about"]
        lines += [f"## Run `{run}`", "", _told(run, about), ""]
        for corpus, judged in figures["judged"].items():
            sets = judged["sets"]
            lines.append(f"Recall over {int(judged['all']['searched']):,} {corpus}, percent at 1 / 5 / 20:")
            heads = [f"{name} (n = {each['n']})" for name, each in sets.items()]
            lines += ["", f"| method | bytes a text | all | {' | '.join(heads)} |"]
            lines.append("| --- | --- | --- |" + " --- |" * len(sets))
            for name, shown in METHODS:
                if f"{name}_recall_1".lstrip("_") not in judged["all"]:
                    continue
                cells = [_cell(judged["all"], name), *(_cell(each, name) for each in sets.values())]
                lines.append(f"| {shown} | {_bytes(about, name)} | {' | '.join(cells)} |")
            lines.append("")
        lines += _curve(figures["curve"])
    return "\n".join(lines).rstrip() + "\n"


def _told(run: str, about: dict[str, Any]) -> str:
    """What a run learned from."""
    taught = "" if about.get("taught") in (None, "None") else (
        f"taught by MiniLM on {about['taught_texts']:,} texts, {about['passages']} passages a part; "
    )  # fmt: skip
    learned = f"{about['training_questions']:,} labelled questions, {about['questions']} an update"
    return (
        f"Run `{run}`: {about.get('method', 'frozen')}, {taught}{learned}; {about['steps']:,} updates, "
        f"{about.get('tokens', 0):,} tokens, {about['seconds']} s, seed {about['seed']}. Command: the head of "
        "`infra/training/landmark_gpu.py`."
    )


def _curve(curve: Sequence[dict[str, float]]) -> list[str]:
    """Some steps of the terms, and every look at the questions kept back."""
    terms = [name for name in ("contrastive", "direct", "ranked", "first") if curve and name in curve[0]]
    told = [curve[at] for at in range(0, len(curve), max(1, len(curve) // 8))]
    looks = [row for row in curve if "dev_recall_5" in row]
    lines = [
        "In training (terms of the loss; `first`: share of questions that put their known text first in its part):",
        "", f"| step | {' | '.join(terms)} |", "| --- |" + " --- |" * len(terms),
    ]  # fmt: skip
    lines += [f"| {row['step']} | {' | '.join(f'{row[name]:.3f}' for name in terms)} |" for row in told]
    if looks:
        shown = ", ".join(f"{100 * row['dev_recall_5']:.0f} ({row['step']})" for row in looks)
        lines += ["", f"Recall@5 of questions kept back, percent (step): {shown}."]
    return [*lines, ""]


def _cell(figures: dict[str, float], name: str) -> str:
    return " / ".join(f"{100 * figures[f'{name}_recall_{k}'.lstrip('_')]:.1f}" for k in KS)


def _bytes(about: dict[str, Any], name: str) -> str:
    known = about.get("bytes_a_text", {})
    of = {"": "ours", "fused_ours": "int8", "fused128": "minilm128", "fused": "minilm"}
    told = known.get(of.get(name, name))
    return "postings" if told is None else f"{told}{' + postings' if name.startswith('fused') else ''}"


def _named(value: Any) -> Any:
    """The same with the last parts of paths alone: where things lay on a host matters to nobody."""
    if isinstance(value, dict):
        return {name: _named(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_named(each) for each in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    given = page_parser(__doc__, "landmark.json of landmark_gpu", device=True).parse_args(arguments)
    found = _named(json.loads(given.found.read_text(encoding="utf-8")))
    result = {"bench": "landmark", "device": given.device, "runs": found, "ratios": ratios(found)}
    keep(given, result, page(found))


if __name__ == "__main__":
    main()
