"""Codes of landmarks that lean one way: a center taken off spares their bits for what tells them apart."""

from __future__ import annotations

import torch

from models.kernels.landmark_topk.codes import decode_landmarks, encode_landmarks


def test_a_center_taken_off_leaves_the_order_and_spares_bits() -> None:
    """Scores of centred codes are nearer to the true ones, all shifted alike: less than half of the error."""
    make = torch.Generator().manual_seed(8)
    landmarks = torch.randn(400, 64, generator=make) + 3 * torch.randn(64, generator=make)
    queries = torch.randn(20, 64, generator=make)
    scores = queries @ landmarks.T

    def error(center: torch.Tensor | None) -> float:
        found = queries @ decode_landmarks(encode_landmarks(landmarks, 4, center), 64).T - scores
        return float((found - found.mean(1, keepdim=True)).norm())

    assert error(landmarks.mean(0)) < 0.5 * error(None)
