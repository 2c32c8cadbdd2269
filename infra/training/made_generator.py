"""The maker of questions: the reader's base tuned to write "answer | question" of a style, a title and a sentence.

LoRA of rank 32 on all linear layers, from the plain base, not from the adapted reader: the round trip's judge is
then another model than the maker. Steps are counted, not clocked, so the same seed gives the same weights on one
device; the learning rate rises, then falls as a cosine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from infra.training.made_sources import Source, TrainingPair
from infra.training.reader_gpu import load_base
from infra.training.reader_rows import Coder
from models.reader_decoding import greedy_answers
from models.reader_lowrank import LowRank
from models.reader_packed import PackedReader, choose_attention, pack_loss
from models.reader_packs import Pack, PackShape, make_pack, plan_packs
from models.reader_training import ReadingRows

BETWEEN = " | "
BOS = 2
"""Gemma's <bos>, which opens a prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MakerConfig:
    """How the maker is tuned."""

    rank: int = field(default=32, metadata={"help": "rank of the maker's adapter"})
    lr: float = field(default=6e-4, metadata={"help": "the maker's peak learning rate"})
    epochs: float = field(default=4.0, metadata={"help": "passes over the training pairs"})
    rows: int = field(default=4, metadata={"help": "packed rows of a step"})
    length: int = field(default=1024, metadata={"help": "tokens of a packed row"})
    seed: int = field(default=0, metadata={"help": "of every draw"})

    def __post_init__(self) -> None:
        for name in ("rank", "rows", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        for name in ("lr", "epochs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: above 0")

    @property
    def shape(self) -> PackShape:
        """The shapes of a step; a question is a third of its reading, and a reading 32 tokens or more."""
        size = self.rows * self.length
        return PackShape(
            rows=self.rows, length=self.length, readings=size // 32 + 2 * self.rows, answers=size // 2
        )


def prompt_of(coder: Coder, source: Source) -> list[int]:
    """The maker's prompt, what is read before the sentence first; empty where the vocabulary lacks a token."""
    told = "\n".join(f"{each.title}: {each.sentence}" for each in (*source.via, source))
    ids = coder.target(f"{source.style}\n{told}")
    begin = int(np.flatnonzero(coder.vocabulary == BOS)[0])
    return [begin, *ids] if ids else []


def target_of(coder: Coder, pair: TrainingPair) -> list[int]:
    """What the maker writes, with the line's end; empty where the vocabulary lacks a token."""
    return coder.target(f"{pair.answer}{BETWEEN}{pair.question}")


def tune(
    reader: Path, coder: Coder, pairs: Sequence[TrainingPair], out: Path, config: MakerConfig, device: str,
    limit_s: float = math.inf, say: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:  # fmt: skip
    """Train the maker and save its adapter to `out`; what came of it. `limit_s` ends it early.

    Every twentieth pair is held back and told by its loss. Raises ValueError without pairs that fit, RuntimeError
    where the loss is lost.
    """
    coded = [(prompt_of(coder, pair.source), target_of(coder, pair)) for pair in pairs]
    fits = [(p, t) for p, t in coded if p and t and len(p) + len(t) <= config.length]
    if len(fits) < 2:
        raise ValueError(f"pairs: given {len(fits)} that fit {config.length} tokens; allowed: 2 or more")
    rows = ReadingRows.of(fits)
    held = np.arange(len(rows))[:: max(2, min(20, len(rows) // 2))]
    train = np.setdiff1d(np.arange(len(rows)), held)
    torch.manual_seed(config.seed)
    model, adapter = open_maker(reader, config, device)
    model.train()
    packed = PackedReader(model, attend=choose_attention(device)[1])
    parameters = adapter.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    epochs = math.ceil(config.epochs)
    packs = [
        pack
        for at in range(epochs)
        for pack in plan_packs(rows, train, config.shape, config.seed * 1000 + at)
    ]
    packs = packs[: max(1, round(len(packs) * config.epochs / epochs))]
    began, shown = time.monotonic(), {"loss": torch.zeros(())}
    done = 0
    for step, plan in enumerate(packs):
        if time.monotonic() - began > limit_s:
            break
        rate = rate_at(config.lr, step / len(packs))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, shown = pack_loss(packed, make_pack(rows, plan, config.shape).to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        adapter.gather()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        adapter.merge()
        done += 1
        if step % 40 == 0 or step == len(packs) - 1:
            value = float(shown["loss"])
            if not math.isfinite(value):
                raise RuntimeError(
                    f"the maker's loss is {value} at step {step}; lower lr (given {config.lr})"
                )
            say(f"maker: step {step} of {len(packs)}, loss {value:.3f}")
    model.eval()
    adapter.save(out, base="gemma-3-270m")
    return {
        "pairs": len(train),
        "steps": done,
        "of_steps": len(packs),
        "loss": round(float(shown["loss"]), 4),
        "held_back": len(held),
        "held_back_loss": _loss_of(
            packed,
            [make_pack(rows, pack, config.shape) for pack in plan_packs(rows, held, config.shape, 0)],
            device,
        ),
        "seconds": round(time.monotonic() - began, 1),
    }


def open_maker(
    reader: Path, config: MakerConfig, device: str, adapter: Path | None = None
) -> tuple[nn.Module, LowRank]:
    """The base with its low-rank weights: fresh ones, or those of a saved maker, merged in."""
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    model = load_base(reader, dtype).to(device)
    low = LowRank(model, rank=config.rank, alpha=2.0 * config.rank, seed=config.seed)
    if adapter is not None:
        low.start_from(adapter)
    return model, low


def made_of(
    model: nn.Module, coder: Coder, sources: Sequence[Source], *, seed: int, temperature: float, new_tokens: int,
    tokens_per_batch: int, device: str, answers: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """What the maker writes of each source; empty where the vocabulary lacks a token of it.

    Where `answers` are given, each begins what is written: the maker has only to ask for it.
    """
    prompts = [prompt_of(coder, source) for source in sources]
    if answers:
        begun = [coder.target(f"{answer}{BETWEEN}".rstrip())[:-1] for answer in answers]
        prompts = [[*p, *b] if p and b else [] for p, b in zip(prompts, begun, strict=True)]
    asked = [at for at, prompt in enumerate(prompts) if prompt]
    said = [""] * len(sources)
    written = greedy_answers(
        model,
        [prompts[at] for at in asked],
        stop_id=coder.stop,
        give_up_id=coder.give_up,
        max_new_tokens=new_tokens,
        tokens_per_batch=tokens_per_batch,
        device=device,
        pick=sampler(temperature, seed, device),
    )
    for at, answer in zip(asked, written, strict=True):
        # one that was cut off at the limit has no line's end: it is no question
        whole = coder.text(answer.ids) if len(answer.ids) < new_tokens else ""
        said[at] = f"{answers[at]}{BETWEEN}{whole.strip()}" if answers and whole else whole
    return said


def sampler(temperature: float, seed: int, device: str) -> Callable[[Tensor], Tensor]:
    """How a next token is drawn of logits [B, V]: by their probabilities at a temperature (0: the best)."""
    if temperature < 0:
        raise ValueError(f"temperature: given {temperature}; allowed: 0 (greedy) or more")
    chance = torch.Generator(device).manual_seed(seed)

    def pick(logits: Tensor) -> Tensor:
        if temperature == 0:
            return logits.argmax(-1)
        # the largest of logits with Gumbel noise is a draw by their softmax
        noise = torch.empty_like(logits).exponential_(generator=chance)
        return (logits / temperature - noise.log_()).argmax(-1)

    return pick


def rate_at(peak: float, done: float, warmup: float = 0.06) -> float:
    """The learning rate when `done` (0 to 1) of the steps are over: a linear rise, a cosine to a fiftieth."""
    if done < warmup:
        return peak * (done + 0.01) / (warmup + 0.01)
    return peak * (0.02 + 0.49 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))))


@torch.no_grad()
def _loss_of(reader: PackedReader, packs: Sequence[Pack], device: str) -> float:
    found = [float(pack_loss(reader, pack.to(device))[0]) for pack in packs]
    return round(float(np.mean(found)), 4) if found else math.nan
