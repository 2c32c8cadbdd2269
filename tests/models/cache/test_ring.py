"""The ring of raw pairs against a plain list."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from models.cache.ring import PairRing


@given(capacity=st.integers(1, 9), writes=st.lists(st.integers(0, 25), max_size=12))
def test_ring_holds_the_newest_pairs_in_order(capacity: int, writes: list[int]) -> None:
    """Whatever is written in whatever portions, the last `capacity` pairs are there, oldest first."""
    ring = PairRing(2, capacity, 3, torch.float32, torch.device("cpu"))
    memory = ring.keys.data_ptr()
    written: list[float] = []
    for count in writes:
        new = torch.arange(len(written), len(written) + count).float()
        pairs = new[None, :, None].expand(2, -1, 3)
        ring.write(len(written), pairs, -pairs)
        written += new.tolist()
    held = min(capacity, len(written))
    keys, values = ring.read(len(written) - held, held)
    assert keys[1, :, 2].tolist() == written[len(written) - held :]
    assert torch.equal(values, -keys)
    assert ring.keys.data_ptr() == memory
