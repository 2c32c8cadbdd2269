"""What is offered to a query, what it chooses, and with which weights."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from models.subq.router import Forced, route
from tests.models.subq.small import SMALL

NUM = 12
CHUNKS = torch.arange(NUM)


def _unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_nearest_and_later_chunks_are_never_offered() -> None:
    """A query reads only chunks of its own sequence that are at least `near` chunks old."""
    indices, weights = route(_unit(2, NUM, 16), _unit(2, NUM, 16, seed=1), CHUNKS, SMALL, 5.0)
    for sequence in range(2):
        for unit in range(NUM):
            read = [int(i) - sequence * NUM for i in indices[sequence, unit] if i >= 0]
            assert all(0 <= chunk <= unit - SMALL.near for chunk in read)
            assert len(read) == min(SMALL.top_k, max(0, unit - SMALL.near + 1))
    assert torch.equal(weights > 0, indices >= 0)


def test_weights_are_the_softmax_of_scaled_cosines() -> None:
    """The best first, weights of what is read sum to 1."""
    queries, landmarks = _unit(1, NUM, 16), _unit(1, NUM, 16, seed=1)
    indices, weights = route(queries, landmarks, CHUNKS, SMALL, 7.0)
    cosines = landmarks[0, indices[0, -1]] @ queries[0, -1]
    torch.testing.assert_close(weights[0, -1], (7.0 * cosines).softmax(0))
    assert (weights[0, -1].diff() <= 0).all()


def test_only_sequences_in_cross_read_others_and_never_hidden_chunks() -> None:
    """Chunks of other sequences are offered where allowed, ownerless needles' chunks are not."""
    hidden = torch.zeros(2 * NUM, dtype=torch.bool)
    hidden[NUM : NUM + 6] = True
    indices, _ = route(
        _unit(2, NUM, 16), _unit(2, NUM, 16, seed=1), CHUNKS, replace(SMALL, top_k=2 * NUM), 5.0,
        cross=torch.tensor([True, False]), hidden_from_others=hidden,
    )  # fmt: skip
    others = {int(i) for i in indices[0].flatten() if i >= NUM}
    assert others == set(range(NUM + 6, 2 * NUM))
    assert all(i < 0 or i >= NUM for i in indices[1].flatten().tolist())


def test_forced_gold_is_read_with_all_the_weight() -> None:
    """A forced question reads its gold chunks evenly and nothing else; others choose as before."""
    forced = Forced(torch.tensor([9, NUM + 10]), torch.tensor([[1, 2], [NUM + 3, NUM + 3]]))
    free = route(_unit(2, NUM, 16), _unit(2, NUM, 16, seed=1), CHUNKS, SMALL, 5.0)
    indices, weights = route(_unit(2, NUM, 16), _unit(2, NUM, 16, seed=1), CHUNKS, SMALL, 5.0, forced=forced)
    read = {int(i): float(w) for i, w in zip(indices[0, 9], weights[0, 9], strict=True) if w > 0}
    assert read == {1: 0.5, 2: 0.5}
    assert {int(i) for i, w in zip(indices[1, 10], weights[1, 10], strict=True) if w > 0} == {NUM + 3}
    assert torch.equal(indices[0, 8], free.indices[0, 8]) and torch.equal(weights[0, 8], free.weights[0, 8])


def test_neighbours_are_read_with_the_same_weight() -> None:
    """Beside chunk j stands j + 1, with j's weight, and never a chunk that is too near or of another sequence."""
    config = replace(SMALL, neighbours=True)
    indices, weights = route(
        _unit(2, NUM, 16), _unit(2, NUM, 16, seed=1), CHUNKS, config, 5.0, cross=torch.tensor([True, True])
    )
    k = config.top_k
    for sequence in range(2):
        for unit in range(NUM):
            for slot in range(k):
                own, beside = int(indices[sequence, unit, slot]), int(indices[sequence, unit, k + slot])
                if beside < 0:
                    continue
                assert beside == own + 1 and beside // NUM == own // NUM
                assert weights[sequence, unit, slot] == weights[sequence, unit, k + slot]
                if own // NUM == sequence:
                    assert beside - sequence * NUM <= unit - config.near + 1


def test_logarithmic_k_grows_with_what_is_on_offer() -> None:
    """round(c * log2(past chunks)) slots count, as the configuration says."""
    config = replace(SMALL, top_k=8, top_k_log=1.0)
    num = 40
    indices, _ = route(_unit(1, num, 16), _unit(1, num, 16, seed=1), torch.arange(num), config, 5.0)
    counts = (indices[0] >= 0).sum(-1)
    for unit in (4, 10, 20, 39):
        past = unit - config.near + 1
        assert int(counts[unit]) == min(past, config.chosen(past))


def test_empty_slots_give_gradients_that_are_numbers() -> None:
    """Where fewer chunks are on offer than slots, scale, queries and landmarks still have finite gradients."""
    queries, landmarks = _unit(1, NUM, 16).requires_grad_(), _unit(1, NUM, 16, seed=1).requires_grad_()
    scale = torch.tensor(5.0, requires_grad=True)
    route(queries, landmarks, CHUNKS, SMALL, scale).weights.square().sum().backward()
    assert all(bool(x.grad.isfinite().all()) and bool(x.grad.any()) for x in (queries, landmarks, scale))
