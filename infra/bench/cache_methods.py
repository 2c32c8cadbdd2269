"""The table of cache methods: every method on the same contexts, each read once, at several budgets.

    python -m infra.bench.cache_methods run --task needle|qa|lm --data FILE --rows ROWS.jsonl [--keep 0.5,0.1]
    python -m infra.bench.cache_methods report --rows ROWS.jsonl --out infra/bench/results/NAME

A run appends a row a question, method and budget, so that it can be ended and called again. `report` writes JSON
and Markdown of one or more files (a row that two of them hold counts once); ratios are named
`quality_drop_at_<percent less>_<method>`: points of needles exact and QA F1 (their mean, each also alone) that are
lost against the full cache on the same cases.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from infra.bench.cache_methods_page import markdown
from infra.bench.cache_methods_table import FULL, Row, cell_of, read_rows, report, unique
from infra.console import say
from infra.evaluation import cache_batch
from infra.evaluation.cache_batch import Asked, asked_of, judge_all
from infra.evaluation.cache_cases import Case
from infra.evaluation.cache_tasks import (
    CacheCell,
    cell_texts,
    compress,
    encode_context,
    full_layer_bytes,
    grouped,
    read_cases,
    sliding_layer_bytes,
    split_text,
)
from infra.training.kept_page import keep_as
from models.compared import METHODS, method
from models.compared.base import Method
from models.compared.trace import read_exactly
from models.hf import HfBackbone, HfConfig


@dataclass(frozen=True, slots=True)
class Given:
    """One context of a file and what is asked of it; `ids` as the model reads it."""

    task: str
    data: str
    ids: list[int]
    asked: list[Asked]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A context that is tokenized when it is called; what it will be asked is known before."""

    task: str
    data: str
    cases: tuple[str, ...]
    make: Callable[[], Given]

    def __call__(self) -> Given:
        return self.make()


def contexts(backbone: HfBackbone, cell: CacheCell) -> list[Waiting]:
    """The contexts of a cell's file in order (lm: the text's own last tokens are asked)."""
    found: dict[tuple[str, ...], Callable[[], Given]] = {}
    if cell.task == "lm":
        for at, text in enumerate(cell_texts(cell)):
            found[(str(at),)] = partial(_text_given, backbone, cell, at, text)
    else:
        for text, cases in grouped(read_cases(cell)).items():
            found[tuple(case.case_id for case in cases)] = partial(_case_given, backbone, cell, text, cases)
    return [Waiting(cell.task, cell.data.name, cases, make) for cases, make in found.items()]


def _text_given(backbone: HfBackbone, cell: CacheCell, at: int, text: str) -> Given:
    ids, later = split_text(backbone, cell, text)
    return Given(cell.task, cell.data.name, ids, [Asked(str(at), later[:1], later[1:])])


def _case_given(backbone: HfBackbone, cell: CacheCell, text: str, cases: Sequence[Case]) -> Given:
    asked = [asked_of(backbone, case) for case in cases]
    return Given(cell.task, cell.data.name, encode_context(backbone, text), asked)


def run(
    backbone: HfBackbone,
    given: Iterable[Waiting],
    methods: Sequence[str],
    keeps: Sequence[float],
    rows: Path,
    *,
    reader: str = "base",
    settings: dict[str, dict[str, Any]] | None = None,
    until: float = float("inf"),
    known: Iterable[Row] = (),
) -> bool:
    """Append the missing rows of the contexts `given`; False where the clock passed `until` before the end.

    Rows that are `known` from elsewhere are not made again. A method that cannot work at a budget gets a row
    with its error instead of scores.
    """
    done = {cell_of(row) for row in (*read_rows(rows), *known)}
    ready = {name: method(name, **(settings or {}).get(name, {})).prepare(backbone) for name in methods}
    cells = list(dict.fromkeys((name, 1.0 if name == FULL else keep) for name in methods for keep in keeps))
    for at, waiting in enumerate(given):
        if time.monotonic() > until:
            return False
        of = (reader, waiting.task, waiting.data)
        missing = [cell for cell in cells if any((*of, case, *cell) not in done for case in waiting.cases)]
        if not missing:
            continue
        context = waiting()
        began = time.perf_counter()
        made = _with_memory_for(partial(_judged_context, backbone, context, missing, ready))
        new = ({"reader": reader, **row} for row in made)
        _append(rows, [row for row in new if cell_of(row) not in done])
        say(
            f"  context {at} of {context.data}: {len(context.ids)} tokens, {len(context.asked)} cases, "
            f"{len(missing)} cells in {time.perf_counter() - began:.1f} s"
        )
    return True


def _with_memory_for(work: Callable[[], list[Row]]) -> list[Row]:
    """What `work` gives; on a full GPU it is done again in smaller batches."""
    for _ in range(3):
        try:
            return work()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            cache_batch._MOST_BYTES["cuda"] //= 2
            say(f"  the GPU is full: batches of {cache_batch._MOST_BYTES['cuda'] >> 20} MiB from now on")
    return work()


def _judged_context(
    backbone: HfBackbone, context: Given, cells: Sequence[tuple[str, float]], ready: dict[str, Method]
) -> list[Row]:
    """A row a cell and question."""
    trace = read_exactly(backbone, context.ids)
    about = {"task": context.task, "data": context.data, "tokens": len(context.ids)}
    found: list[Row] = []
    kept: list[tuple[dict[str, Any], Any]] = []
    for name, keep in cells:
        cell = {**about, "method": name, "keep": keep}
        try:
            memory, spent = compress(ready[name], backbone, context.ids, keep, trace)
        except ValueError as error:
            found += [{**cell, "case": asked.case_id, "error": str(error)} for asked in context.asked]
            continue
        cost = {
            "kv_bytes": full_layer_bytes(memory),
            "sliding_bytes": sliding_layer_bytes(memory),
            "full_bytes": trace.full_bytes,
            "compress_s": round(spent, 4),
        }
        kept.append((cell | cost, memory))
    full = method("full").memory(trace, trace.full_bytes)
    judged = judge_all(
        backbone, full, [memory for _, memory in kept], context.asked, generate=context.task == "qa"
    )
    for (cell, memory), answers in zip(kept, judged, strict=True):
        fetched = getattr(memory, "fetched_bytes", None)
        if fetched is not None:
            cell["fetched_bytes"] = fetched
        found += [
            {**cell, "case": asked.case_id, **asdict(one)}
            for asked, one in zip(context.asked, answers, strict=True)
        ]
    return found


def _append(path: Path, rows: Iterable[Row]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _main_run(given: argparse.Namespace) -> int:
    backbone = HfBackbone.load(
        HfConfig(
            model=given.model,
            adapter=given.adapter,
            device=given.device,
            threads=given.threads,
            dtype=given.dtype,
        )
    )
    reader = given.reader or ("base" if given.adapter == "none" else "adapted")
    cell = CacheCell(
        task=given.task, method=FULL, data=given.data, corpus=given.corpus, passages=given.passages,
        model=given.model, adapter=None if given.adapter == "none" else given.adapter, device=given.device,
        limit=given.limit, seed=given.seed, keep=1.0, split=given.split,
    )  # fmt: skip
    keeps = [float(part) for part in given.keep.split(",")]
    until = time.monotonic() + given.seconds
    settings = settings_of(given.ranker, given.squeeze_share)
    finished = run(
        backbone, contexts(backbone, cell), given.methods.split(","), keeps, given.rows,
        reader=reader, settings=settings, until=until,
    )  # fmt: skip
    say("finished" if finished else "not finished: call again")
    return 0 if finished else 5


def settings_of(ranker: str = "", squeeze_share: float = 0.4) -> dict[str, dict[str, Any]]:
    """Settings of methods other than their defaults."""
    found = {name: {"ranker": ranker} for name in METHODS if "ranker" in name} if ranker else {}
    return {**found, "squeeze": {"share": squeeze_share}}


def plain_methods() -> list[str]:
    """All methods that compress what was read exactly, but those that read as a session does.

    Other compressors of our latents are left out too (`--methods` names them).
    """
    apart = ("_streaming", "full_cache", "_weighted", "_projection", "_autoencoder")
    return [name for name in METHODS if not name.endswith(apart)]


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs, reports = verbs.add_parser("run"), verbs.add_parser("report")
    add: Callable[..., Any] = runs.add_argument
    add("--task", choices=["needle", "qa", "lm"], required=True)
    add("--data", type=Path, required=True)
    add("--corpus", type=Path)
    add("--passages", type=int, default=10)
    add("--split", default="test")
    add("--methods", default=",".join(plain_methods()))
    add("--keep", default="0.5,0.3,0.1,0.05")
    add("--ranker", default="", help="folder of a ranker; default: the shipped one")
    add("--squeeze-share", type=float, default=0.4)
    add("--model", default="gemma-3-270m")
    add("--adapter", default="none", help="none, shipped, or the folder of a LoRA adapter")
    add("--reader", default="", help="the reader's name in the table; default: base, or adapted")
    add("--device", default="auto")
    add("--dtype", default="float32")
    add("--threads", type=int, default=0)
    add("--limit", type=int, default=0)
    add("--seed", type=int, default=0)
    add("--seconds", type=float, default=1e9)
    for each in (runs, reports):
        each.add_argument("--rows", type=Path, nargs="+" if each is reports else None, required=True)
    reports.add_argument("--out", type=Path, required=True, help="without ending")
    reports.add_argument("--device", default=platform.machine())
    reports.add_argument("--model", default="gemma-3-270m")
    reports.add_argument("--torch", default=torch.__version__, help="of the machine that ran it")
    reports.add_argument("--commit", default="", help="of what ran; default: of this checkout")
    reports.add_argument("--command", default="python -m infra.bench.cache_methods run …")
    given = parser.parse_args(arguments)
    if given.verb == "run":
        return _main_run(given)
    rows = unique(row for path in given.rows for row in read_rows(path))
    result = report(rows, given.device, given.model, given.command)
    result |= {"torch": given.torch, "commit": given.commit or result["commit"]}
    keep_as(given.out, result, markdown(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
