"""`dysra evaluate`: one cell of the tables, quality and cost of a method on a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.config import load_config
from infra.console import ConfigFile, Figures, JsonFlag, Seed, verb
from infra.evaluation.cell import Cell
from infra.evaluation.tasks import TASKS
from pipeline.errors import UsageError


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
            help="qa: none, random, bm25, dense, hybrid, cascade, policy, router, longrag, oracle, full, … "
            "(docs/policy.md); retrieval: bm25, dense, hybrid; needle, lm and qa: a way to compress the cache "
            "(docs/cache-methods.md): snapkv, ours_ranker, …; a subq model: subq, or what it "
            "was trained as: gca, linear-transformer, mamba-2",
        ),
    ],
    data: Annotated[
        Path, typer.Option("--data", help="qa, retrieval: a file of the data folder; needle, lm: JSON lines")
    ],
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="texts; default: where the data folder has them")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="who answers: hf (gemma-3-270m), subq (the shipped checkpoint), a folder or a hub name",
        ),
    ] = "gemma-3-270m",
    adapter: Annotated[
        str,
        typer.Option(
            "--adapter", help="LoRA adapter: shipped, none, or a folder; auto: as the task is usually read"
        ),
    ] = "auto",
    embedder: Annotated[
        str, typer.Option("--embedder", help="for dense and hybrid: minilm, static or a folder")
    ] = "minilm",
    unit: Annotated[
        str, typer.Option("--unit", help="what is chosen: sentence, span or passage")
    ] = "sentence",
    budget: Annotated[int, typer.Option("--budget", help="tokens of text a question")] = 128,
    split: Annotated[str, typer.Option("--split", help="test (kept out of training) or all")] = "test",
    limit: Annotated[int, typer.Option("--limit", min=0, help="questions, at most (0: all)")] = 0,
    seed: Seed = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N")] = "auto",
    policy: Annotated[
        Path | None, typer.Option("--policy", help="a trained retrieval policy, for methods that use one")
    ] = None,
    reading: Annotated[
        str,
        typer.Option(
            "--reading", help="qa: together in one prompt, or apart: each alone, the most trusted answer"
        ),
    ] = "together",
    trust: Annotated[
        Path | None,
        typer.Option("--trust", help="weights of readings apart; default: the reader's own probability"),
    ] = None,
    cache: Annotated[
        int,
        typer.Option(
            "--cache",
            help="qa: newest articles of a session's cache to choose from too (dated news; policy, cascade, …)",
        ),
    ] = 0,
    keep: Annotated[
        float,
        typer.Option(
            "--keep", help="cache methods: share of the full layers' bytes, as 0.5, 0.25, 0.1, 0.05"
        ),
    ] = 0.1,
    passages: Annotated[
        int, typer.Option("--passages", help="cache methods on qa: passages of a context")
    ] = 10,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Judge a method on a task: scores, and what reading cost. Figures: docs/reader.md, docs/cache-methods.md."""
    load_config(config)
    if task not in TASKS:
        raise UsageError(f"--task {task!r} is unknown; allowed: {', '.join(TASKS)}")
    if not data.exists():
        raise UsageError(f"--data {data} does not exist; give a file of questions (.jsonl or .jsonl.zst)")
    cell = Cell(
        task=task, method=method, data=data, corpus=corpus, model=model, adapter=adapter, embedder=embedder,
        unit=unit, budget=budget, split=split, limit=limit, seed=seed, device=device, policy=policy,
        reading=reading, trust=trust, cache=cache, keep=keep, passages=passages,
    )  # fmt: skip
    return TASKS[task](cell)
