"""A few processes that train one model on parts of the same batches: what they tell each other.

Gradients are summed as one flat buffer after the backward pass, so the loop may call the model as it likes. With
one process every call is a no-op, and the arithmetic is that of one process going through all parts itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Group:
    """Rank `rank` of `size` processes; `device` is where this one computes."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @classmethod
    def current(cls, device: str) -> Group:
        """The group of torch.distributed where it runs, else one process."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device)
        return cls(0, 1, device)

    def mine(self, count: int) -> range:
        """Which of `count` parts of a step this process computes; ValueError where they cannot be shared evenly."""
        if count % self.size:
            raise ValueError(
                f"accumulate: given {count} parts a step for {self.size} workers; allowed: a multiple of the "
                "workers, so that each computes as many"
            )
        return range(self.rank, count, self.size)

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; a missing one counts as zero."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.detach().float().flatten() for gradient in gradients])
        dist.all_reduce(flat)
        start = 0
        for gradient in gradients:
            part = flat[start : start + gradient.numel()]
            gradient.copy_(part.view_as(gradient))
            start += gradient.numel()

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def gather(self, part: Tensor) -> list[Tensor]:
        """The tensors of all processes, by rank; all have one shape."""
        if self.size == 1:
            return [part]
        part = part.contiguous()
        found = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(found, part)
        return found

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            self.sum(torch.zeros(1, device=self.device))
