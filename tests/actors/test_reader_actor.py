"""actors/reader_actor.py: callers share batches, nothing is read twice, a reader that comes back remembers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from actors.reader_actor import BatchingReader, open_reader
from models.hf.config import HfConfig
from rl.actor_client import ActorReader
from tests.rl.toy import material, tables


class SlowReader:
    """Reads what is asked and notes each batch."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def outcomes(self, requests: Sequence[tuple[int, tuple[int, ...]]]) -> list[tuple[float, float, float]]:
        """A figure that depends on the request alone."""
        self.batches.append(len(requests))
        time.sleep(0.05)
        return [(row / 10, float(len(picks)), -1.0) for row, picks in requests]


def test_callers_at_one_moment_share_a_batch_and_nothing_is_read_twice(tmp_path: Path) -> None:
    """Eight threads, overlapping wishes: few batches, each reading once, every answer right; then from memory."""
    inner = SlowReader()
    reader = BatchingReader(inner, tmp_path / "memory.npz")  # type: ignore[arg-type]
    found: dict[int, list[tuple[float, float, float]]] = {}

    def ask(at: int) -> None:
        found[at] = reader.read([(row, (2, 1)) for row in range(at, at + 4)])

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert all(found[at][0] == (at / 10, 2.0, -1.0) for at in range(8))
    assert sum(inner.batches) == 11
    assert len(inner.batches) < 8
    reader.close()
    again = BatchingReader(inner, tmp_path / "memory.npz")  # type: ignore[arg-type]
    assert again.read([(3, (1, 2))]) == [(pytest.approx(0.3), 2.0, -1.0)]
    assert sum(inner.batches) == 11
    again.close()


def test_an_error_of_the_reader_reaches_its_caller() -> None:
    """Who asked is told; the next question is answered."""

    class Broken(SlowReader):
        def outcomes(
            self, requests: Sequence[tuple[int, tuple[int, ...]]]
        ) -> list[tuple[float, float, float]]:
            if requests[0][0] == 1:
                raise RuntimeError("out of memory")
            return super().outcomes(requests)

    reader = BatchingReader(Broken())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="out of memory"):
        reader.read([(1, ())])
    assert reader.read([(2, ())]) == [(0.2, 0.0, -1.0)]
    reader.close()


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_reader_comes_back_with_its_memory(local_ray: None, tmp_path: Path) -> None:
    """The named actor, killed with -9, is found again by the client and answers the same."""
    import ray

    from tests.infra.evaluation.test_qa import reader as make_reader

    made = material(tables(6))
    made.save(tmp_path / "material", {})
    folder = make_reader.__wrapped__(_Factory(tmp_path))  # type: ignore[attr-defined]
    config = HfConfig(model=str(folder), adapter="none", device="cpu")
    memory = tmp_path / "memory.npz"
    told = open_reader("reader-test", tmp_path / "material", config, memory=memory)
    client = ActorReader(**told)
    asked = [(0, (0, 1)), (1, ())]
    before = client.read(asked)
    handle = ray.get_actor("reader-test", namespace=told["namespace"])
    ray.get(handle.close.remote(), timeout=60)
    os.kill(ray.get(handle.stats.remote(), timeout=60)["pid"], signal.SIGKILL)
    after = client.read(asked)
    assert [each.loss for each in after] == pytest.approx([each.loss for each in before], rel=1e-3)
    stats = ray.get(ray.get_actor("reader-test", namespace=told["namespace"]).stats.remote(), timeout=120)
    assert stats["known"] == 2
    assert stats["batches"] == 0
    with pytest.raises(TimeoutError, match="reader absent gave no answer"):
        ActorReader("absent", told["namespace"], timeout_s=0.5).read(asked)


class _Factory:
    """Makes folders as pytest's factory does."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def mktemp(self, name: str) -> Path:
        """A folder."""
        (self._root / name).mkdir()
        return self._root / name
