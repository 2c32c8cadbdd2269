"""The peers of the search bench: what they are asked beside the store must not hang or starve."""

from __future__ import annotations

import threading

import numpy as np

from infra.bench.search_peers import Flat
from infra.bench.vectors import DIM, clustered


def test_rows_are_added_to_the_flat_index_beside_clients_that_never_pause() -> None:
    """A writer goes before all who wait to read, so few are served while it adds; with a plain lock it starved."""
    peer = Flat(clustered(4_096, 1))
    question = clustered(1, 2)[0].astype(np.float32)
    over = threading.Event()
    served: list[int] = []

    def ask() -> None:
        while not over.is_set():
            served.append(len(peer.search(question)))

    clients = [threading.Thread(target=ask, daemon=True) for _ in range(8)]
    for client in clients:
        client.start()
    row = np.zeros((1, DIM), dtype=np.float16)
    row[0] = question
    meanwhile: list[int] = []

    def write() -> None:
        for _ in range(50):
            before = len(served)
            peer.add(row)
            meanwhile.append(len(served) - before)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(timeout=60)
    done = not writer.is_alive()
    over.set()
    for client in clients:
        client.join(timeout=10)

    assert done and sum(meanwhile) <= 4 * 50  # the one under way, and what slips in before the writer asks
    assert set(peer.search(question)) >= set(range(4_096, 4_105))
