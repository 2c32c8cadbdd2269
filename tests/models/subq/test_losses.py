"""The terms of the hybrid loss: what counts as wrong, and what each term measures."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from models.subq.losses import (
    LandmarkBank,
    LossTerms,
    LossWeights,
    Questions,
    choice_terms,
    info_nce,
    language_terms,
    negatives,
)
from models.subq.router import Routing


def _questions(**changes: torch.Tensor) -> Questions:
    values = {
        "asking": torch.tensor([8, 18]), "gold": torch.tensor([[2, 3], [14, 14]]),
        "first": torch.tensor([1, 14]), "last": torch.tensor([3, 14]), "anonymous": torch.tensor([False, True]),
        "position": torch.tensor([64, 144]),
        "length": torch.tensor([6, 6]),
    }  # fmt: skip
    return Questions(**(values | changes))


def test_negatives_are_own_past_chunks_and_other_sequences() -> None:
    """Own chunks that are too near or later are no negatives, nor is the needle's own sentence."""
    wrong = negatives(_questions(), 20, 10, 3, torch.zeros(20, dtype=torch.bool))
    assert wrong[0].nonzero()[:, 0].tolist() == [0, 4, 5, *range(10, 20)]
    assert wrong[1].nonzero()[:, 0].tolist() == [*range(10), 10, 11, 12, 13, 15]


def test_ownerless_question_has_no_ownerless_negatives() -> None:
    """Another sequence's ownerless needle would answer as well: it is no negative, in the batch or in the bank."""
    anonymous = torch.zeros(20, dtype=torch.bool)
    anonymous[[4, 5]] = True
    wrong = negatives(_questions(), 20, 10, 3, anonymous)
    assert bool(wrong[0, 4]) and not wrong[1, 4] and not wrong[1, 5]
    bank = LandmarkBank(4, 2, torch.device("cpu"))
    bank.add(torch.randn(3, 2), torch.tensor([False, True, False]))
    assert bank.negative(_questions()).tolist() == [[True, True, True], [True, False, True]]


def test_contrastive_loss_is_the_cross_entropy_of_each_positive_alone() -> None:
    """With two gold chunks each is a positive, and neither is the other's negative."""
    torch.manual_seed(0)
    queries, landmarks, bank = torch.randn(1, 4), torch.randn(6, 4), torch.randn(3, 4)
    negative = torch.tensor([[True, True, True, False, True, True]])
    in_bank = torch.tensor([[True, False, True]])
    found = info_nce(queries, landmarks, torch.tensor([[1, 2]]), negative, 3.0, bank, in_bank)
    against = torch.cat((landmarks[[0, 4, 5]], bank[[0, 2]]))
    expected = []
    for gold in (1, 2):
        logits = 3.0 * torch.cat((landmarks[gold][None], against)) @ queries[0]
        expected.append(F.cross_entropy(logits[None], torch.tensor([0])))
    torch.testing.assert_close(found[0], torch.stack(expected).mean())


def test_question_without_negatives_has_no_loss_and_no_gradient_that_is_not_a_number() -> None:
    """Nothing to tell the gold chunk from: zero."""
    queries = torch.randn(1, 4, requires_grad=True)
    loss = info_nce(
        queries, torch.randn(2, 4), torch.tensor([[0, 0]]), torch.zeros(1, 2, dtype=torch.bool), 3.0
    )
    loss.sum().backward()
    assert float(loss) == 0.0 and queries.grad is not None and bool(queries.grad.isfinite().all())


def test_bank_forgets_the_oldest_first() -> None:
    """Landmarks go in order, the newest in place of the oldest, without gradient; a copy goes on the same."""
    bank = LandmarkBank(5, 1, torch.device("cpu"))
    rows = torch.arange(8.0, requires_grad=True)[:, None]
    bank.add(rows[:3], torch.zeros(3, dtype=torch.bool))
    assert len(bank) == 3 and not bank.rows.requires_grad
    bank.add(rows[3:7], torch.zeros(4, dtype=torch.bool))
    assert sorted(bank.rows[:, 0].tolist()) == [2, 3, 4, 5, 6]
    twin = LandmarkBank(5, 1, torch.device("cpu"))
    twin.load_state_dict(bank.state_dict())
    for each in (bank, twin):
        each.add(rows[7:], torch.zeros(1, dtype=torch.bool))
    assert torch.equal(bank.rows, twin.rows) and sorted(bank.rows[:, 0].tolist()) == [3, 4, 5, 6, 7]


def test_language_terms_keep_text_and_answers_apart() -> None:
    """Each is the mean over its own targets."""
    logits, targets = torch.randn(5, 7), torch.arange(5)
    is_answer = torch.tensor([False, True, False, True, False])
    text, answers, _ = language_terms(logits, targets, is_answer)
    each = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close((text, answers), (each[~is_answer].mean(), each[is_answer].mean()))


def test_choice_terms_measure_chunks_read() -> None:
    """All weight on one chunk: 64 tokens, norm 1; even over four: 256, norm 1/4; empty queries count nothing."""
    one = Routing(torch.tensor([[[5, 6, 7, 8]]]), torch.tensor([[[1.0, 0, 0, 0]]]))
    even = Routing(torch.tensor([[[5, 6, 7, 8], [-1, -1, -1, -1]]]), torch.tensor([[[0.25] * 4, [0.0] * 4]]))
    tokens, norm, operations = choice_terms(one, 64, 1_000)
    assert (float(tokens), float(norm), float(operations)) == pytest.approx((64, 1, 4))
    tokens, norm, operations = choice_terms(even, 64, 1_000)
    assert (float(tokens), float(norm), float(operations)) == pytest.approx((256, 0.25, 25), rel=1e-4)


def test_every_term_can_be_switched_off() -> None:
    """A term of weight 0 is left out even where it is no number; the others are summed with their weights."""
    terms = LossTerms(*(torch.tensor(x) for x in (1.0, 2.0, 4.0, 8.0, 16.0, math.nan)))
    assert (
        float(terms.total(LossWeights(language=1, answers=0.5, contrastive=0, tokens=0.25, frobenius=1)))
        == 20.0
    )
    with pytest.raises(ValueError, match="tokens: given -1"):
        LossWeights(tokens=-1)
