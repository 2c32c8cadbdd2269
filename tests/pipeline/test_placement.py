"""Placement: every process names the same shard for a key, today and in a later version."""

from __future__ import annotations

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pipeline import placement
from pipeline.placement import shard_of


def _greatest(key: str, num_shards: int) -> int:
    """Rendezvous hashing as it is defined; of equal hashes the last shard's."""
    body = key.encode("utf-8", "surrogatepass")
    return max(range(num_shards), key=lambda shard: (xxhash.xxh3_64_intdigest(body, seed=shard + 1), shard))


@given(st.text(alphabet=st.characters(), max_size=40), st.integers(1, 70))
def test_the_shard_with_the_greatest_hash_has_the_key(key: str, num_shards: int) -> None:
    """Whatever the key holds and however many shards there are."""
    assert shard_of(key, num_shards) == _greatest(key, num_shards)


def test_places_are_those_of_stores_that_exist() -> None:
    """A store on disk is read with the places that wrote it: these may never change."""
    assert [shard_of(key, 12) for key in ("", "a", "0-wire-17", "déjà", "\ud800")] == [7, 3, 3, 6, 6]


def test_of_equal_hashes_the_last_shard_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was before: two shards tie once in 2**64, and must not part stores then."""
    monkeypatch.setattr(placement.xxhash, "xxh3_64_intdigest", lambda body, seed: seed // 2)
    assert shard_of("key", 7) == _greatest("key", 7) == 6
    assert shard_of("key", 6) == _greatest("key", 6) == 5
