"""What a token's price buys, and what a warm start from minimal sets: policies of one run, alike but for that.

    python3 -m infra.training.policy_prices --run state --carried carried --reader reader --out prices --seconds 400
    python -m infra.training.policy_prices_page --found prices/prices.json --bench infra/bench/results/NAME

`--run` is the folder of `policy_gpu` after its stages material, pairs and teach. REINFORCE goes on from the run's
supervised policy of its seed for as many iterations at each gamma (terminal form) and each beta (stepwise form).
Beside them supervised policies from minimal sets: ours, and mined as Context-Picker does (arXiv 2512.14465). All
are judged on test questions by their own STOP, where nothing is chosen on any question. A policy that is judged is
not trained again. A process is a *group*: all prices of a form and seed learn in step (`policy_in_step`), each
kind of minimal sets is mined once for all seeds. Imports nothing that a GPU host lacks.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.evaluation.policy_judge import judge
from infra.training import policy_points as points
from infra.training.policy_alone import ALONE, TRAIN
from infra.training.policy_in_step import train_in_step
from infra.training.policy_pairs import pairs_seen, with_scores
from infra.training.policy_readers import SHIPPED, open_readers, reader_names, readings_of
from infra.training.policy_stages import (
    LEARNING,
    MADE_TO_ANSWER,
    MINED,
    PolicyJob,
    load_readings,
    train_one,
)
from infra.training.shared_reader import ReadingServer, RemoteReader
from infra.training.side_by_side import ENVIRONMENT, read_json, run_side_by_side, tell, write_whole
from pipeline.errors import BadData
from pipeline.tasks.material import Material
from rl.episodes import OutcomeReader, Reader, Readings

PRICES = (0.0, 0.0002, 0.0005, 0.001, 0.002, 0.004)
JUDGE_SHARE = 0.3
"""Share of a group's seconds that is left for judging its policies."""
FOUND = "prices.json"


def jobs(gammas: Sequence[float], betas: Sequence[float], seeds: Sequence[int]) -> list[PolicyJob]:
    """The policies that are trained or, `supervised`, only judged; what is long comes first."""
    found = []
    for seed in seeds:
        for kind, algorithm in (("minimal", "minimal"), ("picker", "picker"), ("supervised", "supervised")):
            found.append(PolicyJob(kind=kind, algorithm=algorithm, seed=seed))
        for form, prices in (("stepwise", betas), ("terminal", gammas)):
            for price in prices:
                name = f"{'beta' if form == 'stepwise' else 'gamma'}{price:g}"
                found.append(
                    PolicyJob(kind=name, algorithm="reinforce", seed=seed, form=form, price=price)  # type: ignore[arg-type]
                )
    return found


def groups(jobs: Sequence[PolicyJob]) -> dict[str, list[PolicyJob]]:
    """The jobs that a process does one after another, or in step; what is long comes first."""
    found: dict[str, list[PolicyJob]] = {}
    for job in sorted(jobs, key=lambda job: job.algorithm not in MINED):
        name = job.algorithm if job.algorithm in MINED else f"{job.form}-{job.seed}"
        found.setdefault(name, []).append(job)
    return found


def run_group(given: argparse.Namespace, todo: Sequence[PolicyJob], until: float) -> None:
    """Train a group's policies (what is trained is left) and judge each; its row, kept in OUT/rows."""
    material = Material.load(given.run / "material")
    if (pairs := pairs_seen(given.run)).exists():
        material = with_scores(material, pairs)
    policies = given.out / "policies"
    stepwise = any(job.form == "stepwise" for job in todo)
    if given.sockets is not None:
        reader: Reader = RemoteReader(given.sockets, names_of(given, material))
    else:
        reader = OutcomeReader(open_readers(given, material)(stepwise))
    readings = Readings(reader, readings_of(given, material))
    if not stepwise:  # readings for judging do not tell the loss that the stepwise form is paid by
        load_readings([given.run / "judged"], readings)
    rows = material.rows("train", answerable=True)
    projection = np.load(given.run / "material" / "projection.npy")
    told: dict[str, Any] = {"out": policies, "device": given.device, "say": tell, "projection": projection}
    learn = [job for job in todo if job.algorithm in LEARNING and not _is_trained(given, job)]
    if learn:
        left = max(5.0, (until - time.monotonic()) * (1 - JUDGE_SHARE))
        train_in_step(material, rows, readings, learn, seconds=left, iterations=given.iterations, **told)
    for job in todo:
        if (given.out / "rows" / f"{job.name}.json").is_file():
            continue
        if job.algorithm not in LEARNING:
            left = max(5.0, (until - time.monotonic()) * (1 - JUDGE_SHARE))
            train_one(
                material, rows, readings, job, seconds=left, width=given.width, layers=given.layers,
                warm_steps=given.warm_steps, **told,
            )  # fmt: skip
        record: dict[str, Any] = read_json(policies / job.name / "record.json") or {}
        row = {
            key: value
            for key, value in record.items()
            if key not in ("curve", "multi_hop", "reading", "sets")
        }
        row |= {"sets_mined": record.get("sets")}
        row |= {"sets": judged(job.name, material, readings, policies, given)}
        write_whole(given.out / "rows" / f"{job.name}.json", json.dumps(row, default=str))
        tell(f"{job.name}: judged")


def names_of(given: argparse.Namespace, material: Material) -> list[str]:
    """Which reader reads each question."""
    if given.fold_readers is None:
        return [SHIPPED] * len(material)
    return reader_names(material, given.fold_readers)


def serve(given: argparse.Namespace, until: float) -> None:
    """Be one reader for all groups (--serve), with what the run's stage `alone` has read already."""
    material = Material.load(given.run / "material")
    name = readings_of(given, material)
    readings = Readings(OutcomeReader(open_readers(given, material)(True)), name)
    try:
        known = load_readings([given.run / ALONE / TRAIN], readings)
    except BadData as error:  # of other fold readers
        known = 0
        tell(f"read-{given.serve}: {error}")
    server = ReadingServer(given.sockets / given.serve, readings)
    tell(f"read-{given.serve}: ready, {known:,} readings known")
    server.run(until)
    told = f"{readings.num_asked:,} asked, {readings.num_read:,} read in {server.num_rounds} rounds"
    tell(f"read-{given.serve}: {told}")


def _is_trained(given: argparse.Namespace, job: PolicyJob) -> bool:
    """Whether a policy by reward has all its iterations, or ended by an alarm."""
    record: dict[str, Any] = read_json(given.out / "policies" / job.name / "record.json") or {}
    return bool(record.get("alarm")) or record.get("iterations", -1) >= given.iterations


def judged(
    name: str, material: Material, readings: Readings, policies: Path, given: argparse.Namespace
) -> dict[str, dict[str, dict[str, float]]]:
    """{set: {budget: figures}} on test questions by the policy's own STOP."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    chosen = points.choices_of(
        name, material, policies, device=given.device, budgets=given.budgets, biases=(0.0,)
    )
    for point in chosen:
        if point.split == "test":
            rows = points.rows_of(material, "test", point.dataset)
            figures, _ = judge(material.take(rows), rows, point.chosen, readings, MADE_TO_ANSWER)
            found.setdefault(point.dataset, {})[str(point.budget)] = figures
    return found


def assemble(out: Path) -> dict[str, Any]:
    """All rows that there are, in one file that is there whole or as it was before."""
    rows = [row for path in sorted((out / "rows").glob("*.json")) if (row := read_json(path)) is not None]
    write_whole(out / FOUND, json.dumps({"rows": rows}))
    return {"rows": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    given = _given(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    todo = jobs(given.gammas, given.betas, given.seeds)
    if given.serve:
        serve(given, time.monotonic() + given.seconds)
        return
    if given.group:
        run_group(given, groups(todo)[given.group], time.monotonic() + given.seconds)
        return
    for seed in given.seeds:
        begun = given.run / "policies" / f"supervised-{seed}"
        if not (begun / "record.json").is_file():
            raise SystemExit(
                f"{begun} is not there; end the stage teach of policy_gpu with seed {seed} first"
            )
        if not (given.out / "policies" / begun.name).is_dir():
            shutil.copytree(begun, given.out / "policies" / begun.name)
    left = [
        name
        for name, some in groups(todo).items()
        if not all((given.out / "rows" / f"{job.name}.json").is_file() for job in some)
    ]
    turns = -(-len(left) // given.workers) or 1
    own = ["-m", "infra.training.policy_prices", *_again(given), "--seconds", f"{given.seconds / turns:.0f}"]
    with shared_readers(given) as sockets:
        own += sockets
        run_side_by_side(
            {name: [*own, "--group", name] for name in left}, given.out / "logs", given.seconds + 15,
            at_once=given.workers, on_end=lambda codes: assemble(given.out),
        )  # fmt: skip
    found = assemble(given.out)
    tell(f"{len(found['rows'])} of {len(todo)} policies judged")
    if len(found["rows"]) < len(todo):
        raise SystemExit(1)


@contextmanager
def shared_readers(given: argparse.Namespace) -> Iterator[list[str]]:
    """Readers in processes of their own while groups ask them (--share-readers), and the option that says where.

    They end with their sockets' files; what they told stands in OUT/logs.
    """
    if not given.share_readers:
        yield []
        return
    names = sorted(set(names_of(given, Material.load(given.run / "material"))))
    logs = given.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="read-") as folder:  # a short name: a socket's path is short
        told = ["--sockets", folder]
        own = [sys.executable, "-m", "infra.training.policy_prices", *_again(given), *told]
        processes = []
        for name in names:
            with (logs / f"read-{name}.log").open("a") as log:
                command = [*own, "--seconds", f"{given.seconds + 30:.0f}", "--serve", name]
                processes.append(
                    subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | ENVIRONMENT)
                )
        try:
            yield told
        finally:
            for name in names:
                (Path(folder) / name).unlink(missing_ok=True)
            for process in processes:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _again(given: argparse.Namespace) -> list[str]:
    """The options of a worker."""
    told: list[str] = []
    for name, value in vars(given).items():
        if name in ("group", "seconds", "serve", "sockets", "share_readers") or value is None:
            continue
        values = value if isinstance(value, list) else [value]
        told += [f"--{name.replace('_', '-')}", *map(str, values)]
    return told


def _given(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of a run of policy_gpu")
    parser.add_argument("--carried", type=Path, default=Path("carried"))
    parser.add_argument("--reader", type=Path, help="folder of the reader (default: --carried)")
    parser.add_argument("--adapter", type=Path, help="the reader's adapter (default: the shipped one)")
    parser.add_argument("--fold-readers", type=Path, help="as the run's")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gammas", type=float, nargs="*", default=list(PRICES))
    parser.add_argument("--betas", type=float, nargs="*", default=list(PRICES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--iterations", type=int, default=60, help="of learning by reward, the same for all")
    parser.add_argument("--warm-steps", type=int, default=1500)
    parser.add_argument("--budgets", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--workers", type=int, default=8, help="processes that share the device")
    parser.add_argument("--seconds", type=float, default=400.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--share-readers",
        action="store_true",
        help="each reader stands once, in a process that all groups ask",
    )
    parser.add_argument("--sockets", type=Path, help="(its own) where shared readers are asked")
    parser.add_argument("--serve", default="", help="(its own) which shared reader this process is")
    parser.add_argument("--group", default="", help="(its own) which policies this process trains")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
