"""Hostile records: the same seed makes the same ones, of every kind, and the validator accounts for each."""

from __future__ import annotations

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
