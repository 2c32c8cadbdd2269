"""One small language model of the comparison: trained on plain text, judged on unseen text by position.

Every method sees the same batches of a seed: as many tokens, windows and parameters. `subq` learns what to read
from the loss on tokens and, for half of the run, from hindsight (models/subq/hindsight.py); `gca` from the loss on
tokens alone; the others read nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infra.training.subq_data import Ids
from infra.training.subq_optim import build_optimizers, learning_rate
from models.subq import SubqConfig, SubqModel
from models.subq.hindsight import hindsight_loss, overlap, rarity

BUCKETS = (512, 1_024, 2_048, 4_096, 8_192, 16_384)
_PIECE = 8_192  # positions whose logits are held at once when judging


@dataclass(frozen=True, kw_only=True, slots=True)
class LmConfig:
    """One run of the comparison."""

    tokens: int = field(default=20_000_000, metadata={"help": "tokens trained on"})
    batch: int = field(default=2, metadata={"help": "sequences an update"})
    length: int = field(default=16_384, metadata={"help": "tokens a sequence, in training and when judged"})
    lr: float = field(default=2e-3, metadata={"help": "largest learning rate"})
    warmup: int = field(default=30, metadata={"help": "updates until then"})
    decay_from: float = field(default=0.5, metadata={"help": "share of the run after which the rate falls"})
    hindsight: float = field(default=0.0, metadata={"help": "weight of the hindsight loss (0: none)"})
    hindsight_until: tuple[float, float] = field(
        default=(0.5, 0.75), metadata={"help": "shares of the run between which it fades to nothing"}
    )
    muon: bool = field(default=True, metadata={"help": "see SubqTrainConfig"})
    judged: int = field(default=32, metadata={"help": "unseen sequences"})
    compiled: bool = field(default=False, metadata={"help": "compile blocks and the encoder (CUDA)"})
    seed: int = field(default=0, metadata={"help": "weights and batches"})

    def __post_init__(self) -> None:
        for name in ("tokens", "batch", "length", "warmup", "judged"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        if self.hindsight < 0 or self.lr <= 0:
            raise ValueError(
                f"hindsight {self.hindsight}, lr {self.lr}; allowed: 0 or more, and a rate above 0"
            )

    @property
    def steps(self) -> int:
        """Updates of the run."""
        return max(1, self.tokens // (self.batch * self.length))


def train_and_judge(
    model_config: SubqConfig,
    config: LmConfig,
    train: Ids,
    test: Ids,
    device: str,
    report: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Everything that is kept of a run: losses of training, perplexity, losses by position, seconds."""
    if len(train) <= config.length or len(test) <= config.length:
        raise ValueError(
            f"length: given {config.length}, texts of {len(train)} and {len(test)} tokens; give longer texts"
        )
    torch.manual_seed(config.seed)
    model = SubqModel(model_config).to(device)
    if config.compiled:
        for block in [*model.lower_blocks, *model.upper_blocks, model.encoder]:
            if block is not None:
                block.compile(dynamic=False)
    optimizers = build_optimizers(model, config.lr, 0.01, config.muon)
    counts = torch.from_numpy(np.bincount(train.astype(np.int64), minlength=model_config.vocabulary))
    rare = rarity(counts.to(device))
    on_gpu = device.startswith("cuda")
    began, curve, waiting = time.monotonic(), [], []
    for step in range(config.steps):
        progress = step / config.steps
        rate = learning_rate(config.lr, step, progress, config.warmup, config.decay_from)
        ids = _batch(train, config, step).to(device)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=on_gpu):
            text, wanted = _losses(model, ids, rare, config, progress)
        (text + wanted).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        waiting.append(text.detach())
        if len(waiting) == 20 or step + 1 == config.steps:  # reading waits for the device
            curve.append((step + 1, round(float(torch.stack(waiting).mean()), 4)))
            waiting.clear()
            if report is not None:
                report(*curve[-1])
    seconds = time.monotonic() - began
    if config.compiled:  # other shapes, and reading switched off, would be compiled anew
        plain = SubqModel(model_config).to(device)
        plain.load_state_dict(model.state_dict())
        model = plain
    judged = {"with_retrieval": judge(model, test, config, device, True)}
    if model.encoder is not None:
        judged["without"] = judge(model, test, config, device, False)
    loss = judged["with_retrieval"]["loss"]
    return {
        "model": model_config.to_dict(), "run": asdict(config), "parameters": model.num_parameters(),
        "tokens": config.steps * config.batch * config.length, "train_seconds": round(seconds, 2), "curve": curve,
        "loss": loss, "perplexity": round(math.exp(loss), 3), "judged": judged,
        "scale": round(float(model.scale.detach()), 2),
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
    }  # fmt: skip


def _batch(train: Ids, config: LmConfig, step: int) -> Tensor:
    """ids [B, T + 1]; the same for every method of a seed."""
    draw = np.random.default_rng([config.seed, step])
    starts = draw.integers(0, len(train) - config.length, config.batch)
    rows = [train[at : at + config.length + 1] for at in starts]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def _losses(
    model: SubqModel, ids: Tensor, rare: Tensor, config: LmConfig, progress: float
) -> tuple[Tensor, Tensor]:
    """Mean loss of all next tokens, and the weighted hindsight loss."""
    out = model(ids[:, :-1])
    logits = model.logits(out.hidden.flatten(0, 1))
    text = F.cross_entropy(logits.float(), ids[:, 1:].flatten())
    first, last = config.hindsight_until
    fade = 1.0 if progress <= first else max(0.0, (last - progress) / max(last - first, 1e-9))
    if out.codes is None or not config.hindsight * fade:
        return text, text.new_zeros(())
    shape = model.config
    with torch.autocast(ids.device.type, enabled=False):
        with torch.no_grad():
            wanted = overlap(ids[:, :-1], rare, shape.chunk, shape.near)
        queries, _ = model.queries(ids[:, :-1, None], out.codes)
        found = hindsight_loss(queries, out.codes.landmarks, wanted, shape.near, model.scale)
    return text, config.hindsight * fade * found


@torch.no_grad()
def judge(model: SubqModel, test: Ids, config: LmConfig, device: str, read: bool) -> dict[str, Any]:
    """Nats a token over unseen sequences spread evenly, all and by position (up to each of BUCKETS)."""
    model.eval()
    count = min(config.judged, len(test) // (config.length + 1))
    stride = len(test) // count
    total = torch.zeros(config.length, dtype=torch.float64, device=device)
    for row in range(count):
        piece = test[row * stride : row * stride + config.length + 1].astype(np.int64)
        ids = torch.from_numpy(piece).to(device)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=device.startswith("cuda")):
            out = model(ids[None, :-1], read=read)
            losses = torch.cat(
                [
                    F.cross_entropy(model.logits(piece).float(), wanted, reduction="none")
                    for piece, wanted in zip(
                        torch.split(out.hidden[0], _PIECE), torch.split(ids[1:], _PIECE), strict=True
                    )
                ]
            )
            total += model.token_losses(out, ids[None, :-1], losses[None], ids[None, 1:])[0]
    model.train()
    losses = (total / count).cpu()
    by_position, first = {}, 0
    for last in (*(end for end in BUCKETS if end < config.length), config.length):
        by_position[str(last)] = round(float(losses[first:last].mean()), 4)
        first = last
    return {
        "loss": round(float(losses.mean()), 5),
        "tokens": count * config.length,
        "by_position": by_position,
    }
