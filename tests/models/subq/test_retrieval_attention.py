"""Reading chosen chunks: every form gives the definition, forward and backward."""

from __future__ import annotations

import pytest
import torch

from models.subq.retrieval_attention import Chosen, read_chunks, read_chunks_naive


def _case(lead: int = 0, seed: int = 0) -> tuple[torch.Tensor, Chosen]:
    make = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64).requires_grad_()

    indices = torch.randint(-1, 6, (2, 3, 4), generator=make)
    indices[0, 1] = -1  # a block that reads nothing
    weights = draw(2, 3, 4)
    return draw(2, 24 - lead - 3, 4, 8), Chosen(
        draw(6, 16, 2, 8), draw(6, 16, 2, 8), indices, weights, 8, lead
    )


@pytest.mark.parametrize("kernel", ["plain", "naive"])
@pytest.mark.parametrize("lead", [0, 5])
def test_reading_is_the_definition(kernel: str, lead: int) -> None:
    """Forward and gradients to queries, keys, values and weights, with a first block cut and empty slots."""
    q, chosen = _case(lead)
    found = read_chunks(q, chosen, 0.7, kernel)
    expected = read_chunks_naive(q, chosen, 0.7)
    torch.testing.assert_close(found, expected)
    leaves = (q, chosen.keys, chosen.values, chosen.weights)
    weight = torch.randn_like(expected)
    grads = torch.autograd.grad((found * weight).sum(), leaves)
    for got, wanted in zip(grads, torch.autograd.grad((expected * weight).sum(), leaves), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("lead", [0, 5])
def test_reranked_reading_is_the_definition(lead: int) -> None:
    """Each head moves the weights by its own factor; forward and gradients, the factors' included."""
    q, chosen = _case(lead)
    chosen = chosen._replace(weights=chosen.weights.detach().abs().requires_grad_())
    rerank = torch.tensor([0.0, 0.5, 1.0, 1.7], dtype=torch.float64, requires_grad=True)
    found = read_chunks(q, chosen, 0.7, rerank=rerank)
    expected = read_chunks_naive(q, chosen, 0.7, rerank)
    torch.testing.assert_close(found, expected)
    leaves = (q, chosen.keys, chosen.values, chosen.weights, rerank)
    weight = torch.randn_like(expected)
    grads = torch.autograd.grad((found * weight).sum(), leaves)
    for got, wanted in zip(grads, torch.autograd.grad((expected * weight).sum(), leaves), strict=True):
        torch.testing.assert_close(got, wanted)


def test_factor_zero_is_gca_and_factor_one_a_single_softmax() -> None:
    """The two ends that the learned factor lies between, for weights that sum to 1."""
    q, chosen = _case()
    shares = chosen.weights.detach().masked_fill(chosen.indices < 0, float("-inf")).softmax(-1).nan_to_num()
    chosen = chosen._replace(weights=shares)
    zero, one = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(read_chunks(q, chosen, 0.7, rerank=zero), read_chunks(q, chosen, 0.7, "plain"))
    b, t, unit = 1, 20, 2
    rows = [slot for slot in range(4) if chosen.indices[b, unit, slot] >= 0]
    picked = chosen.indices[b, unit, rows]
    keys = chosen.keys[picked].flatten(0, 1).repeat_interleave(2, 1)
    values = chosen.values[picked].flatten(0, 1).repeat_interleave(2, 1)
    bias = shares[b, unit, rows].log().repeat_interleave(16)
    scores = torch.einsum("hd,chd->hc", q[b, t], keys) * 0.7 + bias
    expected = torch.einsum("hc,chd->hd", scores.softmax(-1), values)
    torch.testing.assert_close(read_chunks(q, chosen, 0.7, rerank=one)[b, t], expected)


def test_fused_kernel_reads_the_same() -> None:
    """The Triton kernel (here in its interpreter) agrees with the plain form in float32."""
    from models.kernels.dispatch import interpreting

    if not interpreting():
        pytest.skip("Triton's interpreter is off")
    make = torch.Generator().manual_seed(2)
    q = torch.randn(1, 32, 2, 16, generator=make)
    keys, values = (torch.randn(4, 16, 1, 16, generator=make) for _ in range(2))
    indices = torch.randint(0, 4, (1, 2, 2), generator=make)
    chosen = Chosen(keys, values, indices, torch.rand(1, 2, 2, generator=make), 16)
    torch.testing.assert_close(
        read_chunks(q, chosen, 0.5, "fused"), read_chunks(q, chosen, 0.5, "plain"), atol=1e-5, rtol=1e-5
    )


def test_blocks_that_do_not_hold_the_tokens_are_refused() -> None:
    """Too few blocks for the queries: both numbers are named."""
    q, chosen = _case()
    with pytest.raises(ValueError, match=r"3 blocks of 8 tokens.*do not hold 42 tokens"):
        read_chunks(torch.cat((q, q), 1), chosen, 1.0)
