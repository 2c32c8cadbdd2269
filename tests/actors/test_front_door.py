"""Raw bytes on a real HTTP server, as Serve's proxy has it: heads that are tricks, clients that stall; no 5xx."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
import uvicorn
import yaml

from actors.api import build_api
from actors.front_door import ENV, MAX_HEADERS, FrontDoor, NotTaken, harmless, middlewares
from actors.serve_config import LARGEST_REQUEST_BYTES, ServeConfig
from infra.dashboards import FOLDER

LINE = b"GET /healthz HTTP/1.1\r\n"
HEAD = b"Host: a\r\nConnection: close\r\n"
ASK = b"POST /v1/streams/a/ask HTTP/1.1\r\n"
COMMANDS = [
    b"X-Request-Timeout-Seconds", b"X-Request-Disconnect-Disabled", b"X-Session-Id", b"x_session_id",
    b"Serve-Multiplexed-Model-Id", b"serve_multiplexed_model_id",
]  # fmt: skip


class Endless:
    """Sessions whose answers are larger than any buffer; counts those under way."""

    num_replicas = 1

    def __init__(self) -> None:
        self.open = 0

    async def ask(self, key: Any, question: Any) -> AsyncIterator[dict[str, Any]]:
        """Sources, then tokens for as long as somebody takes them."""
        self.open += 1
        try:
            yield {"kind": "sources", "sources": [], "partial": False}
            for _ in range(100_000):
                yield {"kind": "token", "text": "word " * 2_000}
                await anyio.sleep(0)
        finally:
            self.open -= 1

    async def call(self, key: Any, method: str, *args: Any) -> Any:
        """A page."""
        return {"stream": key.stream}

    async def call_rank(self, rank: int, method: str, *args: Any) -> Any:
        """Nothing held."""
        return []


class Server:
    """The API behind the front door on a port of this machine."""

    def __init__(self) -> None:
        self.hosts = Endless()
        api = build_api(self.hosts, ServeConfig(max_request_bytes=10_000, rate_per_minute=0), None)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(FrontDoor(api, take_limit_s=0.5), lifespan="off", log_level="critical")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End it, whoever is still connected."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
        self._socket.close()

    def connect(self, receive_bytes: int = 0) -> socket.socket:
        """A connection; with a small window where asked for."""
        opened = socket.socket()
        opened.settimeout(20)
        if receive_bytes:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        opened.connect(("127.0.0.1", self.port))
        return opened

    def answer(self, data: bytes) -> bytes:
        """All that comes back for some bytes until the server hangs up."""
        got = b""
        with self.connect() as opened, contextlib.suppress(ConnectionError):
            opened.sendall(data)
            while piece := opened.recv(65_536):
                got += piece
        return got


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for all raw requests."""
    running = Server()
    yield running
    running.stop()


def statuses(answer: bytes) -> list[int]:
    """Of each response that came back."""
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


@pytest.mark.parametrize("value", [b"\xff\xfe", b"1e-9", b"?1", b"", b"nan", b"red/harbour"])
@pytest.mark.parametrize("name", COMMANDS)
def test_headers_that_command_serve_are_dropped(name: bytes, value: bytes) -> None:
    """Whatever their letters and bytes; the others reach the application as they came."""
    kept = [(b"host", b"a"), (b"authorization", b"Bearer \xff"), (b"accept", b"text/event-stream")]
    assert harmless([*kept, (name, value), (name.lower(), value)]) == kept


def test_a_request_s_name_is_kept_where_it_is_one() -> None:
    """It goes into logs and Serve decodes it."""
    good = (b"x-request-id", b"5f2c-77")
    assert harmless([good]) == [good]
    for value in (b"\xff", b"", b"a b", b"a\tb", b"a" * 129):
        assert harmless([(b"X-Request-Id", value)]) == []


TRICKS = {
    "two lengths": (ASK + HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x", 400),
    "length and chunks": (
        ASK + b"Host: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /v1/streams HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 400,
    ),
    "unknown encoding": (ASK + HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "a chunk of no size": (ASK + HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", 400),
    "a length that is none": (ASK + HEAD + b"Content-Length: 1e3\r\n\r\n", 400),
    "a zero byte": (LINE + HEAD + b"X-A: a\x00b\r\n\r\n", 400),
    "a folded line": (LINE + HEAD + b"X-A: a\r\n b\r\n\r\n", 400),
    "not UTF-8": (LINE + HEAD + b"X-A: \xff\xfe\r\nX-Request-Id: \xff\r\nX-Session-Id: \xfe\r\n\r\n", 200),
    "one giant header": (LINE + HEAD + b"X-A: " + b"a" * 60_000 + b"\r\n\r\n", 431),
    "many headers": (LINE + HEAD + b"".join(b"X-%d: a\r\n" % n for n in range(200)) + b"\r\n", 431),
    "a giant path": (b"GET /v1/streams/" + b"a" * 30_000 + b" HTTP/1.1\r\n" + HEAD + b"\r\n", 414),
    "a giant query": (b"GET /v1/streams?" + b"a=1&" * 5_000 + b" HTTP/1.1\r\n" + HEAD + b"\r\n", 414),
    "another host's address": (b"GET http://elsewhere/healthz HTTP/1.1\r\n" + HEAD + b"\r\n", 200),
    "raw bytes in the path": (b"GET /v1/streams/\xff\xfe HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    "an unknown method": (b"STEAL / HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    "an unknown version": (b"GET / HTTP/9.9\r\n" + HEAD + b"\r\n", 400),
    "no HTTP": (bytes([0x16, 3, 1, 2, 0]) + b"a" * 100, 400),
    "a promise of 9 MB": (ASK + HEAD + b"Content-Length: 9000000\r\n\r\n", 413),
    "a promise of 30 MB": (ASK + HEAD + b"Content-Length: 30000000\r\nExpect: 100-continue\r\n\r\n", 413),
    "a compressed body": (
        ASK + HEAD + b"Content-Encoding: gzip\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n"
        b"\x1f\x8b\x00\x00", 400,
    ),
    "an event of long ago": (
        b"GET /v1/streams/a/events HTTP/1.1\r\n" + HEAD + b"Last-Event-Id: 1e9\r\n\r\n", 422,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRICKS)
def test_tricks_with_heads_get_one_answer_and_no_5xx(server: Server, name: str) -> None:
    """And nothing hidden in a body is taken for a request of its own."""
    data, expected = TRICKS[name]
    answer = server.answer(data)
    assert [status for status in statuses(answer) if status != 100] == [expected], answer[:300]


def test_refusals_of_the_front_door_say_what_is_allowed(server: Server) -> None:
    """In the shape of all other refusals."""
    answer = server.answer(TRICKS["many headers"][0])
    assert b'"type":"request_too_large"' in answer and f"at most {MAX_HEADERS} of".encode() in answer


def test_an_answer_that_nobody_takes_is_given_up() -> None:
    """The application's response ends with an error there, and holds nothing any longer."""
    ended: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        finally:
            ended.append(True)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await anyio.sleep(60)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def run() -> None:
        with anyio.fail_after(20), pytest.raises(NotTaken, match=r"took nothing for 0\.1 s"):
            scope = {"type": "http", "headers": [], "raw_path": b"/", "query_string": b""}
            await FrontDoor(app, take_limit_s=0.1)(scope, receive, send)

    anyio.run(run)
    assert ended == [True]


def arriving(pieces: list[bytes | float]) -> Any:
    """A body that comes in these pieces, with pauses of so many seconds; it has no end."""
    coming = iter(pieces)

    async def receive() -> dict[str, Any]:
        for piece in coming:
            if isinstance(piece, bytes):
                return {"type": "http.request", "body": piece, "more_body": True}
            await anyio.sleep(piece)
        await anyio.sleep(60)
        raise AssertionError("nobody waits for so long")

    return receive


def through(door: FrontDoor, receive: Any, headers: list[tuple[bytes, bytes]] | None = None) -> Any:
    """A coroutine that sends a request through a door; the statuses of its answer."""
    told: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            told.append(message["status"])

    async def run() -> list[int]:
        scope = {"type": "http", "headers": headers or [], "raw_path": b"/", "query_string": b""}
        with anyio.fail_after(20):
            await door(scope, receive, send)
        return told

    return run


async def never(scope: Any, receive: Any, send: Any) -> None:
    """An application that is not to be reached."""
    raise AssertionError("the body is not there yet")


def test_serve_is_asked_once_the_body_is_there() -> None:
    """Whole, in one piece; one that does not come in time is 408, one without end 413: Serve hears of neither."""
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got.append(await receive())

    async def pieces() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    anyio.run(through(FrontDoor(app), pieces))
    assert got == [{"type": "http.request", "body": b"{}", "more_body": False}]
    slow = arriving([b"{", 0.05, b" ", 0.05, b" "])
    assert anyio.run(through(FrontDoor(never, body_limit_s=0.2), slow)) == [408]
    assert anyio.run(through(FrontDoor(never), arriving([b"x" * 2**20] * 9))) == [413]
    told = [(b"content-length", str(LARGEST_REQUEST_BYTES + 1).encode())]
    assert anyio.run(through(FrontDoor(never), arriving([]), told)) == [413]


def test_bodies_on_their_way_are_bounded_together() -> None:
    """The one that has taken longest makes room, not the one that comes next."""
    ended: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ended.append("served")

    door = FrontDoor(app, max_arriving_bytes=3_000)
    calls = iter([b"y" * 2_000, b""])

    async def quick() -> dict[str, Any]:
        piece = next(calls)
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    async def old(name: str, pieces: list[bytes | float]) -> None:
        assert await through(door, arriving(pieces))() == [408]
        ended.append(name)

    async def run() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(old, "oldest", [b"x" * 1_500])
            await anyio.sleep(0.05)
            await through(door, quick)()
            while "oldest" not in ended:
                await anyio.sleep(0.01)
        assert (door._arriving, door._arriving_bytes) == ({}, 0)

    with contextlib.suppress(TimeoutError):
        anyio.run(run)
    assert sorted(ended) == ["oldest", "served"]


def test_a_body_that_was_given_up_ends_its_connection() -> None:
    """Nothing of it is taken for a request, and nothing is held."""
    running = FrontDoor(never, body_limit_s=0.3)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        scope = {"type": "http", "headers": [], "raw_path": b"/", "query_string": b""}
        await running(scope, arriving([b"{"]), send)

    anyio.run(run)
    assert (b"connection", b"close") in sent[0]["headers"] and sent[0]["status"] == 408


def test_websockets_are_turned_away_at_the_door() -> None:
    """None of our pages is one, and Serve would hold a place for it."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def run() -> None:
        await FrontDoor(never)({"type": "websocket", "headers": []}, receive, send)

    anyio.run(run)
    assert sent == ["websocket.close"]


def test_clients_that_stall_keep_nobody_else_waiting(server: Server) -> None:
    """Heads that never end and answers that nobody reads: others are served, and the answers are given up."""
    body = b'{"question": "x", "stream": true}'
    asked = (
        ASK + b"Host: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    with contextlib.ExitStack() as held:
        for _ in range(100):
            held.enter_context(server.connect()).sendall(LINE + b"Host: a\r\nX-Slow: ")
        for _ in range(20):
            held.enter_context(server.connect(2_048)).sendall(asked)
        assert statuses(server.answer(LINE + HEAD + b"\r\n")) == [200]
        deadline = time.monotonic() + 30
        while server.hosts.open and time.monotonic() < deadline:
            assert statuses(server.answer(LINE + HEAD + b"\r\n")) == [200]
            time.sleep(0.1)
        assert server.hosts.open == 0


def test_serve_finds_the_front_door_under_the_name_that_it_is_given() -> None:
    """In Python's deployment and in the shipped YAML alike."""
    path = ENV["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    assert path == f"{middlewares.__module__}:{middlewares.__name__}"
    shipped = yaml.safe_load((FOLDER.parent / "k8s" / "serve.yaml").read_text(encoding="utf-8"))
    assert shipped["controller_options"]["runtime_env"]["env_vars"] == ENV
    assert [one.cls for one in middlewares()] == [FrontDoor]
