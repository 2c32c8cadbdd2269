"""Copying from chosen chunks: one distribution with the logits, nothing of the future, what a stream says to it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.subq import SubqModel
from models.subq.checkpoint import load_checkpoint, save_checkpoint
from models.subq.streaming import SubqStream
from tests.models.subq.small import SMALL, small_model


def _open(**changes: object) -> SubqModel:
    model = small_model(copies=True, **changes)
    assert model.copier is not None
    torch.nn.init.constant_(model.copier.gate.bias, 0.5)
    return model


def _ids(tokens: int = 128) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randint(0, 20, (1, tokens + 1))


def _losses(model: SubqModel, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    out = model(ids)
    own = F.cross_entropy(model.logits(out.hidden).flatten(0, 1), targets.flatten(), reduction="none")
    return model.token_losses(out, ids, own.view_as(ids), targets)


def test_chances_of_all_tokens_sum_to_one() -> None:
    """Logits and copies share one distribution, at every place, also where nothing can be copied yet."""
    model, ids = _open(), _ids()[:, :-1]
    chances = torch.stack([(-_losses(model, ids, torch.full_like(ids, token))).exp() for token in range(97)])
    torch.testing.assert_close(chances.sum(0), torch.ones_like(ids, dtype=torch.float32), atol=1e-4, rtol=0)
    own = torch.stack(
        [model.logits(model(ids).hidden).log_softmax(-1)[..., token].exp() for token in range(97)]
    )
    assert chances[:, 0, : 2 * SMALL.chunk].allclose(own[:, 0, : 2 * SMALL.chunk], atol=1e-5)
    assert (chances - own).abs().amax(0)[0, 2 * SMALL.chunk :].min() > 1e-3


def test_only_past_tokens_are_copied() -> None:
    """A later token changes no earlier loss; near 1 is the closest that there is."""
    model, ids = _open(near=1), _ids()
    before = _losses(model, ids[:, :-1], ids[:, 1:])
    other = ids.clone()
    other[:, 70:] = (other[:, 70:] + 1) % 20
    after = _losses(model, other[:, :-1], other[:, 1:])
    torch.testing.assert_close(after[:, :69], before[:, :69])
    assert (after[:, 69:] - before[:, 69:]).abs().max() > 1e-3


def test_what_followed_like_tokens_is_told() -> None:
    """Asked by its own key in one text said twice, the head puts nearly all it copies on the token that came."""
    model = _open(top_k=3)
    copier = model.copier
    assert copier is not None
    copier.query.weight.copy_(copier.key.weight)
    half = torch.randperm(97)[:64]
    ids = torch.cat((half, half, half[:1]))[None]
    out = model(ids[:, :-1])
    assert out.lower is not None and out.routing is not None
    # all chunks of the first half on offer to those of the second; equal tokens ask as they are held
    routing = out.routing._replace(
        indices=torch.arange(8).expand(1, 16, 8).clone(), weights=torch.full((1, 16, 8), 1 / 8)
    )
    sure = torch.full((1, 128), 20.0)  # the logits do not know it
    hidden = model.embedding(ids[:, :-1])
    told = copier(sure, hidden, hidden, ids[:, :-1], ids[:, 1:], routing)
    assert told[:, 64:].mean() < 1.5


def test_a_model_that_copies_is_kept_and_does_not_stream(tmp_path: object) -> None:
    """Its head is in the checkpoint; a stream, which would leave it out, says so."""
    model = _open()
    save_checkpoint(model, tmp_path, storage="float32")  # type: ignore[arg-type]
    again, _ = load_checkpoint(tmp_path, "cpu", torch.float32)  # type: ignore[arg-type]
    ids = _ids()
    torch.testing.assert_close(
        _losses(again, ids[:, :-1], ids[:, 1:]), _losses(model, ids[:, :-1], ids[:, 1:])
    )
    with pytest.raises(ValueError, match="copies: given true; allowed in a stream: false"):
        SubqStream(model)
    with pytest.raises(ValueError, match="copies: given with retrieval 'none'"):
        small_model(copies=True, retrieval="none", upper_blocks=0)
