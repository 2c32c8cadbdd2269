"""`dysra train-retriever` and `dysra models list|promote|rollback`: policies are trained, compared, put to work."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.config import load_config
from infra.console import ConfigFile, Figures, JsonFlag, Seed, progress, say, verb
from infra.out_folder import alone_in
from pipeline.errors import UsageError

StateFolder = Annotated[Path, typer.Option("--state", help="where MLflow's records and the champion lie")]
_STATE = Path(".dysra")


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("train-retriever")(train_retriever)
    family = typer.Typer(
        help="Policies: what there is, which one serves, and back again.", no_args_is_help=True
    )
    family.command("list")(list_models)
    family.command("promote")(promote)
    family.command("rollback")(rollback)
    app.add_typer(family, name="models")


@verb
def train_retriever(
    data: Annotated[
        list[Path], typer.Option("--data", help="folder of material or file of questions; repeatable")
    ],
    out: Annotated[Path, typer.Option("--out", help="folder of the policy")] = Path("build/retriever"),
    algorithm: Annotated[str, typer.Option(help="ppo (RLlib), plain_ppo, reinforce or supervised")] = "ppo",
    warm_start: Annotated[
        str, typer.Option(help="labels, minimal (mined from the reader) or none")
    ] = "labels",
    begin_with: Annotated[Path | None, typer.Option(help="a saved policy to go on from")] = None,
    reward: Annotated[str, typer.Option(help="terminal (quality - gamma * tokens) or stepwise")] = "terminal",
    gamma: Annotated[float, typer.Option(help="price of a token, terminal form")] = 0.001,
    alpha: Annotated[float, typer.Option(help="scale of 1 / loss, stepwise form")] = 0.1,
    beta: Annotated[float, typer.Option(help="price of a token, stepwise form")] = 0.001,
    gold_weight: Annotated[float, typer.Option(help="added where the choice tells (0: off)")] = 0.0,
    unit: Annotated[str, typer.Option(help="what is chosen: sentence, span or passage")] = "sentence",
    embedder: Annotated[str, typer.Option(help="minilm, static or a folder")] = "minilm",
    train: Annotated[int, typer.Option(help="training questions of a file, at most")] = 600,
    test: Annotated[int, typer.Option(help="test questions of a file, at most")] = 200,
    steps: Annotated[
        int, typer.Option(help="iterations of learning by reward (0: until the time is up)")
    ] = 0,
    minutes: Annotated[float, typer.Option(help="time for learning")] = 30.0,
    warm_steps: Annotated[int, typer.Option(help="steps of the warm start")] = 500,
    runners: Annotated[int, typer.Option(help="env runners of RLlib (ppo); 0: in this process")] = 1,
    questions: Annotated[int, typer.Option(help="questions of an iteration")] = 32,
    readings: Annotated[
        Path | None, typer.Option(help="recorded readings (npz): no reader is loaded")
    ] = None,
    judge: Annotated[int, typer.Option(help="test questions that the reader answers at the end")] = 0,
    seed: Seed = 0,
    state: StateFolder = _STATE,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Train what chooses the sentences to read, and register it as the challenger (docs/policy.md).

    Example: dysra train-retriever --data qa/nq_open.jsonl.zst --algorithm supervised --out build/policy
    """
    from infra.registry import Registry
    from infra.tracking import track
    from infra.training.policy_train import PolicyTrainConfig
    from infra.training.policy_train import train as run
    from rl.reward import RewardConfig

    settings = load_config(config)
    job = PolicyTrainConfig(
        data=tuple(data), out=out, algorithm=algorithm, warm_start=warm_start, begin_with=begin_with,
        reward=RewardConfig(form=reward, gamma=gamma, alpha=alpha, beta=beta, gold_weight=gold_weight),  # type: ignore[arg-type]
        backbone=settings.backbone, embedder=embedder, unit=unit, train=train, test=test, steps=steps,
        minutes=minutes, warm_steps=warm_steps, runners=runners, judge=judge, seed=seed,
        questions=questions, readings=readings, command=f"dysra {shlex.join(sys.argv[1:])}",
    )  # fmt: skip
    params = {"algorithm": algorithm, "reward": reward, "gamma": gamma, "beta": beta, "seed": seed}
    with track(settings.tracking, "train-retriever", state, params) as tracker, progress("steps") as bar:
        count = 0

        def note(record: dict[str, float]) -> None:
            nonlocal count
            count += 1
            if count % 10 == 1 or "episode_return" in record:
                tracker.metrics({n: v for n, v in record.items() if v == v}, step=count)
            bar.update(count)

        with alone_in(out):
            figures = run(job, on_step=note, say=say)
        tracker.metrics({"judged": figures["judged"]}, step=count)
        version = None
        if tracker.run_id:
            version = Registry(settings.tracking, state).add(
                out, tracker.run_id, {"algorithm": algorithm, "seed": seed}
            )
    for dataset, methods in figures["judged"].items():
        for method, budgets in methods.items():
            cells = ", ".join(f"{b} tokens: {_cell(found)}" for b, found in budgets.items())
            say(f"  {dataset} {method:8} {cells}")
    say(f"The policy is in {out}" + (f", version {version} of the registry (challenger)" if version else ""))
    return {**figures, "version": version}


@verb
def list_models(
    state: StateFolder = _STATE, config: ConfigFile = None, json_output: JsonFlag = False
) -> Figures:
    """Show the policies that were registered, newest first, and which one serves."""
    rows = _registry(state, config).versions()
    for row in rows:
        marks = f" [bold]({', '.join(row['aliases'])})[/]" if row["aliases"] else ""
        told = ", ".join(f"{name} {value}" for name, value in row["tags"].items())
        say(f"version {row['version']}{marks}: {told}")
    if not rows:
        say("No policy is registered; `dysra train-retriever` makes one.")
    return {"models": rows}


@verb
def promote(
    data: Annotated[Path, typer.Option("--data", help="material that no policy was trained on: the judge")],
    version: Annotated[int, typer.Option(help="version to promote; 0: the challenger")] = 0,
    budget: Annotated[int, typer.Option(help="tokens a question, the same for both")] = 128,
    by: Annotated[
        str, typer.Option(help="f1 (the reader answers) or recall (of the telling sentence)")
    ] = "f1",
    days: Annotated[
        int | None,
        typer.Option(
            help="only questions told by the newest days of the material's news (0: all); without it the newest 7, "
            "where the news has dates"
        ),
    ] = None,
    limit: Annotated[int, typer.Option(help="questions, at most (0: all)")] = 0,
    state: StateFolder = _STATE,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Make the challenger the champion, if it beats the champion at equal cost on the freshest held-back week.

    Without a champion it must beat hybrid ranking. A worse one is refused with exit code 4.
    Example: dysra models promote --data build/held-back --budget 128 --days 7
    """
    from infra.promotion import contest

    registry = _registry(state, config)
    with registry.alone():
        chosen = version or registry.version_of("challenger")
        if chosen is None:
            raise UsageError("there is no challenger; train one (dysra train-retriever) or name a --version")
        figures = contest(
            registry,
            chosen,
            data,
            budget=budget,
            by=by,
            limit=limit,
            days=days,
            backbone=load_config(config).backbone,
        )
        before = registry.promote(chosen, figures["stop_bias"], figures["reading"])
    say(
        f"Version {chosen} is the champion now ({figures['gain']:+.2f} points at {figures['tokens']} tokens "
        f"against {figures['against']}'s {figures['tokens_before']}). Back again: dysra models rollback"
    )
    return {"champion": chosen, "before": before, **figures, "pointer": str(registry.pointer)}


@verb
def rollback(
    state: StateFolder = _STATE, config: ConfigFile = None, json_output: JsonFlag = False
) -> Figures:
    """Go back to the champion before this one. Sessions follow within seconds and keep their state."""
    registry = _registry(state, config)
    with registry.alone():
        left, back = registry.rollback()
    say(f"Version {back} is the champion again, instead of {left}.")
    return {"champion": back, "before": left}


def _registry(state: Path, config: Path | None) -> Any:
    from infra.registry import Registry

    return Registry(load_config(config).tracking, state)


def _cell(found: dict[str, Any]) -> str:
    score = (
        f"F1 {found['f1']}" if "f1" in found else f"tells {found['gold']}%, holds an answer {found['holds']}%"
    )
    return f"{score} ({found['tokens']} read)"
