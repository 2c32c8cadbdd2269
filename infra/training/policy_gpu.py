"""Readings, training and judging of the retriever's policy on a GPU host without Ray or MLflow, restartable.

    python3 -m infra.training.policy_gpu --stage readings --carried carried --out out1 --seconds 540
    python3 -m infra.training.policy_gpu --stage train    --carried carried --readings out1 --out out2 --seconds 540
    python3 -m infra.training.policy_gpu --stage evaluate --carried carried --readings out1 --policies out2 \\
        --out out3

`carried` is what `infra.training.policy_pack` wrote (gguf importable for its dequantisation). Each stage ends at
`--seconds` with what is done saved in OUT; give that folder again (`--readings`, `--policies`) to go on.
`--workers` processes share the GPU: the reader is launch-bound.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.training.policy_evaluation import BIASES, BUDGETS, evaluate
from infra.training.policy_stages import (
    ALGORITHMS,
    CHUNK,
    load_readings,
    open_voice,
    read_chunk,
    train_one,
)
from pipeline.tasks.material import Material
from pipeline.tasks.reading import MaterialReader
from rl.episodes import OutcomeReader, Readings, fingerprint


def main() -> None:
    """Entry point: start the workers and wait for them; or be one (--worker)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=("readings", "train", "evaluate"), required=True)
    parser.add_argument("--carried", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--readings", type=Path, nargs="*", default=[], help="folders of earlier readings")
    parser.add_argument("--policies", type=Path, help="folder of earlier training")
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--gamma", type=float, default=0.001, help="price of a token")
    parser.add_argument("--warm-steps", type=int, default=1500)
    parser.add_argument("--iterations", type=int, default=1_000_000, help="of learning by reward, at most")
    parser.add_argument("--most", type=int, default=0, help="questions of a set and split, at most (0: all)")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS), help="evaluate: tokens")
    parser.add_argument("--biases", type=float, nargs="+", default=list(BIASES), help="evaluate: of STOP")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--worker", type=int, default=-1, help="(its own) which worker this process is")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.worker >= 0 or given.stage == "evaluate" or given.workers <= 1:
        work(given, max(0, given.worker))
        return
    from infra.training.reader_gpu import unpack_weights

    unpack_weights(given.carried)  # once, before the workers all want it
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "infra.training.policy_gpu", *sys.argv[1:], "--worker", str(at)]
        )
        for at in range(given.workers)
    ]
    limit = time.monotonic() + given.seconds + 45.0
    for child in children:
        try:
            child.wait(timeout=max(1.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            _say(f"worker {children.index(child)} was ended at the limit")


def work(given: argparse.Namespace, worker: int) -> None:
    """What one process does of its stage."""
    until = time.monotonic() + given.seconds
    material = Material.load(given.carried / "material")
    voice = open_voice(given.carried, given.device)
    readings = Readings(OutcomeReader(MaterialReader(material, voice)), fingerprint(material))
    known = load_readings(given.readings, readings) if given.stage != "readings" else 0
    _say(f"worker {worker}: {len(material):,} questions, {known:,} readings known, reader ready")
    if given.stage == "readings":
        _readings(given, worker, material, readings, until)
    elif given.stage == "train":
        _train(given, worker, material, readings, until)
    else:
        found = evaluate(
            material, readings, given.policies or given.out, device=given.device, say=_say, most=given.most,
            budgets=given.budgets, biases=given.biases, out=given.out, limit_s=until - time.monotonic(),
        )  # fmt: skip
        if found is None:
            return
        (given.out / "evaluation.json").write_text(json.dumps(found, indent=1))
        _say(json.dumps(found["summary"]))


def _readings(
    given: argparse.Namespace, worker: int, material: Material, readings: Readings, until: float
) -> None:
    """This worker's chunks that no folder holds yet, one shard each."""
    rows = training_rows(material, given.most)
    done = {path.name for folder in [*given.readings, given.out] for path in folder.glob("readings-*.npz")}
    chunks = [(at, rows[at : at + CHUNK]) for at in range(0, len(rows), CHUNK)]
    left = [(at, part) for at, part in chunks[worker :: max(1, given.workers)] if _shard(at) not in done]
    for number, (at, part) in enumerate(left):
        if time.monotonic() > until:
            _say(
                f"worker {worker}: {len(left) - number} chunks left; start again with --readings {given.out}"
            )
            return
        count = read_chunk(material, [int(row) for row in part], readings, given.out / _shard(at))
        _say(f"worker {worker}: {_shard(at)} {count} readings, {number + 1} of {len(left)} chunks")
    _say(f"worker {worker}: all read")


def _train(
    given: argparse.Namespace, worker: int, material: Material, readings: Readings, until: float
) -> None:
    """This worker's policies, one after another, in equal shares of the time."""
    rows = training_rows(material, given.most)
    projection = np.load(given.carried / "projection.npy")
    jobs = [(name, seed) for name in given.algorithms for seed in given.seeds][
        worker :: max(1, given.workers)
    ]
    for number, (name, seed) in enumerate(jobs):
        share = (until - time.monotonic()) / (len(jobs) - number)
        if share < 1.0:
            _say(f"worker {worker}: no time left for {name}-{seed}")
            return
        record: dict[str, Any] = train_one(
            material, rows, readings, name, seed, out=given.out, seconds=share, start=given.policies,
            device=given.device, say=_say, projection=projection, gamma=given.gamma, width=given.width,
            layers=given.layers, warm_steps=given.warm_steps, iterations=given.iterations,
        )  # fmt: skip
        readings.save(given.out / f"readings-live-{worker}.npz")
        _say(f"worker {worker}: {name}-{seed} in {record['seconds']} s")


def training_rows(material: Material, most: int) -> np.ndarray[Any, Any]:
    """The answerable training questions, at most `most` of each set."""
    sets = sorted({question.dataset for question in material.questions})
    parts = [material.rows("train", name, answerable=True)[: most or None] for name in sets]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _shard(at: int) -> str:
    return f"readings-{at:06d}.npz"


def _say(what: str) -> None:
    print(what, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
