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


class Around(NamedTuple):
    """Tokens beside chunks: hidden [..., B + A, D], those before the chunk first; real [..., B + A, 1] is 0 where
    the text has not begun or has ended, 1 elsewhere."""

    hidden: Tensor
    real: Tensor


def neighbourhood(hidden: Tensor, before: int, chunks: int, config: SubqConfig) -> Around | None:
    """What stands beside each of `chunks` chunks from token `before` of hidden [B, T, D] on; None: not wanted."""
    behind, ahead, size = config.lookbehind, config.lookahead, config.chunk
    if not behind and not ahead:
        return None
    front = max(0, behind - before)
    back = max(0, before + (chunks + 1) * size - hidden.shape[1])
    at = front + before

    def beside(x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0, front, back))
        earlier = padded[:, at - behind :][:, : chunks * size].unflatten(1, (chunks, size))  # type: ignore[no-untyped-call]
        later = padded[:, at + size :][:, : chunks * size].unflatten(1, (chunks, size))  # type: ignore[no-untyped-call]
        return torch.cat((earlier[:, :, :behind], later[:, :, :ahead]), 2)

    return Around(beside(hidden), beside(torch.ones_like(hidden[:, :, :1])))


class ChunkEncoder(nn.Module):
    """One layer that sees both ways inside a chunk; positions count inside the chunk.

    With `lookahead` or `lookbehind` the chunk's tokens attend to that many tokens beside it too, for the landmark,
    the keys and the values: a key whose owner is named across the border is found by that name. Queries never see
    beyond the chunk, since what comes after it is what they ask for.
    """

    def __init__(self, config: SubqConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.places = nn.Parameter(torch.randn(config.chunk, width) * 0.02)
        around = config.lookbehind + config.lookahead
        self.places_around = nn.Parameter(torch.randn(around, width) * 0.02) if around else None
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

    def forward(self, hidden: Tensor, around: Around | None = None) -> ChunkCodes:
        """hidden [..., C, D] of whole chunks after the lower blocks; around: what stands beside them, if wanted."""
        config, lead = self.config, hidden.shape[:-2]
        x = hidden.reshape(-1, config.chunk, config.width)
        x = x + self.places.to(x.dtype)
        q, k, v = self.qkv(rms(x)).unflatten(-1, (3, config.num_heads, config.head_dim)).unbind(2)
        q, k = rms(q).to(v.dtype), rms(k).to(v.dtype)
        asks = keeps = self._layer(x, q, k, v)
        if around is not None and self.places_around is not None:
            beside_k, beside_v = self._beside(around)
            keeps = self._layer(x, q, torch.cat((k, beside_k), 1), torch.cat((v, beside_v), 1))
        keys, values = self.kv(keeps).unflatten(-1, (2, config.kv_heads, config.head_dim)).unbind(2)
        landmark, query = (self._unit(self._pooled(y, side), side) for side, y in enumerate((keeps, asks)))
        return ChunkCodes(
            *(each.unflatten(0, lead) for each in (rms(keys).to(values.dtype), values, landmark, query))
        )

    def token_queries(self, hidden: Tensor) -> Tensor:
        """hidden [B, T, D] -> one query a token [B, T, R]; only where config.retrieval is 'token'."""
        if self.token_value is None:
            raise ValueError(f"retrieval is {self.config.retrieval!r}; token queries need retrieval 'token'")
        # training calls this where autocast is off, with hidden states that it left in 16 bits
        return self._unit(self.token_value(rms(hidden).to(self.token_value.weight.dtype)), 1)

    def _layer(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """x [G, C, D] after attention from q [G, C, H, d] to k, v [G, S, H, d], and the feed-forward network."""
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=2.0 * self.config.head_dim**-0.5
        )
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return rms(x + self.feed_forward(x))

    def _beside(self, around: Around) -> tuple[Tensor, Tensor]:
        """Keys and values [G, B + A, H, d] of what stands beside; where nothing stands they are zeros."""
        config = self.config
        assert self.places_around is not None
        y = around.hidden.reshape(-1, *around.hidden.shape[-2:])
        y = (y + self.places_around.to(y.dtype)) * around.real.reshape(-1, *around.real.shape[-2:])
        both = F.linear(rms(y), self.qkv.weight[config.width :].to(y.dtype))
        k, v = both.unflatten(-1, (2, config.num_heads, config.head_dim)).unbind(2)  # type: ignore[no-untyped-call]
        return rms(k).to(v.dtype), v

    def _pooled(self, x: Tensor, side: int) -> Tensor:
        heads = self.config.encoder_heads
        shares = self.pool(x).float().softmax(1).to(x.dtype).unflatten(-1, (2, heads))[:, :, side]
        values = self.pooled[side if len(self.pooled) > 1 else 0](x).unflatten(-1, (heads, -1))
        return torch.einsum("gch,gchd->ghd", shares, values).flatten(1)

    def _unit(self, x: Tensor, side: int) -> Tensor:
        at = side if len(self.deep) > 1 else 0
        return F.normalize((self.direct[at](x) + self.deep[at](x)).float(), dim=-1)


class LeanEncoder(nn.Module):
    """Linear maps of the lower half's hidden states: keys and values of tokens, and pooled vectors of chunks.

    For language models of a few million parameters, where a whole layer for the chunks costs the blocks more than
    reading gains.
    """

    def __init__(self, config: SubqConfig) -> None:
        super().__init__()
        self.config = config
        width, copies = config.width, 1 if config.tied else 2
        self.kv = nn.Linear(width, 2 * config.kv_heads * config.head_dim, bias=False)
        self.pool = nn.Linear(width, 2 * config.encoder_heads, bias=False)
        self.pooled = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(copies))
        self.direct = nn.ModuleList(nn.Linear(width, config.landmark_dim, bias=False) for _ in range(copies))

    def forward(self, hidden: Tensor, around: None = None) -> ChunkCodes:
        """hidden [..., C, D] of whole chunks after the lower blocks."""
        config, lead = self.config, hidden.shape[:-2]
        x = rms(hidden.reshape(-1, config.chunk, config.width))
        keys, values = self.kv(x).unflatten(-1, (2, config.kv_heads, config.head_dim)).unbind(2)
        shares = self.pool(x).float().softmax(1).to(x.dtype).unflatten(-1, (2, config.encoder_heads))
        landmark, query = (self._vector(x, shares[:, :, side], side) for side in (0, 1))
        return ChunkCodes(
            *(each.unflatten(0, lead) for each in (rms(keys).to(values.dtype), values, landmark, query))
        )

    def token_queries(self, hidden: Tensor) -> Tensor:
        """Never: SubqConfig refuses this encoder where tokens ask."""
        raise ValueError("encoder is 'lean'; token queries need encoder 'layer'")

    def _vector(self, x: Tensor, shares: Tensor, side: int) -> Tensor:
        at = side if len(self.pooled) > 1 else 0
        values = self.pooled[at](x).unflatten(-1, (self.config.encoder_heads, -1))
        pooled = torch.einsum("gch,gchd->ghd", shares, values).flatten(1)
        return F.normalize(self.direct[at](pooled).float(), dim=-1)


def build_encoder(config: SubqConfig) -> ChunkEncoder | LeanEncoder:
    """The encoder that the configuration names."""
    return LeanEncoder(config) if config.encoder == "lean" else ChunkEncoder(config)
