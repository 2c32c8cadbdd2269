"""`dysra co-train`: the model that reads and the policy that chooses, trained in turn or together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from infra.config import load_config
from infra.console import ConfigFile, Figures, JsonFlag, Seed, say, verb
from infra.out_folder import alone_in, read_note, refuse_other
from pipeline.errors import UsageError

_STATE = Path(".dysra")


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("co-train")(co_train)


@verb
def co_train(
    data: Annotated[
        Path,
        typer.Option("--data", help="folder of material, or a file of questions (material is made of it)"),
    ],
    out: Annotated[Path, typer.Option("--out", help="folder of the run; started again it goes on")] = Path(
        "build/co-train"
    ),
    mode: Annotated[
        str, typer.Option(help="alternating (rounds of each) or joint (one loss)")
    ] = "alternating",
    method: Annotated[str, typer.Option(help="how the reader is adapted: lora or full")] = "lora",
    policy: Annotated[Path | None, typer.Option(help="a policy to begin with; default: from labels")] = None,
    rounds: Annotated[int, typer.Option(help="rounds of both (alternating)")] = 3,
    reader_steps: Annotated[
        int, typer.Option(help="updates of the reader in a round, or of the joint run")
    ] = 200,
    lr: Annotated[float, typer.Option(help="peak learning rate of the reader")] = 2e-4,
    algorithm: Annotated[
        str, typer.Option(help="of the policy's rounds: plain_ppo, reinforce, ppo")
    ] = "plain_ppo",
    policy_steps: Annotated[int, typer.Option(help="iterations of a policy's round")] = 20,
    policy_minutes: Annotated[float, typer.Option(help="minutes of a policy's round, at most")] = 10.0,
    questions: Annotated[int, typer.Option(help="questions of an iteration or of a joint part")] = 32,
    arms: Annotated[int, typer.Option(help="joint: actions a question that are read")] = 4,
    losses: Annotated[
        str, typer.Option(help="joint: weights of the terms, such as tokens=0.001,frobenius=0.01")
    ] = "",
    labels: Annotated[float, typer.Option(help="joint: weight of choosing what the labels name")] = 0.0,
    gamma: Annotated[float, typer.Option(help="price of a token in the policy's reward")] = 0.001,
    train: Annotated[int, typer.Option(help="training questions of a file, at most")] = 600,
    test: Annotated[int, typer.Option(help="test questions of a file, at most")] = 200,
    embedder: Annotated[
        str, typer.Option(help="for a file of questions: minilm, static or a folder")
    ] = "minilm",
    accumulate: Annotated[
        int, typer.Option(help="parts of an update of the reader, all workers together")
    ] = 1,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="the reader's layers are computed again for the gradient")
    ] = False,
    workers: Annotated[int, typer.Option(help="workers of the reader's training; 0: this process")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="one GPU a worker")] = False,
    judge: Annotated[int, typer.Option(help="test questions that the reader answers after a round")] = 0,
    seed: Seed = 0,
    state: Annotated[Path, typer.Option("--state", help="where MLflow's records lie")] = _STATE,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Train reader and policy together: one MLflow run, a child run for each round (docs/training.md).

    Example: dysra co-train --data build/policy/nq_open --rounds 3 --out build/co-train
    """
    from dataclasses import replace

    from infra.commands.backbone import loss_weights, run_job
    from infra.tracking import track, track_child
    from infra.training.cotrain import CoTrainConfig, about, cotrain
    from infra.training.learners.joint import JointSpec
    from rl.reward import RewardConfig

    settings = load_config(config)
    backbone = replace(settings.backbone, device="cuda" if gpu else settings.backbone.device)
    with alone_in(out / "run"):
        material = _material(data, out, train, test, embedder, seed)
    joint = JointSpec(
        data=material, backbone=backbone, policy=policy, method=method, steps=reader_steps, lr=lr,
        questions=questions, arms=arms, labels=labels, losses=loss_weights(losses),
        accumulate=accumulate, checkpointing=checkpointing, seed=seed,
    )  # fmt: skip
    job = CoTrainConfig(
        data=material, out=out, mode=mode, backbone=backbone, method=method, policy=policy, rounds=rounds,
        reader_steps=reader_steps, reader_lr=lr, algorithm=algorithm, policy_steps=policy_steps,
        policy_minutes=policy_minutes, questions=questions, reward=RewardConfig(gamma=gamma), judge=judge,
        accumulate=accumulate, checkpointing=checkpointing, joint=joint if mode == "joint" else None, seed=seed,
    )  # fmt: skip
    # not OUT's own lock: a joint run's loop takes that
    with alone_in(out / "run"), track(settings.tracking, "co-train", state, about(job)) as parent:

        def run(each: Any) -> Figures:
            return run_job(replace(each, tracking=settings.tracking, state=state.absolute()), workers, gpu)

        def child(name: str, params: dict[str, Any]) -> Any:
            return track_child(settings.tracking, parent, name, state, params)

        figures = cotrain(job, run, child)
        for number, each in enumerate(figures["rounds"]):
            parent.metrics(each, step=number)
    say(f"Reader: {figures['reader']}; policy: {figures['policy']}")
    return figures


def _material(data: Path, out: Path, train: int, test: int, embedder: str, seed: int) -> Path:
    """The folder of material; a file of questions becomes one in the run's folder."""
    if data.is_dir():
        return data
    from infra.training.policy_train import PolicyTrainConfig, open_material

    folder = out / "material"
    asked = {"data": data.name, "train": train, "test": test, "embedder": embedder, "seed": seed}
    note = folder / "manifest.json"
    if note.exists():
        refuse_other(folder, read_note(note), asked)
    else:
        if not data.exists():
            raise UsageError(
                f"--data {data} does not exist; give a folder of material or a file of questions"
            )
        made_as = PolicyTrainConfig(
            data=(data,), out=out, train=train, test=test, embedder=embedder, seed=seed
        )
        open_material(made_as).save(folder, asked)
    return folder
