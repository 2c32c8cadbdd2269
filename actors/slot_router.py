"""Which replica owns a session: session -> slot -> rank, the same before and after a crash.

A replacement claims the rank of the replica that it replaces (`actors/rank_claim.py`), so it takes over exactly
the dead one's sessions. Serve's own consistent-hash ring moves sessions of the living too. Rests on a private
method of Ray 2.60; `tests/actors/test_slot_router.py` holds the contract.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import xxhash
from ray.serve._private.common import ReplicaID
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

RANK_KEY = "@rank:"
"""A session id of this form names a rank itself: for calls to one replica, not to a session."""


def slot_of(session_id: str, num_slots: int) -> int:
    """The slot of a session: the same in every process and for ever."""
    return int(xxhash.xxh3_64_intdigest(session_id.encode()) % num_slots)


def slot_table(num_slots: int, num_replicas: int) -> list[int]:
    """The rank that owns each slot, evenly dealt.

    A table for one replica more differs only in the slots that the new rank is given, so little moves.
    """
    if not 1 <= num_replicas <= num_slots:
        raise ValueError(f"replicas is {num_replicas}; 1 to {num_slots} (the number of slots) are allowed")
    table = [0] * num_slots
    for new in range(1, num_replicas):
        for _ in range(num_slots // (new + 1)):
            held = Counter(table)
            fullest = max(range(new), key=lambda rank: (held[rank], -rank))
            table[num_slots - 1 - table[::-1].index(fullest)] = new
    return table


def rank_of(session_id: str, table: Sequence[int]) -> int:
    """The rank that owns a session."""
    if session_id.startswith(RANK_KEY):
        return int(session_id[len(RANK_KEY) :])
    return table[slot_of(session_id, len(table))]


class SlotRouter(ConsistentHashRouter):
    """Sends a request to the replica of its session's rank, and waits while that one is away."""

    def initialize_state(self, table: list[int] | None = None, **kwargs: Any) -> None:
        """`table[slot]` is the rank that owns the slot."""
        super().initialize_state(num_virtual_nodes=1, num_fallback_replicas=0, **kwargs)
        if not table or any(not isinstance(rank, int) or rank < 0 for rank in table):
            raise ValueError(f"the slot router needs a table of ranks, one a slot; given {table!r}")
        self._table = table

    @property
    def max_num_routing_tasks(self) -> int:
        # Requests that wait for a replica to come back must not keep those of the others from being routed.
        return self.max_num_routing_tasks_cap * 4

    def _lookup_ranked_replicas(self, routing_key: str) -> list[ReplicaID]:
        rank = rank_of(routing_key, self._table)
        return [r.replica_id for r in self._replicas.values() if r.replica_metadata.get("rank") == rank]
