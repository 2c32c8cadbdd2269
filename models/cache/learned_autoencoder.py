"""A learned autoencoder: one code for a token's key and value together, by a small network; read linearly.

Key and value of a token tell much of the same, so one code of r numbers stands for both (as latent attention does
in models trained with it, arXiv 2405.04434). The encoder is not linear; the decoders are, so that attention can
read codes without unpacking them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from models.cache.learned import LayerCodes, LearnedCompressor

HIDDEN = 128


class AutoencoderLayer(LayerCodes):
    """`z = [K, V] E + gelu([K, V] A) B` over standardised pairs."""

    joint: ClassVar[bool] = True
    scale: Tensor

    def __init__(self, num_heads: int, dim: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(num_heads, 1, 2))
        self.encoder = nn.Parameter(torch.zeros(num_heads, 2 * dim, rank))
        self.inner = nn.Parameter(torch.randn(num_heads, 2 * dim, HIDDEN) * (2 * dim) ** -0.5)
        self.outer = nn.Parameter(torch.zeros(num_heads, HIDDEN, rank))
        self.key_decoder = nn.Parameter(torch.zeros(num_heads, rank, dim))
        self.value_decoder = nn.Parameter(torch.zeros(num_heads, rank, dim))

    @torch.no_grad()
    def start(self, keys: Tensor, values: Tensor) -> None:
        """Take the leading directions of samples `[H, n, d]`, keys and values of equal weight."""
        rank, dim = self.most_rank, keys.shape[-1]
        for at, samples in enumerate((keys, values)):
            self.scale[..., at] = samples.flatten(1).std(1, keepdim=True).clamp_min(1e-6)
        both = self._standard(keys, values).double()
        vectors = torch.linalg.eigh(both.transpose(-1, -2) @ both).eigenvectors[..., -rank:].flip(-1)
        vectors = vectors.float()
        self.encoder.copy_(vectors)
        self.key_decoder.copy_(vectors[:, :dim].transpose(-1, -2) * self.scale[..., :1])
        self.value_decoder.copy_(vectors[:, dim:].transpose(-1, -2) * self.scale[..., 1:])

    def _standard(self, keys: Tensor, values: Tensor) -> Tensor:
        return torch.cat((keys / self.scale[..., :1], values / self.scale[..., 1:]), dim=-1)

    def encode(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See LayerCodes.encode."""
        both = self._standard(keys, values)
        code = both @ self.encoder + gelu(both @ self.inner) @ self.outer
        return code, code


class LearnedAutoencoder(LearnedCompressor):
    """See the module's text."""

    kind = "autoencoder"
    layer_type = AutoencoderLayer
