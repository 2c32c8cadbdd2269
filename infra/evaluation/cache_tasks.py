"""Cells of the cache tables: a context is compressed by a method at a byte budget, then the question is read.

The question is unseen while compressing. Quality and cost are those of one model; docs/cache-methods.md says
what each figure means.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from infra.evaluation.cache_cases import Case, is_case_file, lm_texts, needle_cases, qa_cases
from models.compared import METHODS, method
from models.compared.base import Method, budget_of
from models.compared.full import Full
from models.compared.ours import Ours
from models.compared.trace import Trace, read_exactly
from models.hf import HfBackbone, HfConfig
from pipeline.errors import UsageError
from pipeline.session.prompts import STOP_TEXTS, PromptForm, parse_answer
from pipeline.tasks.scores import answer_f1, bootstrap_interval, exact_match

TASKS = ("needle", "qa", "lm")
ANSWER_TOKENS = 24
JUDGED_TOKENS = 256
OnProgress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheCell:
    """One cell: a method at a budget on a file."""

    task: str = field(metadata={"help": f"{', '.join(TASKS)}"})
    method: str = field(metadata={"help": "see models/compared"})
    data: Path = field(metadata={"help": "cases, questions or texts"})
    keep: float = field(default=0.1, metadata={"help": "share of the full layers' bytes that is kept"})
    corpus: Path | None = field(
        default=None, metadata={"help": "qa: texts; default: where the data folder has them"}
    )
    passages: int = field(default=10, metadata={"help": "qa: passages of a context"})
    split: str = field(default="test", metadata={"help": "qa: test or all"})
    model: str = field(default="gemma-3-270m", metadata={"help": "as backbone.model"})
    adapter: str | None = field(default=None, metadata={"help": "LoRA adapter of the reader"})
    device: str = field(default="auto", metadata={"help": "as backbone.device"})
    dtype: str = field(default="float32", metadata={"help": "as backbone.dtype"})
    limit: int = field(default=0, metadata={"help": "cases, at most (0: all)"})
    seed: int = field(default=0, metadata={"help": "which questions a limit keeps"})

    def __post_init__(self) -> None:
        for name, allowed in (
            ("task", TASKS),
            ("method", tuple(METHODS)),
            ("split", ("test", "train", "all")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: given {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep: given {self.keep}; allowed: above 0, at most 1 (1 is the whole cache)")
        if self.passages < 1:
            raise ValueError(f"passages: given {self.passages}; allowed: 1 or more")
        if self.limit < 0:
            raise ValueError(f"limit: given {self.limit}; allowed: 0 (all) or more")


@dataclass(frozen=True, slots=True)
class Judged:
    """One case: `exact` and `digits` teacher-forced, nats of the whole gold answer, what was said (qa only).

    `attention_error`: of the full layers' outputs, mean over layers, where they were read in batches.
    """

    exact: float
    digits: float
    nats: float
    answer_tokens: int
    f1: float = 0.0
    em: float = 0.0
    said: str = ""
    attention_error: float | None = None


def run(cell: CacheCell, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """The figures of a cell, in the keys that `dysra evaluate --json` prints. Raises UsageError, BadData."""
    backbone = HfBackbone.load(
        HfConfig(model=cell.model, adapter=cell.adapter or "none", device=cell.device, dtype=cell.dtype)
    )
    from infra.evaluation.cache_batch import Asked, asked_of, attention_errors

    try:
        ready = method(cell.method).prepare(backbone)
    except ValueError as error:
        raise UsageError(f"--method {cell.method}: {error}") from error
    judge = _judge_text if cell.task == "lm" else _judge_case
    results: list[Judged] = []
    costs: list[dict[str, float]] = []
    for context, cases in _work(cell, backbone):
        began = time.perf_counter()
        trace = read_exactly(backbone, context)
        reading_s = time.perf_counter() - began
        try:
            memory, trace_s = compress(ready, backbone, context, cell.keep, trace)
        except ValueError as error:
            raise UsageError(f"--method {cell.method} --keep {cell.keep}: {error}") from error
        if not getattr(ready, "streaming", False):  # which reads by itself
            trace_s += reading_s
        full = method("full").memory(trace, trace.full_bytes)
        asked = [
            Asked("", case[:1], case[1:]) if cell.task == "lm" else asked_of(backbone, case) for case in cases
        ]
        errors = attention_errors(backbone, full, memory, asked)
        for case, each, lost in zip(cases, asked, errors, strict=True):
            began = time.perf_counter()
            # a memory with a store behind it fetches what the question asks for
            choose = getattr(memory, "for_question", None)
            read = memory if choose is None else choose(each.prompt)
            judged = replace(judge(backbone, read, case, cell.task), attention_error=lost)
            cost = _cost(memory, len(context), time.perf_counter() - began, trace_s / len(cases), judged)
            costs.append(cost | {"fetched_bytes": full_layer_bytes(read) - full_layer_bytes(memory)})
            results.append(judged)
            if on_progress is not None:
                on_progress(len(results))
    return {
        "task": cell.task,
        "method": cell.method,
        "data": cell.data.name,
        "keep": cell.keep,
        "n": len(results),
        "scores": summary(cell.task, results, cell.seed),
        "cost": _costs(costs, backbone),
        "seed": cell.seed,
        "model": backbone.identity,
    }


def _work(cell: CacheCell, backbone: HfBackbone) -> list[tuple[list[int], list[Any]]]:
    """Contexts as token ids, each with what comes after it: cases, or the judged tokens of a text."""
    if cell.task == "lm":
        split = [split_text(backbone, cell, text) for text in cell_texts(cell)]
        return [(ids, [later]) for ids, later in split]
    return [(encode_context(backbone, text), cases) for text, cases in grouped(read_cases(cell)).items()]


def cell_texts(cell: CacheCell) -> list[str]:
    """The texts of an lm cell."""
    return lm_texts(cell.data, cell.limit)


def split_text(backbone: HfBackbone, cell: CacheCell, text: str) -> tuple[list[int], list[int]]:
    """The context and the judged tokens of an lm cell's text; raises UsageError for a text that is too short."""
    ids = encode_context(backbone, text)
    if len(ids) < 2 * JUDGED_TOKENS:
        raise UsageError(
            f"{cell.data}: a text of {len(ids)} tokens; lm judges the last {JUDGED_TOKENS} after at least "
            f"as many: give texts of {2 * JUDGED_TOKENS} tokens or more"
        )
    return ids[:-JUDGED_TOKENS], ids[-JUDGED_TOKENS:]


def read_cases(cell: CacheCell) -> list[Case]:
    """The cases of a needle or qa cell."""
    form: PromptForm = "adapted" if cell.adapter else "base"
    if cell.task == "needle" or is_case_file(cell.data):
        return needle_cases(cell.data, form, cell.limit)
    return qa_cases(
        cell.data, form, corpus=cell.corpus, passages=cell.passages, split=cell.split, limit=cell.limit,
        seed=cell.seed,
    )  # fmt: skip


def grouped(cases: Sequence[Case]) -> dict[str, list[Any]]:
    """The cases by context, so that each is read once."""
    by_context: dict[str, list[Any]] = {}
    for case in cases:
        by_context.setdefault(case.context, []).append(case)
    return by_context


def encode_context(backbone: HfBackbone, text: str) -> list[int]:
    """A context as the model reads it."""
    return [*backbone.bos, *backbone.encode(text)]


def compress(
    ready: Method, backbone: HfBackbone, context: Sequence[int], keep: float, trace: Trace | None = None
) -> tuple[Any, float]:
    """The compressed context and the seconds it took; `trace` spares the exact reading when it is known."""
    began = time.perf_counter()
    if isinstance(ready, Ours) and ready.streaming:
        return ready.read(backbone, context, keep), time.perf_counter() - began
    trace = trace or read_exactly(backbone, context)
    budget = trace.full_bytes if isinstance(ready, Full) else budget_of(trace, keep)
    return ready.memory(trace, budget), time.perf_counter() - began


def _judge_case(backbone: HfBackbone, memory: Any, case: Case, task: str) -> Judged:
    return judge_case(backbone, memory, case, generate=task == "qa")


def judge_case(backbone: HfBackbone, memory: Any, case: Case, *, generate: bool) -> Judged:
    """Ask one question of a compressed context. The first gold answer is the one whose likelihood counts.

    `exact`: greedy decoding would write the gold answer's tokens next (what the teacher-forced choices tell).
    """
    asked, gold = backbone.encode(case.asked), backbone.encode(f" {case.answers[0]}")
    logits = backbone.logits([*asked, *gold[:-1]], memory)[-len(gold) :].float()
    target = torch.tensor(gold, device=logits.device)
    right = (logits.argmax(-1) == target).float()
    nats = -float(logits.log_softmax(-1).gather(1, target[:, None]).sum())
    shown = [
        i for i, token in enumerate(gold) if any(c.isdigit() for c in backbone.decode([token]))
    ] or range(len(gold))
    digits = float(right[list(shown)].mean())
    if not generate:
        return Judged(float(right.min()), digits, nats, len(gold))
    ids = backbone.generate(asked, memory, max_new_tokens=ANSWER_TOKENS, stop_texts=STOP_TEXTS)
    said = parse_answer(backbone.decode(ids)).text
    return Judged(
        float(right.min()),
        digits,
        nats,
        len(gold),
        answer_f1(said, case.answers),
        exact_match(said, case.answers),
        said,
    )


def _judge_text(backbone: HfBackbone, memory: Any, ids: list[int], task: str) -> Judged:
    nats = -backbone.score(ids[:1], ids[1:], memory)
    return Judged(0.0, 0.0, nats, len(ids) - 1)


def summary(task: str, results: Sequence[Judged], seed: int = 0) -> dict[str, Any]:
    """The scores of a cell; percent, and nats per token."""
    tokens = sum(judged.answer_tokens for judged in results)
    nats = round(sum(judged.nats for judged in results) / max(1, tokens), 4)
    errors = [judged.attention_error for judged in results if judged.attention_error is not None]
    more = {"attention_error": round(mean(errors), 4)} if errors else {}
    if task == "lm":
        return {"nats": nats, **more}
    if task == "needle":
        exact = [judged.exact for judged in results]
        return {
            "exact": round(100 * mean(exact), 2),
            "exact_interval": bootstrap_interval(exact, seed),
            "digits": round(100 * mean(judged.digits for judged in results), 2),
            "nats": nats,
            **more,
        }
    f1 = [judged.f1 for judged in results]
    return {
        "em": round(100 * mean(judged.em for judged in results), 2),
        "f1": round(100 * mean(f1), 2),
        "f1_interval": bootstrap_interval(f1, seed),
        "nats": nats,
        **more,
    }


def full_layer_bytes(memory: Any) -> int:
    """Bytes that the full-attention layers hold, metadata included."""
    if hasattr(memory, "nbytes_by_part"):  # our cache, which counts the sliding layers too
        return int(memory.nbytes - memory.nbytes_by_part()["sliding"] - memory.nbytes_by_part()["pending"])
    return int(memory.nbytes)


def sliding_layer_bytes(memory: Any) -> int:
    """Bytes of the sliding layers' windows, a constant that no method touches."""
    return int(
        memory.nbytes_by_part()["sliding"] if hasattr(memory, "nbytes_by_part") else memory.sliding_bytes
    )


def _cost(memory: Any, context: int, asked_s: float, trace_s: float, judged: Judged) -> dict[str, float]:
    return {
        "tokens_read": context,
        "kv_bytes": full_layer_bytes(memory),
        "sliding_bytes": sliding_layer_bytes(memory),
        "asked_s": asked_s,
        "read_s": trace_s,
        "answer_tokens": judged.answer_tokens,
    }


def _costs(costs: Sequence[dict[str, float]], backbone: HfBackbone) -> dict[str, Any]:
    """Means a case; FLOPs are two a weight and token read, `ms_per_token` is of reading the question."""
    total = {name: mean(cost[name] for cost in costs) for name in costs[0]}
    weights = sum(parameter.numel() for parameter in backbone.model.parameters())
    if backbone.device.type == "cuda":
        peak = int(torch.cuda.max_memory_allocated())
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tokens_read": round(total["tokens_read"], 1),
        "prefill_tokens": round(total["tokens_read"], 1),
        "kv_bytes": round(total["kv_bytes"]),
        "sliding_bytes": round(total["sliding_bytes"]),
        "fetched_bytes": round(total["fetched_bytes"]),
        "ms_per_token": round(1000 * total["asked_s"] / max(1.0, total["answer_tokens"]), 3),
        "queries_per_s": round(1 / max(1e-9, total["asked_s"] + total["read_s"]), 4),
        "peak_bytes": peak,
        "flops": round(2 * weights * total["tokens_read"]),
    }
