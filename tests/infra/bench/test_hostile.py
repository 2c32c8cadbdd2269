"""Hostile records: the same seed makes the same ones, of every kind, and the validator accounts for each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.bench import hostile
from infra.bench.hostile import validate
from infra.bench.hostile_records import Hostile, Maker


def made(seed: int, count: int) -> list[Hostile]:
    """The first records of a seed."""
    return [record for record, _ in zip(Maker(seed), range(count), strict=False)]


def test_the_same_seed_makes_the_same_records() -> None:
    """A failure can be made again from its seed and number."""
    assert made(3, 300) == made(3, 300)
    assert made(3, 300) != made(4, 300)


def test_every_kind_is_made_and_huge_ones_when_asked() -> None:
    """Among a few thousand records each kind comes up; 1 to 20 MB values come as often as said."""
    kinds = {record.kind for record in made(1, 3_000)}
    assert kinds >= {
        "valid", "missing_field", "wrong_type", "absurd_time", "hostile_text", "hostile_id", "control_characters",
        "lone_surrogate", "not_utf8", "cut_off", "flipped_bits", "not_an_object", "odd_numbers", "deep",
        "long_parts", "compressed", "random_bytes", "deletion",
    }  # fmt: skip
    sizes = [len(r.value or b"") for r, _ in zip(Maker(1, huge_every=10), range(40), strict=False)]
    assert max(sizes) >= 1_000_000


def test_the_validator_answers_every_record_with_an_article_a_deletion_or_a_reason() -> None:
    """Nothing unexpected is raised, and the counts add up."""
    row = validate(4_000, seed=9, huge_every=1_500)
    assert row["unexpected"] == 0 and row["first_unexpected"] == []
    assert row["accounted"] == row["records"] == 4_000
    assert row["accepted"] + row["dead_letters"] == 4_000
    assert row["accepted"] > 500 and row["dead_letters"] > 500


def test_a_run_that_was_ended_goes_on_behind_its_last_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece is run once over all starts, its row kept; the ratios are those of all pieces."""
    ran: list[tuple[int, int]] = []

    def piece(_: object, records: int, seed: int) -> dict[str, Any]:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append((records, seed))
        return {
            "stage": "broker and ingest", "records": records, "unexpected": 0, "dead_lettered": 5,
            "on_dead_letter_topic": 5, "dead_letters": 4, "last_article_found": True,
        }  # fmt: skip

    @contextlib.contextmanager
    def nothing() -> Iterator[None]:
        yield None

    monkeypatch.setattr(hostile, "through_broker", piece)
    monkeypatch.setattr(hostile, "local", nothing)
    arguments: dict[str, Any] = {"records": 200, "through": 50, "piece": 20, "seed": 3, "work": str(tmp_path)}
    with pytest.raises(KeyboardInterrupt):
        hostile.run(**arguments)
    assert ran == [(20, 4), (20, 5)]
    ran.clear()
    result = hostile.run(**arguments)
    assert ran == [(10, 6)]
    assert result["ratios"]["hostile_through_broker"] == 50
    assert result["ratios"]["dead_letters_differing"] == 3 and result["ratios"]["pieces_not_run"] == 0
    ran.clear()
    assert hostile.run(**arguments, minutes=1e-9)["rows"] == result["rows"] and ran == []
    other = hostile.run(**{**arguments, "seed": 9}, minutes=1e-9)
    assert ran == [] and other["ratios"]["pieces_not_run"] == 3
