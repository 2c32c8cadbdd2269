"""Attention over a sliding window of tokens, in blocks, with rotary places and normalised queries and keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.subq.config import SubqConfig


def rotary(places: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T, 1, head_dim / 2] of whole-number places [T], in float32."""
    half = head_dim // 2
    frequencies = base ** (-torch.arange(half, device=places.device, dtype=torch.float32) / half)
    angles = places.float()[:, None, None] * frequencies
    return angles.cos(), angles.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, T, H, d] turned by its places, in x's dtype."""
    first, second = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), -1)


class Projections(nn.Module):
    """Queries, keys (both RMS-normalised per head) and values of an attention layer, and its output."""

    def __init__(self, config: SubqConfig) -> None:
        super().__init__()
        self.heads, self.dim = config.num_heads, config.head_dim
        # normalised queries and keys have norm sqrt(d): twice the usual factor lets a head be sharp
        self.scale = 2.0 * config.head_dim**-0.5
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, D] -> three of [B, T, H, d]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.dim)).unbind(2)
        return F.rms_norm(q, (self.dim,)).to(v.dtype), F.rms_norm(k, (self.dim,)).to(v.dtype), v


class SlidingWindow(nn.Module):
    """Each token attends to the last `window` tokens, its own included; time and memory linear in the length.

    Before the stream stand zeros: keys that score 0 and values that add nothing, the same for every token. State:
    the last window - 1 keys and values [B, W - 1, H, d], keys before rotary. Places count inside a segment,
    so that no angle grows with the stream.
    """

    def __init__(self, config: SubqConfig) -> None:
        super().__init__()
        self.window, self.base = config.window, config.rotary_base
        self.project = Projections(config)

    def forward(
        self, x: Tensor, state: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `build_mixer`."""
        q, k, v = self.project.split(x)
        keep, length = self.window - 1, x.shape[1]
        if state is None:
            past = k.new_zeros(k.shape[0], keep, *k.shape[2:])
            state = (past, past)
        keys, values = torch.cat((state[0].to(k.dtype), k), 1), torch.cat((state[1].to(v.dtype), v), 1)
        carried = (keys[:, length:], values[:, length:])
        cos, sin = rotary(torch.arange(keep + length, device=x.device), q.shape[-1], self.base)
        q, keys = turn(q, cos[keep:], sin[keep:]), turn(keys, cos, sin)
        inside = self._blocks if length > self.window else self._whole
        mixed = inside(q, keys, values).flatten(2)
        return self.project.out(mixed), carried

    def _whole(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One masked attention: for segments that are no longer than the window."""
        rows = torch.arange(q.shape[1], device=q.device)[:, None]
        columns = torch.arange(keys.shape[1], device=q.device)
        seen = (columns >= rows) & (columns < rows + self.window)
        return self._attend(q, keys, values, seen)

    def _blocks(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Blocks of `window` queries, each against its own and the block before."""
        size, (batch, length, heads, dim) = self.window, q.shape
        blocks = -(-length // size)
        pad = blocks * size - length
        q = F.pad(q, (0, 0, 0, 0, 0, pad)).view(batch * blocks, size, heads, dim)
        # one more zero in front makes the past a whole block
        pairs = []
        for each in (keys, values):
            whole = F.pad(each, (0, 0, 0, 0, 1, pad)).view(batch, blocks + 1, size, heads, dim)
            pairs.append(torch.cat((whole[:, :-1], whole[:, 1:]), 2).flatten(0, 1))
        rows = torch.arange(size, device=q.device)[:, None] + size
        columns = torch.arange(2 * size, device=q.device)
        seen = (columns <= rows) & (columns > rows - size)
        out = self._attend(q, pairs[0], pairs[1], seen)
        return out.reshape(batch, blocks * size, heads, dim)[:, :length]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=seen, scale=self.project.scale
        )
        return out.transpose(1, 2)


def sliding_naive(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> Tensor:
    """The definition, token by token: q, k, v [T, H, d] already turned, zeros before. Returns [T, H, d]."""
    out = []
    for at in range(q.shape[0]):
        first = max(0, at + 1 - window)
        scores = torch.einsum("hd,thd->ht", q[at], k[first : at + 1]) * scale
        scores = F.pad(scores, (window - scores.shape[1], 0))  # the zeros before the stream score 0
        shares = scores.softmax(-1)[:, window - (at + 1 - first) :]
        out.append(torch.einsum("ht,thd->hd", shares, v[first : at + 1]))
    return torch.stack(out)
