"""Many cells of one context judged together: what every compressed memory says to every question, in one batch.

A row is a memory and a question; rows of unequal questions are filled up on the left, so that one forward serves
all of them. Figures are those of judging them one by one (tests compare); beside them stands the error of the
attention output in the full-attention layers, question and answer teacher-forced, each layer given the exact
queries.
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
from models.hf.batch import BatchView, forward, greedy, joined
from models.hf.batch_layer import Step
from pipeline.session.prompts import parse_answer
from pipeline.tasks.scores import answer_f1, exact_match

_LOGIT_BYTES = {"cpu": 400 << 20, "cuda": 4 << 30}
_MOST_BYTES = {"cpu": 1 << 30, "cuda": 6 << 30}


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


@dataclass(frozen=True, slots=True)
class Lanes:
    """The questions as rows of one length: prompts end in the same column, answers follow.

    `ids [Q, T]`; `pads [Q]` tokens in front of the prompt; `judged [Q, T]` the tokens of prompt and answer.
    """

    ids: Tensor
    pads: Tensor
    judged: Tensor
    prompt: int
    golds: Tensor
    counts: Tensor

    @classmethod
    def of(cls, asked: Sequence[Asked], device: torch.device) -> Lanes:
        """Fill up what is asked to the longest prompt and the longest answer."""
        prompt, gold = max(len(each.prompt) for each in asked), max(len(each.gold) for each in asked)
        rows, judged = [], []
        for each in asked:
            before, after = prompt - len(each.prompt), gold - len(each.gold)
            rows.append([each.prompt[0]] * before + each.prompt + each.gold + each.gold[:1] * after)
            judged.append([0] * before + [1] * (len(each.prompt) + len(each.gold) - 1) + [0] * after)
        ids = torch.tensor(rows, device=device)
        return cls(
            ids[:, :-1],
            torch.tensor([prompt - len(each.prompt) for each in asked], device=device),
            torch.tensor(judged, dtype=torch.float32, device=device),
            prompt,
            ids[:, prompt:],
            torch.tensor([len(each.gold) for each in asked], device=device),
        )


def judge_all(
    backbone: HfBackbone, full: Any, memories: Sequence[Any], asked: Sequence[Asked], *, generate: bool
) -> list[list[Judged]]:
    """What each memory says to each question `[memory][question]`; `full` holds everything.

    A memory with `for_question` gives another one for each question (models/compared/brought_back.py).
    """
    with torch.no_grad():
        lanes = Lanes.of(asked, backbone.device)
        recorded = _recorded(backbone, full, lanes)
        found: list[list[Any]] = [[None] * len(asked) for _ in memories]
        room = lanes.prompt + max(lanes.golds.shape[1], ANSWER_TOKENS) + 1
        for rows, pending, batch in _batches(backbone, memories, asked, room):
            if pending:
                forward(backbone, pending, batch, 1)
            judged = _judge(
                backbone, batch, [question for _, question in rows], asked, lanes, recorded, generate
            )
            for (memory, question), one in zip(rows, judged, strict=True):
                found[memory][question] = one
    return found


def attention_errors(
    backbone: HfBackbone, full: Any, memory: Any, asked: Sequence[Asked]
) -> list[float] | list[None]:
    """The attention error of one memory for each question; Nones where the model caps its logits."""
    found: list[float] = [0.0] * len(asked)
    try:
        with torch.no_grad():
            lanes = Lanes.of(asked, backbone.device)
            recorded = _recorded(backbone, full, lanes)
            for rows, pending, batch in _batches(backbone, [memory], asked, lanes.ids.shape[1] + 1):
                if pending:
                    forward(backbone, pending, batch, 1)
                errors = _errors(
                    batch, torch.tensor([q for _, q in rows], device=backbone.device), lanes, recorded
                )
                for (_, question), error in zip(rows, errors, strict=True):
                    found[question] = error
    except ValueError as error:
        if "softcap" not in str(error):
            raise
        return [None] * len(asked)
    return found


def _batches(
    backbone: HfBackbone, memories: Sequence[Any], asked: Sequence[Asked], room: int
) -> Iterator[tuple[list[tuple[int, int]], list[int], BatchView]]:
    """Rows (memory, question) of like size and with the same pending tokens together, as many as fit."""
    limit = _MOST_BYTES[backbone.device.type]
    kinds = [tuple(memory.pending) for memory in memories]
    for kind in dict.fromkeys(kinds):
        members = [at for at, of in enumerate(kinds) if of == kind]
        members.sort(key=lambda at: memories[at].nbytes)
        pending = list(kind)
        rows: list[tuple[int, int]] = []
        views: list[CacheView] = []
        for at in members:
            for question, view in enumerate(_views(memories[at], asked)):
                # rows are in order of size: all are padded to the newest one
                if rows and (len(rows) + 1) * _bytes(view, room + len(pending)) > limit:
                    yield rows, pending, BatchView(views, room + len(pending))
                    rows, views = [], []
                rows.append((at, question))
                views.append(view)
        yield rows, pending, BatchView(views, room + len(pending))


def _views(memory: Any, asked: Sequence[Asked]) -> list[CacheView]:
    choose = getattr(memory, "for_question", None)
    if choose is not None:
        return [choose(each.prompt).view(0) for each in asked]
    return [memory.view(0)] * len(asked)


def _bytes(view: CacheView, room: int) -> int:
    pairs = sum(
        (layer._length + room) * layer.spec.num_kv_heads * layer.spec.head_dim for layer in view.views
    )
    return 2 * pairs * view.views[0].spec.dtype.itemsize


def _recorded(backbone: HfBackbone, full: Any, lanes: Lanes) -> dict[int, Step]:
    batch = BatchView([full.view(0)] * len(lanes.ids), lanes.ids.shape[1])
    steps = batch.record()
    forward(backbone, lanes.ids, batch, 1, lanes.pads)
    return {index: joined(found) for index, found in steps.items()}


def _errors(batch: BatchView, questions: Tensor, lanes: Lanes, recorded: dict[int, Step]) -> list[float]:
    given = {index: step.of(questions) for index, step in recorded.items()}
    return [round(error, 6) for error in batch.errors(given, lanes.judged[questions]).mean(1).tolist()]


def _judge(
    backbone: HfBackbone,
    batch: BatchView,
    questions: Sequence[int],
    asked: Sequence[Asked],
    lanes: Lanes,
    recorded: dict[int, Step],
    generate: bool,
) -> list[Judged]:
    before = batch.tail
    of = torch.tensor(questions, device=backbone.device)
    errors = _errors(batch, of, lanes, recorded)
    first, right, nats = _forced(backbone, batch, lanes, of)
    shown = [_digits(backbone, each.gold) for each in asked]
    judged = []
    for row, question in enumerate(questions):
        hits = right[row][: len(asked[question].gold)]
        judged.append(
            Judged(
                min(hits),
                sum(hits[at] for at in shown[question]) / len(shown[question]),
                nats[row],
                len(hits),
                attention_error=errors[row],
            )
        )
    if generate:
        batch.rewind(batch.tail - before - lanes.prompt)
        said = greedy(backbone, first, batch, ANSWER_TOKENS)
        judged = [
            _with_answer(backbone, one, ids, asked[question])
            for one, ids, question in zip(judged, said, questions, strict=True)
        ]
    batch.rewind(batch.tail - before)
    return judged


def _digits(backbone: HfBackbone, gold: Sequence[int]) -> list[int]:
    """Which tokens of an answer hold a digit; all where none does."""
    with_digit = [at for at, token in enumerate(gold) if any(c.isdigit() for c in backbone.decode([token]))]
    return with_digit or list(range(len(gold)))


def _with_answer(backbone: HfBackbone, judged: Judged, ids: list[int], asked: Asked) -> Judged:
    said = parse_answer(backbone.decode(ids)).text
    return replace(judged, f1=answer_f1(said, asked.answers), em=exact_match(said, asked.answers), said=said)


def _forced(
    backbone: HfBackbone, batch: BatchView, lanes: Lanes, of: Tensor
) -> tuple[Tensor, list[list[float]], list[float]]:
    """Logits after the prompt [B, V]; by row, whether each gold token is the likeliest, and nats of all."""
    piece = max(1, _LOGIT_BYTES[backbone.device.type] // (8 * batch.num_rows * backbone.vocabulary))
    golds, total = lanes.golds[of], lanes.golds.shape[1]
    counted = torch.arange(total, device=backbone.device) < lanes.counts[of][:, None]
    first: Tensor | None = None
    right, nats = [], torch.zeros(batch.num_rows, dtype=torch.float64, device=backbone.device)
    for at in range(0, total, piece):
        part = golds[:, at : at + piece]
        # the first piece brings the prompt along
        start, end = (0 if first is None else lanes.prompt - 1 + at), lanes.prompt - 1 + at + part.shape[1]
        pads = lanes.pads[of] if first is None else None
        logits = forward(backbone, lanes.ids[of, start:end], batch, part.shape[1], pads).float()
        if first is None:
            first = logits[:, 0].clone()
        right.append((logits.argmax(-1) == part).float())
        chosen = logits.gather(-1, part[..., None])[..., 0]
        lost = (logits.logsumexp(-1) - chosen).double()
        nats += (lost * counted[:, at : at + piece]).sum(1)
    assert first is not None
    return first, torch.cat(right, dim=1).tolist(), nats.tolist()
