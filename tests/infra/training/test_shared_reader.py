"""infra/training/shared_reader.py: many ask, one reads, nothing twice; who sends rubbish harms nobody else."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from infra.training.shared_reader import ReadingServer, RemoteReader
from rl.episodes import Outcome, Readings, Request


class SlowReader:
    """Says the row as F1 by a hundred, the number read as loss; takes a while for a call, however large."""

    def __init__(self, beside: threading.Barrier | None = None) -> None:
        self.calls: list[list[Request]] = []
        self.beside = beside

    def read(self, requests: Sequence[Request]) -> list[Outcome]:
        """The outcomes, in order."""
        self.calls.append(list(requests))
        if self.beside is not None:
            with contextlib.suppress(threading.BrokenBarrierError):
                self.beside.wait(20)
        time.sleep(0.1)
        return [Outcome(row / 100, float(len(picks)), -1.0) for row, picks in requests]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="read-") as made:
        yield Path(made)


def served(
    folder: Path, name: str, readings: Readings, **options: float
) -> tuple[ReadingServer, threading.Thread]:
    server = ReadingServer(folder / name, readings, **options)
    thread = threading.Thread(target=server.run, args=(time.monotonic() + 30,), daemon=True)
    thread.start()
    return server, thread


def test_what_is_asked_at_one_moment_is_read_together_and_once(folder: Path) -> None:
    """Six that ask five times each are answered rightly in a call or two a round, not in six."""
    reader = SlowReader()
    server, thread = served(folder, "shipped", Readings(reader))
    wrong: list[object] = []

    def learn(own: int) -> None:
        client = RemoteReader(folder, ["shipped"] * 100)
        for step in range(5):
            asked = [(own, (1, 2)), (step, ()), (own + step, (3,))]
            found = client.read(asked)
            if [(each.f1, each.loss) for each in found] != [(row / 100, len(picks)) for row, picks in asked]:
                wrong.append(found)
        client.close()

    learners = [threading.Thread(target=learn, args=(at,)) for at in range(6)]
    for each in learners:
        each.start()
    for each in learners:
        each.join(20)
    assert not wrong
    asked = [request for call in reader.calls for request in call]
    assert len(asked) == len(set(asked))
    assert server.num_rounds <= 15
    (folder / "shipped").unlink()
    thread.join(5)
    assert not thread.is_alive()


def test_rows_go_to_their_own_reader_and_both_read_at_once(folder: Path) -> None:
    """Of two readers neither has ended before the other has begun."""
    together = threading.Barrier(2)
    readers = {name: SlowReader(together) for name in ("fold0", "fold1")}
    for name, reader in readers.items():
        served(folder, name, Readings(reader))
    client = RemoteReader(folder, ["fold0", "fold1", "fold0"])
    client.read([(0, ()), (1, ())])
    found = client.read([(2, (1,)), (1, (1,)), (0, (1,))])
    assert not together.broken
    assert [each.f1 for each in found] == [0.02, 0.01, 0.0]
    assert {row for call in readers["fold1"].calls for row, _ in call} == {1}


def test_rubbish_cuts_its_sender_off_and_a_missing_reader_is_named(folder: Path) -> None:
    """The others are served on; the error says which reader is not there, or ended."""
    _, thread = served(folder, "shipped", Readings(SlowReader()))
    stranger = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stranger.connect(str(folder / "shipped"))
    stranger.sendall(b'{"not": 1}\n')
    assert stranger.recv(10) == b""
    client = RemoteReader(folder, ["shipped", "fold7"], limit_s=0.5)
    assert client.read([(0, (4, 5))])[0].loss == 2.0
    with pytest.raises(RuntimeError, match=r"the reader fold7 is not there after 0 s; see its log"):
        client.read([(1, ())])
    (folder / "shipped").unlink()
    thread.join(5)
    with pytest.raises((RuntimeError, BrokenPipeError)):
        client.read([(0, (9,))])
