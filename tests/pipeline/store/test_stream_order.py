"""pipeline/store/stream_order.py: as a sorted set would do, and no article costs by how many there are."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from pipeline.store import stream_order
from pipeline.store.stream_order import StreamOrder

STEP = st.tuples(st.booleans(), st.integers(0, 30), st.sampled_from("abc"))


@given(st.lists(STEP, max_size=120), st.integers(-1, 32), st.integers(1, 6))
def test_it_holds_what_a_sorted_set_holds(steps: list[tuple[bool, int, str]], before: int, most: int) -> None:
    """In whatever order articles come and go, twice or never there; blocks as short as can be among them."""
    order, plain = StreamOrder(), set[tuple[int, str]]()
    with patch.object(stream_order, "_MOST", most):
        for comes, time, name in steps:
            if comes:
                order.add(time, name)
                plain.add((time, name))
            else:
                order.discard(time, name)
                plain.discard((time, name))
            assert (len(order), bool(order)) == (len(plain), bool(plain))
    assert list(order) == sorted(plain)
    assert list(order.newest()) == sorted(plain, reverse=True)
    assert list(order.newest(before)) == sorted((item for item in plain if item[0] < before), reverse=True)


def test_no_article_costs_by_how_many_there_are() -> None:
    """However many stand there and in whatever order they came, one more, one less and a look move one block."""
    order = StreamOrder()
    for n in range(50_000):
        order.add(n * 7_919 % 50_021, f"a{n}")
    assert len(order._blocks) > 50_000 / stream_order._MOST
    assert max(map(len, order._blocks)) <= stream_order._MOST
    assert len(order._blocks) < 4 * 50_000 / stream_order._MOST
    for n in range(50_000):
        order.discard(n * 7_919 % 50_021, f"a{n}")
    assert order._blocks == order._lasts == []
