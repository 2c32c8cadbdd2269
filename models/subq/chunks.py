"""The chunk encoder: what a chunk of tokens leaves behind for later tokens to find and to read."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.subq.config import SubqConfig
from models.subq.layers import FeedForward, rms


class ChunkCodes(NamedTuple):
    """keys, values [..., C, g, d] shared by all upper blocks; landmarks, queries [..., R] of length 1, float32."""

    keys: Tensor
    values: Tensor
    landmarks: Tensor
    queries: Tensor


class ChunkEncoder(nn.Module):
    """One layer that sees both ways inside a chunk and nothing outside; positions count inside the chunk."""

    def __init__(self, config: SubqConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.places = nn.Parameter(torch.randn(config.chunk, width) * 0.02)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed_forward = FeedForward(width, max(8, config.feed_forward // 2))
        self.kv = nn.Linear(width, 2 * config.kv_heads * config.head_dim, bias=False)
        self.pool = nn.Linear(width, 2 * config.encoder_heads, bias=False)
        # tied: equal words give equal vectors from the first step on, whichever side they stand on
        copies = 1 if config.tied else 2
        self.pooled = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(copies))
        self.direct = nn.ModuleList(nn.Linear(width, config.landmark_dim, bias=False) for _ in range(copies))
        self.deep = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.landmark_dim, bias=False)
            )
            for _ in range(copies)
        )
        self.token_value = nn.Linear(width, width, bias=False) if config.retrieval == "token" else None

    def forward(self, hidden: Tensor) -> ChunkCodes:
        """hidden [..., C, D] of whole chunks after the lower blocks."""
        config, lead = self.config, hidden.shape[:-2]
        x = hidden.reshape(-1, config.chunk, config.width)
        x = x + self.places.to(x.dtype)
        q, k, v = (
            self.qkv(rms(x)).unflatten(-1, (3, config.num_heads, config.head_dim)).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(
            rms(q).to(v.dtype), rms(k).to(v.dtype), v, scale=2.0 * config.head_dim**-0.5
        )
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = rms(x + self.feed_forward(x))
        keys, values = self.kv(x).unflatten(-1, (2, config.kv_heads, config.head_dim)).unbind(2)
        shares = self.pool(x).float().softmax(1).to(x.dtype).unflatten(-1, (2, config.encoder_heads))
        landmark, query = (self._unit(self._pooled(x, shares[:, :, side], side), side) for side in (0, 1))
        return ChunkCodes(
            *(each.unflatten(0, lead) for each in (rms(keys).to(values.dtype), values, landmark, query))
        )

    def token_queries(self, hidden: Tensor) -> Tensor:
        """hidden [B, T, D] -> one query a token [B, T, R]; only where config.retrieval is 'token'."""
        if self.token_value is None:
            raise ValueError(f"retrieval is {self.config.retrieval!r}; token queries need retrieval 'token'")
        # training calls this where autocast is off, with hidden states that it left in 16 bits
        return self._unit(self.token_value(rms(hidden).to(self.token_value.weight.dtype)), 1)

    def _pooled(self, x: Tensor, shares: Tensor, side: int) -> Tensor:
        heads = self.config.encoder_heads
        values = self.pooled[side if len(self.pooled) > 1 else 0](x).unflatten(-1, (heads, -1))
        return torch.einsum("gch,gchd->ghd", shares, values).flatten(1)

    def _unit(self, x: Tensor, side: int) -> Tensor:
        at = side if len(self.deep) > 1 else 0
        return F.normalize((self.direct[at](x) + self.deep[at](x)).float(), dim=-1)
