"""rl/episodes.py and rl/minimal_sets.py: nothing is read twice, tables survive, sets shrink to what is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.formats import KEY, NewerFormat
from models.retriever import GOLD
from pipeline.errors import BadData
from rl.episodes import Outcome, Readings, mask_of, picks_of
from rl.minimal_sets import mine
from tests.rl.toy import KnowingReader, tables

TABLES = tables(12)


@given(st.frozensets(st.integers(0, 63)))
def test_a_mask_holds_any_set_of_64_candidates(picks: frozenset[int]) -> None:
    """Masks and sets are the same thing."""
    assert frozenset(picks_of(mask_of(picks))) == picks


def test_a_choice_is_read_once_whatever_its_order() -> None:
    """The second reading of a set comes from the table, and all that is missing goes in one call."""
    reader = KnowingReader(TABLES)
    readings = Readings(reader)
    first = readings.read([(0, (1, 2)), (1, (0,)), (0, (2, 1))])
    again = readings.read([(0, (2, 1)), (1, (0,))])
    assert reader.calls == 1
    assert (readings.num_read, readings.num_asked) == (2, 5)
    assert first[0] == first[2] == again[0]


def test_a_table_comes_back_from_disk_and_refuses_another_material(tmp_path: Path) -> None:
    """What was read is there again; readings of other questions are an error."""
    readings = Readings(KnowingReader(TABLES), "one")
    asked = [(0, (1, 2)), (3, ())]
    before = readings.read(asked)
    readings.save(tmp_path / "readings.npz")
    same = Readings(None, "one")
    assert same.load(tmp_path / "readings.npz") == 2
    for old, new in zip(before, same.read(asked), strict=True):
        assert new.f1 == pytest.approx(old.f1, abs=1e-3)
        assert new.loss == pytest.approx(old.loss, rel=1e-3)
    with pytest.raises(LookupError, match="1 readings are not recorded, the first of row 5"):
        same.read([(5, (0,))])
    with pytest.raises(BadData, match="material one, this is two"):
        Readings(None, "two").load(tmp_path / "readings.npz")
    with np.load(tmp_path / "readings.npz") as packed:
        arrays = dict(packed)
    assert int(arrays.pop(KEY)) == 1
    np.savez(tmp_path / "readings.npz", **arrays)  # as earlier versions wrote it
    assert Readings(None, "one").load(tmp_path / "readings.npz") == 2
    np.savez(tmp_path / "readings.npz", **arrays, **{KEY: np.array(2)})
    with pytest.raises(NewerFormat, match=r"readings\.npz has format 2; this DySRA reads up to 1"):
        Readings(None, "one").load(tmp_path / "readings.npz")


def test_singles_are_found_by_candidate() -> None:
    """The figure of a candidate read alone stands at its place, NaN where it was not."""
    readings = Readings(KnowingReader(TABLES))
    gold = int(TABLES.labels[2].argmax())
    readings.read([(2, (gold,)), (2, (gold, (gold + 1) % 4))])
    f1 = readings.singles(len(TABLES), TABLES.num_candidates, "f1")
    assert f1[2, gold] == 1.0
    assert np.isnan(f1).sum() == f1.size - 1


def test_giving_up_counts_nothing_beyond_the_margin() -> None:
    """A reader that would rather give up by more than the margin has not answered."""
    outcome = Outcome(f1=0.7, loss=1.0, margin=1.2)
    assert (outcome.quality(1.5), outcome.quality(1.0)) == (0.7, 0.0)


def test_minimal_sets_are_what_the_reader_needs() -> None:
    """From any start that holds it, the telling candidate alone is left; a start that does not tell gives none."""
    readings = Readings(KnowingReader(TABLES))
    gold = TABLES.labels.argmax(1)
    starts = [[int(gold[row]), *(at for at in range(3) if at != gold[row])][:2] for row in range(12)]
    starts[4] = [at for at in range(3) if at != gold[4]][:2]
    found = mine(TABLES, readings, starts)
    expected = TABLES.labels == GOLD
    expected[4] = False
    assert (found.wanted == expected).all()
    assert found.found == pytest.approx(11 / 12)


def test_sets_mined_in_turn_try_each_member_once_in_the_starts_order() -> None:
    """As Context-Picker does: what stands first goes first. Sets are told by size, tokens and labels."""
    readings = Readings(KnowingReader(TABLES))
    gold = TABLES.labels.argmax(1)
    starts = [[int(gold[row]), *(at for at in range(3) if at != gold[row])][:2] for row in range(12)]
    starts[4] = [at for at in range(3) if at != gold[4]][:2]
    found = mine(TABLES, readings, starts, in_turn=True)
    held = np.array([int(gold[row]) in start for row, start in enumerate(starts)])
    assert (found.wanted == ((TABLES.labels == GOLD) & held[:, None])).all()
    assert found.rounds <= 2
    told = found.told(TABLES)
    assert (told["candidates"], told["labelled"]) == (1.0, 1.0)
    assert told["tokens"] == pytest.approx(TABLES.tokens[held, gold[held]].mean(), abs=0.01)

    class Easy:
        """Answers from any two candidates: which one goes hangs on the order alone."""

        def read(self, requests: list[tuple[int, tuple[int, ...]]]) -> list[Outcome]:
            return [Outcome(float(len(picks) > 1), 0.1, -1.0) for _, picks in requests]

    start = [[2, 0, 1]]
    one = TABLES.take(np.array([0]))
    assert np.flatnonzero(mine(one, Readings(Easy()), start, in_turn=True).wanted[0]).tolist() == [0, 1]
