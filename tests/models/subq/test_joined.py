"""Several sequences run through the blocks as one: what stays apart, and what is refused."""

from __future__ import annotations

import pytest
import torch

from tests.models.subq.small import SMALL, small_model


def test_one_sequence_is_the_same_joined_or_not() -> None:
    """With a single sequence there is nothing to join."""
    model = small_model()
    ids = torch.randint(0, SMALL.vocabulary, (1, 96), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(ids, joined=True).hidden, model(ids).hidden)


@pytest.mark.parametrize("retrieval", ["chunk", "token"])
def test_sequences_choose_among_their_own_chunks(retrieval: str) -> None:
    """Windows cross a border, choices do not; and the first sequence knows nothing of the second."""
    model = small_model(retrieval=retrieval)
    ids = torch.randint(0, SMALL.vocabulary, (3, 96), generator=torch.Generator().manual_seed(0))
    apart, joined = model(ids), model(ids, joined=True)
    assert joined.hidden.shape == apart.hidden.shape == joined.lower.shape
    assert joined.routing.indices.shape == apart.routing.indices.shape
    chunks = 96 // SMALL.chunk
    for row in range(3):
        read = joined.routing.indices[row]
        assert ((read < 0) | (read // chunks == row)).all()
    torch.testing.assert_close(joined.hidden[0], apart.hidden[0])
    assert not torch.equal(joined.hidden[1], apart.hidden[1])


def test_part_chunks_cannot_be_joined() -> None:
    """A border inside a chunk would mix two sequences in it."""
    with pytest.raises(ValueError, match=r"joined needs whole chunks of 8"):
        small_model()(torch.zeros(2, 20, dtype=torch.long), joined=True)
