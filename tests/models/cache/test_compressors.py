"""Compressors against their definitions."""

from __future__ import annotations

import os
import select
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from models.cache import compressor
from models.cache.compressor import ComingEigenvectors, eigenvectors, side_by_side, truncation_error
from models.cache.latents import LatentRing
from models.cache.svd import SvdCompressor, from_eigenvectors, gram_of
from models.cache.weighted_svd import WeightedSvdCompressor
from models.rotary import turn
from tests.models import tiny


def _spec():
    return tiny.backbone().specs[1]


def _block(tokens: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    scale = torch.logspace(0, -2, 16)  # decaying directions, as keys have
    return torch.randn(2, tokens, 16) * scale, torch.randn(2, tokens, 16)


@pytest.mark.parametrize(("rank", "value_rank"), [(1, 0), (4, 0), (4, 7), (12, 0)])
def test_svd_loses_exactly_the_dropped_singular_values(rank: int, value_rank: int) -> None:
    """Eckart-Young: no factors of this rank lose less, and the error kept in the statistics is the true one."""
    config = tiny.budgets(evict_block=12, rank=rank, value_rank=value_rank)
    keys, values = _block()
    factors = SvdCompressor(_spec(), config).compress(keys, values)
    ranks = (rank, value_rank or rank)
    for block, factor, r in zip((keys, values), factors, ranks, strict=True):
        assert factor.rows.shape == (2, 12, r) and factor.basis.shape == (2, r, 16)
        dropped = torch.linalg.svdvals(block.double())[:, r:].square().sum()
        error = truncation_error(block, factor)
        assert error.tail == pytest.approx(float(dropped), rel=1e-4, abs=1e-9)
        assert error.energy == pytest.approx(float(block.double().square().sum()), rel=1e-6)


def test_worst_row_bounds_every_score() -> None:
    """No score of a query is off by more than its length times the longest lost row, at any turn."""
    keys, values = _block()
    key, _ = SvdCompressor(_spec(), tiny.budgets(evict_block=12, rank=3)).compress(keys, values)
    rotary = _spec().rotary
    rotary.reserve(100)
    lost = rotary.turn(keys, torch.arange(12)) - rotary.turn(key.unpack(), torch.arange(12))
    queries = torch.randn(2, 200, 16)
    errors = (queries @ lost.transpose(-1, -2)).abs() / queries.norm(dim=-1, keepdim=True)
    bound = truncation_error(keys, key).worst
    assert 0.1 * bound < float(errors.max()) <= bound * (1 + 1e-5)


def test_mean_turn_of_the_query_moment_is_exact() -> None:
    """The closed form equals the average over every distance at which latents are read."""
    config = tiny.budgets(compressor="weighted_svd")
    compressor = WeightedSvdCompressor(_spec(), config)
    queries = torch.randn(4, 30, 16)
    compressor.observe(queries)
    far = config.ring + config.latent_blocks * config.evict_block
    total = torch.zeros(2, 16, 16)
    for distance in range(config.ring, far):
        cos, sin = _spec().rotary.at(torch.tensor([distance]))
        seen = turn(queries, cos, sin).reshape(2, 60, 16)
        total += seen.transpose(-1, -2) @ seen / 60
    torch.testing.assert_close(compressor._seen_from_latents(), total / (far - config.ring))


def test_weighted_svd_loses_less_of_what_queries_read() -> None:
    """Where queries look in few directions, weighting lowers the score error below plain SVD's."""
    config = tiny.budgets(evict_block=12, rank=3, compressor="weighted_svd")
    keys, values = _block()
    # queries read the direction that holds the least energy; both halves of a rotary pair
    queries = torch.randn(4, 50, 16) * 0.05
    queries[..., 7] += 3.0
    weighted = WeightedSvdCompressor(_spec(), config)
    weighted.observe(queries)
    distance = _spec().rotary.at(torch.tensor([config.ring + 5]))
    seen = turn(queries, *distance).reshape(2, 100, 16)

    def error(factors: torch.Tensor) -> float:
        return float((seen @ (keys - factors).transpose(-1, -2)).square().mean())

    plain = SvdCompressor(_spec(), config).compress(keys, values)[0]
    ours = weighted.compress(keys, values)[0]
    assert error(ours.unpack()) < 0.1 * error(plain.unpack())


def test_moment_follows_the_stream_and_forgets() -> None:
    """The first steps are averaged evenly; a long stream's moment tends to its newest part."""
    compressor = WeightedSvdCompressor(_spec(), tiny.budgets(compressor="weighted_svd"))
    ones, twos = torch.ones(4, 2, 16), 2 * torch.ones(4, 2, 16)
    compressor.observe(ones)
    compressor.observe(twos)
    torch.testing.assert_close(compressor.moment, torch.full((2, 16, 16), 2.5))
    for _ in range(1500):
        compressor.observe(ones)
    torch.testing.assert_close(compressor.moment, torch.ones(2, 16, 16), atol=1e-3, rtol=0)


def test_eigenvectors_found_side_by_side_are_those_of_the_batch() -> None:
    """Every matrix's own, in order, for batches that divide nothing."""
    torch.manual_seed(4)
    given = torch.randn(131, 6, 9, dtype=torch.float64)
    gram = given @ given.transpose(-1, -2)
    with ThreadPoolExecutor(3) as pool:
        found = side_by_side(gram, pool)
    values = torch.linalg.eigvalsh(gram)
    torch.testing.assert_close(gram @ found, found * values[:, None], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(eigenvectors(gram[:2]), torch.linalg.eigh(gram[:2]).eigenvectors)


@pytest.mark.parametrize(("rank", "value_rank"), [(4, 0), (4, 7)])
def test_factors_from_coming_eigenvectors_are_the_compressor_s(rank: int, value_rank: int) -> None:
    """The same numbers, whoever found the eigenvectors and when."""
    keys, values = _block()
    config = tiny.budgets(evict_block=12, rank=rank, value_rank=value_rank)
    wanted = SvdCompressor(_spec(), config).compress(keys, values)
    coming = ComingEigenvectors(gram_of(keys, values))
    found = from_eigenvectors(keys, values, coming.result(), config.key_and_value_ranks)
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.unpack(), other.unpack(), rtol=0, atol=1e-6)


def test_blocks_written_together_are_blocks_written_in_turn() -> None:
    """Also over the ring's end, and rounded to its type."""
    shape = (2, 5, 12, (4, 3), 16, torch.bfloat16, torch.device("cpu"))
    together, in_turn = LatentRing(*shape), LatentRing(*shape)
    offsets = torch.arange(12)
    for first, count in ((0, 5), (5, 3), (8, 4)):
        made = [torch.randn(2, count, *tail) for tail in ((12, 4), (4, 16), (12, 3), (3, 16))]
        together.write_many(first, (made[0], made[1]), (made[2], made[3]), offsets)
        for at in range(count):
            rows_k, basis_k, rows_v, basis_v = (part[:, at] for part in made)
            in_turn.write(first + at, (rows_k, basis_k), (rows_v, basis_v), offsets.expand(2, -1))
    for name, tensor in together.tensors().items():
        assert torch.equal(tensor, in_turn.tensors()[name]), name


@pytest.mark.parametrize("threads", [1, 2])
def test_a_matrix_is_solved_alike_wherever_it_is_solved(threads: int) -> None:
    """Ahead or at once, whatever number of threads the caller has: the same bits, and that number stays."""
    before = torch.get_num_threads()
    given = torch.randn(4, 128, 160)
    keys, values = given[:2], given[2:]
    try:
        torch.set_num_threads(threads)
        coming = ComingEigenvectors(gram_of(keys, values))
        assert torch.equal(coming.result(), eigenvectors(gram_of(keys, values)))
        with torch.inference_mode():
            assert torch.equal(ComingEigenvectors(gram_of(keys, values)).result(), coming.result())
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_coming_eigenvectors_are_waited_for_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """TimeoutError where nobody solves them; what was not begun when they were given up is never solved."""
    pool = ThreadPoolExecutor(1)
    monkeypatch.setattr(compressor, "_solvers", lambda: pool)
    monkeypatch.setattr(compressor, "SOLVING_LIMIT_S", 0.05)
    held = threading.Event()
    pool.submit(held.wait, 30)
    coming = ComingEigenvectors(gram_of(*_block()))
    with pytest.raises(TimeoutError):
        coming.result()
    coming.cancel()
    held.set()
    pool.shutdown()
    assert all(part.cancelled() for part in coming._parts)


def test_a_forked_child_solves_by_threads_of_its_own() -> None:
    """The parent's solving threads are not in the child: without a pool of its own it would wait for nobody."""
    matrices = torch.randn(4, 8, 8, dtype=torch.float64)
    gram = matrices @ matrices.mT
    expected = ComingEigenvectors(gram).result()  # the pool is there before the fork
    seen, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = ComingEigenvectors(gram)
            os.write(tell, b"same" if torch.equal(found.result(), expected) else b"else")
        finally:
            os._exit(0)
    os.close(tell)
    try:
        ready, _, _ = select.select([seen], [], [], 60.0)
        assert ready, "the child waits for threads that it does not have"
        assert os.read(seen, 16) == b"same"
    finally:
        os.close(seen)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
