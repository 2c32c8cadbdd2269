"""Reading chosen chunks: a softmax inside each chunk, the chunks mixed by their weights (GCA, arXiv 2410.01651).

Because the weights multiply what is read, the loss on the next token trains the choice. One weight for all heads
and tokens hardly tells five sentences of the same words apart; with `rerank` each head shifts the weights by what
its own query finds: the mix is softmax(log weight + factor * logsumexp of the chunk's scores). Factor 0 is GCA,
factor 1 is one softmax over all tokens that were chosen, each biased by its chunk's weight.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.kernels.dispatch import HEAD_DIMS, Implementation
from models.kernels.sparse_attention import CHUNK_SIZES, sparse_attention
from models.subq.config import SubqConfig
from models.subq.layers import rms
from models.subq.mixers.sliding import Projections


class Chosen(NamedTuple):
    """What each block of `unit` tokens reads. keys, values [N, C, g, d] of all chunks on offer; indices [B, U, k]
    into them (-1: empty slot); weights [B, U, k]. The first block lacks its first `lead` tokens."""

    keys: Tensor
    values: Tensor
    indices: Tensor
    weights: Tensor
    unit: int
    lead: int = 0


class ChunkReader(nn.Module):
    """Attention of an upper block over chosen chunks, each head behind a sigmoid gate.

    With `shared_reader` it asks and answers through the projections of the block's window, which it is handed.
    """

    def __init__(self, config: SubqConfig) -> None:
        super().__init__()
        self.config = config
        own = not config.shared_reader
        self.query = nn.Linear(config.width, config.width, bias=False) if own else None
        self.gate = nn.Linear(config.width, config.num_heads)
        self.out = nn.Linear(config.width, config.width, bias=False) if own else None
        self.rerank = nn.Parameter(torch.full((config.num_heads,), 0.5)) if config.rerank else None

    def forward(self, x: Tensor, chosen: Chosen, shared: Projections | None = None) -> Tensor:
        """x [B, T, D] -> [B, T, D]: what is added to the residual stream. shared: where it has none of its own."""
        config = self.config
        h = rms(x)
        if self.query is not None:
            asked = self.query(h)
        else:
            assert shared is not None
            asked = F.linear(h, shared.qkv.weight[: config.width].to(h.dtype))
        q = rms(asked.unflatten(-1, (config.num_heads, config.head_dim)))
        read = read_chunks(
            q.to(chosen.keys.dtype), chosen, 2.0 * config.head_dim**-0.5, config.kernel, self.rerank
        )
        gate = self.gate(h).sigmoid().to(read.dtype)
        answer = self.out if self.out is not None or shared is None else shared.out
        assert answer is not None
        out: Tensor = answer((read * gate[..., None]).flatten(2).to(h.dtype))
        return out


def read_chunks(
    q: Tensor, chosen: Chosen, scale: float, kernel: str = "auto", rerank: Tensor | None = None
) -> Tensor:
    """q [B, T, H, d] -> [B, T, H, d]; blocks whose slots are all empty get zeros. `rerank` [H]: a factor a head."""
    length = q.shape[1]
    units, slots = chosen.indices.shape[1:]
    if slots == 0 or chosen.keys.shape[0] == 0:
        return torch.zeros_like(q)
    back = units * chosen.unit - chosen.lead - length
    if back < 0 or chosen.lead >= chosen.unit:
        raise ValueError(
            f"{units} blocks of {chosen.unit} tokens, the first without {chosen.lead}, do not hold {length} tokens"
        )
    q = F.pad(q, (0, 0, 0, 0, chosen.lead, back))
    kernel = "plain" if rerank is not None else _kernel(kernel, q, chosen)
    if kernel == "plain":
        out = _plain(q, chosen, scale, rerank)
    else:
        chunk = chosen.keys.shape[1]
        flat = sparse_attention(
            q.reshape(1, -1, *q.shape[2:]),
            chosen.keys.reshape(1, -1, *chosen.keys.shape[2:]),
            chosen.values.reshape(1, -1, *chosen.values.shape[2:]),
            chosen.indices.reshape(1, -1, 1, slots).int(),
            chunk_size=chunk, block_q=chosen.unit, scale=scale,
            chunk_weights=chosen.weights.reshape(1, -1, 1, slots),
            implementation=cast(Implementation, kernel),
        )  # fmt: skip
        out = cast(Tensor, flat).view_as(q)
    return out[:, chosen.lead : chosen.lead + length]


def _kernel(kernel: str, q: Tensor, chosen: Chosen) -> str:
    """auto: the fused kernel on a CUDA device where it knows the sizes; the plain form below elsewhere."""
    if kernel != "auto":
        return kernel
    fits = q.shape[-1] in HEAD_DIMS and chosen.keys.shape[1] in CHUNK_SIZES
    return "fused" if q.is_cuda and fits and q.dtype != torch.float64 else "plain"


def _plain(q: Tensor, chosen: Chosen, scale: float, rerank: Tensor | None) -> Tensor:
    """Gather and three matrix products. `index_select` because its backward is fast, that of indexing is slow."""
    batch, padded, heads, dim = q.shape
    units, slots = chosen.indices.shape[1:]
    chunk, groups = chosen.keys.shape[1], chosen.keys.shape[2]
    rows, unit = batch * units, chosen.unit
    q = (
        q.reshape(rows, unit, groups, heads // groups, dim)
        .permute(0, 2, 3, 1, 4)
        .reshape(rows, groups, -1, dim)
    )
    at = chosen.indices.clamp_min(0).flatten()
    keys, values = (
        each.flatten(1).index_select(0, at).view(rows, slots * chunk, groups, dim).transpose(1, 2)
        for each in (chosen.keys, chosen.values)
    )
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    filled = (chosen.indices >= 0).view(rows, 1, 1, slots)
    weights = chosen.weights.to(wide).view(rows, 1, 1, slots) * filled
    scores = (q @ keys.transpose(-1, -2)).unflatten(-1, (slots, chunk)).to(wide) * scale  # type: ignore[no-untyped-call]
    if rerank is not None:
        factor = rerank.to(wide).view(groups, -1, 1).expand(-1, -1, unit).reshape(1, groups, -1, 1)
        weights = _shifted(weights, factor * scores.logsumexp(-1), filled)
    shares = scores.softmax(-1) * weights[..., None]
    out = (shares.flatten(-2).to(q.dtype) @ values).view(rows, groups, heads // groups, unit, dim)
    mixed: Tensor = out.permute(0, 3, 1, 2, 4).reshape(batch, padded, heads, dim)
    return mixed


def _shifted(weights: Tensor, by: Tensor, filled: Tensor) -> Tensor:
    """Weights [rows, 1, 1, slots] moved by [rows, g, n, slots] in their logarithm; sum 1 where a slot counts."""
    # weight 0 (forced reading) stays far below every other, and its gradient stays a number
    moved = (weights.clamp_min(1e-9).log() + by).masked_fill(~filled, -1e9)
    return moved.softmax(-1) * filled


def read_chunks_naive(q: Tensor, chosen: Chosen, scale: float, rerank: Tensor | None = None) -> Tensor:
    """The definition, query by query and chunk by chunk; arguments as of `read_chunks`."""
    if rerank is not None:
        return _reranked_naive(q, chosen, scale, rerank)
    out = torch.zeros_like(q)
    group = q.shape[2] // chosen.keys.shape[2]
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            unit = (t + chosen.lead) // chosen.unit
            for slot in range(chosen.indices.shape[2]):
                chunk = int(chosen.indices[b, unit, slot])
                if chunk < 0:
                    continue
                keys = chosen.keys[chunk].repeat_interleave(group, 1)
                values = chosen.values[chunk].repeat_interleave(group, 1)
                shares = (torch.einsum("hd,chd->hc", q[b, t], keys) * scale).softmax(-1)
                read = torch.einsum("hc,chd->hd", shares, values) * chosen.weights[b, unit, slot]
                out = out.index_put((torch.tensor(b), torch.tensor(t)), read, accumulate=True)
    return out


def _reranked_naive(q: Tensor, chosen: Chosen, scale: float, rerank: Tensor) -> Tensor:
    """Weight of a chunk times the sum of its exponentials to the head's power, as a share of all filled slots."""
    out = torch.zeros_like(q)
    group = q.shape[2] // chosen.keys.shape[2]
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            unit = (t + chosen.lead) // chosen.unit
            parts, mass = [], []
            for slot in range(chosen.indices.shape[2]):
                chunk = int(chosen.indices[b, unit, slot])
                if chunk < 0:
                    continue
                keys = chosen.keys[chunk].repeat_interleave(group, 1)
                values = chosen.values[chunk].repeat_interleave(group, 1)
                found = (torch.einsum("hd,chd->hc", q[b, t], keys) * scale).exp()
                total = found.sum(1)
                parts.append(torch.einsum("hc,chd->hd", found / total[:, None], values))
                mass.append(chosen.weights[b, unit, slot].clamp_min(1e-9) * total**rerank)
            if parts:
                shares = torch.stack(mass) / torch.stack(mass).sum(0)
                read = (torch.stack(parts) * shares[..., None]).sum(0)
                out = out.index_put((torch.tensor(b), torch.tensor(t)), read, accumulate=True)
    return out
