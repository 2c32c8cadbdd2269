"""models/retriever/mpnet_states.py: MPNet's states with attention in one kernel are the library's own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.retriever.encoder_pair import from_encoder_folder
from models.retriever.mpnet_states import AWAY, added_to_scores, last_states
from tests.models.retriever.mpnet_case import small_mpnet

LENGTHS = [24, 192, 200, 7]
"""A batch's rows; 192 is 64 more than a multiple of 128, where cuDNN's attention had NaN gradients."""


def library(bert: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """transformers' own."""
    states: Tensor = bert(input_ids=ids, attention_mask=mask).last_hidden_state
    return states


def case(folder: Path, lengths: list[int]) -> tuple[Any, Tensor, Tensor]:
    """A small MPNet that is not trained, and rows of so many tokens, padded to whole eights."""
    bert = from_encoder_folder(small_mpnet(folder)).model.bert.eval().requires_grad_(True)
    with torch.no_grad():  # as they begin, distances hardly matter
        bert.encoder.relative_attention_bias.weight.mul_(4.0)
    width = -(-max(lengths) // 8) * 8
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.where(mask > 0, torch.randint(2, bert.config.vocab_size, mask.shape), 1)
    return bert, ids, mask


def gradients(bert: Any, states: Callable[..., Tensor], ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Those of every weight, of a sum over all tokens that are no padding."""
    bert.zero_grad()
    found = states(bert, ids, mask).float()
    direction = torch.linspace(-1, 1, found.shape[-1]) * mask[..., None]
    (found * direction).sum().backward()
    return {name: each.grad.clone() for name, each in bert.named_parameters() if each.grad is not None}


@contextmanager
def kept() -> Iterator[dict[int, int]]:
    """Bytes of each storage that a forward pass keeps for the backward pass."""
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def test_states_and_gradients_are_the_library_s(tmp_path: Path) -> None:
    """In float32, of every weight, the bias of distances among them; padding is not read."""
    bert, ids, mask = case(tmp_path / "base", LENGTHS)
    told = mask.bool()
    torch.testing.assert_close(
        last_states(bert, ids, mask)[told], library(bert, ids, mask)[told], atol=2e-6, rtol=2e-6
    )
    ours, theirs = gradients(bert, last_states, ids, mask), gradients(bert, library, ids, mask)
    assert ours.keys() == theirs.keys() and "encoder.relative_attention_bias.weight" in ours
    for name, each in theirs.items():
        torch.testing.assert_close(ours[name], each, atol=2e-5 * float(each.abs().max()) + 1e-7, rtol=1e-4)


def test_states_in_half_precision_are_as_near_as_the_library_s(tmp_path: Path) -> None:
    """Under autocast to bf16 they are no further from float32 than transformers' own, half as much again."""
    bert, ids, mask = case(tmp_path / "base", LENGTHS)
    told = mask.bool()
    exact = library(bert, ids, mask)[told]
    with torch.autocast("cpu", torch.bfloat16):
        assert added_to_scores(bert.encoder, bert.embeddings(input_ids=ids), mask).dtype == torch.bfloat16
        ours, theirs = last_states(bert, ids, mask)[told], library(bert, ids, mask)[told]
    off, allowed = ((each - exact).abs().max().item() for each in (ours, theirs))
    assert 0 < off < 1.5 * allowed
    assert off < 0.1


def test_dropout_of_weights_is_the_library_s(tmp_path: Path) -> None:
    """Where it learns, weights are dropped as the layer says, and no others are where it does not."""
    bert, ids, mask = case(tmp_path / "base", [24, 24])
    still = last_states(bert, ids, mask)
    torch.testing.assert_close(last_states(bert, ids, mask), still)
    for module in bert.encoder.layer:
        module.attention.attn.train()
    assert not torch.equal(last_states(bert, ids, mask), still)
    for module in bert.encoder.layer:
        module.attention.attn.dropout.p = 0.0
    torch.testing.assert_close(last_states(bert, ids, mask), still)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_leaves_no_nan(tmp_path: Path, dtype: torch.dtype) -> None:
    """Not even a row of padding alone, nor scores as low as they come, in states and gradients."""
    bert, ids, mask = case(tmp_path / "base", [192, 3])
    mask[1] = 0
    with torch.no_grad():
        bert.encoder.layer[0].attention.attn.q.weight.mul_(60.0)
    within = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with within():
        assert torch.isfinite(last_states(bert, ids, mask)).all()
        found = gradients(bert, last_states, ids, mask)
    assert all(torch.isfinite(each).all() for each in found.values())
    added = added_to_scores(bert.encoder, torch.zeros(2, 192, 32), mask)
    assert float(added[1].max()) < AWAY / 2 and float(added[0].min()) > AWAY / 2


def test_no_weights_of_attention_are_kept_for_the_backward_pass(tmp_path: Path) -> None:
    """With adapters alone to learn nothing of [N, H, T, T] is but one mask; the library keeps it of each layer."""
    bert, ids, mask = case(tmp_path / "base", [200] * 4)
    bert.encoder.layer.extend(copy.deepcopy(bert.encoder.layer[0]) for _ in range(2))
    bert.encoder.relative_attention_bias.requires_grad_(False)
    square = 4 * bert.config.num_attention_heads * 200 * 200 * 4
    counted = []
    for states in (last_states, library):
        with kept() as found:
            states(bert, ids, mask)
        counted.append(sum(size >= square for size in found.values()))
    assert counted[0] == 1, "what is added to the scores, once for all layers"
    assert counted[1] >= 3
