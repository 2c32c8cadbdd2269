"""Forms, values, names and the text of every desk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.newswire import wordings, wordings_hops
from pipeline.newswire.desks import (
    business,
    markets,
    politics,
    science,
    sport,
    technology,
    transport,
    weather,
)
from pipeline.newswire.facts import EventType
from pipeline.newswire.grammar import Form, forms, sections
from pipeline.newswire.names import Names
from pipeline.newswire.rng import Rng
from pipeline.newswire.text.common import COLOUR, STATE
from pipeline.newswire.values import count, degrees, from_iso, iso, money, number_words, percent, plain, price
from pipeline.newswire.world import World

TYPES = [
    value
    for desk in (business, markets, politics, science, sport, technology, transport, weather)
    for value in vars(desk).values()
    if isinstance(value, EventType)
]


def test_choices_nest_and_slots_fill() -> None:
    """A form writes one of its branches, its slots filled, its first letter a capital."""
    form = Form("[the {a}|no [big|small] {b}] ran")
    random = Rng(1).random
    written = {form.render({"a": plain("dog"), "b": "cat"}, 0, random) for _ in range(200)}
    assert written == {"The dog ran", "No big cat ran", "No small cat ran"}


def test_a_form_is_sure_only_of_slots_in_every_branch() -> None:
    """`slots` are in every expansion, `named` in some, short names never count as the name."""
    form = Form("{a} [saw {b}|met {b} and {c}] near {d.s}")
    assert form.slots == {"a", "b"}
    assert form.named == {"a", "b", "c", "d"}


@pytest.mark.parametrize("source", ["[a|b", "{a} [b|[c]"])
def test_an_open_bracket_is_our_own_mistake(source: str) -> None:
    """Unbalanced forms fail when the module is loaded, not when they are drawn."""
    with pytest.raises(AssertionError):
        Form(source)


def test_forms_may_run_over_lines_and_sections_are_named() -> None:
    """A block splits at `- `, a text at `# name`."""
    assert [f.source for f in forms("- one\n  two\n- three")] == ["one two", "three"]
    assert set(sections("# a\n- x\n# b\n- y")) == {"a", "b"}


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_every_core_fact_has_a_form_that_tells_it_for_sure(kind: EventType) -> None:
    """Whatever lede is drawn, the body can tell each core fact that is still missing."""
    for fact in kind.core:
        assert any(fact in kind.told_by(form) for form in kind.sections["body"]), fact
    assert set(kind.correctable) <= set(kind.core)


def test_there_are_hundreds_of_sentence_forms() -> None:
    """More than 700 forms, most of them with several choices."""
    total = sum(len(section) for kind in TYPES for section in kind.sections.values())
    assert total + sum(map(len, (*STATE.values(), *COLOUR.values()))) > 700


def test_every_relation_has_five_distinct_wordings() -> None:
    """Three for training, one for validation, one for test."""
    tables = (
        wordings.STATE, wordings.AS_OF, wordings.CHANGED, wordings.DATED, wordings_hops.ROOTS, wordings_hops.LINKS,
        wordings_hops.LAST, wordings_hops.COUNTS,
    )  # fmt: skip
    for table in tables:
        for attr, options in table.items():
            assert len(set(options)) == 5, attr


@given(st.integers(min_value=-60, max_value=60))
def test_a_temperature_is_accepted_in_every_form_it_is_printed(celsius: int) -> None:
    """What a house prints is a right answer."""
    value = degrees(celsius)
    assert set(value.shown) <= set(value.accepted)


@given(st.integers(min_value=1, max_value=90_000_000), st.sampled_from([money, price]))
def test_an_amount_is_accepted_in_every_form_it_is_printed(amount: int, make: object) -> None:
    """Amounts and prices too, and the same raw value prints the same."""
    value = make(amount, "crowns")  # type: ignore[operator]
    assert set(value.shown) <= set(value.accepted)
    assert value.make(value.raw).shown == value.shown


@given(st.integers(min_value=-999, max_value=2_000))
def test_a_percentage_prints_its_hundredths(hundredths: int) -> None:
    """Exact decimals without floating point."""
    assert percent(hundredths).accepted[3] == f"{hundredths / 100:.2f}"


@given(st.integers(min_value=0, max_value=99))
def test_small_counts_are_accepted_in_words(number: int) -> None:
    """Digits and words are both right."""
    assert {str(number), number_words(number)} <= set(count(number).accepted)


@given(st.integers(min_value=-30_000_000_000, max_value=30_000_000_000))
def test_times_print_and_parse_back(moment: int) -> None:
    """ISO 8601 in UTC, for a thousand years around the epoch."""
    assert from_iso(iso(moment)) == moment


def test_names_do_not_repeat() -> None:
    """Twenty thousand people, and no two share a family name; products are all different."""
    names = Names(4)
    assert len({names.last() for _ in range(20_000)}) == 20_000
    assert len({names.product() for _ in range(4_000)}) == 4_000


def test_no_name_of_a_world_is_part_of_another() -> None:
    """Companies, towns and countries can be told apart by plain text search."""
    world = World(8)
    names = [e.name.short for e in (*world.companies, *world.towns, *world.countries)]
    assert len(set(names)) == len(names)
    assert not [(a, b) for a in names for b in names if a != b and a in b]


def test_choices_are_even_and_within_bounds() -> None:
    """`between` meets both ends, `sample` repeats nothing, `weighted` follows its weights."""
    rng = Rng("choices")
    assert {rng.between(3, 5) for _ in range(200)} == {3, 4, 5}
    assert sorted(rng.sample(range(9), 9)) == list(range(9))
    drawn = [rng.weighted((("a", 9), ("b", 1))) for _ in range(2_000)]
    assert 1_700 < drawn.count("a") < 1_900
