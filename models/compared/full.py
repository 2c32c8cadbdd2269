"""The full cache: nothing is thrown away. The reference for quality."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.compared.base import Method
from models.compared.kept import Kept, keep_tokens
from models.compared.trace import Trace


@dataclass(frozen=True, kw_only=True, slots=True)
class Full(Method):
    """Keeps everything, whatever the budget says up to the whole; raises ValueError for a smaller one."""

    def compress(self, trace: Trace, budget_bytes: int) -> list[Kept]:
        """See Method.compress."""
        if budget_bytes < trace.full_bytes:
            raise ValueError(
                f"the budget of {budget_bytes} bytes is less than the {trace.full_bytes} bytes of the full cache; "
                "use keep 1.0 or another method"
            )
        every = torch.arange(trace.num_tokens, device=trace.layers[0].keys.device)
        return [keep_tokens(layer, [every] * layer.keys.shape[0]) for layer in trace.layers]
