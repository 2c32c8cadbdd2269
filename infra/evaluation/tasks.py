"""The tasks of `dysra evaluate` by name: a function each, from a cell to its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from infra.console import progress, say
from infra.evaluation.cell import Cell

Task = Callable[[Cell], dict[str, Any]]


def qa(cell: Cell) -> dict[str, Any]:
    """Questions over what a method chooses to read."""
    from infra.evaluation.qa import QaConfig, run

    adapter = cell.reader_adapter("shipped")
    names = (
        "data",
        "method",
        "corpus",
        "model",
        "embedder",
        "unit",
        "budget",
        "split",
        "limit",
        "seed",
        "device",
        "policy",
    )
    known = {f.name for f in fields(QaConfig)}
    config = QaConfig(adapter=adapter, **{name: getattr(cell, name) for name in names if name in known})
    say(
        f"{cell.data.name}: what [bold]{cell.method}[/] chooses, read by {cell.model}"
        + (" with its adapter" if adapter else "")
    )
    with progress("questions read") as steps:
        figures = run(config, steps.update)
    scores, cost = figures["scores"], figures["cost"]
    low, high = scores["f1_interval"] or (None, None)
    say(
        f"  {figures['n']} questions, {cost['tokens_read']} tokens read each: EM {scores['em']}, F1 {scores['f1']} "
        f"(95% {low} to {high}); text holds the answer {scores['holds']}%\n"
        f"  gave up wrongly {scores['gave_up_wrongly']}%, rightly {scores['gave_up_rightly']}%; "
        f"made to answer: F1 {scores['forced_f1']}"
    )
    return figures


def retrieval(cell: Cell) -> dict[str, Any]:
    """Gold passages found by a way of searching."""
    from infra.evaluation import retrieval
    from infra.evaluation.qa_sources import beside
    from models.embed import load_embedder

    texts = cell.corpus or beside(cell.data.parent.parent / "corpus" / cell.data.name, "passages_wiki")
    with progress("texts embedded") as steps:
        found = retrieval.run(
            cell.data,
            texts,
            [cell.method],
            embedder=load_embedder(cell.embedder),
            num_questions=cell.limit or 1_000,
            seed=cell.seed,
            progress=lambda done, total: steps.update(done),
        )
    scores = found["scores"][cell.method]
    shown = ", ".join(f"{name} {value}" for name, value in scores.items())
    say(f"  {found['n']} questions over {found['passages']:,} passages: {shown}")
    return found | {
        "task": "retrieval",
        "method": cell.method,
        "scores": scores,
        "cost": found["cost"][cell.method],
        "model": found["embedder"],
    }


TASKS: dict[str, Task] = {"qa": qa, "retrieval": retrieval}
