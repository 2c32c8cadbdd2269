"""Reader and policy trained alone, in turn, and together, at equal updates, on a GPU host without Ray or MLflow.

    python3 -m infra.training.cotrain_gpu --material MATERIAL --reader READER \\
        --adapter models/weights/reader-lora --work WORK --out OUT --seconds 290 --seeds 0 1 2

*Equal terms*: `--gold 0 --oracle 0 --labels 0 --group 4 --epochs 1 --tokens-per-batch 2048`: no run sees a label,
an update by reward is as many readings (questions times 4) and passes as one of the joint run, and the reader
learns from about as many tokens in each.

MATERIAL are folders of `pipeline.tasks.material`, READER a decoder's folder (its vocabulary may be cut). All runs
begin with one policy (--warm, or learned here from labels) and one adapter, over all training questions. `reader`
adapts the reader `--updates` times to what that policy chooses; `policy` learns by reward as often, paid by the
reader as it is; `alternating` does both, in `--marks` rounds; `joint` does both in one loss. Each is kept at as
many marks; dev questions choose one (`cotrain_judge`), which is judged on the test questions: F1 and tokens read by
policy, hybrid and oracle choices, and what they gain on `start`, question by question. Runs are processes, a few
side by side, seed after seed: when the time is up, the last seeds are missing. What is done is kept in WORK. In
OUT, cotrain.jsonl gets a row as soon as there is one (`infra.training.cotrain_rows`), so what was found is there
whatever ends the call; cotrain.json and cotrain.tar (policies and cards) are written anew whenever a run ends. The
page, of the one or the other: infra.training.cotrain_report.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from infra.training.cotrain_judge import judge_run
from infra.training.cotrain_rows import ROWS, Notes, assemble, folder_of, read_rows
from infra.training.cotrain_runs import WARM, Curves, Mark, trained
from infra.training.learners.adapting import ForgivingTokenizer, forgiving_tokenizers
from infra.training.learners.joint import JointSpec
from infra.training.side_by_side import (
    limit_memory,
    pack_results,
    read_json,
    run_side_by_side,
    tell,
    tell_row,
    write_whole,
)
from models.hf.config import HfConfig
from models.retriever.config import RetrieverConfig
from models.retriever.network import PolicyNetwork
from models.retriever.storage import load_policy, save_policy
from models.retriever.supervised import SupervisedConfig, train_supervised
from models.retriever.table import names_for
from pipeline.tasks.material import Material

RUNS = ("start", "reader", "policy", "alternating", "joint")
RESULT = "result.json"
TRAINED = "trained.json"
LEFT_OUT = ("states/", "triples", "readings", "work/", ROWS, "adapter_model")
"""What does not travel: 15 MB an adapter."""


def prepare(given: argparse.Namespace) -> Path:
    """The material of all runs and the policy that they begin with, made once."""
    folder: Path = given.work / "material"
    if not (folder / "manifest.json").exists():
        whole = Material.join([Material.load(each) for each in given.material])
        if given.pairs is not None:
            whole = _with_pairs(whole, given.pairs)
        rows = [
            row
            for dataset in _sets(whole, given.sets)
            for split, most in (("train", given.train), ("dev", given.dev), ("test", given.test))
            for row in whole.rows(split, dataset, answerable=True)[: most or None]
        ]
        about = {"from": [path.name for path in given.material], "features": whole.tables.num_features}
        whole.take(rows).save(folder, about)
    if not (given.work / WARM / "config.json").exists():
        if given.warm is None:
            warm_start(Material.load(folder), given)
        else:
            take_warm(given.warm, given.work / WARM, folder)
    return folder


def take_warm(policy: Path, target: Path, material: Path) -> None:
    """Begin with a policy that another run made over this material; ValueError where it sees other features."""
    network, about = load_policy(policy)
    sees = int(json.loads((material / "manifest.json").read_text())["features"])
    if network.config.num_features > sees:
        raise ValueError(
            f"--warm {policy} sees {network.config.num_features} features, the material has {sees}: give --pairs "
            "the pair reader's folder, or a policy without its features"
        )
    save_policy(network, target, about)


def warm_start(material: Material, given: argparse.Namespace) -> None:
    """A policy learned from labels, on the device: many cores at once would wait for each other."""
    tables = material.tables
    seed = given.seeds[0]
    torch.manual_seed(seed)
    config = RetrieverConfig(
        dim=tables.dim, num_features=tables.num_features, feature_names=names_for(tables.num_features),
        width=96, layers=1, dropout=0.2,
    )  # fmt: skip
    network = PolicyNetwork(config)
    records = train_supervised(
        network, tables.take(material.rows("train")),
        SupervisedConfig(steps=given.warm_steps, seed=seed, limit_s=25.0), device=given.device,
    )  # fmt: skip
    about = {"algorithm": "supervised", "unit": "sentence", "seed": seed, "steps": len(records)}
    save_policy(network.cpu(), given.work / WARM, about)
    tell_row({"warm_steps": float(len(records)), "warm_loss": records[-1]["loss"]})
    if given.device.startswith("cuda"):
        torch.cuda.empty_cache()  # this process only waits from now on


def one_run(name: str, given: argparse.Namespace) -> None:
    """Train as the run's name says and judge what came of it, noting every figure as it comes."""
    out = given.work / folder_of(name, given.seed)
    limit_memory(given.memory, given.device)
    backbone = HfConfig(
        model=str(given.reader), adapter=given.adapter, device=given.device,
        dtype="bfloat16" if given.device.startswith("cuda") else "float32",
    )  # fmt: skip
    notes = Notes(name, given.seed, out / ROWS, given.out / "cotrain.jsonl")
    done = read_json(out / TRAINED)
    if done is None:  # what an earlier call judged was another policy
        (out / ROWS).unlink(missing_ok=True)
        done = _trained(name, given, backbone, out, notes)
    found: Any = done["marks"]
    marks = [
        Mark(int(step), Path(policy), None if adapter is None else Path(adapter))
        for step, policy, adapter in found
    ]
    judge_run(given, backbone, marks, notes)
    notes.add(ended={"tokens_lost": ForgivingTokenizer.lost})
    figures = assemble(notes.rows())[out.name]
    write_whole(out / RESULT, json.dumps(figures))
    tell(json.dumps(figures["judged"]))


def _trained(
    name: str, given: argparse.Namespace, backbone: HfConfig, out: Path, notes: Notes
) -> dict[str, Any]:
    """Train, and note with what and how; the folders of policy and adapter at every mark."""
    began = time.monotonic()
    about = {
        "updates": 0 if name == "start" else given.updates, "adapter": Path(given.adapter).name,
        "terms": {
            key: getattr(given, key)
            for key in ("gold", "oracle", "labels", "questions", "group", "epochs", "tokens_per_batch", "gamma")
        }
        | {"arms": next(each.default for each in fields(JointSpec) if each.name == "arms")},
        "features": json.loads((given.work / "material" / "manifest.json").read_text()).get("features", 0),
    }  # fmt: skip
    notes.add(begun=about)
    curves = Curves(lambda row: notes.add(curve=row))
    marks, training = trained(name, given, backbone, out, curves)
    notes.add(trained={"training": training, "training_seconds": round(time.monotonic() - began, 1)})
    done = {"marks": [[mark.step, str(mark.policy), mark.adapter and str(mark.adapter)] for mark in marks]}
    write_whole(out / TRAINED, json.dumps(done))
    return done


def gather(given: argparse.Namespace, codes: dict[str, int]) -> int:
    """Write OUT/cotrain.json and OUT/cotrain.tar of all that was judged so far."""
    names = list(runs_of(given).values())
    found = assemble(row for name in names for row in read_rows(given.work / name / ROWS))
    for name, figures in found.items():
        figures["code"] = codes.get(name)
    write_whole(given.out / "cotrain.json", json.dumps(found))
    kept = {name: given.work / name for name in (*found, WARM) if (given.work / name).exists()}
    pack_results(kept, given.out / "cotrain.tar", LEFT_OUT)
    for name, figures in found.items():
        for dataset, points in figures["judged"].items():
            shown = {key: [each["f1"], each["forced_f1"], each["tokens"]] for key, each in points.items()}
            tell(f"{name} {dataset} (F1, made to answer, tokens): {json.dumps(shown)}")
    return 0 if found else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare, start the runs, wait for them, gather what they found; or be one of them (--run)."""
    given = _parser().parse_args(arguments)
    began = time.monotonic()
    if given.run:
        with forgiving_tokenizers():
            one_run(given.run, given)
        return 0
    prepare(given)
    earlier = [
        path.read_text() for name in runs_of(given).values() if (path := given.work / name / ROWS).exists()
    ]
    write_whole(given.out / "cotrain.jsonl", "".join(earlier))
    left = given.seconds - (time.monotonic() - began)
    told = list(sys.argv[1:] if arguments is None else arguments)
    # loading and judging take their share of each seed's part of the time
    training = str(given.training or max(10.0, min(110.0, left / len(given.seeds) - 60.0)))
    commands = {
        folder: [
            "-m", "infra.training.cotrain_gpu", *told, "--run", name, "--seed", str(seed), "--training", training,
        ]
        for (name, seed), folder in runs_of(given).items()
        if read_json(given.work / folder / RESULT) is None
    }  # fmt: skip
    codes = run_side_by_side(
        commands,
        given.work / "logs",
        left,
        at_once=given.at_once,
        on_end=lambda so_far: gather(given, so_far),
    )
    return gather(given, codes)


def runs_of(given: argparse.Namespace) -> dict[tuple[str, int], str]:
    """Every run's name and seed with its folder, in the order in which they are started: seed by seed."""
    seeds = {name: given.seeds[:1] if name == "start" else given.seeds for name in given.runs}
    return {
        (name, seed): folder_of(name, seed)
        for seed in given.seeds
        for name in given.runs
        if seed in seeds[name]
    }


def _sets(material: Material, wanted: Sequence[str]) -> list[str]:
    """The sets that are trained and judged on: all, or those named; ValueError where one is not there."""
    there = {question.dataset for question in material.questions}
    if lacking := set(wanted) - there:
        raise ValueError(f"--sets: given {sorted(lacking)}; the material has {', '.join(sorted(there))}")
    return sorted(wanted or there)


def _with_pairs(material: Material, folder: Path) -> Material:
    """With a pair reader's features, where it has left them all; without them the policy has fewer features."""
    from infra.training.policy_pairs import pairs_seen, with_scores

    seen = pairs_seen(folder)
    try:
        return with_scores(material, seen if seen.exists() else folder)
    except (FileNotFoundError, ValueError) as error:
        tell(f"without the pair reader's features: {error}")
        return material


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--material", type=Path, nargs="+", required=True)
    parser.add_argument("--pairs", type=Path, help="a run of policy_gpu, or its pair reader's folder")
    parser.add_argument("--reader", type=Path, required=True, help="folder of the decoder")
    parser.add_argument("--adapter", default="none", help="folder of the adapter to begin with")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--sets", nargs="+", default=[], help="of the material's questions (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=6, help="processes side by side")
    parser.add_argument("--memory", type=float, default=0.15, help="share of the device that each may take")
    parser.add_argument(
        "--warm", type=Path, help="a policy of this material to begin with (default: made here)"
    )
    parser.add_argument("--updates", type=int, default=60, help="of each part")
    parser.add_argument(
        "--marks", type=int, default=3, help="how often a run is kept for dev; rounds in turn"
    )
    parser.add_argument("--questions", type=int, default=32, help="of a policy's iteration or a joint part")
    parser.add_argument("--tokens-per-batch", type=int, default=4096, help="of an update of the reader")
    parser.add_argument("--train", type=int, default=0, help="training questions of a set, at most (0: all)")
    parser.add_argument("--dev", type=int, default=80, help="dev questions of a set, at most (0: all)")
    parser.add_argument("--test", type=int, default=200, help="test questions of a set, at most (0: all)")
    parser.add_argument("--budget", type=int, default=128, help="tokens that training may read")
    parser.add_argument("--budgets", type=int, nargs="+", default=[128], help="judged")
    parser.add_argument("--gamma", type=float, default=0.0005, help="price of a token, by reward or loss")
    parser.add_argument(
        "--gold", type=float, default=0.2, help="paid where the choice tells by its labels (0: never)"
    )
    parser.add_argument("--labels", type=float, default=0.0, help="weight of labels in the joint run's loss")
    parser.add_argument(
        "--oracle", type=float, default=0.3,
        help="share of the reader's contexts, alone and in turn, that are the labelled sentence (0: no labels)",
    )  # fmt: skip
    parser.add_argument("--group", type=int, default=8, help="episodes a question of an iteration by reward")
    parser.add_argument(
        "--epochs", type=int, default=4, help="passes over an iteration's episodes; the joint run makes one"
    )
    parser.add_argument("--lr", type=float, default=5e-5, help="of the reader")
    parser.add_argument("--ppo-lr", type=float, default=3e-4, help="of the policy by reward")
    parser.add_argument("--policy-lr", type=float, default=3e-4, help="of the policy in the joint run")
    parser.add_argument("--warm-steps", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=290.0, help="of everything")
    parser.add_argument(
        "--training", type=float, default=0.0, help="of a run's training (0: by what is left)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--run", choices=RUNS, help="be this run")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
