"""Optimizers and learning rate of the backbone's training."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from models.subq import SubqModel

_ROUNDS, _FACTORS, _LEAST = 5, (3.4445, -4.7750, 2.0315), 1e-7
"""Newton-Schulz: rounds, factors of the quintic, and the least norm, as in torch.optim.Muon."""


class StackedMuon(torch.optim.Optimizer):
    """torch.optim.Muon (Jordan et al. 2024, step sizes matched to AdamW's), matrices of one shape at once.

    The steps and the state are Muon's; a model of 60 small matrices takes a twentieth of the launches.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        if closure is not None:
            raise ValueError("closure: given one; allowed: none (compute the loss and its gradients before)")
        for group in self.param_groups:
            alike: dict[tuple[torch.Size, torch.device], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape, parameter.device].append(parameter)
            for parameters in alike.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter, grad in zip(parameters, grads, strict=True):
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(grad)
        kept = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(kept, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, kept, group["momentum"])
        rate = group["lr"] * 0.2 * math.sqrt(max(parameters[0].shape))
        steps = orthogonalised(torch.stack(ahead)).to(parameters[0].dtype).unbind(0)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, steps, alpha=-rate)


def orthogonalised(matrices: Tensor) -> Tensor:
    """[m, rows, columns] -> the same in bf16 with all singular values near 1 (Newton-Schulz, quintic)."""
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_LEAST)
    first, second, third = _FACTORS
    for _ in range(_ROUNDS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    return x.transpose(1, 2) if tall else x


def build_optimizers(
    model: SubqModel, lr: float, weight_decay: float, muon: bool
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside, AdamW for all else."""
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
        found.append(StackedMuon(inside, lr, weight_decay))
    return found


def learning_rate(largest: float, step: int, progress: float, warmup: int, decay_from: float) -> float:
    """Linear warm-up by steps, then constant, then linear to 2% at the end of the run."""
    warm = min(1.0, (step + 1) / warmup)
    falling = 1.0 if progress <= decay_from else max(0.02, (1 - progress) / max(1 - decay_from, 1e-9))
    return largest * warm * falling
