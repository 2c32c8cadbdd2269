"""Every index answers as brute force does, on CPU and on GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from pipeline.store.gpu_index import FaissGpuIndex
from pipeline.store.vector_index import FaissIndex, VectorIndex, device_index, growing_matrix

DIM = 32
KINDS = [
    "matrix",
    "matrix-torch",
    "flat",
    "ivf",
    pytest.param("matrix-gpu", marks=pytest.mark.gpu),
    pytest.param("flat-gpu", marks=pytest.mark.gpu),
    pytest.param("ivf-gpu", marks=pytest.mark.gpu),
]


def unit_rows(num_rows: int, seed: int) -> np.ndarray:
    """Random unit vectors as the store keeps them."""
    rows = np.random.default_rng(seed).standard_normal((num_rows, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def built(kind: str, vectors: np.ndarray) -> VectorIndex:
    """An index of a kind; an IVF reads all its lists, so that it is exact here."""
    device = "cuda" if kind.endswith("-gpu") else "cpu:0" if kind.endswith("-torch") else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if kind.startswith("matrix"):
        matrix = growing_matrix(DIM, 8, device)
        for begin in range(0, len(vectors), 300):
            matrix.add(vectors[begin : begin + 300])
        return matrix
    if kind == "ivf-gpu" and not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("faiss has no GPU indexes here")
    index = FaissIndex.build(vectors, ivf=kind.startswith("ivf"), probes=10_000)
    return device_index(index, vectors, device)


def brute_force(vectors: np.ndarray, queries: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    """All scores [Q, n]; what is hidden scores -inf."""
    scores = queries @ vectors.astype(np.float32).T
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    return scores


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [None, 0.9, 0.3, 0.01, 0.0])
def test_the_best_allowed_rows_are_found(kind: str, share: float | None) -> None:
    """For no filter, weak ones and very selective ones, down to nothing allowed at all."""
    vectors, queries = unit_rows(1_500, 0), unit_rows(7, 1).astype(np.float32)
    allowed = None if share is None else np.random.default_rng(2).random(len(vectors)) < share
    index = built(kind, vectors)
    scores, rows = index.search(queries, 20, allowed)
    truth = brute_force(vectors, queries, allowed)
    expected = np.sort(truth, axis=1)[:, ::-1][:, :20]
    count = min(20, len(vectors) if allowed is None else int(allowed.sum()))
    tolerance = 2e-3 if kind.endswith("-gpu") else 1e-5
    np.testing.assert_allclose(scores[:, :count], expected[:, :count], atol=tolerance)
    assert (rows[:, count:] == -1).all()
    for question in range(len(queries)):
        found = rows[question, :count]
        assert len(set(found.tolist())) == count
        np.testing.assert_allclose(truth[question, found], expected[question, :count], atol=tolerance)
    assert isinstance(index, FaissGpuIndex) == (kind == "ivf-gpu")


class GpuFaiss:
    """faiss' index on a GPU, as far as it is not like the one on a host: it knows no selector, and a bound of k."""

    def __init__(self, index: Any) -> None:
        self._index, self.ntotal, self.nlist = index, index.ntotal, index.nlist
        self.fetched: list[int] = []

    @property
    def nprobe(self) -> int:
        """Lists that a search reads."""
        return int(self._index.nprobe)

    @nprobe.setter
    def nprobe(self, value: int) -> None:
        self._index.nprobe = value

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Without parameters: a GPU ignores them, and takes no more than 2,048."""
        assert k <= 2_048
        self.fetched.append(k)
        scores, rows = self._index.search(queries, k)
        return scores.astype(np.float16).astype(np.float32), rows


@pytest.mark.parametrize(
    ("share", "on_device"),
    [(None, True), (0.9, True), (0.3, True), (0.02, True), (0.001, False), (0.0, True)],
)
def test_what_a_gpu_cannot_leave_out_is_fetched_and_left_out_afterwards(
    monkeypatch: pytest.MonkeyPatch, share: float | None, on_device: bool
) -> None:
    """Deleted and expired rows never come back, and k do where so many live; past its bound the host searches."""
    made: list[GpuFaiss] = []

    class Resources:
        """faiss' scratch memory on a device."""

        def setTempMemory(self, size: int) -> None:
            """Nothing to do here."""

    def to_gpu(resources: Any, device: int, index: Any, options: Any) -> GpuFaiss:
        made.append(GpuFaiss(faiss.clone_index(index)))
        return made[-1]

    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(faiss, "GpuClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    vectors, queries = unit_rows(4_000, 8), unit_rows(6, 9).astype(np.float32)
    allowed = None if share is None else np.random.default_rng(10).random(len(vectors)) < share
    index = device_index(FaissIndex.build(vectors, ivf=True, probes=10_000), vectors, "cpu:0")
    assert isinstance(index, FaissGpuIndex)
    scores, rows = index.search(queries, 20, allowed)
    count = min(20, len(vectors) if allowed is None else int(allowed.sum()))
    expected = np.sort(brute_force(vectors, queries, allowed), axis=1)[:, ::-1][:, :count]
    np.testing.assert_allclose(scores[:, :count], expected, atol=2e-3)
    assert rows.shape[1] == count and (rows >= 0).all()
    assert allowed is None or allowed[rows].all()
    assert all(len(set(found.tolist())) == count for found in rows)
    fetched = made[0].fetched
    assert (share == 0.0 and not fetched) or (on_device == bool(fetched))


@pytest.mark.parametrize("ivf", [False, True])
def test_the_same_vectors_give_the_same_file(tmp_path: Path, ivf: bool) -> None:
    """So a rebuilt index is the one that was lost."""
    vectors = unit_rows(1_000, 3)
    for name in ("one", "two"):
        FaissIndex.build(vectors, ivf=ivf, probes=4).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    loaded = FaissIndex.load(tmp_path / "one", probes=1_000)
    assert loaded.search(vectors[:5].astype(np.float32), 1, None)[1][:, 0].tolist() == [0, 1, 2, 3, 4]


def test_an_ivf_reads_on_until_enough_are_found() -> None:
    """One probe holds few rows of a selective filter; the answer is complete all the same."""
    vectors, queries = unit_rows(2_000, 4), unit_rows(5, 5).astype(np.float32)
    allowed = np.random.default_rng(6).random(2_000) < 0.02
    index = FaissIndex.build(vectors, ivf=True, probes=1)
    scores, rows = index.search(queries, 10, allowed)
    assert (rows >= 0).all()
    assert allowed[rows].all()
    expected = np.sort(brute_force(vectors, queries, allowed), axis=1)[:, ::-1][:, :10]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_matrix_hides_rows_beyond_the_reader_s_count() -> None:
    """Rows that arrive during a search do not show in it."""
    vectors = unit_rows(100, 7)
    matrix = growing_matrix(DIM, 4, "cpu")
    matrix.add(vectors)
    rows = matrix.search_first(vectors[90:91].astype(np.float32), 100, 50, None)[1]
    assert sorted(rows[0].tolist()) == list(range(50))


@pytest.mark.parametrize(
    ("device", "words"), [("tpu9", "allowed: cpu"), ("cuda:0", "set store.device to cpu")]
)
def test_a_device_that_is_not_there_is_named(device: str, words: str) -> None:
    """With what to set instead."""
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(ValueError, match=words):
        growing_matrix(DIM, 4, device)
