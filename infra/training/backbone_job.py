"""`dysra train-backbone`: what is trained, on how many workers, and what is written when it is done.

A job is plain values, so that it travels to any worker; `work` is what each worker does. Without Ray (a bare host,
a test) `work` runs as it is in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from infra.training.backbone_loop import Learner, LoopConfig, Place, read_curve, run_loop
from infra.training.cards import CARD, write_card
from models.data_parallel import Group

KINDS = ("subq", "reader", "landmark", "joint", "latents")
MODEL = "model"
SAYS = {
    "subq": "A sub-quadratic language model trained from scratch (docs/subq.md).",
    "reader": "Adaptation of a decoder to read few chosen sentences (docs/reader.md). Of Gemma: under its terms.",
    "joint": "A reader and the policy that chooses for it, trained together (docs/training.md).",
    "latents": "A reader adapted to read its compressed cache (docs/training.md). Of Gemma: under its terms.",
    "landmark": "A landmark head over a decoder's hidden states: questions lie close to the texts that tell.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneJob:
    """One run: `spec` holds the configuration of the kind (`infra.training.learners.<kind>`)."""

    kind: str = field(metadata={"help": ", ".join(KINDS)})
    out: Path = field(metadata={"help": "folder of the run; a second start goes on there"})
    spec: Any = field(metadata={"help": "the kind's own settings"})
    loop: LoopConfig = field(default_factory=LoopConfig, metadata={"help": "see LoopConfig"})
    tracking: Any = field(default=None, metadata={"help": "TrackingConfig, or None"})
    run_id: str = field(default="", metadata={"help": "MLflow run that rank 0 writes into"})
    state: Path = field(default=Path(".dysra"), metadata={"help": "MLflow's default place"})
    command: str = field(default="", metadata={"help": "shown on the model's card"})

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: given {self.kind!r}; allowed: {', '.join(KINDS)}")


def absolute(job: BackboneJob) -> BackboneJob:
    """The job with every path absolute: workers run in other folders."""
    spec = {f.name: getattr(job.spec, f.name) for f in fields(job.spec)}
    paths: dict[str, Any] = {
        name: value.expanduser().absolute() for name, value in spec.items() if isinstance(value, Path)
    }
    if "backbone" in spec:
        folders = {
            name: str(Path(value).expanduser().absolute())
            for name in ("model", "adapter")
            if (value := getattr(spec["backbone"], name)) and Path(value).expanduser().is_dir()
        }
        paths["backbone"] = replace(spec["backbone"], **folders)
    return replace(job, out=job.out.absolute(), state=job.state.absolute(), spec=replace(job.spec, **paths))


def work(settings: Mapping[str, Any], device: str, report: Callable[[dict[str, float]], None]) -> None:
    """What each worker does: train to the end, and in rank 0 write the model with its card."""
    job: BackboneJob = settings["job"]
    group = Group.current(device)
    if device.startswith("cuda"):
        import torch

        torch.set_float32_matmul_precision("high")
    learner: Any = build(job, device)
    tracker = _tracker(job) if group.rank == 0 else None

    def tell(row: dict[str, float]) -> None:
        report(row)
        if tracker is not None:
            tracker.metrics({n: v for n, v in row.items() if v == v}, step=int(row["step"]))

    made_from: dict[str, Any] = {"kind": job.kind, "spec": _plain(job.spec), "loop": _plain(job.loop)}
    # a run may go on with others of these: a second call of a script has other seconds left
    for name in ("save_every", "report_every", "keep", "limit_s"):
        made_from["loop"].pop(name)
    run_loop(learner, job.loop, Place(folder=job.out, made_from=made_from, report=tell), group)
    if group.rank == 0:
        finish(job, learner)
        if tracker is not None:
            tracker.text((job.out / MODEL / CARD).read_text(encoding="utf-8"), "model/README.md")
    group.barrier()


def build(job: BackboneJob, device: str) -> Learner:
    """The learner of a job on a device."""
    if job.kind == "subq":
        from infra.training.learners.subq import build_subq

        return build_subq(job.spec, job.out, device)
    if job.kind == "reader":
        from infra.training.learners.reader import build_reader

        return build_reader(job.spec, job.out, device)
    if job.kind == "joint":
        from infra.training.learners.joint import build_joint

        return build_joint(job.spec, job.out, device)
    if job.kind == "latents":
        from infra.training.learners.latents import build_latents

        return build_latents(job.spec, job.out, device)
    from infra.training.learners.landmark import build_landmark

    return build_landmark(job.spec, job.out, device)


def finish(job: BackboneJob, learner: Any) -> dict[str, Any]:
    """Write the model (safetensors) and its card; the figures of the run's end."""
    curve = read_curve(job.out)
    last = curve[-1] if curve else {}
    about = _plain(job.loop) | _plain(job.spec)
    # what was done, where the settings say what was to be done: time may have been short
    about |= {
        "kind": job.kind, "steps": int(last.get("step", 0)), "planned_steps": about["steps"],
        "seconds": round(last.get("seconds", 0.0), 1),
        "tokens": int(sum(row.get("num_tokens", 0) for row in curve)),
    }  # fmt: skip
    learner.write(job.out / MODEL, about)
    write_card(job.out / MODEL, f"Backbone: {job.kind}", SAYS[job.kind], about, curve, job.command)
    return about


def run_here(
    job: BackboneJob, device: str = "cpu", report: Callable[[dict[str, float]], None] = lambda row: None
) -> list[dict[str, float]]:
    """The job in this process, without Ray; its curve."""
    work({"job": job}, device, report)
    return read_curve(job.out)


def _tracker(job: BackboneJob) -> Any:
    if job.tracking is None or not job.run_id:
        return None
    from infra.tracking import attach

    return attach(job.tracking, job.run_id, job.state)


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as a dictionary that JSON can hold."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in asdict(value).items()}
