"""Optimizers and learning rate of the backbone's training."""

from __future__ import annotations

import torch
from torch import nn

from models.subq import SubqModel


def build_optimizers(
    model: SubqModel, lr: float, weight_decay: float, muon: bool
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024, step sizes matched to AdamW's) for the matrices inside, AdamW for all else."""
    inside: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim == 2 and not any(
            part in name for part in ("embedding", "conv", "places", "pool.", "gate")
        )
        (inside if matrix and muon else rest).append(parameter)
    fused = next(model.parameters()).is_cuda
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay, fused=fused)
    ]
    if inside:
        found.append(
            torch.optim.Muon(
                inside,
                lr=lr, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw",
            )
        )  # fmt: skip
    return found


def learning_rate(largest: float, step: int, progress: float, warmup: int, decay_from: float) -> float:
    """Linear warm-up by steps, then constant, then linear to 2% at the end of the run."""
    warm = min(1.0, (step + 1) / warmup)
    falling = 1.0 if progress <= decay_from else max(0.02, (1 - progress) / max(1 - decay_from, 1e-9))
    return largest * warm * falling
