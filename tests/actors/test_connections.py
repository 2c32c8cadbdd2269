"""Connections with limits of their own, on a real HTTP server: heads and trailers without end, too many at once."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from actors import connections
from actors.connections import MAX_WRAPPING_BYTES, BoundedHttp, bound_connections
from actors.front_door import FrontDoor

LINE = b"GET /page HTTP/1.1\r\nHost: a\r\n"


class Hurried(BoundedHttp):  # type: ignore[misc]
    """The same with little patience."""

    head_limit_s = 1.5
    last_bytes_s = 0.3
    max_connections = 40


async def page(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body, tells its length; on /large something larger than any buffer of the system."""
    size = 0
    while (message := await receive())["type"] == "http.request":
        size += len(message["body"])
        if not message["more_body"]:
            break
    body = b"x" * 30_000_000 if scope["path"] == "/large" else str(size).encode()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


class Server:
    """An application on a port of this machine."""

    def __init__(self, app: Any, protocol: Any) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(app, lifespan="off", log_level="critical", http=protocol)
        self.server = uvicorn.Server(config)
        run = {"sockets": [self._socket]}
        self._thread = threading.Thread(target=self.server.run, kwargs=run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, whoever is still connected."""
        self.server.should_exit = self.server.force_exit = True
        self._thread.join(10)
        self._socket.close()

    def connect(self) -> socket.socket:
        """A connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def open_connections(self) -> int:
        """How many the server holds."""
        return len(self.server.server_state.connections)


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of little patience."""
    running = Server(FrontDoor(page, body_limit_s=1.5), Hurried)
    yield running
    running.stop()


def rest(opened: socket.socket) -> bytes:
    """All that comes until the server hangs up."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while piece := opened.recv(65_536):
            got += piece
    return got


def answered(opened: socket.socket) -> bytes:
    """The body of one answer of status 200."""
    got = b""
    while not (found := re.search(rb"content-length: (\d+)\r\n\r\n", got)) or len(got) < found.end() + int(
        found[1]
    ):
        piece = opened.recv(65_536)
        assert piece, got
        got += piece
    assert got.startswith(b"HTTP/1.1 200"), got
    return got[found.end() :]


def test_heads_that_do_not_come_are_not_waited_for(server: Server) -> None:
    """Neither a first one, whole or begun, nor one behind a request that was answered."""
    began = time.monotonic()
    with server.connect() as silent, server.connect() as slow, server.connect() as second:
        slow.sendall(LINE + b"X-Slow: ")
        second.sendall(LINE + b"\r\n")
        assert answered(second) == b"0"
        second.sendall(b"GET")
        for _ in range(4):
            time.sleep(0.1)
            slow.sendall(b"a")
        assert rest(silent) == rest(slow) == rest(second) == b""
    assert 0.5 < time.monotonic() - began < 15


def test_a_request_takes_as_long_as_its_answer_needs() -> None:
    """The limit is the head's alone: an answer that takes longer comes, and so does the one after it."""

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(1.0)
        await page(scope, receive, send)

    running = Server(slow, Hurried)
    try:
        with running.connect() as opened:
            for _ in range(2):
                opened.sendall(b"POST /page HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab")
                assert answered(opened) == b"2"
    finally:
        running.stop()


@pytest.mark.parametrize(
    "start",
    [
        LINE + b"X-Large: ",
        LINE + b"X-",
        b"GET /",
        b"POST /page HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: ",
        b"POST /page HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;extension=",
        b"POST /page HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET /page HTTP/1.1\r\nX-Second: ",
    ],
    ids=["value", "name", "address", "trailer", "chunk's size", "second head"],
)
def test_what_wraps_a_body_has_an_end(server: Server, start: bytes) -> None:
    """Bytes that no application is asked about are cut off, long before they fill anything."""
    sent = 0
    with server.connect() as opened:
        with contextlib.suppress(ConnectionError):
            opened.sendall(start)
            while sent < 40_000_000:
                opened.sendall(b"a" * MAX_WRAPPING_BYTES)
                sent += MAX_WRAPPING_BYTES
        assert sent < 40_000_000


def test_a_body_in_chunks_of_a_byte_is_a_body() -> None:
    """However it is cut into pieces, and whatever came before it on the connection."""
    chunks = b"1\r\na\r\n" * 30_000 + b"0\r\n\r\n"
    running = Server(FrontDoor(page), BoundedHttp)
    with running.connect() as opened:
        for _ in range(2):
            opened.sendall(b"POST /page HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
            assert answered(opened) == b"30000"
    running.stop()


def test_the_connection_that_waits_longest_makes_room(server: Server) -> None:
    """Beyond the limit the newest is served, and no more are held than the limit says; who has been served before
    and keeps the connection is among them."""
    with contextlib.ExitStack() as held:
        opened = [held.enter_context(server.connect()) for _ in range(60)]
        for one in opened[:10]:
            with contextlib.suppress(ConnectionError):
                one.sendall(LINE + b"\r\n")
        opened[-1].sendall(LINE + b"\r\n")
        assert answered(opened[-1]) == b"0"
        assert server.open_connections() <= Hurried.max_connections
        assert rest(opened[0]).count(b"HTTP/1.1 200") <= 1


def test_a_closed_connection_does_not_keep_what_nobody_takes() -> None:
    """An answer that was given up leaves neither a socket nor its bytes behind."""
    running = Server(FrontDoor(page, take_limit_s=0.2), Hurried)
    try:
        with running.connect() as opened:
            opened.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            deadline = time.monotonic() + 20
            seen = False
            while not seen or running.open_connections():
                seen = seen or running.open_connections() == 1
                assert time.monotonic() < deadline, "it is still held"
                time.sleep(0.02)
    finally:
        running.stop()


def test_servers_started_from_then_on_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Serve's proxy starts one: by its protocol's default name."""
    monkeypatch.setattr(connections, "HTTP_PROTOCOLS", dict(connections.HTTP_PROTOCOLS))
    monkeypatch.setattr("uvicorn.config.HTTP_PROTOCOLS", connections.HTTP_PROTOCOLS)
    bound_connections()
    config = uvicorn.Config(page, lifespan="off", log_config=None)
    config.load()
    assert config.http_protocol_class is BoundedHttp
