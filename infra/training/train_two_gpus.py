"""Two-GPU training against one: the same steps on one worker and on two, step by step, and the scaling efficiency.

    python3 -m infra.training.train_two_gpus --data DATA --out OUT --steps 120

DATA is what `infra.training.subq_pack` wrote. Two runs of the subq recipe (`--accumulate` parts a step, so both do
the same arithmetic; `--workers 4 --accumulate 4 --between 2`: three, on one, two and four), by Ray Train where Ray
can be imported, else by torch.multiprocessing (`--launcher`). Writes OUT/two_gpus.json: differences of loss and
gradient norm by step, tokens a second, efficiency. It is written anew every few seconds from the steps that are
done: whatever ends the call, they are there (`ended` names the runs that came to their end). A run that ended is
kept in --work: a call that was cut off is made again and does the others only (`kept` in the result names what was
there, as a host may be busier in one call than in the other).
--device cpu tries it with gloo and a tiny model. Imports only torch, numpy, tokenizers, safetensors and, for its
launcher, Ray.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from infra.training.backbone_job import BackboneJob, absolute, work
from infra.training.backbone_loop import LoopConfig, read_curve
from infra.training.learners.subq import SubqSpec
from infra.training.side_by_side import write_whole
from infra.training.subq import SubqTrainConfig

ENDED = "ended.json"
"""In a run's folder when it has ended: what it was made of and how long it took."""
COMPARED = ("loss", "language", "answers", "contrastive", "norm")


@dataclass(slots=True)
class State:
    """How far a call is: read by the thread that writes the result."""

    launcher: str
    ray_failed: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    kept: list[int] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Entry point; the figures."""
    given = _parser().parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    state = State(launcher=given.launcher or "ray")
    with written_every(given.every, lambda: _write(given, state)):
        for size in sizes_of(given):
            _one_run(given, state, size)
    figures = _write(given, state)
    _say(json.dumps({name: value for name, value in figures.items() if name != "curves"}))
    return figures


def _one_run(given: argparse.Namespace, state: State, size: int) -> None:
    """Train on so many workers, or keep what an earlier call trained."""
    on_gpu, folder = given.device == "cuda", _folder(given, size)
    if (known := ended_run(folder, settings(given))) is not None:
        state.launcher, state.ray_failed = known["launcher"], known["ray_failed"]
        state.seconds[f"whole_{size}"] = known["seconds"]
        for names in (state.begun, state.kept, state.ended):
            names.append(size)
        _say(f"{size} worker(s): kept from an earlier call")
        return
    shutil.rmtree(folder, ignore_errors=True)  # an earlier call's steps are not this one's
    state.begun.append(size)
    began = time.monotonic()
    try:
        _launch(state.launcher, _job(given, folder), size, on_gpu)
    except (
        Exception
    ) as error:  # a bare host's Ray may lack anything: the figures matter more than the launcher
        if given.launcher or state.launcher == "spawn":
            raise
        state.launcher, state.ray_failed = "spawn", f"{type(error).__name__}: {str(error)[-300:]}"
        _say(f"Ray does not start ({state.ray_failed}); torch.multiprocessing instead")
        shutil.rmtree(folder, ignore_errors=True)
        _launch(state.launcher, _job(given, folder), size, on_gpu)
    seconds = state.seconds[f"whole_{size}"] = round(time.monotonic() - began, 1)
    body = {"settings": settings(given), "seconds": seconds}
    body |= {"launcher": state.launcher, "ray_failed": state.ray_failed}
    write_whole(folder / ENDED, json.dumps(body))
    state.ended.append(size)
    rows = read_curve(folder)
    _say(f"{size} worker(s): {len(rows)} steps in {seconds} s, {rows[-1]}")


def _write(given: argparse.Namespace, state: State) -> dict[str, Any]:
    """OUT/two_gpus.json of the steps that are done; its figures."""
    curves = {size: read_curve(_folder(given, size)) for size in list(state.begun)}
    runs = {size: rows for size, rows in curves.items() if rows}
    figures: dict[str, Any] = {"steps_compared": 0}
    for size, rows in runs.items():
        figures |= alone(rows, size, given.skip)
    for size in sizes_of(given)[1:]:
        if 1 in runs and size in runs:
            apart = compare(runs[1], runs[size], size, given.skip)
            figures[f"scaling_efficiency_{size}"] = apart["scaling_efficiency"]
            if size == given.workers:
                figures |= apart
            else:  # the names without a number are those of most workers
                figures |= {f"{key}_of_{size}": apart[key] for key in apart if "_apart_" in key}
    figures |= {
        "sizes": sizes_of(given),
        "launcher": state.launcher, "ray_failed": state.ray_failed, "device": _device(given.device),
        "workers": given.workers, "skipped": given.skip, "steps": given.steps, "accumulate": given.accumulate,
        "eager": given.eager, "torch": torch.__version__, "seconds": dict(state.seconds), "kept": list(state.kept),
        "ended": list(state.ended),
        # a run's seconds count from before its first batch: around them lie imports, data, the model, its writing
        "around_steps_s": {
            str(size): round(state.seconds[f"whole_{size}"] - rows[-1]["seconds"], 1)
            for size, rows in runs.items() if f"whole_{size}" in state.seconds
        },
        "first_step_s": {str(size): round(rows[0]["seconds"], 1) for size, rows in runs.items()},
        "curves": {str(size): rows for size, rows in runs.items()},
    }  # fmt: skip
    write_whole(given.out / "two_gpus.json", json.dumps(figures))
    return figures


@contextmanager
def written_every(seconds: float, write: Callable[[], object]) -> Iterator[None]:
    """`write` is called again and again from a thread until the block ends; where it fails it is told."""
    over = threading.Event()

    def again() -> None:
        while not over.wait(seconds):
            try:
                write()
            except (OSError, ValueError) as error:  # a curve's last line may be half written
                _say(f"not written this time: {error}")

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=60)


def _folder(given: argparse.Namespace, size: int) -> Path:
    return Path(given.work) / f"workers-{size}{'-eager' if given.eager else ''}"


def sizes_of(given: argparse.Namespace) -> list[int]:
    """The numbers of workers that are tried, in order: one first, most last."""
    return sorted({1, *given.between, given.workers})


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
    found |= alone(one, 1, skip) | alone(many, workers, skip)
    found["scaling_efficiency"] = found[f"tokens_per_s_{workers}"] / (workers * found["tokens_per_s_1"])
    return found


def alone(rows: Sequence[dict[str, float]], workers: int, skip: int) -> dict[str, float]:
    """Speed, share of the peak and memory of one run: medians over steps after the first `skip`."""
    steady = rows[skip:] or rows
    return {
        f"tokens_per_s_{workers}": median(row["tokens_per_s"] for row in steady),
        f"peak_share_{workers}": median(row["peak_share"] for row in steady),
        f"peak_bytes_{workers}": rows[-1]["peak_bytes"],
    }


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
    parser.add_argument("--workers", type=int, default=2, help="workers of the last run")
    parser.add_argument(
        "--between", type=int, nargs="*", default=[], help="workers of runs between, such as 2"
    )
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
    parser.add_argument("--every", type=float, default=5.0, help="seconds between writings of the result")
    parser.add_argument("--eager", action="store_true", help="nothing is compiled")
    return parser


if __name__ == "__main__":
    main()
