"""`dysra evaluate`: one cell of the tables, quality and cost of a method on a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from infra.console import ConfigFile, Figures, JsonFlag, progress, say, verb
from pipeline.errors import UsageError

TASKS = ("qa", "retrieval")


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(evaluate)


@verb
def evaluate(
    task: Annotated[str, typer.Option("--task", help=f"one of {', '.join(TASKS)}")],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="qa: none, random, bm25, dense, hybrid, oracle, gold, full; retrieval: bm25, dense, hybrid",
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="file of questions, named as in the data folder")],
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="texts; default: where the data folder has them")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="the reader: gemma-3-270m, a folder or a hub name")
    ] = "gemma-3-270m",
    adapter: Annotated[
        str, typer.Option("--adapter", help="LoRA adapter: shipped, none, or a folder")
    ] = "shipped",
    embedder: Annotated[
        str, typer.Option("--embedder", help="for dense and hybrid: minilm, static or a folder")
    ] = "minilm",
    unit: Annotated[str, typer.Option("--unit", help="what is chosen: sentence or passage")] = "sentence",
    budget: Annotated[int, typer.Option("--budget", help="tokens of text a question")] = 128,
    split: Annotated[str, typer.Option("--split", help="test (kept out of training) or all")] = "test",
    limit: Annotated[int, typer.Option("--limit", help="questions, at most (0: all)")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="which questions a limit keeps; random choices")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N")] = "auto",
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Judge a method on a task: scores, and what reading cost. See docs/reader.md for what each figure means."""
    if task not in TASKS:
        raise UsageError(f"--task {task!r} is unknown; allowed: {', '.join(TASKS)}")
    if not data.exists():
        raise UsageError(f"--data {data} does not exist; give a file of questions (.jsonl or .jsonl.zst)")
    if task == "retrieval":
        return _retrieval(method, data, corpus, embedder, limit, seed)
    from infra.evaluation.qa import QaConfig, run

    cell = QaConfig(
        data=data, method=method, corpus=corpus, model=model, adapter=_adapter(adapter, model), embedder=embedder,
        unit=unit, budget=budget, split=split, limit=limit, seed=seed, device=device,
    )  # fmt: skip
    say(
        f"{data.name}: what [bold]{method}[/] chooses, read by {model}"
        + (" with its adapter" if cell.adapter else "")
    )
    with progress("questions read") as steps:
        figures = run(cell, steps.update)
    scores, cost = figures["scores"], figures["cost"]
    low, high = scores["f1_interval"] or (None, None)
    say(
        f"  {figures['n']} questions, {cost['tokens_read']} tokens read each: EM {scores['em']}, F1 {scores['f1']} "
        f"(95% {low} to {high}); text holds the answer {scores['holds']}%\n"
        f"  gave up wrongly {scores['gave_up_wrongly']}%, rightly {scores['gave_up_rightly']}%; "
        f"made to answer: F1 {scores['forced_f1']}"
    )
    return figures


def _adapter(given: str, model: str) -> str | None:
    if given == "none":
        return None
    if given != "shipped":
        if not Path(given).is_dir():
            raise UsageError(
                f"--adapter {given}: no such folder; allowed: shipped, none, or a folder of a LoRA adapter"
            )
        return given
    from models.hf.adapter import adapter_folder
    from models.hf.config import HfConfig

    folder = adapter_folder(HfConfig(model=model, adapter=given))
    return None if folder is None else str(folder)


def _retrieval(
    method: str, data: Path, corpus: Path | None, embedder: str, limit: int, seed: int
) -> dict[str, Any]:
    from infra.evaluation import retrieval
    from infra.evaluation.qa_sources import beside
    from models.embed import load_embedder

    texts = corpus or beside(data.parent.parent / "corpus" / data.name, "passages_wiki")
    with progress("texts embedded") as steps:
        found = retrieval.run(
            data,
            texts,
            [method],
            embedder=load_embedder(embedder),
            num_questions=limit or 1_000,
            seed=seed,
            progress=lambda done, total: steps.update(done),
        )
    scores = found["scores"][method]
    say(f"  {found['n']} questions over {found['passages']:,} passages: " + _shown(scores))
    return found | {"task": "retrieval", "method": method, "scores": scores, "cost": found["cost"][method],
                    "model": found["embedder"]}  # fmt: skip


def _shown(scores: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in scores.items())
