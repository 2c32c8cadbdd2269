"""The page of a policy run on a GPU, and the weights that it leaves, from what `policy_collect` unpacked.

    python -m infra.training.policy_report --home build/policy-home --commit HASH \\
        --out infra/bench/results/2026-11-29_policy_h200 --ship plain_ppo-0
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.retriever.pair_reader import SHIPPED_PAIR_READER, load_pair_reader
from models.retriever.storage import CONFIG, SHIPPED, WEIGHTS, load_policy

BARS = {"nq": 1 / 3, "squad": 1 / 3, "hotpot": 1 / 4}
KINDS = ("pair", "supervised_without_pair", "supervised", "router", "reinforce", "plain_ppo")
PRICES = ("plain_ppo_gamma0", "plain_ppo", "plain_ppo_gamma0.002", "plain_ppo_stepwise")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True, help="what policy_collect unpacked")
    parser.add_argument("--out", type=Path, help="the result, without ending")
    parser.add_argument("--commit", default="", help="what was run")
    parser.add_argument("--device", default="NVIDIA H200")
    parser.add_argument(
        "--ship", help="the policy that becomes models/weights/retriever, with the pair reader"
    )
    parser.add_argument("--stop-bias", type=float, default=0.0, help="of the shipped policy")
    given = parser.parse_args()
    found = json.loads((given.home / "evaluation.json").read_text(encoding="utf-8"))
    if given.out is not None:
        result = result_of(found, given.device, given.commit)
        given.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        given.out.with_suffix(".md").write_text(page(found, given.device, given.commit), encoding="utf-8")
    if given.ship:
        ship(given.home, given.ship, given.stop_bias)


def result_of(found: Mapping[str, Any], device: str, commit: str) -> dict[str, Any]:
    """The kept result: summary, the curves' main figures, and how each policy was trained."""
    names = ("name", "budget", "stop_bias", "tokens", "gold", "holds", "f1", "forced_f1", "gave_up", "n")
    curves = {
        dataset: {
            split: [{k: p[k] for k in names if k in p} for p in points] for split, points in splits.items()
        }
        for dataset, splits in found["sets"].items()
    }
    records = {
        name: {k: v for k, v in record.items() if k != "curve"} for name, record in found["records"].items()
    }
    return {
        "bench": "policy", "device": device, "commit": commit, "questions": found["questions"],
        "ratios": found["summary"], "policies": records, "sets": curves,
    }  # fmt: skip


def page(found: Mapping[str, Any], device: str, commit: str) -> str:
    """The result as a page that a person reads."""
    summary, sets = found["summary"], list(found["sets"])
    told = "; ".join(
        f"{split} {', '.join(f'{name} {count}' for name, count in counts.items())}"
        for split, counts in found["questions"].items()
    )
    lines = [
        f"# The policy on real questions ({device})",
        "",
        f"Commit {commit or 'unknown'}; command: the head of `infra/training/policy_gpu.py`. Reader: Gemma-3-270M",
        "with the shipped adapter, made to answer. All methods choose among the same 48 sentences of the twelve",
        f"passages that BM25 and MiniLM find together. Questions: {told}.",
        "Budget and STOP's bias of each seed are chosen on dev questions, the best simple method on test ones.",
        "The pair reader costs no token that the reader reads, but two batches of a 22.7M-weight model a question.",
        "",
        "| set | best simple | F1 | tokens | oracle F1 | tokens |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in sets:
        if f"best_simple_{name}" in summary:
            lines.append(
                f"| {name} | {summary[f'best_simple_{name}']} | {summary[f'best_simple_f1_{name}']} | "
                f"{summary[f'best_simple_tokens_{name}']} | {summary[f'oracle_f1_{name}']} | "
                f"{summary[f'oracle_tokens_{name}']} |"
            )
    lines += ["", "At no more tokens than the best simple method:", ""]
    lines += [
        "| set | method | F1 (seeds) | tokens | gap closed | over simple (95%) | tokens at equal F1, F1 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in sets:
        for kind in KINDS:
            if f"{kind}_f1_{name}" in summary:
                lines.append(_row(summary, name, kind))
    lines += ["", "What a token's price buys (PPO, seed 0; its own STOP, budget 256, test questions):", ""]
    lines += ["| set | " + " | ".join(PRICES) + " |", "| --- |" + " --- |" * len(PRICES)]
    for name in sets:
        cells = [_own_stop(found["sets"][name].get("test", ()), f"{kind}-0") for kind in PRICES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Against the bars:", ""]
    for name in sets:
        if (closed := summary.get(f"gap_closed_{name}")) is not None:
            gain = summary.get(f"rl_over_supervised_{name}", {})
            bar = BARS.get(name, 1 / 3)
            ratio = summary.get(f"tokens_ratio_at_equal_f1_{name}", "not reached")
            lines.append(
                f"* {name}: `gap_closed_{name}` {closed} ({'holds' if closed >= bar else 'misses'} {bar:.2f}); "
                f"simple's tokens over ours at equal F1: {ratio}; reward over "
                f"supervised {gain.get('gain')} points ({gain.get('low')} to {gain.get('high')})."
            )
    return "\n".join(lines) + "\n"


def ship(home: Path, name: str, stop_bias: float) -> None:
    """Put a policy and the pair reader into models/weights; both must load."""
    source, pair = home / "policies" / name / "policy", home / "pairs" / "whole"
    network, about = load_policy(source)
    load_pair_reader(pair)
    for target, files in ((SHIPPED, (WEIGHTS, CONFIG)), (SHIPPED_PAIR_READER, None)):
        target.mkdir(parents=True, exist_ok=True)
        folder = source if files else pair
        for path in folder.iterdir():
            if path.suffix != ".npz" and (files is None or path.name in files):
                shutil.copy(path, target / path.name)
    body = json.loads((SHIPPED / CONFIG).read_text(encoding="utf-8"))
    body["about"] = {**about, "stop_bias": stop_bias, "data": "nq_open, squad2, hotpotqa"}
    (SHIPPED / CONFIG).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in SHIPPED_PAIR_READER.iterdir())
    print(f"{name}: {network.config.num_features} features; pair reader {size / (1 << 20):.1f} MiB")  # noqa: T201


def _row(summary: Mapping[str, Any], name: str, kind: str) -> str:
    over = summary[f"{kind}_over_simple_{name}"]
    seeds = summary[f"{kind}_f1_seeds_{name}"]
    equal = summary.get(f"{kind}_equal_f1_{name}")
    told = f"{equal['tokens']}, {equal['f1']}" if equal else "not reached"
    each = f" ({', '.join(map(str, seeds))})" if len(seeds) > 1 else ""
    return (
        f"| {name} | {kind} | {summary[f'{kind}_f1_{name}']}{each} | {summary[f'{kind}_tokens_{name}']} | "
        f"{summary[f'{kind}_gap_closed_{name}']} | {over['gain']} ({over['low']} to {over['high']}) | {told} |"
    )


def _own_stop(curve: Sequence[Mapping[str, Any]], name: str) -> str:
    points = [p for p in curve if p["name"] == name and p["stop_bias"] == 0]
    if not points:
        return "not run"
    point = max(points, key=lambda p: p["budget"])
    return f"F1 {point['forced_f1']} at {point['tokens']} tokens"


if __name__ == "__main__":
    main()
