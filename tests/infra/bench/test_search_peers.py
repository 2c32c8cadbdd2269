"""The peers of the search bench: what they are asked beside the store must not hang or starve."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from infra.bench import search
from infra.bench.search_peers import Flat, Lance
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


@pytest.mark.parametrize("rows", [300, 10_000])
def test_lancedb_finds_what_was_added_last(tmp_path: Path, rows: int) -> None:
    """Rows of the start by its index, where it makes one, and a row added later, which its index does not hold."""
    pytest.importorskip(
        "lancedb", reason="the outside peer is installed by whoever measures: uv pip install lancedb"
    )
    vectors = clustered(rows, 1)
    peer = Lance(vectors, str(tmp_path))
    assert peer.search(vectors[7].astype(np.float32))[0] == 7
    fresh = clustered(1, 3)
    peer.add(fresh)
    assert peer.search(fresh[0].astype(np.float32))[0] == rows


def test_a_search_bench_keeps_each_row_and_begins_none_that_would_be_late(tmp_path: Path) -> None:
    """What a lent host has found is in the file at any moment; what there was no time for is named."""
    kept = tmp_path / "search.json"
    given = {"articles": 300, "seconds": 0.3, "rate": 20.0, "ivf_rows": 0, "clients": "1,2"}
    (tmp_path / "work").mkdir()
    wanted = {**given, "peers": ["faiss flat"], "work": str(tmp_path / "work"), "out": str(kept)}
    search.measure(**wanted, ends=0.0)  # type: ignore[arg-type]
    found = json.loads(kept.read_text())
    assert [row["clients"] for row in found["rows"]] == [1, 2] and found["left_out"] == []
    search.measure(**wanted, ends=time.time())  # type: ignore[arg-type]
    found = json.loads(kept.read_text())
    assert found["rows"] == [] and found["left_out"] == ["faiss flat, 1 clients", "faiss flat, 2 clients"]
