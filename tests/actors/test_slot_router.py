"""Slots: evenly dealt, stable over resizes, and the contract with Ray's router."""

from __future__ import annotations

import inspect
from collections import Counter

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from actors.slot_router import RANK_KEY, SlotRouter, rank_of, slot_of, slot_table


@given(st.integers(1, 128), st.data())
def test_slots_are_dealt_evenly(num_slots: int, data: st.DataObject) -> None:
    """Every rank owns a slot, and no two differ by more than a third of the mean and one."""
    num_replicas = data.draw(st.integers(1, num_slots))
    held = Counter(slot_table(num_slots, num_replicas))
    assert set(held) == set(range(num_replicas))
    assert max(held.values()) - min(held.values()) <= 1 + num_slots // num_replicas // 3


@given(st.integers(2, 128), st.data())
def test_one_replica_more_moves_only_its_own_slots(num_slots: int, data: st.DataObject) -> None:
    """Growing by a replica leaves every slot that the new rank does not take where it was."""
    num_replicas = data.draw(st.integers(1, num_slots - 1))
    before, after = slot_table(num_slots, num_replicas), slot_table(num_slots, num_replicas + 1)
    assert all(new in (old, num_replicas) for old, new in zip(before, after, strict=True))


def test_slot_of_a_session_never_changes() -> None:
    """A session's slot is part of the data on disk: the hash may not change."""
    assert [slot_of(name, 64) for name in ("local/politics", "a/b", "tenant/straße")] == [55, 4, 2]


def test_rank_key_names_a_rank() -> None:
    """Calls to one replica, not to a session, name its rank."""
    table = slot_table(8, 3)
    assert [rank_of(f"{RANK_KEY}{rank}", table) for rank in range(3)] == [0, 1, 2]
    assert rank_of("local/politics", table) == table[slot_of("local/politics", 8)]


@pytest.mark.parametrize("replicas", [0, 9])
def test_table_for_too_few_slots_is_refused(replicas: int) -> None:
    """There is at least one replica and at most one a slot."""
    with pytest.raises(ValueError, match="replicas"):
        slot_table(8, replicas)


def test_rays_router_still_has_what_ours_rests_on() -> None:
    """The private parts of Ray 2.60 that SlotRouter overrides or reads are there, with these shapes."""
    assert ray.__version__.startswith("2.60."), "look at actors/slot_router.py before another Ray is taken"
    lookup = inspect.signature(ConsistentHashRouter._lookup_ranked_replicas)
    assert list(lookup.parameters) == ["self", "routing_key"]
    chosen = inspect.getsource(ConsistentHashRouter.choose_replicas)
    assert "_lookup_ranked_replicas(routing_key)" in chosen and "self._replicas.get" in chosen
    assert isinstance(inspect.getattr_static(ConsistentHashRouter, "max_num_routing_tasks"), property)
    assert "num_fallback_replicas" in inspect.getsource(ConsistentHashRouter.initialize_state)


class _Replica:
    def __init__(self, name: str, rank: int) -> None:
        self.replica_id = name
        self.replica_metadata = {"rank": rank}


def test_request_goes_to_its_rank_or_waits() -> None:
    """The router picks the one replica of the session's rank, and none while that one is away."""
    router = SlotRouter.__new__(SlotRouter)
    router._table = [0, 1]
    session = next(f"t/{n}" for n in range(99) if slot_of(f"t/{n}", 2) == 1)
    router._replicas = {name: _Replica(name, rank) for name, rank in (("x", 0), ("y", 1))}
    assert router._lookup_ranked_replicas(session) == ["y"]
    del router._replicas["y"]
    assert router._lookup_ranked_replicas(session) == []
    router._replicas["z"] = _Replica("z", 1)
    assert router._lookup_ranked_replicas(session) == ["z"]
