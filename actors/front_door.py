"""What every HTTP request passes before Serve looks at it: headers that no honest client sends, bodies that come
slowly, and answers that nobody takes.

Serve's proxy obeys some headers of the client's (its own time limit, "go on after I hang up") and fails with a 500
where their bytes are not UTF-8; it gives a request one of the ingress' places while its body is still on the way,
and reads ahead of the application without a bound: all before our application, and so before any key, is asked.
`deploy` has the proxy call `middlewares` (an environment variable of Serve's controller); docs/operating.md tells
how a Serve YAML does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.api_guard import BODY_LIMIT_S, refusal
from actors.serve_config import LARGEST_REQUEST_BYTES
from actors.session_service import Refused
from pipeline.log import get_logger

_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
ENV = {
    _CALLBACK: "actors.front_door:middlewares",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
}
"""The environment of Serve's controller: its proxies use `middlewares`, and are not ended and started anew where a
crowded machine takes longer than Serve's 5 s to start one; a replica that no longer answers its health checks is
ended at once, for nobody answers there, and its sessions would wait for all of `serve.drain_s`."""

MAX_HEADER_BYTES = 32_768
MAX_HEADERS = 100
MAX_PATH_BYTES = 8_192
MAX_ARRIVING_BYTES = 64 * 2**20
"""Bytes of bodies that have not ended, of all requests; beyond them the one that has taken longest is given up."""
TAKE_LIMIT_S = 60.0
"""How long a client may leave a piece of its answer untaken."""

_TOO_LARGE = f"the request is larger than {LARGEST_REQUEST_BYTES:,} bytes; send less"
_REQUEST_ID = "x_request_id"
_MAX_REQUEST_ID = 128
_COMMANDS = {
    "x_request_timeout_seconds", "x_request_disconnect_disabled", "x_session_id", "serve_multiplexed_model_id",
}  # fmt: skip


class NotTaken(ConnectionError):
    """The client does not read its answer; its connection is given up."""


class _Body:
    """A body on its way."""

    __slots__ = ("limit", "size")

    def __init__(self) -> None:
        self.size = 0
        self.limit: asyncio.Timeout | None = None


class FrontDoor:
    """ASGI: refuses heads that are too large, drops headers that command Serve, hands a request on once its body is
    there, gives up on clients that do not take their answers."""

    def __init__(
        self,
        app: ASGIApp,
        take_limit_s: float = TAKE_LIMIT_S,
        body_limit_s: float = BODY_LIMIT_S,
        max_arriving_bytes: int = MAX_ARRIVING_BYTES,
    ) -> None:
        self._app = app
        self._take_limit_s = take_limit_s
        self._body_limit_s = body_limit_s
        self._max_arriving_bytes = max_arriving_bytes
        self._arriving: dict[int, _Body] = {}  # by age: Python keeps the order in which they came
        self._arriving_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "websocket":  # none of our pages is one
            await receive()
            await send({"type": "websocket.close", "code": 1003})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        problem = _too_large(scope)
        body = b"" if problem else await self._whole(receive)
        if body is None:
            return
        if isinstance(body, Refused):
            problem = body
        if problem is not None:
            await refusal(problem)(scope, receive, send)
            return
        first = [{"type": "http.request", "body": body, "more_body": False}]

        async def arrived() -> Message:
            return first.pop() if first else await receive()

        async def taken(message: Message) -> None:
            try:
                async with asyncio.timeout(self._take_limit_s):
                    await send(message)
            except TimeoutError:
                raise NotTaken(f"the client took nothing for {self._take_limit_s:g} s") from None

        await self._app({**scope, "headers": harmless(scope["headers"])}, arrived, taken)

    async def _whole(self, receive: Receive) -> bytes | Refused | None:
        """The body, or why it is not waited for any longer; None where the client has hung up."""
        arriving, pieces = _Body(), []
        try:
            async with asyncio.timeout(self._body_limit_s) as arriving.limit:
                self._arriving[id(arriving)] = arriving
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    piece = message.get("body", b"")
                    if piece:
                        pieces.append(piece)
                        arriving.size += len(piece)
                        self._arriving_bytes += len(piece)
                    if arriving.size > LARGEST_REQUEST_BYTES:
                        return Refused(413, _TOO_LARGE)
                    if not message.get("more_body"):
                        return b"".join(pieces)
                    if self._arriving_bytes > self._max_arriving_bytes:
                        self._make_room()
        except TimeoutError:
            return Refused(408, "the request's body did not arrive in time; send it again")
        finally:
            del self._arriving[id(arriving)]
            self._arriving_bytes -= arriving.size

    def _make_room(self) -> None:
        """Give the body up that has been on its way for longest, and holds something."""
        for body in self._arriving.values():
            if body.size and body.limit is not None and not body.limit.expired():
                body.limit.reschedule(0.0)
                return


def harmless(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers without those that command Serve, and without a request's name that is none."""
    kept = []
    for name, value in headers:
        plain = name.decode("latin-1").lower().replace("-", "_")
        named = plain == _REQUEST_ID and not (len(value) <= _MAX_REQUEST_ID and _printable(value))
        if plain not in _COMMANDS and not named:
            kept.append((name, value))
    return kept


def middlewares() -> list[Any]:
    """What Serve's proxy puts around itself; its connections are bounded from then on."""
    try:
        # Here, not above: where httptools is not installed, uvicorn has another parser, which bounds a head's bytes
        # by itself, though not its time.
        from actors.connections import bound_connections
    except ImportError as error:
        get_logger().warning("connections_not_bounded", reason=str(error))
    else:
        bound_connections()
    return [Middleware(FrontDoor)]


def _too_large(scope: Scope) -> Refused | None:
    headers = scope["headers"]
    size = sum(len(name) + len(value) for name, value in headers)
    if size > MAX_HEADER_BYTES or len(headers) > MAX_HEADERS:
        return Refused(
            431,
            f"the request has {len(headers):,} headers of {size:,} bytes; at most {MAX_HEADERS} of together "
            f"{MAX_HEADER_BYTES:,} bytes are read",
        )
    asked = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    if asked > MAX_PATH_BYTES:
        return Refused(414, f"the address has {asked:,} bytes; at most {MAX_PATH_BYTES:,} are read")
    length = dict(headers).get(b"content-length", b"")
    if length.isdigit() and int(length) > LARGEST_REQUEST_BYTES:
        return Refused(413, _TOO_LARGE)
    return None


def _printable(value: bytes) -> bool:
    return all(33 <= byte <= 126 for byte in value) and bool(value)
