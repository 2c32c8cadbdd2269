"""State-space mixer with one scalar decay a head (Mamba-2, arXiv 2405.21060), in chunks of matrix products.

Plain PyTorch on every device: fla's scalar-gated backward is refused on Hopper with Triton before 3.7.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.subq.config import SubqConfig

_CHUNK = 64


class StateSpace(nn.Module):
    """h_t = a_t h_(t-1) + d_t b_t x_t', y_t = h_t' c_t + D x_t with a_t = exp(-A d_t), d_t > 0 from the input.

    b and c are shared by the heads, as in Mamba-2. State: h [B, H, state_dim, d] in float32.
    """

    def __init__(self, config: SubqConfig) -> None:
        super().__init__()
        self.heads, self.dim, self.state_dim = config.num_heads, config.head_dim, config.state_dim
        self.inner = nn.Linear(config.width, 2 * config.width + 2 * config.state_dim + self.heads, bias=False)
        self.decay = nn.Parameter(torch.linspace(1.0, 16.0, self.heads).log())
        # softplus of these gives steps from 0.001 to 0.1, spread evenly in their logarithm
        steps = torch.logspace(-3, -1, self.heads)
        self.step_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))
        self.skip = nn.Parameter(torch.ones(self.heads))
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self, x: Tensor, state: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `build_mixer`."""
        width = self.heads * self.dim
        value, opened, b, c, step = self.inner(x).split(
            (width, width, self.state_dim, self.state_dim, self.heads), -1
        )
        value = F.silu(value).unflatten(-1, (self.heads, self.dim))  # type: ignore[no-untyped-call]
        step = F.softplus(step.float() + self.step_bias)
        gate = -self.decay.exp() * step
        b, c = F.silu(b), F.silu(c)
        out, last = state_space(
            value * step[..., None].to(value.dtype), b, c, gate, None if state is None else state[0]
        )
        out = out.to(x.dtype) + value * self.skip[:, None].to(x.dtype)
        out = F.rms_norm(out.flatten(2) * F.silu(opened), (width,)).to(x.dtype)
        return self.out(out), (last,)


def state_space(x: Tensor, b: Tensor, c: Tensor, gate: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """x [B, T, H, d], b and c [B, T, n], gate [B, T, H] (logarithm of the decay), state [B, H, n, d].

    Returns (out, state). Inside a chunk one masked matrix product a head; in float32 (float64 for float64).
    """
    dtype, (batch, length, heads, dim) = x.dtype, x.shape
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    size = min(_CHUNK, length)
    pad = -length % size
    x = (
        F.pad(x.to(wide), (0, 0, 0, 0, 0, pad)).unflatten(1, (-1, size)).permute(1, 0, 3, 2, 4)  # type: ignore[no-untyped-call]
    )  # [n, B, H, C, d]
    b, c = (
        F.pad(each.to(wide), (0, 0, 0, pad)).unflatten(1, (-1, size)).transpose(0, 1)[:, :, None]  # type: ignore[no-untyped-call]
        for each in (b, c)
    )
    kept = (
        F.pad(gate.to(wide), (0, 0, 0, pad)).unflatten(1, (-1, size)).permute(1, 0, 3, 2).cumsum(-1)  # type: ignore[no-untyped-call]
    )  # [n, B, H, C]
    causal = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
    decay = (kept[..., :, None] - kept[..., None, :]).masked_fill(~causal, float("-inf")).exp()
    inside = (c @ b.transpose(-1, -2) * decay) @ x
    to_end = (b * (kept[..., -1:] - kept).exp()[..., None]).transpose(-1, -2) @ x  # [n, B, H, n, d]
    state = x.new_zeros(batch, heads, b.shape[-1], dim) if state is None else state.to(wide)
    states = _carried(to_end, kept[..., -1], state)
    out = inside + (c * kept.exp()[..., None]) @ states[:-1]
    return out.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :length].to(dtype), states[-1]


def _carried(added: Tensor, decay: Tensor, state: Tensor) -> Tensor:
    """States before every chunk, and after the last: added [n, B, H, N, d], decay [n, B, H] (logarithms).

    One product with the decays between all pairs of chunks, so that a compiler sees no loop.
    """
    added = torch.cat((state[None], added))
    # in double: differences of long sums
    passed = F.pad(decay.double().cumsum(0), (0, 0, 0, 0, 1, 0))  # [n + 1, B, H]
    between = (passed[:, None] - passed[None]).permute(2, 3, 0, 1)
    causal = torch.ones(len(added), len(added), dtype=torch.bool, device=added.device).tril()
    factors = between.masked_fill(~causal, float("-inf")).exp().to(added.dtype)  # [B, H, n + 1, n + 1]
    return torch.einsum("bhij,jbhnd->ibhnd", factors, added)


def state_space_naive(
    x: Tensor, b: Tensor, c: Tensor, gate: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The definition, token by token."""
    if state is None:
        state = x.new_zeros(x.shape[0], x.shape[2], b.shape[2], x.shape[3])
    out = []
    for at in range(x.shape[1]):
        state = state * gate[:, at].exp()[..., None, None] + b[:, at, None, :, None] * x[:, at, :, None, :]
        out.append(torch.einsum("bn,bhnd->bhd", c[:, at], state))
    return torch.stack(out, 1), state
