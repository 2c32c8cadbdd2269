"""Training a causal language model to answer from a context: loss on the answer's tokens alone.

One reading is one row: rows are right-padded and causal, so no token sees another row's and no mask is needed.
Rows of like length share a batch of a stated number of tokens. Plain PyTorch: the same loop runs on a CPU with a
tiny model and on a GPU with bf16 autocast.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.digests import put_beside

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderTrainConfig:
    """One run of adaptation."""

    steps: int = field(default=1000, metadata={"help": "optimizer steps, at most"})
    tokens_per_batch: int = field(default=32768, metadata={"help": "tokens of a batch, padding included"})
    lr: float = field(default=8e-4, metadata={"help": "peak learning rate (AdamW)"})
    warmup: float = field(default=0.05, metadata={"help": "share of the steps with rising learning rate"})
    weight_decay: float = field(default=0.01, metadata={"help": "decoupled weight decay"})
    clip: float = field(default=1.0, metadata={"help": "largest norm of the gradient"})
    seed: int = field(default=0, metadata={"help": "order of the rows"})
    limit_s: float = field(default=math.inf, metadata={"help": "seconds that the run may take"})

    def __post_init__(self) -> None:
        for name in ("steps", "tokens_per_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        for name in ("lr", "clip", "limit_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: above 0")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup: given {self.warmup}; allowed: 0 to below 1")
        if not 0 <= self.weight_decay < 1:
            raise ValueError(f"weight_decay: given {self.weight_decay}; allowed: 0 to below 1")


@dataclass(frozen=True, slots=True)
class ReadingRows:
    """Token ids of readings, one after another: row i is `tokens[offsets[i]:offsets[i + 1]]`.

    Its prompt ends before `answer_starts[i]` (a place in the row); the rest is the target.
    """

    tokens: npt.NDArray[Any]
    offsets: Ints
    answer_starts: Ints

    def __post_init__(self) -> None:
        if len(self.offsets) != len(self.answer_starts) + 1 or int(self.offsets[-1]) != len(self.tokens):
            raise ValueError(
                f"offsets: given {len(self.offsets)} ending in {int(self.offsets[-1])}; allowed: one more than the "
                f"{len(self.answer_starts)} rows, ending in the {len(self.tokens)} tokens"
            )
        if len(self) and not ((self.answer_starts > 0) & (self.answer_starts <= self.lengths)).all():
            raise ValueError("answer_starts: every row needs a prompt of at least one token, inside the row")

    def __len__(self) -> int:
        return len(self.answer_starts)

    @property
    def lengths(self) -> Ints:
        """Tokens of every row, prompt and target."""
        return np.diff(self.offsets)

    def row(self, index: int) -> npt.NDArray[Any]:
        """The token ids of one row."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @classmethod
    def of(cls, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> ReadingRows:
        """Rows of (prompt ids, target ids)."""
        lengths = [len(prompt) + len(target) for prompt, target in pairs]
        tokens = np.fromiter(
            (token for pair in pairs for part in pair for token in part), np.int32, sum(lengths)
        )
        starts = np.array([len(prompt) for prompt, _ in pairs], np.int64)
        return cls(tokens, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), starts)


@dataclass(frozen=True, slots=True)
class Batch:
    """`ids` [B, T] right-padded with 0; `predicts` [B, T] is True where the next token belongs to the answer."""

    ids: Tensor
    predicts: Tensor


def plan_batches(lengths: Ints, rows: Ints, tokens_per_batch: int, seed: int) -> list[Ints]:
    """The rows of one epoch in batches of like length, in random order; every row once.

    A batch's longest row times its rows stays within `tokens_per_batch`; a longer row is a batch of its own.
    """
    chance = np.random.default_rng(seed)
    noise = chance.uniform(0.95, 1.05, len(rows))
    order = rows[np.argsort(lengths[rows] * noise, kind="stable")]
    batches: list[Ints] = []
    start, longest = 0, 0
    for at, row in enumerate(order):
        longest = max(longest, int(lengths[row]))
        if at > start and longest * (at + 1 - start) > tokens_per_batch:
            batches.append(order[start:at])
            start, longest = at, int(lengths[row])
    if start < len(order):
        batches.append(order[start:])
    return [batches[at] for at in chance.permutation(len(batches))]


def collate(rows: ReadingRows, batch: Ints, device: torch.device) -> Batch:
    """The rows of a batch as tensors on the device."""
    lengths = rows.lengths[batch]
    ids = np.zeros((len(batch), int(lengths.max())), np.int64)
    predicts = np.zeros(ids.shape, bool)
    for at, row in enumerate(batch):
        ids[at, : lengths[at]] = rows.row(int(row))
        predicts[at, rows.answer_starts[row] - 1 : lengths[at] - 1] = True
    return Batch(torch.from_numpy(ids).to(device), torch.from_numpy(predicts).to(device))


def answer_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross entropy over the answers' tokens, and the share of them predicted right (argmax).

    `model` is a `transformers` causal decoder or a peft model around one. Logits are made for answer places only.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    hidden = base.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    logits = base.lm_head(hidden[batch.predicts]).float()
    targets = batch.ids[:, 1:][batch.predicts[:, :-1]]
    return F.cross_entropy(logits, targets), (logits.argmax(-1) == targets).float().mean()


def learning_rate(config: ReaderTrainConfig, step: int, steps: int) -> float:
    """Linear rise, then a cosine to a tenth of the peak."""
    rise = max(1, round(config.warmup * steps))
    if step < rise:
        return config.lr * (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return config.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done))))


def train_reader(
    model: nn.Module,
    rows: ReadingRows,
    config: ReaderTrainConfig,
    *,
    choose_rows: Callable[[int], Ints] | None = None,
    device: str = "cpu",
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Adapt the trainable parameters of `model` in place; returns one record a step.

    `choose_rows(epoch)` gives the rows of an epoch (default: all). If the first steps show that `config.steps`
    do not fit `config.limit_s`, the schedule is shortened once, so that it still ends at the lowest learning rate.
    Raises RuntimeError if the loss stops being a number.
    """
    place = torch.device(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("model has no parameter that requires a gradient; add an adapter or unfreeze it")
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=place.type == "cuda")
    model.train()
    records: list[dict[str, float]] = []
    steps, started = config.steps, time.monotonic()
    for step, batch in enumerate(_batches(rows, config, choose_rows, place)):
        if step == 20 and math.isfinite(config.limit_s):
            _synchronize(place)
            begun = started + records[4]["seconds"]
            pace = (time.monotonic() - begun) / (step - 5)
            steps = max(
                step + 1, min(steps, step + int((config.limit_s - (time.monotonic() - started)) / pace))
            )
        if step >= steps or time.monotonic() - started > 1.15 * config.limit_s:
            break
        rate = learning_rate(config, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda"):
            loss, right = answer_loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(trained, config.clip)
        optimizer.step()
        if not math.isfinite(value := loss.item()):
            raise RuntimeError(
                f"the loss is {value} at step {step}; lower the learning rate (given {config.lr})"
            )
        records.append(
            {
                "step": step,
                "loss": value,
                "right": right.item(),
                "gradient": float(norm),
                "lr": rate,
                "tokens": float(batch.ids.numel()),
                "seconds": time.monotonic() - started,
            }
        )
        if on_step is not None:
            on_step(records[-1])
    return records


def _batches(
    rows: ReadingRows,
    config: ReaderTrainConfig,
    choose_rows: Callable[[int], Ints] | None,
    place: torch.device,
) -> Iterator[Batch]:
    lengths, epoch = rows.lengths, 0
    while True:
        chosen = np.arange(len(rows)) if choose_rows is None else choose_rows(epoch)
        if not len(chosen):
            raise ValueError(f"epoch {epoch} has no rows to train on")
        for batch in plan_batches(lengths, chosen, config.tokens_per_batch, config.seed * 1000 + epoch):
            yield collate(rows, batch, place)
        epoch += 1


def _synchronize(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_lora(model: nn.Module, rank: int = 32, alpha: int = 64, dropout: float = 0.05) -> nn.Module:
    """`model` with low-rank adapters (arXiv 2106.09685) on all its linear layers; all else is frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(LORA_TARGETS),
        bias="none",
        task_type="CAUSAL_LM",
    )
    adapted: nn.Module = get_peft_model(model, config)  # type: ignore[arg-type]
    return adapted


def save_adapter(model: nn.Module, folder: Path) -> None:
    """Write the adapter as peft reads it: adapter_model.safetensors in bf16 and adapter_config.json."""
    from safetensors.torch import load_file, save_file

    model.save_pretrained(str(folder))  # type: ignore[operator]
    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    put_beside(folder, (path.name, "adapter_config.json"))
