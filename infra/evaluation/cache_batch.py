"""Many cells of one context judged together: what every compressed memory says to every question, in batches.

One forward serves all memories: the tokens are the same, the memories differ. Figures are those of judging
them one by one (tests compare); beside them stands the error of the attention output in the full-attention
layers, question and answer teacher-forced, each layer given the exact queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from infra.evaluation.cache_cases import Case
from infra.evaluation.cache_tasks import ANSWER_TOKENS, Judged
from models.cache.rotating import CacheView
from models.hf import HfBackbone
from models.hf.batch import BatchView, Step, forward, greedy, joined
from pipeline.session.prompts import parse_answer
from pipeline.tasks.scores import answer_f1, exact_match

_LOGIT_BYTES = 400 << 20
_MOST_BYTES = {"cpu": 1 << 30, "cuda": 4 << 30}


@dataclass(frozen=True, slots=True)
class Asked:
    """Tokens read after a context, and those that are judged; `answers` are texts, none where only nats count."""

    case_id: str
    prompt: list[int]
    gold: list[int]
    answers: tuple[str, ...] = ()


def asked_of(backbone: HfBackbone, case: Case) -> Asked:
    """A question as tokens; the first gold answer is the one whose likelihood counts."""
    gold = backbone.encode(f" {case.answers[0]}")
    return Asked(case.case_id, backbone.encode(case.asked), gold, case.answers)


def judge_all(
    backbone: HfBackbone, full: Any, memories: Sequence[Any], asked: Sequence[Asked], *, generate: bool
) -> list[list[Judged]]:
    """What each memory says to each question `[memory][question]`; `full` holds everything."""
    with torch.no_grad():
        recorded = [_recorded(backbone, full, each) for each in asked]
        found: list[list[Judged]] = [[] for _ in memories]
        room = max(len(each.prompt) + max(len(each.gold), ANSWER_TOKENS) for each in asked) + 1
        for rows, pending, batch in _batches(backbone, memories, room):
            if pending:
                forward(backbone, pending, batch, 1)
            for each, steps in zip(asked, recorded, strict=True):
                judged = _judge(backbone, batch, each, steps, generate)
                for row, one in zip(rows, judged, strict=True):
                    found[row].append(one)
    return found


def attention_errors(
    backbone: HfBackbone, full: Any, memory: Any, asked: Sequence[Asked]
) -> list[float] | list[None]:
    """The attention error of one memory for each question; Nones where the model caps its logits."""
    room = max(len(each.prompt) + len(each.gold) for each in asked)
    found: list[float] = []
    try:
        with torch.no_grad():
            for _, pending, batch in _batches(backbone, [memory], room):
                if pending:
                    forward(backbone, pending, batch, 1)
                for each in asked:
                    recorded = _recorded(backbone, full, each)
                    found.append(round(float(batch.errors(recorded).mean()), 6))
    except ValueError as error:
        if "softcap" not in str(error):
            raise
        return [None] * len(asked)
    return found


def _batches(
    backbone: HfBackbone, memories: Sequence[Any], room: int
) -> Iterator[tuple[list[int], list[int], BatchView]]:
    """Memories of one size and with the same pending tokens together, as many as fit."""
    limit = _MOST_BYTES[backbone.device.type]
    # rows that lend or borrow attention weights are read the slow way: by themselves
    kinds = [
        (
            tuple(memory.pending),
            any(getattr(held, "leads", False) for held in getattr(memory, "held", ())),
        )
        for memory in memories
    ]
    for kind in dict.fromkeys(kinds):
        members = [at for at, of in enumerate(kinds) if of == kind]
        members.sort(key=lambda at: memories[at].nbytes)
        pending = list(kind[0])
        rows: list[int] = []
        views: list[CacheView] = []
        for at in members:
            view = memories[at].view(0)
            if rows and (len(rows) + 1) * _bytes(view, room + len(pending)) > limit:
                yield rows, pending, BatchView(views, room + len(pending))
                rows, views = [], []
            rows.append(at)
            views.append(view)
        yield rows, pending, BatchView(views, room + len(pending))


def _bytes(view: CacheView, room: int) -> int:
    pairs = sum(
        (layer._length + room) * layer.spec.num_kv_heads * layer.spec.head_dim for layer in view.views
    )
    return 2 * pairs * view.views[0].spec.dtype.itemsize


def _recorded(backbone: HfBackbone, full: Any, asked: Asked) -> dict[int, Step]:
    batch = BatchView([full.view(0)], len(asked.prompt) + len(asked.gold))
    steps = batch.record()
    forward(backbone, [*asked.prompt, *asked.gold[:-1]], batch, 1)
    return {index: joined(found) for index, found in steps.items()}


def _judge(
    backbone: HfBackbone, batch: BatchView, asked: Asked, recorded: dict[int, Step], generate: bool
) -> list[Judged]:
    before = batch.tail
    errors = batch.errors(recorded).mean(1).tolist()
    first, right, nats = _forced(backbone, batch, asked)
    shown = [
        i for i, token in enumerate(asked.gold) if any(c.isdigit() for c in backbone.decode([token]))
    ] or list(range(len(asked.gold)))
    judged = [
        Judged(
            float(right[row].min()),
            float(right[row, shown].mean()),
            float(nats[row]),
            len(asked.gold),
            attention_error=round(errors[row], 6),
        )
        for row in range(batch.num_rows)
    ]
    if generate:
        batch.rewind(batch.tail - before - len(asked.prompt))
        answers = greedy(backbone, first, batch, ANSWER_TOKENS)
        judged = [_with_answer(backbone, one, ids, asked) for one, ids in zip(judged, answers, strict=True)]
    batch.rewind(batch.tail - before)
    return judged


def _with_answer(backbone: HfBackbone, judged: Judged, ids: list[int], asked: Asked) -> Judged:
    said = parse_answer(backbone.decode(ids)).text
    return replace(judged, f1=answer_f1(said, asked.answers), em=exact_match(said, asked.answers), said=said)


def _forced(backbone: HfBackbone, batch: BatchView, asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
    """Logits after the prompt [B, V]; whether each gold token is the likeliest [B, g]; nats of all of them [B]."""
    piece = max(1, _LOGIT_BYTES // (8 * batch.num_rows * backbone.vocabulary))
    gold = torch.tensor(asked.gold, device=backbone.device)
    # the first piece brings the prompt along
    parts = [gold[at : at + piece] for at in range(0, len(gold), piece)]
    given = [*asked.prompt, *asked.gold[:-1]]
    ends = [len(asked.prompt) + sum(map(len, parts[: at + 1])) - 1 for at in range(len(parts))]
    first: Tensor | None = None
    right, nats = [], torch.zeros(batch.num_rows, dtype=torch.float64, device=backbone.device)
    for at, (part, end) in enumerate(zip(parts, ends, strict=True)):
        start = ends[at - 1] if at else 0
        logits = forward(backbone, given[start:end], batch, len(part)).float()
        if first is None:
            first = logits[:, 0].clone()
        right.append((logits.argmax(-1) == part).float())
        chosen = logits.gather(-1, part.expand(batch.num_rows, -1)[..., None])[..., 0]
        nats += (logits.logsumexp(-1) - chosen).double().sum(1)
    assert first is not None
    return first, torch.cat(right, dim=1).cpu(), nats.cpu()
