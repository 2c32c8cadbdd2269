"""Two-GPU training against one: the same steps on one worker and on two, step by step, and the scaling efficiency.

    python3 -m infra.training.train_two_gpus --data DATA --out OUT --steps 120

DATA is what `infra.training.subq_pack` wrote. Two runs of the subq recipe (`--accumulate` parts a step, so both do
the same arithmetic), by Ray Train where Ray can be imported, else by torch.multiprocessing (`--launcher`). Writes
OUT/two_gpus.json: differences of loss and gradient norm by step, tokens a second, efficiency. A run that ended is
kept in --work: a call that was cut off is made again and does the other run only (`kept` in the result names what
was there, as a host may be busier in one call than in the other). --device cpu tries it with gloo and a tiny
model. Imports only torch, numpy, tokenizers, safetensors and, for its launcher, Ray.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from infra.training.backbone_job import BackboneJob, absolute, work
from infra.training.backbone_loop import LoopConfig, read_curve
from infra.training.learners.subq import SubqSpec
from infra.training.subq import SubqTrainConfig

ENDED = "ended.json"
"""In a run's folder when it has ended: what it was made of and how long it took."""
COMPARED = ("loss", "language", "answers", "contrastive", "norm")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Entry point; the figures."""
    given = _parser().parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    on_gpu = given.device == "cuda"
    launcher, why = given.launcher or "ray", ""
    runs: dict[int, list[dict[str, float]]] = {}
    seconds: dict[str, float] = {}
    kept: list[int] = []
    for size in (1, given.workers):
        work_folder = given.work / f"workers-{size}{'-eager' if given.eager else ''}"
        if (ended := ended_run(work_folder, settings(given))) is not None:
            launcher, why = ended["launcher"], ended["ray_failed"]
            seconds[f"whole_{size}"], runs[size] = ended["seconds"], read_curve(work_folder)
            kept.append(size)
            _say(f"{size} worker(s): kept from an earlier call")
            continue
        shutil.rmtree(work_folder, ignore_errors=True)
        began = time.monotonic()
        try:
            _launch(launcher, _job(given, work_folder), size, on_gpu)
        except (
            Exception
        ) as error:  # a bare host's Ray may lack anything: the figures matter more than the launcher
            if given.launcher or launcher == "spawn":
                raise
            launcher, why = "spawn", f"{type(error).__name__}: {str(error)[-300:]}"
            _say(f"Ray does not start ({why}); torch.multiprocessing instead")
            shutil.rmtree(work_folder, ignore_errors=True)
            _launch(launcher, _job(given, work_folder), size, on_gpu)
        seconds[f"whole_{size}"] = round(time.monotonic() - began, 1)
        runs[size] = read_curve(work_folder)
        body = {"settings": settings(given), "seconds": seconds[f"whole_{size}"]}
        body |= {"launcher": launcher, "ray_failed": why}
        partial = work_folder / f".{ENDED}.partial"
        partial.write_text(json.dumps(body))
        partial.replace(work_folder / ENDED)
        _say(f"{size} worker(s): {len(runs[size])} steps in {seconds[f'whole_{size}']} s, {runs[size][-1]}")
    figures = compare(runs[1], runs[given.workers], given.workers, given.skip)
    figures |= {
        "launcher": launcher, "ray_failed": why, "device": _device(given.device), "workers": given.workers,
        "skipped": given.skip, "steps": given.steps, "accumulate": given.accumulate, "eager": given.eager,
        "torch": torch.__version__, "seconds": seconds, "kept": kept,
        # a run's seconds count from before its first batch: around them lie imports, data, the model, its writing
        "around_steps_s": {
            str(size): round(seconds[f"whole_{size}"] - rows[-1]["seconds"], 1) for size, rows in runs.items()
        },
        "first_step_s": {str(size): round(rows[0]["seconds"], 1) for size, rows in runs.items()},
        "curves": {str(size): rows for size, rows in runs.items()},
    }  # fmt: skip
    (given.out / "two_gpus.json").write_text(json.dumps(figures))
    _say(json.dumps({name: value for name, value in figures.items() if name != "curves"}))
    return figures


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """What a kept run must have been made of to stand beside another."""
    named = ("steps", "accumulate", "loaders", "device", "tiny", "muon", "eager")
    made = {name: getattr(given, name) for name in named}
    return made | {
        "data": str(given.data.absolute()),
        "launcher": given.launcher,
        "torch": torch.__version__,
        "on": _device(given.device),
    }


def ended_run(folder: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier call left of a run that came to its end; None where it did not, or was made otherwise."""
    try:
        body: dict[str, Any] = json.loads((folder / ENDED).read_text())
    except (OSError, ValueError):
        return None
    return body if body["settings"] == wanted and len(read_curve(folder)) == wanted["steps"] else None


def compare(
    one: Sequence[dict[str, float]], many: Sequence[dict[str, float]], workers: int, skip: int
) -> dict[str, Any]:
    """Largest and median relative differences by term, and the efficiency over steps after the first `skip`."""
    found: dict[str, Any] = {"steps_compared": min(len(one), len(many))}
    for name in COMPARED:
        apart = [abs(a[name] - b[name]) / max(1e-6, abs(a[name])) for a, b in zip(one, many, strict=False)]
        found[f"{name}_apart_first"] = apart[0]
        found[f"{name}_apart_median"] = median(apart)
        found[f"{name}_apart_most"] = max(apart)
        found[f"{name}_apart_within_10"] = max(apart[:10])
    rates = [median(row["tokens_per_s"] for row in rows[skip:] or rows) for rows in (one, many)]
    found["tokens_per_s_1"], found[f"tokens_per_s_{workers}"] = rates
    found["scaling_efficiency"] = rates[1] / (workers * rates[0])
    found["peak_share_1"] = median(row["peak_share"] for row in one[skip:] or one)
    found[f"peak_share_{workers}"] = median(row["peak_share"] for row in many[skip:] or many)
    found["peak_bytes_1"], found[f"peak_bytes_{workers}"] = one[-1]["peak_bytes"], many[-1]["peak_bytes"]
    return found


def _job(given: argparse.Namespace, folder: Path) -> BackboneJob:
    on_gpu = given.device == "cuda"
    spec = SubqSpec(
        data=given.data, steps=given.steps, accumulate=given.accumulate, tiny=given.tiny,
        train=SubqTrainConfig(
            compiled=on_gpu and not given.eager, workers=given.loaders, muon=on_gpu or given.muon,
            joined=True,
        ),
    )  # fmt: skip
    loop = LoopConfig(
        steps=given.steps, accumulate=given.accumulate, save_every=1_000_000, report_every=given.steps, keep=1
    )
    return absolute(BackboneJob(kind="subq", out=folder, spec=spec, loop=loop))


def _launch(launcher: str, job: BackboneJob, size: int, gpu: bool) -> None:
    job.out.mkdir(parents=True, exist_ok=True)
    if launcher == "ray":
        import ray

        from actors.train_workers import WorkersConfig, train_on_workers

        if not ray.is_initialized():
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
            ray.init(
                num_cpus=max(8, os.cpu_count() or 1), include_dashboard=False, log_to_driver=False,
                logging_level=logging.ERROR, object_store_memory=256 << 20,
                runtime_env={"env_vars": {"PYTHONPATH": path}},
            )  # fmt: skip
        workers = WorkersConfig(num_workers=size, gpu=gpu, max_failures=0)
        train_on_workers(work, {"job": job}, workers, job.out, f"workers-{size}")
        return
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port = opened.getsockname()[1]
    from torch.multiprocessing.spawn import spawn

    spawn(_spawned, args=(size, port, gpu, job), nprocs=size)  # type: ignore[no-untyped-call]


def _spawned(rank: int, size: int, port: int, gpu: bool, job: BackboneJob) -> None:
    from datetime import timedelta

    import torch.distributed as dist

    device = f"cuda:{rank}" if gpu else "cpu"
    if gpu:
        torch.cuda.set_device(rank)
    if size == 1:  # a process of its own too: the second run finds the device free, and starts alike
        work({"job": job}, device, lambda row: None)
        return
    dist.init_process_group(
        "nccl" if gpu else "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size,
        timeout=timedelta(seconds=300),
    )  # fmt: skip
    try:
        work({"job": job}, device, lambda row: None)
    finally:
        dist.destroy_process_group()


def _device(name: str) -> str:
    return torch.cuda.get_device_name() if name == "cuda" else "cpu"


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--work", type=Path, default=Path("build/two-gpus"), help="states and curves of both runs"
    )
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--accumulate", type=int, default=2, help="parts a step; a multiple of the workers")
    parser.add_argument("--workers", type=int, default=2, help="workers of the second run")
    parser.add_argument("--skip", type=int, default=20, help="first steps left out of the speeds")
    parser.add_argument(
        "--loaders", type=int, default=8, help="processes a worker that make batches; 0: none"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--launcher", choices=("ray", "spawn"), help="default: ray, or spawn where Ray does not start"
    )
    parser.add_argument("--tiny", action="store_true", help="a model that a CPU can train")
    parser.add_argument("--muon", action="store_true", help="Muon on a CPU too")
    parser.add_argument("--eager", action="store_true", help="nothing is compiled")
    return parser


if __name__ == "__main__":
    main()
