"""Rotary position embedding by whole-number places, applied when keys are read (RoPE, arXiv 2104.09864).

Two keys meet a query correctly when the differences of their places are right; the stream's absolute
position never enters. At position 16 million a float32 angle is off by up to a radian; places stay below the
size of the cache, so their angles are as exact as in a short text.

Shapes: `H` heads, `n` tokens, `d` head width, `f = rotary dims / 2` frequencies.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_GROWTH = 4096


class RotaryTable:
    """Cosines and sines of places 0, 1, 2, … as the model's own rotary module computes them, in float32."""

    def __init__(self, angles: Callable[[Tensor], tuple[Tensor, Tensor]], *, device: torch.device) -> None:
        """`angles(places [1, n])` returns cosine and sine `[1, n, 2 f]`, both halves alike."""
        self._angles = angles
        self._device = device
        cos, sin = angles(torch.zeros(1, 1, dtype=torch.long, device=device))
        # some kinds (yarn) scale queries and keys here; the model has done so once at place 0
        self._scale = float(cos[0, 0, 0])
        if float(sin.abs().max()) != 0.0 or not bool((cos == cos[0, 0, 0]).all()) or self._scale == 0.0:
            raise ValueError("the model's rotary embedding does more than turn at position 0; not supported")
        self.num_frequencies = cos.shape[-1] // 2
        # one attribute, replaced as a whole: sessions on other threads see either the old or the new table
        self._known = (torch.empty(0, self.num_frequencies, device=device),) * 2
        self._mean_phases: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}

    def at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine `[..., f]` of whole-number `places [...]`, all of them reserved before."""
        cos, sin = self._known
        return cos[places], sin[places]

    def turn(self, x: Tensor, places: Tensor) -> Tensor:
        """`x [..., n, d]` turned to `places [..., n]` (broadcast), computed in float32, in x's own type."""
        cos, sin = self.at(places)
        return turn(x, cos, sin)

    def reserve(self, size: int) -> None:
        """Make the places below `size` known; grows in large steps, so it is cheap to call every time."""
        if size <= self._known[0].shape[0]:
            return
        size = -(-size // _GROWTH) * _GROWTH
        cos, sin = self._angles(torch.arange(size, device=self._device)[None])
        f = self.num_frequencies
        self._known = (cos[0, :, :f].float() / self._scale, sin[0, :, :f].float() / self._scale)

    def mean_phases(self, first: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean over the distances `first … end - 1` of what a turn does to second moments.

        A pair (i, i + f) as a complex number turns by a phase per frequency. Returned are the mean phases of
        the difference and of the sum of two frequencies, `[f, f]` each, and of one frequency, `[f]`.
        """
        if (first, end) not in self._mean_phases:
            self.reserve(end)
            phase = torch.complex(*self.at(torch.arange(first, end, device=self._device)))
            n = phase.shape[0]
            across = phase.transpose(0, 1)
            self._mean_phases[first, end] = (across @ phase.conj() / n, across @ phase / n, phase.mean(0))
        return self._mean_phases[first, end]


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + f) of `x [..., d]` by the angles of `cos, sin [..., f]`; the rest passes."""
    f = cos.shape[-1]
    wide = x.float()
    first, second, rest = wide[..., :f], wide[..., f : 2 * f], wide[..., 2 * f :]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    if rest.shape[-1]:
        turned = torch.cat((turned, rest.expand(*turned.shape[:-1], -1)), dim=-1)
    return turned.to(x.dtype)
