"""Gated linear attention: a matrix state that every key channel forgets at its own rate (GLA, arXiv 2312.06635)."""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.subq.config import SubqConfig

_CHUNK = 16  # pairs inside a chunk are kept as differences of logarithms: 16 x 16 x d numbers a head
_GROUP = 32  # chunks whose states are carried side by side: 16k tokens take 64 steps instead of 1,024


class GatedLinear(nn.Module):
    """S_t = diag(exp g_t) S_(t-1) + k_t v_t', o_t = S_t' q_t, g_t <= 0 from the input.

    State: S [B, H, d, d] in float32. On CUDA fla-core's `chunk_gla` runs where it is, else the form below.
    """

    def __init__(self, config: SubqConfig) -> None:
        super().__init__()
        self.heads, self.dim = config.num_heads, config.head_dim
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        rank = max(16, config.width // 32)
        self.gate_in = nn.Linear(config.width, rank, bias=False)
        self.gate_out = nn.Linear(rank, config.width)
        self.open = nn.Linear(config.width, config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self, x: Tensor, state: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `build_mixer`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.dim)).unbind(2)
        gate = F.logsigmoid(self.gate_out(self.gate_in(x)).float()) / 16.0
        gate = gate.unflatten(-1, (self.heads, self.dim))  # type: ignore[no-untyped-call]
        q = q * self.dim**-0.5
        out, last = gated_linear(q, k, v, gate, None if state is None else state[0])
        out = F.rms_norm(out, (self.dim,)).to(x.dtype).flatten(2)
        return self.out(out * F.silu(self.open(x))), (last,)


@torch.compiler.disable  # a loop over chunks, or fla's own kernels: nothing that a compiler should unroll
def gated_linear(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """q, k, v, gate [B, T, H, d] (gate: logarithm of what is kept), state [B, H, d, d] or None -> (out, state)."""
    if q.is_cuda and importlib.util.find_spec("fla") is not None:
        from fla.ops.gla import chunk_gla

        out, last = chunk_gla(q, k, v, g=gate, scale=1.0, initial_state=state, output_final_state=True)
        return out, last
    return gated_linear_chunked(q, k, v, gate, state)


def gated_linear_chunked(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Chunks of 16 tokens: products inside a chunk, states between chunks. In float32, safe at any gate."""
    dtype, (batch, length, heads, dim) = q.dtype, q.shape
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    pad = -length % _CHUNK
    q, k, v, gate = (
        F.pad(each.to(wide), (0, 0, 0, 0, 0, pad)).unflatten(1, (-1, _CHUNK)).permute(1, 0, 3, 2, 4)  # type: ignore[no-untyped-call]
        for each in (q, k, v, gate)
    )  # [n, B, H, C, d]
    kept = gate.cumsum(-2)  # logarithm of what is left of the chunk's start, at every token
    causal = torch.ones(_CHUNK, _CHUNK, dtype=torch.bool, device=q.device).tril()
    differences = (kept[..., :, None, :] - kept[..., None, :, :]).masked_fill(
        ~causal[..., None], float("-inf")
    )
    inside = torch.einsum("nbhid,nbhijd,nbhjd->nbhij", q, differences.exp(), k) @ v
    from_start = q * kept.exp()
    to_end = k * (kept[..., -1:, :] - kept).exp()
    whole = kept[..., -1, :].exp()
    state = q.new_zeros(batch, heads, dim, v.shape[-1]) if state is None else state.to(wide)
    states, last = _carried(to_end.transpose(-1, -2) @ v, whole, state)
    out = inside + from_start @ states
    return out.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :length].to(dtype), last


def _carried(added: Tensor, kept: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """States before every chunk [n, B, H, d, d] and after the last: added [n, B, H, d, d], kept [n, B, H, d].

    S_(i+1) = diag(kept_i) S_i + added_i. Groups of chunks begin at zero and run side by side; then from group to
    group what came before is let through by the products of what was kept.
    """
    count = added.shape[0]
    size = min(_GROUP, count)
    pad = -count % size
    added = F.pad(added, (0, 0) * 4 + (0, pad)).unflatten(0, (-1, size))  # type: ignore[no-untyped-call]
    # a chunk that is not there keeps everything
    kept = F.pad(kept, (0, 0) * 3 + (0, pad), value=1.0).unflatten(0, (-1, size))  # type: ignore[no-untyped-call]
    own, passed = [torch.zeros_like(added[:, 0])], [torch.ones_like(kept[:, 0])]
    for at in range(size):
        own.append(own[-1] * kept[:, at, ..., None] + added[:, at])
        passed.append(passed[-1] * kept[:, at])
    within, through = torch.stack(own, 1), torch.stack(passed, 1)
    before = []
    for group in range(added.shape[0]):
        before.append(state)
        state = state * through[group, -1][..., None] + within[group, -1]
    states = within[:, :-1] + through[:, :-1][..., None] * torch.stack(before)[:, None]
    return states.flatten(0, 1)[:count], state


def gated_linear_naive(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The definition, token by token."""
    if state is None:
        state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    out = []
    for at in range(q.shape[1]):
        state = state * gate[:, at].exp()[..., None] + k[:, at, :, :, None] * v[:, at, :, None, :]
        out.append(torch.einsum("bhd,bhde->bhe", q[:, at], state))
    return torch.stack(out, 1), state
