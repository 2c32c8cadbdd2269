"""Landmarks in a few bits beside their own: what a search may read first, a quarter or half of the bytes.

A landmark's code is a whole number of 4 or 8 bits for each of its dimensions and one scale for all. A span's
landmarks are ordered by their codes, and the best few of them are scored again from the landmarks themselves. So
what a search returns are true scores, and only a landmark that its code hides behind so many others is passed over.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6)  # of the largest value: what 4 bits lose at the ends they gain in between
_PIECE = 65_536  # landmarks encoded at once


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes of landmarks [N, E]: landmark n is about scale[n] * its whole numbers.

    words int32 [N, W], W a power of two: with 8 bits dimension 4 w + j is byte j of word w; with 4 bits it is that
    byte's lower half, and its upper half is dimension 4 W + 4 w + j. scale float32 [N]. Dimensions above E are 0.
    """

    words: torch.Tensor
    scale: torch.Tensor
    bits: int

    def __post_init__(self) -> None:
        words, scale = self.words, self.scale
        if (
            self.bits not in (4, 8)
            or words.dtype != torch.int32
            or words.ndim != 2
            or words.shape[1] & (words.shape[1] - 1)
            or not words.is_contiguous()
            or scale.dtype != torch.float32
            or scale.shape != words.shape[:1]
        ):
            raise ValueError(
                f"words are {words.dtype} {tuple(words.shape)}, scale {scale.dtype} {tuple(scale.shape)}, bits "
                f"{self.bits}; give contiguous int32 [N, a power of two], float32 [N], and 4 or 8 bits"
            )

    def fit(self, landmarks: torch.Tensor) -> bool:
        """Whether these can be codes of such landmarks."""
        return landmarks.ndim == 2 and self.words.shape == (
            landmarks.shape[0],
            _words(landmarks.shape[1], self.bits),
        )


def encode_landmarks(landmarks: torch.Tensor, bits: int = 4, center: torch.Tensor | None = None) -> Codes:
    """Codes of landmarks [N, E]; each one's scale is the best of a few by the squares of what it loses.

    center [E] or None: codes of what is left without it. All scores of a query shift alike, so a search's order is
    that of the landmarks; where they lean one way (an encoder's vectors) their mean costs them bits: take it off.
    """
    if landmarks.ndim != 2 or bits not in (4, 8):
        raise ValueError(f"landmarks are {tuple(landmarks.shape)}, bits {bits}; give [N, E], and 4 or 8 bits")
    count, dim = landmarks.shape
    width = _words(dim, bits)
    words = torch.empty((count, width), dtype=torch.int32, device=landmarks.device)
    scale = torch.empty(count, dtype=torch.float32, device=landmarks.device)
    for first in range(0, count, _PIECE):
        values = landmarks[first : first + _PIECE].float()
        if center is not None:
            values = values - center.float()
        number, scale[first : first + _PIECE] = _rounded(values, bits)
        number = torch.nn.functional.pad(number, (0, width * (32 // bits) - dim)).int()
        if bits == 4:
            number = (number[:, : 4 * width] & 15) | ((number[:, 4 * width :] & 15) << 4)
        words[first : first + _PIECE] = (number & 255).to(torch.uint8).view(torch.int32)
    return Codes(words, scale, bits)


def decode_landmarks(codes: Codes, dim: int) -> torch.Tensor:
    """float32 [N, dim]: what the codes stand for (a center that was taken off is not put back)."""
    byte = codes.words.view(torch.int8).int()
    number = byte if codes.bits == 8 else torch.cat(((byte << 28) >> 28, byte >> 4), dim=1)
    return number[:, :dim] * codes.scale[:, None]


def _rounded(values: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers [n, E] and scales [n] of float32 values [n, E]."""
    most = 2 ** (bits - 1) - 1
    top = values.abs().amax(1)
    top = torch.where(top > 0, top, 1.0)
    scale = top / most
    lost = torch.full_like(top, float("inf"))
    for clip in _CLIPS if bits == 4 else _CLIPS[:1]:
        own = top * clip / most
        error = (
            (own[:, None] * (values / own[:, None]).round().clamp(-most - 1, most) - values).square().sum(1)
        )
        scale = torch.where(error < lost, own, scale)
        lost = torch.minimum(error, lost)
    return (values / scale[:, None]).round().clamp(-most - 1, most), scale


def _words(dim: int, bits: int) -> int:
    """Words of one landmark: the power of two that holds its dimensions."""
    return 1 << max(-(-dim * bits // 32) - 1, 0).bit_length()
