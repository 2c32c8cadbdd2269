"""What a chunk sees beside it: nothing later than the token that reads it, and what stands across its border."""

from __future__ import annotations

import pytest
import torch

from models.subq.chunks import neighbourhood
from models.subq.streaming import SubqStream
from tests.models.subq.small import SMALL, one_pass, small_model

AROUND = {"lookahead": 4, "lookbehind": 4, "rerank": True}


@pytest.mark.parametrize("at", [17, 40, 63, 64, 95])
@pytest.mark.parametrize("near", [2, 4])
def test_no_logit_depends_on_a_later_token(at: int, near: int) -> None:
    """Changing a token changes no logits before it, on either side of a chunk's border."""
    model = small_model(**AROUND, near=near)
    ids = torch.randint(0, SMALL.vocabulary, (128,), generator=torch.Generator().manual_seed(at))
    changed = ids.clone()
    changed[at] = (changed[at] + 1) % SMALL.vocabulary
    before, after = one_pass(model, ids), one_pass(model, changed)
    assert torch.equal(before[:at], after[:at])
    assert not torch.equal(before[at:], after[at:])


def test_landmark_and_values_see_across_the_border_and_queries_do_not() -> None:
    """A token in the next chunk's first half changes what a chunk keeps, none beyond does; never what it asks."""
    model = small_model(**AROUND)
    hidden, _ = model.lower(torch.randint(0, SMALL.vocabulary, (1, 64)))
    expected = model.encode(hidden)
    for token, seen in ((8 * 3 + 3, True), (8 * 3 + 4, False), (8 * 2 - 4, True), (8 * 2 - 5, False)):
        other = hidden.clone()
        other[0, token] += 1.0
        codes = model.encode(other)
        for kept, was in ((codes.landmarks, expected.landmarks), (codes.values, expected.values)):
            assert torch.equal(kept[0, 2], was[0, 2]) != seen
        assert torch.equal(codes.queries[0, 2], expected.queries[0, 2])


def test_what_is_kept_of_a_chunk_is_no_larger() -> None:
    """Lookahead costs computation only: keys and values are those of the chunk's own tokens."""
    plain, around = (small_model(**changes) for changes in ({}, AROUND))
    ids = torch.randint(0, SMALL.vocabulary, (500,))
    held = []
    for model in (plain, around):
        stream = SubqStream(model)
        stream.read(ids)
        held.append((stream.memory.nbytes, stream.memory.fetch(torch.tensor([3]))[0].shape))
    assert held[0] == held[1]


def test_where_the_text_has_not_begun_nothing_is_seen() -> None:
    """Beside the first chunk stand zeros that count for nothing, learned places included."""
    model = small_model(**AROUND)
    hidden, _ = model.lower(torch.randint(0, SMALL.vocabulary, (1, 24)))
    around = neighbourhood(hidden, 0, 3, model.config)
    assert around is not None and around.real[0, 0, :, 0].tolist() == [0.0] * 4 + [1.0] * 4
    assert around.real[0, 2, :, 0].tolist() == [1.0] * 4 + [0.0] * 4
    keys, values = model.encoder._beside(around)
    assert not keys[0, :4].any() and not values[0, :4].any() and keys[0, 4:].any()


def test_the_choice_trains_what_it_sees_beside() -> None:
    """The loss of a query that wants a chunk reaches the tokens beside that chunk, and their places."""
    model = small_model(**AROUND).train().requires_grad_(True)
    hidden = torch.randn(1, 64, SMALL.width, requires_grad=True)
    codes = model.encode(hidden)
    (codes.queries[0, 7].detach() @ codes.landmarks[0, 2]).backward()
    assert hidden.grad is not None and hidden.grad[0, 8 * 3 : 8 * 3 + 4].abs().amax(-1).min() > 0
    assert not hidden.grad[0, 8 * 3 + 4 :].any()
    assert model.encoder.places_around.grad.abs().amax(-1).min() > 0


def test_sequences_run_as_one_do_not_look_into_each_other() -> None:
    """The last chunk of a sequence looks ahead to nothing, whatever stands after it in the batch."""
    model = small_model(**AROUND)
    ids = torch.randint(0, SMALL.vocabulary, (2, 64), generator=torch.Generator().manual_seed(3))
    other = ids.clone()
    other[1] = (other[1] + 5) % SMALL.vocabulary
    first, second = (model(each, joined=True).codes for each in (ids, other))
    for kept, was in zip(first, second, strict=True):
        assert torch.equal(kept[0], was[0])
