"""rl/apart.py: recorded single readings, and what choices read apart are answered with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.retriever.apart_costs import apart_tables, paid_apart
from models.retriever.selecting import fill
from models.retriever.trust import UNREAD
from pipeline.errors import BadData
from pipeline.tasks.reading import Spoken
from rl.apart import ApartReader, SpokenTable
from tests.rl.toy import tables


def said(text: str, f1: float, confidence: float = -0.5) -> Spoken:
    """A reading."""
    return Spoken(f1=f1, loss=1.0, margin=-2.0, confidence=confidence, num_tokens=2, text=text)


def spoken() -> SpokenTable:
    """Two questions; candidates 0 and 2 of the first say the same in other letters."""
    table = SpokenTable("m")
    table.add(
        [(0, (0,)), (0, (1,)), (0, (2,)), (1, (0,))],
        [said("the Box", 1.0), said("a bin", 0.0), said("box", 1.0), said("box", 0.0)],
    )
    return table


def test_the_same_answer_to_the_same_question_has_one_number() -> None:
    """Articles and case do not part answers; other questions' answers are others; the unread have none."""
    singles = spoken().singles(2, 4)
    assert singles.groups[0, 0] == singles.groups[0, 2]
    assert len({singles.groups[0, 0], singles.groups[0, 1], singles.groups[1, 0]}) == 3
    assert singles.groups[0, 3] == UNREAD
    assert np.isnan(singles.f1[1, 1:]).all()


def test_a_table_comes_back_whole_and_not_into_another_material(tmp_path: Path) -> None:
    """Figures and texts are kept; readings of several candidates are refused."""
    spoken().save(tmp_path / "singles-0.npz")
    again = SpokenTable("m")
    assert again.load(tmp_path / "singles-0.npz") == 4
    assert again.text(0, 1) == "a bin"
    np.testing.assert_array_equal(again.singles(2, 4).f1, spoken().singles(2, 4).f1)
    with pytest.raises(BadData, match="of material m"):
        SpokenTable("other").load(tmp_path / "singles-0.npz")
    with pytest.raises(ValueError, match="one candidate each"):
        again.add([(0, (0, 1))], [said("x", 0.0)])
    empty = SpokenTable("m")
    empty.save(tmp_path / "none.npz")
    assert SpokenTable("m").load(tmp_path / "none.npz") == 0


def test_a_choice_is_paid_for_the_answer_that_is_trusted() -> None:
    """Two readings that agree outweigh a surer one; nothing read is worth nothing; the unread are refused."""
    singles = spoken().singles(2, 4)
    logits = np.zeros((2, 4), np.float32)
    logits[0, 1] = 0.4
    reader = ApartReader(singles, logits)
    alone, both, all_three, nothing = reader.read([(0, (1,)), (0, (0, 1)), (0, (0, 1, 2)), (0, ())])
    assert (alone.f1, both.f1, all_three.f1, nothing.f1) == (0.0, 0.0, 1.0, 0.0)
    assert all_three.loss < both.loss < nothing.loss
    with pytest.raises(LookupError, match=r"candidates \[3\] of row 0"):
        reader.read([(0, (0, 3))])


def test_reading_apart_pays_each_text_with_its_head_and_every_prompt_but_the_first() -> None:
    """Costs by the rules of choosing are those of a count by hand; what was not read cannot be chosen."""
    batch = tables(3)
    prompts = np.array([10, 20, 30])
    allowed = batch.present.copy()
    allowed[:, 0] = False
    apart = apart_tables(batch, allowed, prompts)
    chosen = fill(apart, np.ones(batch.present.shape), 400)
    for row, choice in enumerate(chosen):
        assert 0 not in choice.picks
        by_hand = sum(int(batch.tokens[row, at] + batch.heads[row, at]) for at in choice.picks)
        by_hand += (len(choice.picks) - 1) * int(prompts[row])
        assert paid_apart(apart, row, choice.picks, int(prompts[row])) == by_hand
        assert choice.tokens == by_hand + prompts[row]
    assert paid_apart(apart, 0, (), 10) == 0
