"""Synthetic unit vectors shaped like real embeddings: for indexes larger than this project has texts to embed.

Their spectrum, the length of their mean and how near the nearest neighbour lies were measured on 5,285 embeddings
(all-MiniLM-L6-v2) of newswire passages by `spectrum`. Real: median cosine to the nearest of the others 0.84, of any
two 0.13; made here: 0.86 and 0.15. Inner products do not change under rotation, so the directions are arbitrary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DIM = 384
MEAN_NORM = 0.38
_AT = (0, 1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 130, 190, 270, 383)
_VARIANCE = (
    0.0454, 0.0324, 0.0268, 0.0247, 0.0191, 0.0156, 0.0130, 0.0107, 0.00811, 0.00579, 0.00388, 0.00233,
    0.00132, 0.000616, 0.000186, 1e-9,
)  # fmt: skip
_SHARED = 0.8
"""Share of a vector's variance that it has in common with its cluster (an event that several articles report)."""
_PER_CLUSTER = 8


def spectrum(vectors: NDArray[np.float32]) -> tuple[float, NDArray[np.float64]]:
    """Of real unit vectors [N, D]: the length of their mean, and the variances along the principal axes."""
    mean = vectors.mean(axis=0)
    variances: NDArray[np.float64] = np.linalg.eigvalsh(np.cov((vectors - mean).T))[::-1]
    return float(np.linalg.norm(mean)), variances


def deviations(dim: int = DIM) -> NDArray[np.float32]:
    """Standard deviations [dim] along the axes, in all what unit vectors leave beside their mean."""
    logs = np.interp(np.arange(dim) * (DIM / dim), _AT, np.log(_VARIANCE))
    variances = np.exp(logs)
    variances *= (1 - MEAN_NORM**2) / variances.sum()
    result: NDArray[np.float32] = np.sqrt(variances).astype(np.float32)
    return result


def clustered(num: int, seed: int, dim: int = DIM) -> NDArray[np.float16]:
    """Unit vectors float16 [num, dim] on the host; the same seed gives the same bytes."""
    generator = np.random.default_rng(seed)
    spread = deviations(dim)
    centres = generator.standard_normal((max(1, num // _PER_CLUSTER), dim), dtype=np.float32) * spread
    rows = np.empty((num, dim), dtype=np.float16)
    for begin in range(0, num, 65_536):
        end = min(num, begin + 65_536)
        chosen = centres[generator.integers(0, len(centres), end - begin)]
        own = generator.standard_normal((end - begin, dim), dtype=np.float32) * spread
        part = _SHARED**0.5 * chosen + (1 - _SHARED) ** 0.5 * own + np.float32(MEAN_NORM / dim**0.5)
        rows[begin:end] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def clustered_on(device: str, num: int, seed: int, dim: int = DIM) -> Any:
    """The same kind of vectors, made on a torch device: a float16 tensor [num, dim]."""
    import torch

    generator = torch.Generator(device=device).manual_seed(seed)
    spread = torch.from_numpy(deviations(dim)).to(device)
    shape = (max(1, num // _PER_CLUSTER), dim)
    centres = torch.randn(shape, generator=generator, device=device) * spread
    rows = torch.empty((num, dim), dtype=torch.float16, device=device)
    for begin in range(0, num, 262_144):
        end = min(num, begin + 262_144)
        at = torch.randint(0, len(centres), (end - begin,), generator=generator, device=device)
        own = torch.randn((end - begin, dim), generator=generator, device=device) * spread
        part = _SHARED**0.5 * centres[at] + (1 - _SHARED) ** 0.5 * own + MEAN_NORM / dim**0.5
        rows[begin:end] = part / part.norm(dim=1, keepdim=True)
    return rows
