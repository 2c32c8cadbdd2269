"""The tasks of `dysra evaluate` by name: a function each, from a cell to its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from infra.console import progress, say
from infra.evaluation.cell import Cell
from infra.evaluation.readers import hf_name, kind_of
from models.compared import METHODS as CACHE_METHODS
from models.subq.baselines import COMPARED as BACKBONES
from pipeline.errors import UsageError

Task = Callable[[Cell], dict[str, Any]]


def qa(cell: Cell) -> dict[str, Any]:
    """Questions over what a method chooses to read."""
    from infra.evaluation.qa import METHODS as READING
    from infra.evaluation.qa import QaConfig, run

    if cell.method in ("subq", *BACKBONES) or (cell.method in CACHE_METHODS and cell.method not in READING):
        return cache(cell)

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
        "reading",
        "trust",
        "cache",
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
    within = "({} to {}, 95%)".format(*scores["f1_interval"]) if scores["f1_interval"] else "(no interval)"
    told = {name: "-" if score is None else f"{score}%" for name, score in scores.items()}  # none asked so
    say(
        f"  {figures['n']} questions, {cost['tokens_read']} tokens read each: EM {told['em']}, F1 {told['f1']} "
        f"{within}; text holds the answer {told['holds']}\n"
        f"  gave up wrongly {told['gave_up_wrongly']}, rightly {told['gave_up_rightly']}; "
        f"made to answer: F1 {told['forced_f1']}"
    )
    return figures


def cache(cell: Cell) -> dict[str, Any]:
    """A context compressed by a method of models/compared, then asked or continued: needle, qa, lm.

    A subq model reads the context as its stream instead.
    """
    if kind_of(cell.model) == "subq":
        return _subq(cell)
    if cell.method in ("subq", *BACKBONES):
        raise UsageError(
            f"--method {cell.method} with --model {cell.model}: {cell.method} is a backbone trained as such, not a "
            "way to compress another model's cache; give the folder of its checkpoint: --model FOLDER"
        )
    if cell.method not in CACHE_METHODS:
        raise UsageError(
            f"--method {cell.method!r} is unknown for {cell.task}; allowed: {', '.join(CACHE_METHODS)}"
        )
    from infra.evaluation.cache_tasks import CacheCell, run

    adapter = cell.reader_adapter("none")
    names = (
        "task",
        "method",
        "data",
        "keep",
        "corpus",
        "passages",
        "split",
        "model",
        "device",
        "limit",
        "seed",
    )
    given = {name: getattr(cell, name) for name in names} | {"model": hf_name(cell.model)}
    config = CacheCell(adapter=adapter, **given)
    kept = 100.0 if cell.method in ("full", "full_cache") else 100 * cell.keep
    say(f"{cell.data.name}: [bold]{cell.method}[/] keeps {kept:g}% of the full layers' bytes")
    with progress("questions asked") as steps:
        figures = run(config, steps.update)
    shown = ", ".join(f"{name} {value}" for name, value in figures["scores"].items())
    say(f"  {figures['n']} cases, {figures['cost']['kv_bytes']:,} bytes each: {shown}")
    return figures


def _subq(cell: Cell) -> dict[str, Any]:
    from infra.evaluation.subq_tasks import run

    say(f"{cell.data.name}: read by the subq model {cell.model}, which retrieves by itself")
    with progress("questions asked") as steps:
        figures = run(cell, steps.update)
    shown = ", ".join(f"{name} {value}" for name, value in figures["scores"].items())
    say(f"  {figures['n']} cases, {figures['cost']['kv_bytes']:,} bytes each: {shown}")
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


TASKS: dict[str, Task] = {"qa": qa, "retrieval": retrieval, "needle": cache, "lm": cache}
