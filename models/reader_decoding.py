"""Greedy answers to many prompts at once, with the margin by which the reader gives up or answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WIDTHS = 8
"""Batches are so many tokens wide, or a multiple: torch's memory-efficient attention (pytorch issue 191937) reads
the last of 32 n + 1 queries, which writes the answer's first token, under the first one's mask."""


@dataclass(frozen=True, slots=True)
class GreedyAnswer:
    """`ids` up to the stop token; `margin` is the giving-up token's first logit minus the best other one's.

    -inf where there is no giving-up token.
    """

    ids: tuple[int, ...]
    margin: float


def _best(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


@torch.inference_mode()
def greedy_answers(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    stop_id: int,
    give_up_id: int | None,
    may_give_up: bool = True,
    max_new_tokens: int = 16,
    tokens_per_batch: int = 65536,
    device: str = "cpu",
    on_batch: Callable[[int], None] | None = None,
    pick: Callable[[Tensor], Tensor] = _best,
) -> list[GreedyAnswer]:
    """The greedy continuation of every prompt, in the order given; `pick` chooses a token of logits [B, V].

    With `may_give_up` False the giving-up token is barred as the first one, if there is one
    (`pipeline.session.prompts.giving_up_token`). Prompts of like length share a batch,
    left-padded; padding is masked and positions count from each prompt's own start.
    """
    if any(not len(prompt) for prompt in prompts):
        raise ValueError("prompts: every prompt needs at least one token")
    model.eval()
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    answers: list[GreedyAnswer | None] = [None] * len(prompts)
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and len(prompts[order[end]]) * (end + 1 - start) <= tokens_per_batch:
            end += 1
        chosen = order[start:end]
        for at, answer in zip(
            chosen,
            _one_batch(
                model,
                [prompts[at] for at in chosen],
                stop_id,
                give_up_id,
                may_give_up,
                max_new_tokens,
                device,
                pick,
            ),
            strict=True,
        ):
            answers[at] = answer
        start = end
        if on_batch is not None:
            on_batch(start)
    return [answer for answer in answers if answer is not None]


def _one_batch(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    stop_id: int,
    give_up_id: int | None,
    may_give_up: bool,
    max_new_tokens: int,
    device: str,
    pick: Callable[[Tensor], Tensor],
) -> list[GreedyAnswer]:
    from transformers import DynamicCache

    longest = -(-max(map(len, prompts)) // WIDTHS) * WIDTHS
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for at, prompt in enumerate(prompts):
        ids[at, longest - len(prompt) :] = torch.as_tensor(list(map(int, prompt)))
        mask[at, longest - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    config: Any = model.config
    cache: Any = DynamicCache(config=config)
    written: list[Tensor] = []
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    margins: list[float] = []
    for step in range(max_new_tokens):
        with torch.autocast(
            torch.device(device).type, torch.bfloat16, enabled=torch.device(device).type == "cuda"
        ):
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits = out.logits[:, -1].float()
        if step == 0 and give_up_id is None:
            margins = [-math.inf] * len(prompts)
        elif step == 0:
            own = logits[:, give_up_id].clone()
            logits[:, give_up_id] = -torch.inf
            margins = (own - logits.amax(-1)).tolist()
            if may_give_up:
                logits[:, give_up_id] = own
        chosen = pick(logits)
        written.append(torch.where(done, torch.full_like(chosen, stop_id), chosen))
        done |= chosen == stop_id
        if step % 4 == 3 and bool(done.all()):
            break
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
        positions = positions[:, -1:] + 1
    rows = torch.stack(written, 1).tolist()
    return [
        GreedyAnswer(tuple(_until(row, stop_id)), margin) for row, margin in zip(rows, margins, strict=True)
    ]


def _until(ids: list[int], stop_id: int) -> list[int]:
    return ids[: ids.index(stop_id)] if stop_id in ids else ids
