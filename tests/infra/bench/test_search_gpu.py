"""The search bench in miniature on the CPU: what it proves, it proves here too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from infra.bench import search, search_gpu
from infra.bench.vectors import clustered, deviations, spectrum
from pipeline.store.gpu_index import DeviceMatrix, largest
from pipeline.store.gpu_together import places, products
from pipeline.store.vector_index import FaissIndex, Part


def test_answers_are_those_of_brute_force_after_deletes_and_expiry(tmp_path: Path) -> None:
    """On a torch device, in a real shard and in segments held in memory: no dead row, none missed."""
    result = search_gpu.run(
        rows=4_200, device="cpu:0", shard_chunks=800, runs=1, stages="proof,speed", out=tmp_path
    )
    assert not [row for row in result["rows"] if "error" in row]
    assert result["ratios"]["deleted_or_expired_returned"] == 0
    assert result["ratios"]["worst_recall_at_10"] == 1.0
    assert (tmp_path / "search_gpu.json").exists() and (tmp_path / "search_gpu.md").exists()


def test_the_largest_in_two_steps_are_those_of_one() -> None:
    """Whatever the length leaves over at the end, with ties and with rows that are hidden."""
    generator = torch.Generator().manual_seed(1)
    for n in (1, 63, 64, 5_000, 6_400, 6_465):
        scores = torch.randint(0, 900, (3, n), generator=generator).float()
        scores[0, : n // 2] = -torch.inf
        k = min(7, n)
        best, rows = largest(scores, k)
        assert torch.equal(best, scores.topk(k, dim=1).values)
        assert torch.equal(scores.gather(1, rows), best)
        assert all(len(set(row)) == k for row in rows.tolist())


def test_a_search_with_few_allowed_rows_is_complete() -> None:
    """Where over-fetching leaves too few, the search is made again with the mask; deaths in a cluster too."""
    vectors = clustered(2_000, 3, dim=32)
    matrix = DeviceMatrix(32, 100, "cpu:0")
    matrix.add(vectors)
    question = vectors[:1].astype(np.float32)
    order = np.argsort(-(question @ vectors.astype(np.float32).T)[0])
    allowed = np.ones(2_000, dtype=bool)
    allowed[order[:300]] = False
    scores, rows = matrix.search(question, 10, allowed)
    assert sorted(rows[0].tolist()) == sorted(order[300:310].tolist())
    assert np.isfinite(scores).all()


def test_made_vectors_have_the_measured_shape() -> None:
    """Unit length, the mean and the largest variances of real embeddings; the same seed gives the same bytes."""
    rows = clustered(4_000, 5)
    assert (clustered(4_000, 5) == rows).all()
    vectors = rows.astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=2e-3)
    mean_norm, variances = spectrum(vectors)
    assert abs(mean_norm - 0.38) < 0.05
    np.testing.assert_allclose(variances[:5], deviations()[:5] ** 2, rtol=0.35)


def test_clients_search_while_rows_arrive() -> None:
    """The store and the flat peer answer at every number of clients, and articles are taken in meanwhile."""
    result = search.run(articles=300, seconds=0.2, peers="faiss flat,store")
    assert {(row["index"], row["clients"]) for row in result["rows"]} == {
        (name, clients) for name in ("faiss flat", "store") for clients in (1, 8, 64)
    }
    assert all(row["failures"] == 0 and row["searches_per_s"] > 0 for row in result["rows"])
    assert all(row["recall_at_10"] == 1.0 for row in result["rows"])


@pytest.mark.parametrize("dying", [0.0, 0.1, 0.7])
def test_matrices_searched_as_one_find_what_each_finds(dying: float) -> None:
    """One row of scores for all segments: the best rows over all, with few, many and no rows hidden."""
    generator = np.random.default_rng(4)
    vectors = clustered(3_000, 3, dim=32)
    parts, lengths = [], (1_900, 64, 1, 1_035)
    for begin, length in zip(np.cumsum((0, *lengths)), lengths, strict=False):
        matrix = DeviceMatrix(32, 8, "cpu:0")
        matrix.add(vectors[begin : begin + length])
        allowed = generator.random(length) >= dying
        parts.append(Part(matrix, length, None if dying == 0 or length == 64 else allowed))
    # Most of what is near the first question is hidden: over-fetching leaves it short.
    questions = vectors[[5, 1_950, 2_999]].astype(np.float32)
    if dying:
        near = np.argsort(-(questions[:1] @ vectors[:1_900].astype(np.float32).T)[0])[:200]
        parts[0].allowed[near] = False  # type: ignore[index]
    shown = np.concatenate(
        [np.ones(part.num_rows, bool) if part.allowed is None else part.allowed for part in parts]
    )
    truth = questions @ vectors.astype(np.float32).T
    truth[:, ~shown] = -np.inf

    together = parts[0].held.begin_together(parts, questions, 10)
    assert together is not None
    scores, numbers, rows = together()

    places = np.cumsum((0, *lengths))[numbers] + rows
    assert [sorted(row) for row in places.tolist()] == [
        sorted(row) for row in np.argsort(-truth)[:, :10].tolist()
    ]
    np.testing.assert_allclose(scores, -np.sort(-truth)[:, :10], rtol=1e-5)


def test_a_death_copies_no_mask_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """While most rows live, what died is struck from the few that come back; the mask is asked for where that
    leaves a question short."""
    asked: list[int] = []
    hidden = DeviceMatrix.hidden
    monkeypatch.setattr(
        DeviceMatrix, "hidden", lambda self, allowed: asked.append(1) or hidden(self, allowed)
    )
    vectors = clustered(1_000, 3, dim=32)
    matrices = [DeviceMatrix(32, 8, "cpu:0") for _ in range(2)]
    for matrix, begin in zip(matrices, (0, 500), strict=True):
        matrix.add(vectors[begin : begin + 500])
    question = vectors[7:8].astype(np.float32)
    alive = [np.ones(500, dtype=bool) for _ in matrices]
    alive[0][7] = False

    def search() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        parts = [Part(matrix, 500, mask) for matrix, mask in zip(matrices, alive, strict=True)]
        together = matrices[0].begin_together(parts, question, 5)
        assert together is not None
        return together()

    _, numbers, rows = search()
    assert (0, 7) not in set(zip(numbers[0].tolist(), rows[0].tolist(), strict=True))
    assert not asked

    best = np.argsort(-(question @ vectors.astype(np.float32).T)[0])[:100]
    for mask, begin in zip(alive, (0, 500), strict=True):
        mask[best[(best >= begin) & (best < begin + 500)] - begin] = False
    alive = [mask.copy() for mask in alive]
    _, numbers, rows = search()
    assert asked and all(alive[n][r] for n, r in zip(numbers[0], rows[0], strict=True))


def test_scores_of_each_segment_begin_where_kernels_write_fast() -> None:
    """At multiples of 64, whatever the lengths; what lies between is never found."""
    vectors = clustered(200, 3, dim=32)
    parts, begin = [], 0
    for length in (1, 65, 64, 70):
        matrix = DeviceMatrix(32, 8, "cpu:0")
        matrix.add(vectors[begin : begin + length])
        parts.append((matrix, Part(matrix, length, None)))
        begin += length
    starts, total = places([part for _, part in parts])
    assert (starts.tolist(), total) == ([0, 64, 192, 256], 384)
    scores = products(parts, parts[0][0].questions(vectors[:2].astype(np.float32)), masked=False)
    assert int(torch.isneginf(scores[0]).sum()) == 384 - 200
    together = parts[0][0].begin_together([part for _, part in parts], vectors[:2].astype(np.float32), 200)
    assert together is not None
    _, numbers, rows = together()
    assert len(set(zip(numbers[0].tolist(), rows[0].tolist(), strict=True))) == 200 and (rows >= 0).all()


def test_unlike_indexes_are_searched_one_by_one() -> None:
    """Where an IVF lies among the segments nothing is joined."""
    matrix = DeviceMatrix(8, 4, "cpu:0")
    matrix.add(clustered(4, 1, dim=8))
    index = FaissIndex.build(clustered(4, 1, dim=8), ivf=False, probes=1)

    assert (
        matrix.begin_together([Part(matrix, 4, None), Part(index, 4, None)], np.zeros((1, 8), np.float32), 2)
        is None
    )
