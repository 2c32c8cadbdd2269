"""A reader in a process of its own that many processes ask: what they ask at one moment is read together.

A call to a reader costs the launches of some sixteen decoding steps, whatever is in it. Eight processes that learn
and ask eight readers of their own pay for that eight times, on a device that they share in turns. Here each reader
stands once. While it reads, the others' requests queue, and the next call takes them all; nothing is read twice.
Requests and outcomes go as lines of JSON over a Unix socket that only its owner can open. Imports nothing that a
GPU host lacks.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rl.episodes import Outcome, Readings, Request

PIECE = 1 << 16
LONGEST = 64 << 20
"""Bytes of a line, at most: some two million candidates asked."""


class ReadingServer:
    """Answers what its clients ask out of `readings`, those that wait at one moment together.

    `wait_s`: how long the first that waits waits for others, if not all that are connected have asked. `num_rounds`
    counts calls. A client that sends what cannot be read is cut off; the others are served on.
    """

    def __init__(self, path: Path, readings: Readings, wait_s: float = 0.03) -> None:
        self.path, self.readings, self.wait_s = path, readings, wait_s
        self.num_rounds = 0
        self._waiting: list[tuple[socket.socket, list[Request]]] = []
        self._parts: dict[socket.socket, bytearray] = {}
        self._selector = selectors.DefaultSelector()
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        path.chmod(0o600)
        self._listening.listen(64)
        self._selector.register(self._listening, selectors.EVENT_READ)

    def run(self, until: float) -> None:
        """Serve until that time (`time.monotonic`), or until the socket's file is gone."""
        since = 0.0
        while time.monotonic() < until and self.path.exists():
            before = len(self._waiting)
            for key, _ in self._selector.select(self.wait_s if before else 0.2):
                self._heard(key.fileobj)  # type: ignore[arg-type]
            if self._waiting and not before:
                since = time.monotonic()
            all_asked = len(self._waiting) >= len(self._parts)
            if self._waiting and (all_asked or time.monotonic() - since >= self.wait_s):
                self._answer()
        self.close()

    def close(self) -> None:
        """Close all connections; clients get an error for what they still wait for."""
        for connection in [*self._parts, self._listening]:
            connection.close()
        self._parts.clear()
        self._selector.close()
        self.path.unlink(missing_ok=True)

    def _heard(self, where: socket.socket) -> None:
        if where is self._listening:
            connection, _ = where.accept()
            self._parts[connection] = bytearray()
            self._selector.register(connection, selectors.EVENT_READ)
            return
        try:
            piece = where.recv(PIECE)
        except OSError:
            piece = b""
        if not piece:
            self._drop(where)
            return
        part = self._parts[where]
        part += piece
        if len(part) > LONGEST:
            self._drop(where)
        elif part.endswith(b"\n"):  # a client sends one line and waits
            self._parts[where] = bytearray()
            try:
                asked = [(int(row), tuple(map(int, picks))) for row, picks in json.loads(part)]
            except (ValueError, TypeError):
                self._drop(where)
                return
            self._waiting.append((where, asked))

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        found = iter(self.readings.read([request for _, asked in waiting for request in asked]))
        self.num_rounds += 1
        for connection, asked in waiting:
            told = [(each.f1, each.loss, each.margin) for each in islice(found, len(asked))]
            try:
                connection.sendall(json.dumps(told).encode() + b"\n")
            except OSError:
                self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._waiting = [each for each in self._waiting if each[0] is not connection]
        if self._parts.pop(connection, None) is not None:
            self._selector.unregister(connection)
            connection.close()


class RemoteReader:
    """Reads each request by the server of its row; `names` [N] are those of the rows, FOLDER/<name> their sockets.

    All servers are asked before the first is waited for. RuntimeError where a server is not there within `limit_s`,
    or ends before it has answered.
    """

    def __init__(self, folder: Path, names: Sequence[str], limit_s: float = 180.0) -> None:
        self._folder, self._names, self._limit_s = folder, list(names), limit_s
        self._open: dict[str, socket.socket] = {}

    def read(self, requests: Sequence[Request]) -> list[Outcome]:
        """The outcomes, in order."""
        parts: dict[str, list[int]] = {}
        for at, (row, _) in enumerate(requests):
            parts.setdefault(self._names[row], []).append(at)
        for name, places in parts.items():
            line = json.dumps(
                [(int(row), list(map(int, picks))) for row, picks in (requests[at] for at in places)]
            )
            self._connected(name).sendall(line.encode() + b"\n")
        found: list[Outcome | None] = [None] * len(requests)
        for name, places in parts.items():
            for at, told in zip(places, json.loads(self._line(name)), strict=True):
                found[at] = Outcome(*map(float, told))
        return [outcome for outcome in found if outcome is not None]

    def close(self) -> None:
        """Leave the servers, which wait for nobody who has left."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()

    def _line(self, name: str) -> bytes:
        part = bytearray()
        while not part.endswith(b"\n"):
            piece = self._open[name].recv(PIECE)
            if not piece:
                raise RuntimeError(
                    f"the reader {name} ended before it had answered; see its log (read-{name}.log)"
                )
            part += piece
        return bytes(part)

    def _connected(self, name: str) -> socket.socket:
        until = time.monotonic() + self._limit_s
        while name not in self._open:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(self._folder / name))
            except OSError:
                connection.close()
                if time.monotonic() > until:
                    raise RuntimeError(
                        f"the reader {name} is not there after {self._limit_s:.0f} s; see its log (read-{name}.log)"
                    ) from None
                time.sleep(0.2)
                continue
            self._open[name] = connection
        return self._open[name]
