"""The loop of `dysra train-backbone`: any learner, one or many workers, saved and gone on with exactly.

A step is `accumulate` parts (micro-batches) whatever the number of workers; each worker computes its share and
the gradients are summed, so two workers do the steps of one. Part number n of a run depends on n alone: the place
in the data is the step that is kept with the state, and a run that was killed does the steps that the undisturbed
one would have done.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.data_parallel import Group
from models.formats import FORMAT, KEY, check_format
from pipeline.errors import UsageError

CURVE = "curve.jsonl"
STATES = "states"
PEAK_FLOPS = (("H200", 989e12), ("H100", 989e12), ("A100", 312e12), ("L40", 181e12), ("B200", 2250e12))
"""Dense bf16 operations a second by name of the device, as their makers state them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """What the loop itself needs to know."""

    steps: int = field(default=1000, metadata={"help": "updates"})
    accumulate: int = field(
        default=1, metadata={"help": "parts of a step, over all workers: a multiple of their number"}
    )
    clip: float = field(default=1.0, metadata={"help": "largest norm of all gradients together"})
    save_every: int = field(default=100, metadata={"help": "steps between saved states"})
    report_every: int = field(default=10, metadata={"help": "steps between reports (MLflow, Ray Train)"})
    limit_s: float = field(default=0.0, metadata={"help": "seconds of training at most, all calls (0: none)"})
    keep: int = field(default=2, metadata={"help": "states kept, newest first"})

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "save_every", "report_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        if not self.clip > 0:
            raise ValueError(f"clip: given {self.clip}; allowed: above 0")
        if not self.limit_s >= 0:
            raise ValueError(f"limit_s: given {self.limit_s} s; allowed: 0 (no limit) or more")


class LossIsNoNumber(UsageError):
    """The run diverged; its newest state is from before."""


class Learner(Protocol):
    """What is trained: its parameters, the loss of a part, and how its state is kept."""

    parameters: Sequence[nn.Parameter]

    def parts(self, numbers: Sequence[int]) -> Iterator[Any]:
        """The parts of these numbers, in order; each depends on its number alone."""

    def loss(self, part: Any, number: int, progress: float) -> tuple[Tensor, dict[str, Tensor], int]:
        """The loss of a part (already the share that it shall weigh), its terms, and its tokens."""

    def update(self, step: int, progress: float, group: Group) -> dict[str, float]:
        """Update the parameters from their gradients, which are then dropped; what is worth showing."""

    def state(self) -> dict[str, Any]:
        """All that changes while training, as `torch.load(weights_only=True)` reads it."""

    def load(self, state: dict[str, Any]) -> None:
        """What `state` gave."""

    def flops_per_token(self) -> float:
        """Floating-point operations a trained token, forward and backward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a run is kept and whom it tells: a folder that all workers reach; `made_from` names the run."""

    folder: Path
    made_from: Mapping[str, Any]
    report: Callable[[dict[str, float]], None] = lambda row: None


def run_loop(learner: Learner, config: LoopConfig, place: Place, group: Group) -> list[dict[str, float]]:
    """Train from the newest state to the end; returns the rows of this call. The same in every worker.

    Raises ValueError where the folder holds another run's state, or none that can be read, LossIsNoNumber where
    the loss is none.
    """
    mine = group.mine(config.accumulate)
    step, seconds = _restore(learner, place, group)
    rows: list[dict[str, float]] = []
    numbers = [at * config.accumulate + part for at in range(step, config.steps) for part in mine]
    parts = learner.parts(numbers) if numbers else iter(())
    began, before = time.monotonic(), seconds
    lines = (place.folder / CURVE).open("a", encoding="utf-8") if group.rank == 0 else None
    try:
        while step < config.steps and not (config.limit_s and seconds >= config.limit_s):
            progress = step / config.steps
            if config.limit_s:
                progress = max(progress, seconds / config.limit_s)
            row, elapsed = _step(learner, config, parts, mine, step, progress, group, began)
            seconds = before + elapsed
            step += 1
            took = seconds - (rows[-1]["seconds"] if rows else before)
            rows.append(_measured({"step": step, **row, "seconds": seconds}, learner, took, group))
            if lines is not None:
                lines.write(json.dumps(rows[-1]) + "\n")
                lines.flush()
            if step % config.save_every == 0 and step < config.steps:
                _save(learner, place, config, group, step, seconds)
            if step % config.report_every == 0 or step == config.steps:
                place.report(rows[-1])
    finally:
        if lines is not None:
            lines.close()
    _save(learner, place, config, group, step, seconds)
    return rows


def read_curve(folder: Path) -> list[dict[str, float]]:
    """All rows of a run, over all its calls; a line that a full disk cut off is left out."""
    path = folder / CURVE
    rows: list[dict[str, float]] = []
    if path.exists():
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows


def states(folder: Path) -> list[Path]:
    """The saved states of a run, oldest first."""
    return sorted((folder / STATES).glob("step-*.pt"))


def _step(
    learner: Learner, config: LoopConfig, parts: Iterator[Any], mine: range, step: int, progress: float,
    group: Group, began: float,
) -> tuple[dict[str, float], float]:  # fmt: skip
    """One update: this worker's parts, all workers' gradients; what was measured, and the seconds of this call."""
    shown: dict[str, Tensor] = {}
    tokens = 0
    for at in mine:
        loss, terms, count = learner.loss(next(parts), step * config.accumulate + at, progress)
        (loss / config.accumulate).backward()  # type: ignore[no-untyped-call]
        for name, value in {"loss": loss, **terms}.items():
            shown[name] = shown.get(name, 0) + value.detach().float().to(group.device)
        tokens += count
    group.sum_gradients(learner.parameters)
    norm = nn.utils.clip_grad_norm_(learner.parameters, config.clip)
    told = learner.update(step, progress, group)
    elapsed = time.monotonic() - began
    # one message for everything: sums over the workers, seconds as their mean
    counted = torch.tensor([float(tokens), elapsed], device=group.device, dtype=torch.float32)
    packed = torch.cat([torch.stack(list(shown.values())), counted])
    values = group.sum(packed).tolist()
    row = {name: value / config.accumulate for name, value in zip(shown, values, strict=False)}
    if not math.isfinite(row["loss"]):
        raise LossIsNoNumber(
            f"the loss is {row['loss']} at step {step}; begin again in another folder with a lower learning rate"
        )
    return row | {"norm": float(norm), "num_tokens": values[-2], **told}, values[-1] / group.size


def _measured(row: dict[str, float], learner: Learner, took: float, group: Group) -> dict[str, float]:
    """The row with throughput, share of the devices' peak (0 where that is not known) and memory."""
    rate = row["num_tokens"] / max(took, 1e-9)
    peak = 0.0
    if group.device.startswith("cuda"):
        name = torch.cuda.get_device_name(group.device)
        peak = next((flops for part, flops in PEAK_FLOPS if part in name), 0.0)
        memory = float(torch.cuda.max_memory_allocated(group.device))
    else:
        memory = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    share = rate * learner.flops_per_token() / (peak * group.size) if peak else 0.0
    return row | {"tokens_per_s": rate, "peak_share": share, "peak_bytes": memory}


def _save(
    learner: Learner, place: Place, config: LoopConfig, group: Group, step: int, seconds: float
) -> None:
    """Rank 0 writes the state under another name, puts it in place and drops the oldest; the others wait."""
    if group.rank == 0:
        target = place.folder / STATES / f"step-{step:08d}.pt"
        temporary = target.with_suffix(".partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        body = {
            KEY: FORMAT,
            "made_from": _named(place),
            "step": step,
            "seconds": seconds,
            "learner": learner.state(),
        }
        with temporary.open("wb") as stream:
            torch.save(body, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
        for old in states(place.folder)[: -config.keep]:
            old.unlink()
    group.barrier()


def _restore(learner: Learner, place: Place, group: Group) -> tuple[int, float]:
    """Step and seconds of the newest state that can be read, loaded into the learner; 0, 0 where there is none."""
    place.folder.mkdir(parents=True, exist_ok=True)
    step, seconds = 0, 0.0
    kept = states(place.folder)
    for path in reversed(kept):
        body = _read_state(path, group)
        if body is None:
            continue  # cut off by a full disk: the one before is whole
        check_format(body, path)
        if body["made_from"] != _named(place):
            raise ValueError(
                f"{place.folder} holds the state of another run; give another folder, or remove it"
            )
        learner.load(body["learner"])
        step, seconds = int(body["step"]), float(body["seconds"])
        break
    else:
        if kept:
            raise ValueError(
                f"{place.folder}: none of its {len(kept)} saved states can be read; copy them again, give another "
                "folder, or remove it"
            )
    if group.rank == 0:
        # steps after the saved state are done again
        told = [row for row in read_curve(place.folder) if row["step"] <= step]
        (place.folder / CURVE).write_text("".join(f"{json.dumps(row)}\n" for row in told), encoding="utf-8")
    group.barrier()
    return step, seconds


def _read_state(path: Path, group: Group) -> dict[str, Any] | None:
    """A saved state, None where it is damaged."""
    try:
        body = torch.load(path, map_location=group.device, weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError):
        return None
    return body if isinstance(body, dict) and "made_from" in body else None


def _named(place: Place) -> str:
    return json.dumps(place.made_from, sort_keys=True, default=str)
