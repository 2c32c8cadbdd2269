"""Landmark search: the fused kernel finds what a full sort finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.kernels.landmark_topk import landmark_topk


def assert_same(queries: torch.Tensor, landmarks: torch.Tensor, k: int, **options: Any) -> None:
    """Same scores, and each index really has the score that is reported for it."""
    scores, index = landmark_topk(queries, landmarks, k, implementation="fused", **options)
    expected, expected_index = landmark_topk(queries, landmarks, k, implementation="naive", **options)
    assert torch.equal(index < 0, expected_index < 0)
    assert torch.equal(scores.isinf(), expected.isinf())
    found = index >= 0
    assert torch.allclose(scores[found], expected[found], atol=2e-4, rtol=1e-5)
    full = queries.to(landmarks.dtype).float() @ landmarks.float().transpose(-1, -2)
    own = full.gather(-1, index.clamp_min(0).long())
    assert torch.allclose(own[found], scores[found], atol=2e-4, rtol=1e-5)
    for row in index.flatten(0, -2):
        assert row[row >= 0].unique().numel() == (row >= 0).sum()


@pytest.mark.parametrize(
    ("num_queries", "shared"),  # up to four queries are one way, more another
    [(1, True), (3, False), (5, True), (5, False)],
    ids=["one-shared-index", "few-index-per-row", "many-shared-index", "many-index-per-row"],
)
def test_fused_finds_what_naive_finds(device: str, num_queries: int, shared: bool) -> None:
    """Lengths and widths that divide nothing, rows of different length, the newest left out."""
    landmarks = torch.randn(*((77,) if shared else (2, 77)), 24, device=device)
    queries = torch.randn(2, num_queries, 24, device=device)
    length = torch.tensor([77, 60], dtype=torch.int32, device=device)
    assert_same(queries, landmarks, 3, length=length, exclude_newest=2)


def test_short_rows_are_filled_with_nothing(device: str) -> None:
    """Fewer landmarks than k, and none at all: the rest is (-inf, -1)."""
    landmarks = torch.randn(2, 20, 16, device=device)
    length = torch.tensor([3, 1], dtype=torch.int32, device=device)
    scores, index = landmark_topk(
        torch.randn(2, 1, 16, device=device),
        landmarks,
        4,
        length=length,
        exclude_newest=1,
        implementation="fused",
    )
    assert (index >= 0).sum(-1).flatten().tolist() == [2, 0]
    assert scores[1].isinf().all()


def test_nan_landmarks_never_win(device: str) -> None:
    """A landmark that is not a number ranks behind every number."""
    landmarks = torch.randn(50, 16, device=device)
    landmarks[7] = float("nan")
    _, index = landmark_topk(torch.randn(1, 16, device=device), landmarks, 49, implementation="fused")
    assert 7 not in index.flatten().tolist()


@settings(max_examples=15, deadline=None)
@given(
    num_landmarks=st.integers(1, 200),
    k=st.integers(1, 20),
    exclude=st.integers(0, 5),
    seed=st.integers(0, 10**6),
)
def test_naive_is_a_full_sort(num_landmarks: int, k: int, exclude: int, seed: int) -> None:
    """The reference's result is the head of the sorted scores of the landmarks that count."""
    make = torch.Generator().manual_seed(seed)
    queries = torch.randn(1, 2, 8, generator=make)
    landmarks = torch.randn(num_landmarks, 8, generator=make)
    scores, index = landmark_topk(queries, landmarks, k, exclude_newest=exclude, implementation="naive")
    counted = max(num_landmarks - exclude, 0)
    expected = (queries[0] @ landmarks[:counted].T).sort(-1, descending=True).values[:, :k]
    assert torch.allclose(scores[0, :, : expected.shape[1]], expected, atol=1e-5)
    assert (index[0, :, expected.shape[1] :] == -1).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("num_queries", "k"), [(1, 8), (1, 64), (33, 8), (33, 64), (1, 200), (33, 200)])
@pytest.mark.parametrize("dim", [64, 256, 768])
def test_every_width_and_dtype_on_the_gpu(dim: int, num_queries: int, k: int, dtype: torch.dtype) -> None:
    """As compiled for the GPU, over enough landmarks that merging takes several rounds."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False
    landmarks = torch.nn.functional.normalize(torch.randn(70_001, dim, device="cuda"), dim=-1).to(dtype)
    assert_same(torch.randn(1, num_queries, dim, device="cuda"), landmarks, k, exclude_newest=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"landmarks": torch.zeros(5, 7)}, "same D"),
        ({"k": 0}, "1 to 256"),
        ({"length": torch.zeros(1)}, "int32"),
        ({"landmarks": torch.zeros(3, 5, 8)}, "for 3 rows"),
        ({"landmarks": torch.zeros(5, 8, dtype=torch.int8)}, "landmarks is torch.int8; allowed: float32"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    """Each mistake raises ValueError that states both sides."""
    arguments: dict[str, Any] = {"queries": torch.zeros(1, 2, 8), "landmarks": torch.zeros(5, 8), "k": 2}
    with pytest.raises(ValueError, match=message):
        landmark_topk(**{**arguments, **change})
