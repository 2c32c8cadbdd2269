"""Texts to the hidden states that a landmark head pools: a decoder up to its layer, frozen, adapted or mixed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from infra.training.learners.landmark_spec import LandmarkSpec
from models.hf.computed_again import compute_layers_again
from models.hf.loading import Loaded
from models.landmark_mixer import LandmarkMixer, MixerConfig, spread_layers
from models.reader_training import add_lora


class LandmarkEncoder:
    """The decoder cut off above the head's layer; `width` is that of what it gives for a token."""

    def __init__(self, loaded: Loaded, spec: LandmarkSpec, device: torch.device) -> None:
        self.spec, self.device = spec, device
        decoder = loaded.model.get_decoder()
        width = int(loaded.model.config.get_text_config(decoder=True).hidden_size)
        layer = spec.layer if spec.layer >= 0 else 2 * len(decoder.layers) // 3
        if layer >= len(decoder.layers):
            raise ValueError(
                f"layer: given {layer}; allowed: 0 to {len(decoder.layers) - 1}, or -1 for two thirds up"
            )
        decoder.layers = decoder.layers[: layer + 1]  # nobody listens to what is above
        self.layer = layer
        self.heard: tuple[int, ...] = (layer,)
        self._begin = [
            i for i in loaded.tokenizer.encode("", add_special_tokens=True).ids if i not in loaded.end_ids
        ]
        model: nn.Module = loaded.model.to(device)
        if device.type == "cuda":
            # they are not trained: autocast would round all of them anew at every step
            for module in decoder.layers.modules():
                if isinstance(module, nn.Linear):
                    module.bfloat16()
        if spec.method == "lora":
            model = add_lora(model, spec.rank, 2 * spec.rank, 0.0)
        self.model = model.eval()
        if spec.checkpointing and spec.method == "lora":
            compute_layers_again(loaded.model)
        self.mixer: LandmarkMixer | None = None
        self.width = width
        if spec.method == "mixer":
            self.heard = spread_layers(layer)
            config = MixerConfig(
                width=width, layers=self.heard, inner=spec.inner, heads=max(1, spec.inner // 64)
            )
            self.mixer = LandmarkMixer(config).to(device)
            self.mixer.checkpointing = spec.checkpointing
            self.width = spec.inner

    def trained(self) -> list[nn.Parameter]:
        """What is learned beside the head, at a tenth of its rate: an adapter, or a mixer."""
        mixed = list(self.mixer.parameters()) if self.mixer is not None else []
        return [*mixed, *(p for p in self.model.parameters() if p.requires_grad)]

    def encode(self, rows: Sequence[list[int]]) -> list[Tensor]:
        """Hidden states [tokens, width] of each text; the opening token is left out."""
        first = len(self._begin)
        longest = max(map(len, rows)) + first
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        sizes = torch.tensor([len(row) for row in rows])
        for at, row in enumerate(rows):
            ids[at, : first + len(row)] = torch.tensor([*self._begin, *row])
        states = self._states(ids.to(self.device))
        hidden = states[0]
        if self.mixer is not None:
            own = torch.arange(longest - first) < sizes[:, None]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                hidden = self.mixer([each[:, first:] for each in states], own.to(self.device))
            first = 0
        return [hidden[at, first : first + len(row)] for at, row in enumerate(rows)]

    def encode_all(self, rows: Sequence[list[int]]) -> list[Tensor]:
        """The same of many texts, in their order, in batches of like length."""
        found: list[Tensor] = [torch.zeros(0)] * len(rows)
        for some in by_length(rows, self.spec.tokens_at_once):
            for at, each in zip(some, self.encode([rows[at] for at in some]), strict=True):
                found[at] = each
        return found

    def _states(self, ids: Tensor) -> list[Tensor]:
        """Outputs [B, T, d] of the layers that are listened to, lowest first."""
        heard: dict[int, Tensor] = {}
        model: Any = self.model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model

        def keep(layer: int) -> Any:
            def hook(_: Any, __: Any, output: Any) -> None:
                heard[layer] = output[0] if isinstance(output, tuple) else output

            return hook

        with ExitStack() as hooks:
            for layer in self.heard:
                handle = base.get_decoder().layers[layer].register_forward_hook(keep(layer))
                hooks.callback(handle.remove)
            learned = self.spec.method == "lora" and torch.is_grad_enabled()
            with (
                torch.set_grad_enabled(learned),
                torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"),
            ):
                # right-padded and causal: no token sees the padding behind it
                base.model(input_ids=ids, use_cache=False)
        return [heard[layer] for layer in self.heard]


def by_length(rows: Sequence[list[int]], most_tokens: int = 16384) -> Iterator[list[int]]:
    """The rows' numbers in batches of like length, each of at most so many tokens with padding."""
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    start = 0
    for end in range(1, len(order) + 1):
        longer = end < len(order) and len(rows[order[end]]) * (end + 1 - start) > most_tokens
        if end == len(order) or longer:
            yield order[start:end]
            start = end
