"""What every HTTP request passes before Serve looks at it: headers that no honest client sends, and answers that
nobody takes.

Serve's proxy obeys some headers of the client's (its own time limit, "go on after I hang up") and fails with a 500
where their bytes are not UTF-8, all before our application, and so before any key, is asked. `deploy` has the proxy
call `middlewares` (an environment variable of Serve's controller); docs/cluster.md tells how a Serve YAML does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.api_guard import refusal
from actors.session_service import Refused

_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
ENV = {_CALLBACK: "actors.front_door:middlewares", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
"""The environment of Serve's controller: its proxies use `middlewares`, and are not ended and started anew where a
crowded machine takes longer than Serve's 5 s to start one."""

MAX_HEADER_BYTES = 32_768
MAX_HEADERS = 100
MAX_PATH_BYTES = 8_192
TAKE_LIMIT_S = 60.0
"""How long a client may leave a piece of its answer untaken."""

_REQUEST_ID = "x_request_id"
_MAX_REQUEST_ID = 128
_COMMANDS = {
    "x_request_timeout_seconds", "x_request_disconnect_disabled", "x_session_id", "serve_multiplexed_model_id",
}  # fmt: skip


class NotTaken(ConnectionError):
    """The client does not read its answer; its connection is given up."""


class FrontDoor:
    """ASGI: refuses heads that are too large, drops headers that command Serve, gives up on clients that do not
    take their answers."""

    def __init__(self, app: ASGIApp, take_limit_s: float = TAKE_LIMIT_S) -> None:
        self._app = app
        self._take_limit_s = take_limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        problem = _too_large(scope) if scope["type"] == "http" else None
        if problem is not None:
            await refusal(problem)(scope, receive, send)
            return

        async def taken(message: Message) -> None:
            try:
                async with asyncio.timeout(self._take_limit_s):
                    await send(message)
            except TimeoutError:
                raise NotTaken(f"the client took nothing for {self._take_limit_s:g} s") from None

        await self._app({**scope, "headers": harmless(scope["headers"])}, receive, taken)


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
    """What Serve's proxy puts around itself."""
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
    return None


def _printable(value: bytes) -> bool:
    return all(33 <= byte <= 126 for byte in value) and bool(value)
