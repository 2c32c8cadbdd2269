"""Sealing: a full segment is written beside the appends, and what is stored never changes by it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.store import StoreFailed, StoreLocked, maintenance
from tests.pipeline.store import make
from tests.pipeline.store.damage import everything


def test_a_full_segment_is_sealed_beside_the_appends(tmp_path: Path) -> None:
    """By size, in the background; search sees the same before, during and after."""
    shard = make.open_shard(tmp_path, seal_rows=8, merge_segments=0)
    for n in range(20):
        make.put(shard, make.upsert(f"n{n}", n))
        assert len(everything(shard)) == 2 * (n + 1)
        if n % 4 == 3:
            shard._join_sealing()
    shard.close()
    again = make.open_shard(tmp_path, seal_rows=8, merge_segments=0)
    assert len(make.segment_names(again)) >= 4
    assert len(everything(again)) == 40
    again.close()


def test_a_segment_does_not_span_more_than_its_window(tmp_path: Path) -> None:
    """Articles of different months go to different segments, so that expiry can drop whole ones."""
    shard = make.open_shard(tmp_path, seal_rows=1_000, min_seal_rows=4, window_hours=24.0)
    for n in range(6):
        make.put(shard, make.upsert(f"n{n}", n, hours=48.0 * n))
        shard._join_sealing()
    spans = [s["newest_ms"] - s["oldest_ms"] for s in shard.stats()["segments"]]
    assert len(spans) == 3
    assert max(spans) <= 2 * make.DAY_MS
    shard.close()


def test_the_log_is_dropped_once_segments_hold_its_records(tmp_path: Path) -> None:
    """Up to the checkpoint before the last, which stays usable."""
    shard = make.open_shard(tmp_path)
    sizes = []
    for n in range(6):
        make.put(shard, make.upsert(f"n{n}", n))
        shard.seal()
        sizes.append(shard.stats()["wal_bytes"])
    assert max(sizes[2:]) <= sizes[1]
    shard.close()


@pytest.mark.parametrize("compress", [False, True])
def test_a_large_segment_gets_an_ivf_and_still_finds_everything(tmp_path: Path, compress: bool) -> None:
    """From the configured size on; the log may be compressed."""
    shard = make.open_shard(tmp_path, seal_rows=1_000, ivf_rows=200, ivf_probes=1_000, wal_compress=compress)
    make.put(shard, *(make.upsert(f"n{n}", n, num_chunks=4) for n in range(100)))
    before = everything(shard)
    shard.seal()
    assert everything(shard) == before
    assert make.found(shard, make.near("n50", k=1))[0] == ("n50", 0)
    shard.close()


def test_sealing_does_not_load_pandas(tmp_path: Path) -> None:
    """Loading it would hold up the appends of a young process for seconds."""
    program = (
        "import sys; from pathlib import Path; from tests.pipeline.store import make; "
        f"shard = make.open_shard(Path({str(tmp_path)!r})); make.put(shard, make.upsert('a', 0)); "
        "assert shard.seal() == 1; print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().endswith("False"), done.stdout + done.stderr


def test_a_sealing_that_does_not_end_keeps_the_folder_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing has a limit; the lock stays where a thread is still at the files, and what was appended is there
    once that has ended."""
    monkeypatch.setattr("pipeline.store.shard._SEALING_S", 0.2)
    gate = threading.Event()
    seal = maintenance.seal

    def slow(*given: object) -> None:
        gate.wait(60)
        seal(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(maintenance, "seal", slow)
    shard = make.open_shard(tmp_path, seal_rows=8, merge_segments=0)
    for n in range(6):
        make.put(shard, make.upsert(f"n{n}", n))
    with pytest.raises(StoreFailed, match="end this process"):
        shard.close()
    with pytest.raises(StoreLocked):
        make.open_shard(tmp_path, seal_rows=8, merge_segments=0)
    gate.set()
    monkeypatch.setattr("pipeline.store.shard._SEALING_S", 60.0)
    shard.close()
    again = make.open_shard(tmp_path, seal_rows=8, merge_segments=0)
    assert len(everything(again)) == 12
    again.close()
