"""A decoder's layers computed again for the gradient, with any cache and in any mode.

`transformers` has such a switch, which drops the cache and works in training mode alone. What our learners adapt
has no dropout, stays in evaluation mode, and may read its context out of layers of a memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def compute_layers_again(model: Any) -> None:
    """From now on what a layer of the decoder computes on the way is not kept for the gradient but made again.

    `model` is a decoder of `models.hf.loading.load`, before or after peft. Losses and gradients stay what they
    were: layers must draw nothing (no dropout), and a memory's `update` give the same when it is called again.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in base.get_decoder().layers:
        layer.forward = _again(layer.forward)


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return call
