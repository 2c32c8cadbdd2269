"""A learned projection: key and value times a matrix each; starts from SVD, is trained on what attention reads."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from models.cache.learned import LayerCodes, LearnedCompressor


class ProjectionLayer(LayerCodes):
    """`z_k = K E_k`, `z_v = V E_v`."""

    joint: ClassVar[bool] = False

    def __init__(self, num_heads: int, dim: int, rank: int) -> None:
        super().__init__()
        self.key_encoder = nn.Parameter(torch.zeros(num_heads, dim, rank))
        self.value_encoder = nn.Parameter(torch.zeros(num_heads, dim, rank))
        self.key_decoder = nn.Parameter(torch.zeros(num_heads, rank, dim))
        self.value_decoder = nn.Parameter(torch.zeros(num_heads, rank, dim))

    @torch.no_grad()
    def start(self, keys: Tensor, values: Tensor) -> None:
        """Take the leading directions of samples `[H, n, d]`: SVD of all blocks at once."""
        rank = self.most_rank
        for samples, encoder, decoder in (
            (keys, self.key_encoder, self.key_decoder),
            (values, self.value_encoder, self.value_decoder),
        ):
            gram = samples.double().transpose(-1, -2) @ samples.double()
            vectors = torch.linalg.eigh(gram).eigenvectors[..., -rank:].flip(-1).float()
            encoder.copy_(vectors)
            decoder.copy_(vectors.transpose(-1, -2))

    def encode(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See LayerCodes.encode."""
        return keys @ self.key_encoder, values @ self.value_encoder


class LearnedProjection(LearnedCompressor):
    """See the module's text."""

    kind = "projection"
    layer_type = ProjectionLayer
