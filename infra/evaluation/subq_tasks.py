"""Cells that a sub-quadratic model answers: needle, qa and lm over its own stream, and keys in long text.

`needle`: a file of cases (context, question, answers) is streamed and asked; a file of texts becomes a haystack of
all its tokens, and infra/evaluation/passkey.py writes keys into it, at 16k tokens and every fourfold up to its
length. The method is `subq`: what the model retrieves by itself; or a compared one (gca, linear-transformer,
mamba-2, …), which the checkpoint must be. All are read and asked alike, and their cost is of one cache: `kv_bytes`
of it all, `state_bytes` of what does not grow with the stream (but a transformer's does), `memory_bytes` of chunks.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import mean
from typing import Any

import numpy as np
import torch

from infra.evaluation.cache_cases import Case, is_case_file, lm_texts, needle_cases, qa_cases
from infra.evaluation.cache_tasks import ANSWER_TOKENS, JUDGED_TOKENS, Judged, grouped, summary
from infra.evaluation.cell import Cell
from infra.evaluation.needle_file import read_texts
from infra.evaluation.readers import load_subq
from models.subq import SubqBackbone
from models.subq.backbone import SubqCache
from models.subq.baselines import COMPARED, method_of
from pipeline.errors import UsageError
from pipeline.session.prompts import STOP_TEXTS, parse_answer
from pipeline.tasks.qa import read_lines
from pipeline.tasks.scores import answer_f1, exact_match

METHODS = ("subq", *COMPARED)
SHORTEST, TRIALS = 16_384, 16
OnProgress = Callable[[int], None]
Ask = Callable[[SubqCache], Judged]


def run(cell: Cell, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """The figures of a cell, in the keys that `dysra evaluate --json` prints. Raises UsageError, BadData."""
    if cell.method not in METHODS:
        raise UsageError(
            f"--method {cell.method!r} with --model {cell.model}: a subq model reads by its own retrieval; "
            f"allowed: {', '.join(METHODS)} (other methods compress the cache of a transformers model)"
        )
    backbone = load_subq(cell.model, cell.device)
    if cell.method not in ("subq", found := method_of(backbone.model.config)):
        raise UsageError(
            f"--method {cell.method} with --model {cell.model}: the checkpoint's shape is that of {found}; give "
            f"--method {found}, or a checkpoint of {cell.method} (infra.training.subq_gpu trains one)"
        )
    if cell.task == "needle" and not is_case_file(cell.data):
        return _keys_in_text(cell, backbone, on_progress)
    results: list[Judged] = []
    costs: list[dict[str, float]] = []
    for cache, seconds, asked in _work(cell, backbone):
        for one in asked:
            began = time.perf_counter()
            results.append(one(cache))
            costs.append(
                {
                    "tokens_read": cache.tokens_seen,
                    "kv_bytes": cache.nbytes,
                    "state_bytes": cache.stream.state_bytes,
                    "seconds": time.perf_counter() - began + seconds / len(asked),
                }
            )
            if on_progress is not None:
                on_progress(len(results))
    total = {name: mean(cost[name] for cost in costs) for name in costs[0]}
    return _figures(cell, backbone, len(results), summary(cell.task, results, cell.seed), total)


def _work(cell: Cell, backbone: SubqBackbone) -> Iterator[tuple[SubqCache, float, list[Ask]]]:
    """Every context read into a cache of its own, with what is asked of it."""
    if cell.task == "lm":
        for text in lm_texts(cell.data, cell.limit):
            ids = [*backbone.bos, *backbone.encode(text)]
            if len(ids) < 2 * JUDGED_TOKENS:
                raise UsageError(
                    f"{cell.data}: a text of {len(ids)} tokens; lm judges the last {JUDGED_TOKENS} after at least "
                    f"as many: give texts of {2 * JUDGED_TOKENS} tokens or more"
                )
            later = ids[-JUDGED_TOKENS:]
            yield (
                *_read(backbone, ids[:-JUDGED_TOKENS]),
                [partial(_continued, later)],
            )
        return
    cases = (
        needle_cases(cell.data, "adapted", cell.limit)
        if cell.task == "needle" or is_case_file(cell.data)
        else qa_cases(
            cell.data, "adapted", corpus=cell.corpus, passages=cell.passages, split=cell.split, limit=cell.limit,
            seed=cell.seed,
        )
    )  # fmt: skip
    for context, group in grouped(cases).items():
        asked: list[Ask] = [partial(_asked, backbone, case, cell.task == "qa") for case in group]
        yield *_read(backbone, [*backbone.bos, *backbone.encode(context)]), asked


def _read(backbone: SubqBackbone, ids: Sequence[int]) -> tuple[SubqCache, float]:
    began, cache = time.perf_counter(), backbone.new_cache()
    backbone.read(ids, cache)
    if backbone.model.encoder is None:
        # hidden states wait for an upper half, which such a model lacks: no later token needs them
        cache.stream._flush()
    return cache, time.perf_counter() - began


def _asked(backbone: SubqBackbone, case: Case, generate: bool, cache: SubqCache) -> Judged:
    """As in the model's training: the question on a line of its own, the answer after a space."""
    question = case.asked.removeprefix("Question: ").removesuffix("\nAnswer:")
    before = f"\n{question.rstrip()} "
    whole, spans = backbone.encode_spans(before + case.answers[0])
    first = next(at for at, (_, end) in enumerate(spans) if end > len(before))
    asked, gold = whole[:first], whole[first:]
    stream = cache.stream.fork()
    logits = stream.ask(torch.tensor(asked))[None]
    if len(gold) > 1:
        logits = torch.cat((logits, stream.logits(torch.tensor(gold[:-1])).to(logits.dtype)))
    target = torch.tensor(gold, device=logits.device)
    right = (logits.argmax(-1) == target).float()
    nats = -float(logits.float().log_softmax(-1).gather(1, target[:, None]).sum())
    shown = [
        at for at, token in enumerate(gold) if any(c.isdigit() for c in backbone.decode([token]))
    ] or list(range(len(gold)))
    judged = Judged(float(right.min()), float(right[shown].mean()), nats, len(gold))
    if not generate:
        return judged
    said = parse_answer(
        backbone.decode(backbone.generate(asked, cache, max_new_tokens=ANSWER_TOKENS, stop_texts=STOP_TEXTS))
    ).text
    return Judged(
        judged.exact, judged.digits, nats, len(gold), answer_f1(said, case.answers),
        exact_match(said, case.answers), said,
    )  # fmt: skip


def _continued(ids: list[int], cache: SubqCache) -> Judged:
    logits = cache.stream.fork().logits(torch.tensor(ids[:-1])).float()
    target = torch.tensor(ids[1:], device=logits.device)
    nats = -float(logits.log_softmax(-1).gather(1, target[:, None]).sum())
    return Judged(0.0, 0.0, nats, len(ids) - 1)


def _keys_in_text(cell: Cell, backbone: SubqBackbone, on_progress: OnProgress | None) -> dict[str, Any]:
    """Rows of infra/evaluation/passkey.py over the file's texts, one after another."""
    from infra.evaluation.haystack import Haystack
    from infra.evaluation.passkey import CELLS, PasskeyTest, table

    if backbone.model.encoder is None:
        raise UsageError(
            f"--data {cell.data}: keys in a haystack of texts are looked up by a model's retrieval; {cell.model} "
            "has none: give cases (lines of context, question, answers)"
        )
    size = backbone.model.config.chunk
    texts = (
        [row["text"] for row in read_lines(cell.data) if isinstance(row.get("text"), str)]
        if _is_lines(cell)
        else read_texts(cell.data)
    )
    ids = np.array([i for text in texts for i in (*backbone.encode(text), *backbone.bos)], np.int64)
    ids = ids[: len(ids) // size * size]
    lengths = [SHORTEST * 4**at for at in range(8) if SHORTEST * 4**at <= len(ids)]
    if not lengths:
        raise UsageError(
            f"--data {cell.data}: {len(ids)} tokens of text; keys are hidden in {SHORTEST} or more: give more text"
        )
    trials = min(cell.limit, 32) if cell.limit else TRIALS
    began = time.perf_counter()
    test = PasskeyTest(backbone.model, Haystack(backbone.model, ids), backbone.encode_spans, ())
    done: list[dict[str, Any]] = []

    def report(row: dict[str, Any]) -> None:
        done.append(row)
        if on_progress is not None:
            on_progress(sum(each["n"] for each in done))

    chosen = [each for each in CELLS if not each.real]
    rows = table(test, lengths, chosen, trials, cell.seed, report)
    scores = {f"exact_{row['cell']}_{row['length']}": row["exact"] for row in rows} | {
        f"exact_at_{n}": round(mean(r["exact"] for r in rows if r["length"] == n), 2) for n in lengths
    }
    longest = [row for row in rows if row["length"] == lengths[-1]]
    total = {
        "tokens_read": float(mean(row["length"] for row in rows)),
        "kv_bytes": float(
            mean(row["kv_bytes"] + row["landmark_bytes"] + row["ids_bytes"] for row in longest)
        ),
        "seconds": (time.perf_counter() - began) / max(1, sum(row["n"] for row in rows)),
    }
    figures = _figures(cell, backbone, sum(row["n"] for row in rows), scores, total)
    return figures | {"rows": rows}


def _is_lines(cell: Cell) -> bool:
    return ".jsonl" in cell.data.suffixes


def _apart(total: dict[str, float]) -> dict[str, int]:
    """The bytes of the state and of the memory of chunks, where a cache was looked at."""
    if "state_bytes" not in total:
        return {}
    state = round(total["state_bytes"])
    return {"state_bytes": state, "memory_bytes": round(total["kv_bytes"]) - state}


def _figures(
    cell: Cell, backbone: SubqBackbone, n: int, scores: dict[str, Any], total: dict[str, float]
) -> dict[str, Any]:
    weights = sum(parameter.numel() for parameter in backbone.model.parameters())
    on_gpu = backbone.model.device.type == "cuda"
    peak = (
        torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "task": cell.task,
        "method": cell.method,
        "data": cell.data.name,
        "n": n,
        "scores": scores,
        "cost": {
            "tokens_read": round(total["tokens_read"], 1),
            "prefill_tokens": round(total["tokens_read"], 1),
            "kv_bytes": round(total["kv_bytes"]),
            **_apart(total),
            "ms_per_token": round(1000 * total["seconds"] / max(1.0, total["tokens_read"]), 4),
            "queries_per_s": round(1 / max(1e-9, total["seconds"]), 4),
            "peak_bytes": int(peak),
            "flops": round(2 * weights * total["tokens_read"]),
        },
        "seed": cell.seed,
        "model": backbone.identity,
    }
