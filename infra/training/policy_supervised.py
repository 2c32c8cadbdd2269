"""The supervised policy against simple methods on a CPU: recall by seeds, then F1 with the reader; restartable.

    python -m infra.training.policy_supervised --material build/policy/nq_open build/policy/squad2 \\
        --out build/policy-cpu --bench infra/bench/results/2026-11-22_policy_supervised_cpu --read 80 --seconds 400

Policies and readings are kept in OUT as they are made; started again it goes on. Of each set the first `--read`
test questions are read by the first seed's policy; STOP's bias is chosen on training questions.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.console import say
from infra.evaluation.choice_recall import recall
from infra.evaluation.policy_judge import choose, gap_closed, judge, paired, stop_bias_for
from infra.training.kept_page import keep_as
from models.retriever.config import RetrieverConfig
from models.retriever.network import PolicyNetwork
from models.retriever.storage import load_policy, save_policy
from models.retriever.supervised import SupervisedConfig, train_supervised
from models.retriever.table import FEATURES
from pipeline.errors import StoppedEarly
from pipeline.tasks.material import Material
from rl.episodes import OutcomeReader, Readings, Request, fingerprint

SIMPLE = ("random", "bm25", "dense", "hybrid", "oracle")
BUDGETS = (64, 128)
Rows = Any


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--material", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--bench", type=Path, help="where results go, without ending (.json and .md are added)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--read", type=int, default=0, help="test questions of a set that the reader answers")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    given = parser.parse_args()
    until = time.monotonic() + given.seconds
    material = Material.join([Material.load(folder) for folder in given.material])
    networks = [_trained(material, seed, given) for seed in given.seeds if time.monotonic() < until]
    results: dict[str, Any] = {
        "bench": "policy_supervised", "device": "cpu", "seeds": given.seeds, "steps": given.steps,
        "training_questions": len(material.rows("train", answerable=True)), "sets": {}, "reader": {}, "ratios": {},
    }  # fmt: skip
    for dataset in sorted({question.dataset for question in material.questions}):
        rows = material.rows("test", dataset, answerable=True)
        results["sets"][dataset] = _recalls(material, rows, networks)
    readings = _readings(material, given) if given.read else None
    try:
        for dataset in results["sets"]:
            if readings is None:
                break
            rows = material.rows("test", dataset, answerable=True)[: given.read]
            results["reader"][dataset] = _answers(
                material, rows, networks[0], readings, given, until, results
            )
    except StoppedEarly as stopped:
        say(str(stopped))
    if given.bench is not None:
        keep_as(given.bench, results, page(results))
    say(json.dumps(results["ratios"]))


def _trained(material: Material, seed: int, given: argparse.Namespace) -> PolicyNetwork:
    folder = given.out / f"supervised-{seed}"
    if (folder / "config.json").exists():
        return load_policy(folder)[0]
    rows = material.rows("train", answerable=True)
    torch.manual_seed(seed)
    network = PolicyNetwork(
        RetrieverConfig(
            dim=material.tables.dim, num_features=material.tables.num_features, feature_names=FEATURES,
            width=96, layers=1, dropout=0.3,
        )  
    )  # fmt: skip
    config = SupervisedConfig(steps=given.steps, seed=seed, vector_noise=0.05, weight_decay=0.05)
    records = train_supervised(network, material.tables.take(rows), config)
    about = {
        "algorithm": "supervised", "unit": "sentence", "embedder": "minilm", "seed": seed, "steps": len(records),
        "candidates": material.tables.num_candidates, "training_questions": len(rows),
    }  # fmt: skip
    save_policy(network, folder, about)
    say(f"seed {seed}: loss {np.mean([each['loss'] for each in records[-30:]]):.3f}")
    return network


def _recalls(material: Material, rows: Rows, networks: Sequence[PolicyNetwork]) -> dict[str, Any]:
    """Share of questions whose choice holds the telling sentence, simple methods and each seed."""
    part = material.take(rows)
    found: dict[str, Any] = {}
    for budget in BUDGETS:
        for method in SIMPLE:
            found[f"{method}_{budget}"] = recall(part.tables, choose(part, method, budget))
        each = [recall(part.tables, choose(part, "filled", budget, network=network)) for network in networks]
        gold = [figures["gold"] for figures in each]
        found[f"policy_{budget}"] = {**each[0], "gold": round(float(np.mean(gold)), 2), "gold_by_seed": gold}
    return found


def _answers(
    material: Material, rows: Rows, network: PolicyNetwork, readings: Readings, given: argparse.Namespace,
    until: float, results: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """F1 of the reader over what each method chooses; raises StoppedEarly with the readings kept."""
    part, dataset = material.take(rows), material.questions[int(rows[0])].dataset
    tuning = material.take(material.rows("train", dataset, answerable=True)[:150])
    bias = stop_bias_for(network, tuning, 128, 64.0)
    points = [(method, method, budget, 0.0) for budget in BUDGETS for method in ("hybrid", "dense")]
    points += [("policy fills", "filled", budget, 0.0) for budget in BUDGETS]
    points += [("policy stops", "policy", 128, bias), ("policy stops at once", "policy", 128, 0.0)]
    points.append(("oracle", "oracle", 128, 0.0))
    found: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    for name, method, budget, stop_bias in points:
        chosen = choose(part, method, budget, network=network, stop_bias=stop_bias)
        asked: list[Request] = [(int(row), tuple(c.picks)) for row, c in zip(rows, chosen, strict=True)]
        for start in range(0, len(asked), 16):
            if time.monotonic() > until:
                raise StoppedEarly(f"stopped with {len(readings)} readings kept; start again to go on")
            new = [request for request in asked[start : start + 16] if not readings.knows(*request)]
            readings.read(asked[start : start + 16])
            if new:
                readings.save(given.out / "readings.npz")
        found[f"{name} {budget}"], scores[f"{name} {budget}"] = judge(part, rows, chosen, readings)
    simple = max(
        (key for key in found if key.split()[0] in ("hybrid", "dense")), key=lambda k: found[k]["forced_f1"]
    )
    within = [
        k for k in found if k.startswith("policy") and found[k]["tokens"] <= found[simple]["tokens"] + 1
    ]
    ours = max(within, key=lambda key: found[key]["forced_f1"]) if within else ""
    ratios = results["ratios"]
    ratios[f"best_simple_f1_{dataset}"] = found[simple]["forced_f1"]
    ratios[f"best_simple_tokens_{dataset}"] = found[simple]["tokens"]
    if ours:
        ratios[f"supervised_f1_{dataset}"] = found[ours]["forced_f1"]
        ratios[f"supervised_tokens_{dataset}"] = found[ours]["tokens"]
        ratios[f"gap_closed_supervised_{dataset}"] = gap_closed(
            found[ours]["forced_f1"], found[simple]["forced_f1"], found["oracle 128"]["forced_f1"]
        )
        found["paired"] = {"ours": ours, "simple": simple, **paired(scores[ours], scores[simple])}
    return found


def _readings(material: Material, given: argparse.Namespace) -> Readings:
    from models.hf import HfBackbone, HfConfig
    from pipeline.tasks.reading import MaterialReader, voice_of

    reader = MaterialReader(
        material, voice_of(HfBackbone.load(HfConfig(device="cpu")), adapted=True), want_loss=False
    )
    readings = Readings(OutcomeReader(reader), fingerprint(material))
    if (given.out / "readings.npz").exists():
        readings.load(given.out / "readings.npz")
    return readings


def page(results: dict[str, Any]) -> str:
    """The results as a page that a person reads."""
    lines = [
        "# The policy, supervised only, against simple methods (CPU)",
        "",
        f"{results['training_questions']} training questions, {results['steps']} steps, seeds {results['seeds']};"
        " test questions share no gold title with them. All methods choose among the same 40 sentences of the ten",
        "passages that BM25 and MiniLM find together. Command: the head of `infra/training/policy_supervised.py`.",
        "",
        "Telling sentence read (of the questions that have it among the candidates), percent:",
        "",
        "| set | n | tokens | random | bm25 | dense | hybrid | policy (mean; seeds) | oracle |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for dataset, found in results["sets"].items():
        for budget in BUDGETS:
            cells = [found[f"{method}_{budget}"]["gold"] for method in ("random", "bm25", "dense", "hybrid")]
            ours = found[f"policy_{budget}"]
            seeds = ", ".join(map(str, ours["gold_by_seed"]))
            lines.append(
                f"| {dataset} | {ours['n']} | {budget} | " + " | ".join(map(str, cells))
                + f" | {ours['gold']} ({seeds}) | {found[f'oracle_{budget}']['gold']} |"
            )  # fmt: skip
    for dataset, found in results["reader"].items():
        lines += ["", f"Read by the adapted Gemma-3-270M, {dataset}:", ""]
        lines += ["| read | tokens | tells | F1 | made to answer |", "| --- | --- | --- | --- | --- |"]
        for name, figures in found.items():
            if name != "paired":
                row = " | ".join(str(figures[key]) for key in ("tokens", "gold", "f1", "forced_f1"))
                lines.append(f"| {name} | {row} |")
        if "paired" in found:
            told = found["paired"]
            lines += [
                "",
                f"{told['ours']} minus {told['simple']}, made to answer, paired: {told['gain']} points "
                f"(95% {told['low']} to {told['high']}).",
            ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
