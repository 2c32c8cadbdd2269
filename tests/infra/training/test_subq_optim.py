"""The optimizers of the backbone."""

from __future__ import annotations

import pytest
import torch

from infra.training.subq_optim import StackedMuon, build_optimizers, learning_rate
from tests.models.subq.small import small_model

SHAPES = ((8, 8), (8, 8), (24, 8), (8, 24), (24, 8))


def test_stacked_steps_are_those_of_muon() -> None:
    """Five updates of matrices of several shapes: the weights of torch.optim.Muon, up to bf16's products."""
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in SHAPES]
    ours, theirs = ([torch.nn.Parameter(each.clone()) for each in start] for _ in range(2))
    stacked = StackedMuon(ours, 0.02, 0.1)
    plain = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for ours_each, theirs_each in zip(ours, theirs, strict=True):
            ours_each.grad = torch.randn(ours_each.shape)
            theirs_each.grad = ours_each.grad.clone()
        stacked.step()
        plain.step()
    for a, b, c in zip(ours, theirs, start, strict=True):
        assert (a - c).norm() > 0.02
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)
        torch.testing.assert_close(
            stacked.state[a]["momentum_buffer"], plain.state[b]["momentum_buffer"], atol=1e-6, rtol=1e-5
        )


def test_a_saved_state_goes_on_as_if_nothing_had_happened() -> None:
    """Momenta come back, also those that torch.optim.Muon saved."""
    parameter = torch.nn.Parameter(torch.eye(4))
    first = StackedMuon([parameter], 0.1, 0.0)
    parameter.grad = torch.ones(4, 4)
    first.step()
    again = StackedMuon([parameter], 0.1, 0.0)
    again.load_state_dict(first.state_dict())
    torch.testing.assert_close(again.state[parameter]["momentum_buffer"], torch.full((4, 4), 0.05))
    with pytest.raises(ValueError, match="closure: given one; allowed: none"):
        again.step(lambda: 0.0)


def test_matrices_of_blocks_go_to_muon_and_all_else_to_adamw() -> None:
    """Every parameter has one optimizer; factors of reranking, gates and embeddings are AdamW's."""
    model = small_model(rerank=True).requires_grad_()
    adamw, muon = build_optimizers(model, 1e-3, 0.0, True)
    inside = {id(p) for p in muon.param_groups[0]["params"]}
    rest = {id(p) for p in adamw.param_groups[0]["params"]}
    assert not inside & rest and len(inside | rest) == len(list(model.parameters()))
    assert id(model.embedding.weight) in rest and id(model.upper_blocks[0].reader.rerank) in rest
    assert id(model.upper_blocks[0].reader.query.weight) in inside


def test_the_rate_warms_up_stays_and_falls() -> None:
    """By steps, then by the run's share."""
    assert learning_rate(1.0, 0, 0.0, 10, 0.5) == pytest.approx(0.1)
    assert learning_rate(1.0, 99, 0.5, 10, 0.5) == 1.0
    assert learning_rate(1.0, 99, 0.75, 10, 0.5) == pytest.approx(0.5)
    assert learning_rate(1.0, 99, 1.0, 10, 0.5) == pytest.approx(0.02)
