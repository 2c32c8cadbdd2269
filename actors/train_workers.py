"""A training function on workers of Ray Train: started, restarted when one dies, and heard.

The function keeps its state itself, in a folder that all workers reach, and goes on from it when it is called
again: so a worker that was killed costs the steps since the last state, and so does the whole job.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import BadData, DependencyUnreachable, DysraError, StoppedEarly, UsageError

REFUSED = "refused.txt"
_OURS: tuple[type[DysraError], ...] = (UsageError, DependencyUnreachable, BadData)
Report = Callable[[dict[str, float]], None]
WorkerFunction = Callable[[Mapping[str, Any], str, Report], None]
"""(settings, device, report): torch.distributed is ready; `report` must be called by all workers alike."""


class WorkersFailed(DysraError):
    """Workers ended more often than they are started again; what they saved stays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkersConfig:
    """How many workers, and what each may use."""

    num_workers: int = field(default=1, metadata={"help": "processes that train together"})
    gpu: bool = field(default=False, metadata={"help": "one GPU a worker (NCCL); else CPU (gloo)"})
    cpus: float = field(default=1.0, metadata={"help": "CPUs that Ray reserves for a worker"})
    max_failures: int = field(default=3, metadata={"help": "restarts after the death of a worker"})
    timeout_s: int = field(default=600, metadata={"help": "seconds that workers wait for each other"})

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers: given {self.num_workers}; allowed: 1 or more")
        if self.max_failures < 0 or self.timeout_s < 1 or self.cpus < 0:
            raise ValueError(
                f"max_failures {self.max_failures}, timeout_s {self.timeout_s}, cpus {self.cpus}: "
                "allowed: 0 or more, 1 or more, 0 or more"
            )


def train_on_workers(
    function: WorkerFunction, settings: Mapping[str, Any], config: WorkersConfig, folder: Path, name: str
) -> None:
    """Run `function` on all workers until they are done. Ray must run already; paths in `settings` are absolute.

    Raises UsageError for a ValueError of the function, an error of ours as itself, WorkersFailed when restarts were
    of no use, StoppedEarly after Ctrl-C.
    """
    from ray.exceptions import RayActorError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    _check_resources(config)
    refused = folder / REFUSED
    refused.unlink(missing_ok=True)
    resources: dict[str, float] = {"CPU": config.cpus} | ({"GPU": 1} if config.gpu else {})
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "function": function,
            "settings": dict(settings),
            "gpu": config.gpu,
            "refused": str(refused.absolute()),
        },
        scaling_config=ScalingConfig(
            num_workers=config.num_workers, use_gpu=config.gpu, resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend="nccl" if config.gpu else "gloo", timeout_s=config.timeout_s),
        run_config=RunConfig(
            name=name,
            storage_path=str((folder / "ray").absolute()),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    try:
        _fit(trainer)
    except (TrainingFailedError, RayActorError) as error:
        raise WorkersFailed(
            f"training failed: {_last_lines(str(error))}; what was saved is in {folder}: mend the cause, and the "
            "same command goes on"
        ) from error
    if refused.exists():
        raise _refusal(refused)


def _fit(trainer: Any) -> None:
    """`fit`, whose handler of Ctrl-C ends the process without a word and stays behind."""
    before = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit as error:
        raise StoppedEarly("interrupted; the same command goes on from what was saved") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _worker(config: dict[str, Any]) -> None:
    import ray.train
    from ray.train.torch import get_device

    def report(row: dict[str, float]) -> None:
        ray.train.report(dict(row))

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    device = str(get_device()) if config["gpu"] else "cpu"
    try:
        config["function"](config["settings"], device, report)
    except (ValueError, DysraError) as error:
        # wrong settings or data: every worker finds them, and no restart mends them
        code = next((kind.exit_code for kind in _OURS if isinstance(error, kind)), UsageError.exit_code)
        Path(config["refused"]).write_text(f"{code}\n{error}", encoding="utf-8")


def _refusal(refused: Path) -> DysraError:
    """The error that a worker wrote down."""
    code, _, told = refused.read_text(encoding="utf-8").partition("\n")
    return next(kind for kind in _OURS if kind.exit_code == int(code))(told)


def _check_resources(config: WorkersConfig) -> None:
    import ray

    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for kind, wanted in (
        ("CPU", config.cpus * config.num_workers),
        ("GPU", float(config.gpu and config.num_workers)),
    ):
        if wanted > have.get(kind, 0.0):
            raise DependencyUnreachable(
                f"{config.num_workers} workers want {wanted:g} {kind}s, the cluster has {have.get(kind, 0.0):g}; "
                "ask for fewer workers, or add nodes"
            )


def _last_lines(text: str, most: int = 400) -> str:
    """The end of a long message, where the error itself stands."""
    return text if len(text) <= most else "…" + text[-most:]
