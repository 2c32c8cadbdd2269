"""SVD weighted by the queries: the smallest error in the scores that the queries seen so far would give.

A score is `(R q) · k` with R the turn between the query's place and the key's, so the weight is the second
moment of turned queries, averaged over the distances at which latents are read. With `C` that moment, the
error `E (q · (k - k̂))² = ‖(K - K̂) C^½‖²` is least for the projection onto the leading eigenvectors of `K C Kᵀ`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.cache.compressor import Compressor, Factors, project
from models.cache.config import CacheConfig
from models.cache.places import raw_tokens
from models.cache.spec import LayerSpec

_FORGET = 0.01  # share of the newest step once the moment has settled: it follows the stream


class WeightedSvdCompressor(Compressor):
    """Keeps the running second moment of the queries, one `[d, d]` matrix a KV head."""

    def __init__(self, spec: LayerSpec, config: CacheConfig) -> None:
        super().__init__(spec, config)
        d = spec.head_dim
        self.moment = torch.zeros(spec.num_kv_heads, d, d, device=spec.device)
        self.steps = torch.zeros(1, dtype=torch.int64, device=spec.device)

    def tensors(self) -> dict[str, Tensor]:
        """See Compressor.tensors."""
        return {"moment": self.moment, "steps": self.steps}

    def observe(self, queries: Tensor) -> None:
        """Blend the step's mean outer product into the moment; heads that share a key head are averaged."""
        grouped = queries.float().reshape(self.spec.num_kv_heads, -1, self.spec.head_dim)
        now = grouped.transpose(-1, -2) @ grouped / grouped.shape[1]
        self.steps += 1
        share = max(1.0 / int(self.steps), _FORGET)
        self.moment.mul_(1.0 - share).add_(now, alpha=share)

    def compress(self, keys: Tensor, values: Tensor) -> tuple[Factors, Factors]:
        """See Compressor.compress; values have no queries and are factored plainly."""
        weight = self._seen_from_latents()
        key = project(keys, keys @ weight @ keys.transpose(-1, -2), self.key_rank)
        value = project(values, values @ values.transpose(-1, -2), self.value_rank)
        return key, value

    def _seen_from_latents(self) -> Tensor:
        """The moment averaged over the turns between latents and their readers, `[H, d, d]`, exactly.

        As complex numbers a pair (i, i + f) turns by a phase; `E z z̄ᵀ` and `E z zᵀ` then take the mean phase of
        the difference and of the sum of two frequencies.
        """
        f = self.spec.rotary.num_frequencies
        config = self.config
        near = raw_tokens(config, self.spec.head_dim)
        far = near + config.latent_blocks * config.evict_block
        differences, sums, singles = self.spec.rotary.mean_phases(near, far)
        c = self.moment
        a, b, ab = c[:, :f, :f], c[:, f : 2 * f, f : 2 * f], c[:, :f, f : 2 * f]
        hermitian = torch.complex(a + b, ab.transpose(-1, -2) - ab) * differences
        plain = torch.complex(a - b, ab.transpose(-1, -2) + ab) * sums
        out = c.clone()
        out[:, :f, :f] = (hermitian.real + plain.real) / 2
        out[:, f : 2 * f, f : 2 * f] = (hermitian.real - plain.real) / 2
        cross = (plain.imag - hermitian.imag) / 2
        out[:, :f, f : 2 * f] = cross
        out[:, f : 2 * f, :f] = cross.transpose(-1, -2)
        if 2 * f < c.shape[-1]:
            z = torch.complex(c[:, :f, 2 * f :], c[:, f : 2 * f, 2 * f :]) * singles[:, None]
            out[:, :f, 2 * f :], out[:, f : 2 * f, 2 * f :] = z.real, z.imag
            out[:, 2 * f :, : 2 * f] = out[:, : 2 * f, 2 * f :].transpose(-1, -2)
        return out
