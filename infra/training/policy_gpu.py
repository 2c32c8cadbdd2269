"""The retriever's policy on a GPU host without Ray or MLflow: material, pair reader, readings, learning, judging.

    python3 -m infra.training.policy_gpu --carried carried --out state --seconds 780          # all stages in a row
    python3 -m infra.training.policy_gpu --carried carried --out state --stage judge --seconds 200
    python3 -m infra.training.policy_gpu --out state --stage collect --collect "$OUT"

`carried` is what `infra.training.policy_carry --join` put together. Everything is kept under --out as it is made:
a stage that is done is passed over, one that was ended goes on. Stages: material, pairs, readings, teach, reward,
judge, collect. Processes share the GPU (`--workers` of them): the small networks are bound by launches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.training import policy_evaluation as judging
from infra.training.policy_collect import collect
from infra.training.policy_pairs import FOLDS, train_fold, with_scores
from infra.training.policy_stages import (
    CHUNK,
    load_readings,
    open_voice,
    read_chunk,
    reward_jobs,
    taught_jobs,
    train_one,
)
from models.retriever.pair_training import PairTrainConfig
from pipeline.tasks.material import Material
from pipeline.tasks.reading import MaterialReader
from rl.episodes import OutcomeReader, Readings, fingerprint

STAGES = ("material", "pairs", "readings", "teach", "reward", "choose", "read", "report")
SHARES = dict(zip(STAGES, (170, 120, 60, 90, 210, 80, 170, 60), strict=True))
"""Seconds that each stage of a whole run may take where `--seconds` is their sum; else in proportion."""


def main() -> None:
    """Entry point: start the workers of each stage and wait for them; or be one (--worker)."""
    given = _given()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.stage == "collect":
        for name, size in collect(given.out, given.collect or given.out / "collected").items():
            _say(f"{name}: {size / (1 << 20):.1f} MiB")
        return
    if given.worker >= 0:
        work(given)
        return
    stages = {"all": STAGES, "judge": ("choose", "read", "report")}.get(given.stage, (given.stage,))
    began = time.monotonic()
    whole = sum(SHARES[stage] for stage in stages)
    for at, stage in enumerate(stages):
        left = given.seconds - (time.monotonic() - began)
        later = sum(SHARES[name] for name in stages[at:])
        share = left * SHARES[stage] / later if whole else left
        started = time.monotonic()
        good = run_stage(given, stage, share)
        _say(f"{stage}: {time.monotonic() - started:.0f} s of {share:.0f}")
        if not good:
            _say(f"{stage} did not end well: see the lines above; start again with --stage {stage}")
            raise SystemExit(1)


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=("all", "judge", "collect", *STAGES), default="all")
    parser.add_argument("--carried", type=Path, default=Path("carried"))
    parser.add_argument("--out", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--collect", type=Path, help="where `collect` puts what is to be carried home")
    parser.add_argument("--seconds", type=float, default=780.0)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--prices", type=float, nargs="*", default=[0.0, 0.002], help="gammas tried beside 0.0005"
    )
    parser.add_argument("--pair-epochs", type=float, default=4.0)
    parser.add_argument("--warm-steps", type=int, default=1500)
    parser.add_argument("--iterations", type=int, default=1_000_000, help="of learning by reward, at most")
    parser.add_argument(
        "--most", type=int, default=1000, help="training questions of a set that are read, at most"
    )
    parser.add_argument("--most-judged", type=int, default=0, help="questions of a set and split (0: all)")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(judging.BUDGETS))
    parser.add_argument("--biases", type=float, nargs="+", default=list(judging.BIASES))
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--worker", type=int, default=-1, help="(its own) which worker this process is")
    return parser.parse_args()


def run_stage(given: argparse.Namespace, stage: str, seconds: float) -> bool:
    """Start a stage's processes, wait for them, and end those that outlive it; whether all ended well."""
    jobs = processes(given, stage)
    own = [sys.executable, "-m", "infra.training.policy_gpu", *sys.argv[1:]]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(given.carried / "site"), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "true" if stage in ("material", "pairs") else "false",
    }  # fmt: skip
    tail = ["--stage", stage, "--seconds", f"{seconds:.0f}"]
    children = [subprocess.Popen([*own, *tail, "--worker", str(at)], env=environment) for at in range(jobs)]
    limit = time.monotonic() + seconds + 40.0
    good = True
    for at, child in enumerate(children):
        try:
            good &= child.wait(timeout=max(1.0, limit - time.monotonic())) == 0
        except subprocess.TimeoutExpired:
            child.kill()
            _say(f"{stage}: worker {at} was ended at the limit")
            good &= stage in ("reward", "read")  # these keep what they have
    return good


def processes(given: argparse.Namespace, stage: str) -> int:
    """How many processes a stage has; choosing is bound by the host, so twice the workers."""
    if stage in ("teach", "reward"):
        return len(_jobs(given, stage))
    fixed = {"material": 1, "report": 1, "pairs": len(FOLDS), "choose": 2 * given.workers}
    return int(fixed.get(stage, given.workers))


def work(given: argparse.Namespace) -> None:
    """What one process does of its stage."""
    until = time.monotonic() + given.seconds
    if given.stage == "material":
        from infra.training.policy_material import HostMaterialConfig, make

        folder = given.out / "material"
        if not (folder / "manifest.json").exists():
            made, projection = make(
                given.carried,
                HostMaterialConfig(processes=min(24, max(1, (os.cpu_count() or 1) - 2))),
                given.device,
            )
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / "projection.npy", projection)
            made.save(folder, {"stage": "material"})
            _say(f"{len(made):,} questions")
        return
    material = Material.load(given.out / "material")
    if given.stage == "pairs":
        config = PairTrainConfig(epochs=given.pair_epochs, limit_s=0.6 * given.seconds)
        train_fold(
            material,
            given.carried / "minilm",
            FOLDS[given.worker],
            given.out / "pairs",
            config,
            given.device,
            _say,
        )
        return
    if (given.out / "pairs").exists():
        material = with_scores(material, given.out / "pairs")
    {
        "readings": _readings,
        "teach": _train,
        "reward": _train,
        "choose": _choose,
        "read": _read,
        "report": _report,
    }[given.stage](given, material, until)


def _reader(given: argparse.Namespace, material: Material, want_loss: bool) -> Readings:
    voice = open_voice(given.carried, given.device)
    return Readings(OutcomeReader(MaterialReader(material, voice, want_loss)), fingerprint(material))


def _readings(given: argparse.Namespace, material: Material, until: float) -> None:
    """This worker's chunks that are not there yet, one shard each."""
    folder = given.out / "readings"
    folder.mkdir(exist_ok=True)
    rows = training_rows(material, given.most)
    readings = _reader(given, material, want_loss=True)
    for at in range(given.worker * CHUNK, len(rows), CHUNK * given.workers):
        path = folder / f"readings-{at:06d}.npz"
        if path.exists():
            continue
        if time.monotonic() > until:
            _say(f"worker {given.worker}: readings from {at} on are left; start the stage again")
            return
        read_chunk(material, [int(row) for row in rows[at : at + CHUNK]], readings, path, singles=True)


def _train(given: argparse.Namespace, material: Material, until: float) -> None:
    """This worker's policy."""
    job = _jobs(given, given.stage)[given.worker]
    learns = given.stage == "reward"
    rows = training_rows(material, given.most if learns or job.algorithm == "router" else 0)
    readings = (
        _reader(given, material, job.form == "stepwise") if learns else Readings(None, fingerprint(material))
    )
    if learns or job.algorithm == "router":
        load_readings([given.out / "readings"], readings)
    record: dict[str, Any] = train_one(
        material, rows, readings, job, out=given.out / "policies", seconds=until - time.monotonic(),
        device=given.device, say=_say, projection=np.load(given.out / "material" / "projection.npy"),
        width=given.width, layers=given.layers, warm_steps=given.warm_steps, iterations=given.iterations,
    )  # fmt: skip
    told = {
        k: v
        for k, v in record.items()
        if k in ("steps", "warm_loss", "loss", "iterations", "readings_done", "alarm")
    }
    _say(f"{job.name} in {record['seconds']} s: {json.dumps(told)}")


def _choose(given: argparse.Namespace, material: Material, until: float) -> None:
    """The choices of this worker's methods."""
    folder = given.out / "judged"
    folder.mkdir(exist_ok=True)
    policies = given.out / "policies"
    for name in judging.names_to_judge(material, policies)[given.worker :: processes(given, "choose")]:
        points = judging.choices_of(
            name, material, policies, device=given.device, budgets=given.budgets, biases=given.biases,
            most=given.most_judged,
        )  # fmt: skip
        judging.save_points(points, folder / f"{name}.points.json")
        if time.monotonic() > until:
            _say(f"worker {given.worker}: out of time at {name}")
            return


def _read(given: argparse.Namespace, material: Material, until: float) -> None:
    """The readings of this worker's rows that no folder holds yet."""
    folder = given.out / "judged"
    readings = _reader(given, material, want_loss=False)
    load_readings([folder], readings)
    wanted = judging.requests_of(judging.load_points(folder), material, given.most_judged)
    missing = [
        each for each in wanted if each[0] % given.workers == given.worker and not readings.knows(*each)
    ]
    new = Readings(readings, readings.material)
    kept = folder / f"readings-{given.worker}-{int(time.time())}.npz"
    for at in range(0, len(missing), judging.READ_TOGETHER):
        if time.monotonic() > until:
            _say(f"worker {given.worker}: {len(missing) - at:,} readings left; start --stage judge again")
            raise SystemExit(1)
        new.read(missing[at : at + judging.READ_TOGETHER])
        new.save(kept)
    _say(f"worker {given.worker}: {len(missing):,} of {len(wanted):,} readings done")


def _report(given: argparse.Namespace, material: Material, until: float) -> None:
    """Curves and named figures from what was chosen and read."""
    folder = given.out / "judged"
    readings = Readings(None, fingerprint(material))
    load_readings([folder], readings)
    found = judging.report(judging.load_points(folder), material, readings, given.most_judged)
    found["questions"] = {
        split: {name: len(judging.rows_of(material, split, name)) for name in judging.datasets(material)}
        for split in ("train", "dev", "test")
    }
    found["records"] = {
        path.parent.name: json.loads(path.read_text())
        for path in sorted((given.out / "policies").glob("*/record.json"))
    }
    (given.out / "evaluation.json").write_text(json.dumps(found))
    _say(json.dumps(found["summary"], indent=1))


def _jobs(given: argparse.Namespace, stage: str) -> list[Any]:
    return reward_jobs(given.seeds, given.prices) if stage == "reward" else taught_jobs(given.seeds)


def training_rows(material: Material, most: int) -> np.ndarray[Any, Any]:
    """The answerable training questions, at most `most` of each set (0: all)."""
    parts = [judging.rows_of(material, "train", name, most) for name in judging.datasets(material)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
