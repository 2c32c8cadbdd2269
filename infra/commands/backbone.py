"""`dysra train-backbone`: the model that reads is trained or adapted, on one worker or many."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.config import load_config
from infra.console import ConfigFile, Figures, JsonFlag, Seed, say, verb
from infra.out_folder import alone_in
from pipeline.errors import UsageError

StateFolder = Annotated[Path, typer.Option("--state", help="where MLflow's records lie")]
_STATE = Path(".dysra")


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("train-backbone")(train_backbone)


@verb
def train_backbone(
    data: Annotated[
        Path,
        typer.Option(
            "--data", help="subq: folder of token files; reader, landmark: of triples; latents: of groups"
        ),
    ],
    kind: Annotated[
        str,
        typer.Option(
            help="subq (from scratch), reader (adapted to read), latents (to read its cache) or landmark (a head)"
        ),
    ] = "subq",
    out: Annotated[Path, typer.Option("--out", help="folder of the run; started again it goes on")] = Path(
        "build/backbone"
    ),
    method: Annotated[str, typer.Option(help="reader: lora or full; landmark: frozen, lora or mixer")] = "",
    taught: Annotated[
        Path | None,
        typer.Option(help="landmark: folder of infra.training.landmark_taught; the head is taught by MiniLM"),
    ] = None,
    steps: Annotated[int, typer.Option(help="updates")] = 1000,
    accumulate: Annotated[
        int, typer.Option(help="parts (micro-batches) of an update, all workers together")
    ] = 1,
    workers: Annotated[int, typer.Option(help="processes that train together (Ray Train); 0: this one")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="one GPU a worker (NCCL); else CPU (gloo)")] = False,
    lr: Annotated[float, typer.Option(help="peak learning rate (0: the kind's own)")] = 0.0,
    losses: Annotated[
        str, typer.Option(help="subq: weights of the terms, such as contrastive=0,tokens=0.001")
    ] = "",
    fade: Annotated[
        str, typer.Option(help="subq: shares of the run between which the contrastive term fades: 0.5,0.8")
    ] = "",
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--checkpointing",
            help="layers are computed again for the gradient (not by a frozen landmark head)",
        ),
    ] = False,
    copies: Annotated[
        bool, typer.Option("--copies", help="subq: a head copies from the chunks that were chosen")
    ] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="subq: sizes that a CPU trains for a try")] = False,
    minutes: Annotated[float, typer.Option(help="training time at most, all calls together (0: none)")] = 0.0,
    save_every: Annotated[int, typer.Option(help="steps between saved states")] = 100,
    seed: Seed = 0,
    state: StateFolder = _STATE,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Train a backbone, or adapt one to read; the model is in OUT/model, its curve in OUT/curve.jsonl and MLflow.

    Example: dysra train-backbone --kind reader --data build/prepared/triples --out build/reader --workers 2
    """
    from infra.tracking import track
    from infra.training.backbone_job import BackboneJob, absolute
    from infra.training.backbone_loop import LoopConfig

    settings = load_config(config)
    if not (lr >= 0 and math.isfinite(lr)):
        raise UsageError(f"--lr: given {lr}; allowed: above 0, or 0 for the kind's own")
    if not minutes >= 0:
        raise UsageError(f"--minutes: given {minutes}; allowed: 0 (no limit) or more")
    if not data.exists():
        raise UsageError(f"--data {data} does not exist; `dysra prepare` makes it")
    loop = LoopConfig(
        steps=steps, accumulate=accumulate, save_every=save_every, limit_s=60 * minutes,
        report_every=max(1, min(10, steps // 20)),
    )  # fmt: skip
    spec = _spec(
        kind,
        data,
        method,
        steps,
        accumulate,
        lr,
        losses,
        fade,
        tiny,
        seed,
        settings.backbone,
        gpu,
        checkpointing,
        taught,
        copies,
    )
    params = {"kind": kind, "method": method, "steps": steps, "accumulate": accumulate, "seed": seed}
    with track(settings.tracking, f"train-backbone-{kind}", state, params) as tracker:
        job = absolute(
            BackboneJob(
                kind=kind, out=out, spec=spec, loop=loop, tracking=settings.tracking, run_id=tracker.run_id,
                state=state, command=f"dysra {shlex.join(sys.argv[1:])}",
            )
        )  # fmt: skip
        figures = run_job(job, workers, gpu)
    say(
        f"{kind}: step {figures['step']}, loss {figures['loss_first']} to {figures['loss_last']}; {out / 'model'}"
    )
    return figures


def run_job(job: Any, workers: int, gpu: bool) -> Figures:
    """The job on workers of Ray Train, or in this process; its figures."""
    from infra.training.backbone_job import MODEL
    from infra.training.backbone_loop import read_curve

    with alone_in(job.out):
        _train(job, workers, gpu)
    curve = read_curve(job.out)
    if not curve:
        raise UsageError(f"{job.out}: no step was done; give more --steps or --minutes")
    tenth = max(1, len(curve) // 10)
    last = curve[-1]
    return {
        "kind": job.kind, "out": str(job.out), "model": str(job.out / MODEL), "step": int(last["step"]),
        "loss_first": round(_mean(curve[:tenth]), 4), "loss_last": round(_mean(curve[-tenth:]), 4),
        "tokens": int(sum(row["num_tokens"] for row in curve)), "tokens_per_s": round(last["tokens_per_s"], 1),
        "peak_share": round(last["peak_share"], 4), "peak_bytes": int(last["peak_bytes"]),
        "seconds": round(last["seconds"], 1), "workers": workers,
    }  # fmt: skip


def _train(job: Any, workers: int, gpu: bool) -> None:
    from infra.training.backbone_job import run_here, work
    from models.hf.loading import pick_device

    if workers == 0:
        run_here(job, str(pick_device("cuda")) if gpu else "cpu")
        return
    from actors.train_workers import WorkersConfig, train_on_workers
    from infra.cluster import connect_ray

    setup = WorkersConfig(num_workers=workers, gpu=gpu)
    connect_ray()
    train_on_workers(work, {"job": job}, setup, job.out, "run")


def _spec(
    kind: str, data: Path, method: str, steps: int, accumulate: int, lr: float, losses: str, fade: str,
    tiny: bool, seed: int, backbone: Any, gpu: bool, checkpointing: bool = False,
    taught: Path | None = None, copies: bool = False,
) -> Any:  # fmt: skip
    if copies and kind != "subq":
        raise UsageError(
            f"--copies: given with --kind {kind}; allowed: with subq (only its readers choose chunks)"
        )
    if taught is not None and (kind != "landmark" or not taught.is_dir()):
        raise UsageError(
            f"--taught: given {taught} with --kind {kind}; allowed: with landmark, a folder that "
            "infra.training.landmark_taught wrote"
        )
    if kind != "subq" and (losses or fade or tiny):
        raise UsageError(f"--losses, --fade, --tiny: given with --kind {kind}; allowed: with subq")
    if method and kind in ("subq", "latents"):
        raise UsageError(f"--method: given {method!r} with --kind {kind}; allowed: with reader and landmark")
    if kind == "subq":
        from dataclasses import replace

        from infra.training.learners.subq import SubqSpec
        from infra.training.subq import SubqTrainConfig

        train = SubqTrainConfig(
            losses=loss_weights(losses), muon=not tiny, seed=seed, compiled=gpu, workers=8 * gpu
        )
        if lr:
            train = replace(train, lr=lr)
        if fade:
            first, _, last = fade.partition(",")
            train = replace(train, contrastive_until=(_number("fade", first), _number("fade", last or first)))
        return SubqSpec(
            data=data, steps=steps, accumulate=accumulate, train=train, tiny=tiny, checkpointing=checkpointing,
            copies=copies, seed=seed,
        )  # fmt: skip
    peak: dict[str, Any] = {"lr": lr} if lr else {}
    if kind == "reader":
        from infra.training.learners.reader import ReaderSpec

        return ReaderSpec(
            data=data, backbone=backbone, method=method or "lora", steps=steps, accumulate=accumulate,
            checkpointing=checkpointing, **peak, seed=seed,
        )  # fmt: skip
    if kind == "landmark":
        from infra.training.learners.landmark import LandmarkSpec

        return LandmarkSpec(
            data=data, backbone=backbone, method=method or "frozen", steps=steps, accumulate=accumulate,
            embedder="minilm", checkpointing=checkpointing, taught=taught,
            **peak, seed=seed,
        )  # fmt: skip
    if kind == "latents":
        from infra.training.learners.latents import LatentsSpec

        return LatentsSpec(
            data=data, backbone=backbone, steps=steps, accumulate=accumulate, checkpointing=checkpointing,
            **peak, seed=seed,
        )  # fmt: skip
    raise UsageError(f"--kind: given {kind!r}; allowed: subq, reader, landmark, latents")


def loss_weights(text: str) -> Any:
    """`LossWeights` of a text such as `tokens=0.001,frobenius=0.01`; terms not named keep their weight."""
    from dataclasses import fields

    from models.subq.losses import LossWeights

    known = [each.name for each in fields(LossWeights)]
    found = {}
    for part in filter(None, text.split(",")):
        name, given, value = part.partition("=")
        if not given:
            raise UsageError(f"--losses: given {part!r}; give a weight with each term, as tokens=0.001")
        if name not in known:
            raise UsageError(f"--losses: given {name!r}; allowed: {', '.join(known)}")
        found[name] = _number("losses", value)
    return LossWeights(**found)


def _number(option: str, text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UsageError(f"--{option}: given {text!r}; allowed: a number")
    return found


def _mean(rows: list[dict[str, float]]) -> float:
    return sum(row["loss"] for row in rows) / len(rows)
