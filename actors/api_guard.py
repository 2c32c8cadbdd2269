"""What every request passes first: size, key, rate; and what every refusal looks like."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.keys import LOCAL_TENANT, Keys, RateLimit
from actors.metrics import metric
from actors.session_service import Refused
from pipeline.errors import UsageError
from pipeline.log import get_logger

_LEAVING = "dysra.leaving"
"""Where a request keeps what is to be called once its response has ended."""
BODY_LIMIT_S = 30.0
"""How long a request's body may take to arrive."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found",
    405: "invalid_request_error",
    408: "timeout",
    409: "too_many_sessions",
    413: "request_too_large",
    414: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    431: "request_too_large",
    503: "unavailable",
    504: "timeout",
}


class Tenant:
    """Who asks, and which streams they may ask (None: all)."""

    def __init__(self, name: str, streams: frozenset[str] | None = None) -> None:
        self.name = name
        self._streams = streams

    def require(self, stream: str) -> None:
        """Raise Refused unless the tenant's key is good for the stream."""
        if self._streams is not None and stream not in self._streams:
            raise Refused(403, f"this key is not good for stream {stream!r}")

    def require_all(self) -> None:
        """Raise Refused unless the tenant's key is good for every stream."""
        if self._streams is not None:
            raise Refused(403, "this key is good for some streams only, so it cannot search across all")

    def may(self, stream: str) -> bool:
        """Whether the tenant's key is good for the stream."""
        return self._streams is None or stream in self._streams


class Door:
    """Lets a request in: its key names the tenant, whose rate and requests under way are within their limits."""

    def __init__(self, keys: Keys | None, rate: RateLimit, max_ongoing: int, retry_after_s: int) -> None:
        self._keys = keys
        self._rate = rate
        self._max_ongoing = max_ongoing
        self._retry_after_s = retry_after_s
        self._ongoing: Counter[str] = Counter()

    def enter(self, request: Request) -> Tenant:
        """The tenant, counted until the response has ended; Refused with 401 or 429, or 503 while the keys cannot
        be read."""
        presented = request.headers.getlist("authorization")
        if len(presented) > 1:  # which one another server before this one has looked at is not known
            raise Refused(401, f"{len(presented)} Authorization headers came; send one: 'Bearer KEY'")
        tenant = self._identify(presented[0] if presented else "")
        wait_s = self._rate.wait_s(tenant.name)
        if wait_s > 0:
            whole = math.ceil(wait_s)
            raise Refused(429, f"tenant {tenant.name!r} asks too often; try again in {whole} s", whole)
        ongoing, wait = self._ongoing[tenant.name], self._retry_after_s
        if ongoing >= self._max_ongoing:
            what = f"tenant {tenant.name!r} has {ongoing} requests under way, as many as it may"
            raise Refused(429, f"{what}; try again in {wait} s", wait)
        leaving: list[Callable[[], None]] | None = request.scope.get(_LEAVING)
        if leaving is not None:
            self._ongoing[tenant.name] += 1
            leaving.append(lambda: self._leave(tenant.name))
        return tenant

    def _leave(self, tenant: str) -> None:
        self._ongoing[tenant] -= 1
        if not self._ongoing[tenant]:
            del self._ongoing[tenant]

    def _identify(self, header: str) -> Tenant:
        if self._keys is None:
            return Tenant(LOCAL_TENANT)
        scheme, _, presented = header.partition(" ")
        try:
            found = self._keys.tenant(presented.strip()) if scheme.lower() == "bearer" else None
        except UsageError as error:
            # The operator's fault, not the client's, who is not told where the file lies.
            get_logger().error("keys_not_read", error=str(error))
            raise Refused(503, "keys cannot be checked now; the service's operator is told", 10) from None
        if found is None:
            what = "the API key is not known" if header else "an API key is needed"
            raise Refused(401, f"{what}: send it as 'Authorization: Bearer KEY'")
        return Tenant(*found)


class Measured:
    """ASGI: refuses bodies over the limit with 413 and ones that come too slowly with 408; counts requests by route
    and status; tells when a response has ended, however it ends."""

    def __init__(self, app: ASGIApp, max_bytes: int, body_limit_s: float = BODY_LIMIT_S) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._body_limit_s = body_limit_s
        self._too_large = f"the request is larger than {max_bytes:,} bytes; send less"
        self._too_slow = f"the request's body did not arrive within {body_limit_s:g} s; send it again"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, its body bounded."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        received, arriving = 0, True
        deadline = asyncio.get_running_loop().time() + self._body_limit_s

        async def bounded() -> Message:
            nonlocal received, arriving
            if not arriving:  # the whole body is there: this waits for the client to hang up
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, self._too_slow) from None
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                arriving = bool(message.get("more_body"))
            if received > self._max_bytes:
                raise HTTPException(413, self._too_large)
            return message

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                _count(scope, message["status"])
            await send(message)

        leaving: list[Callable[[], None]] = []
        scope[_LEAVING] = leaving
        try:
            await self._app(scope, bounded, counted)
        finally:
            for leave in leaving:
                leave()

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        _count(scope, 413)
        await refusal(Refused(413, self._too_large))(scope, receive, send)


def refusal(error: Refused) -> JSONResponse:
    """A refusal as a response, in the shape that OpenAI's clients read."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 408:  # what still comes of the body would be taken for the next request
        headers["Connection"] = "close"
    return JSONResponse(error_body(error.status, str(error)), error.status, headers)


def error_body(status: int, message: str) -> dict[str, Any]:
    """The JSON of a refusal; what it quotes of a request may hold half characters, which no answer can."""
    message = message.encode("utf-8", "replace").decode("utf-8")
    return {"error": {"message": message, "type": _TYPES.get(status, "server_error"), "code": status}}


def raise_if_refused(result: Any) -> Any:
    """The result of a call to a replica, or its refusal raised here."""
    if isinstance(result, dict) and result.get("kind") == "error":
        raise Refused(result["status"], result["message"], result.get("retry_after_s"))
    return result


def install(app: FastAPI, max_bytes: int) -> None:
    """Give the application its limits and its one shape of error."""
    app.add_middleware(Measured, max_bytes=max_bytes)

    @app.exception_handler(Refused)
    async def on_refused(request: Request, error: Refused) -> JSONResponse:
        return refusal(error)

    @app.exception_handler(UsageError)
    async def on_usage(request: Request, error: UsageError) -> JSONResponse:
        return refusal(Refused(422, str(error)))

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return refusal(Refused(422, "; ".join(_problem(e) for e in error.errors()[:5])))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        message = "there is no such page; see /docs" if error.status_code == 404 else str(error.detail)
        return refusal(Refused(error.status_code, message))

    @app.exception_handler(Exception)
    async def on_failure(request: Request, error: Exception) -> JSONResponse:
        get_logger().error("request_failed", route=_route(request.scope), error=repr(error))
        return refusal(Refused(500, f"{type(error).__name__} while serving the request; see the log"))


def _problem(error: Any) -> str:
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error.get('ctx', {}).get('error', error['msg'])}"
    where = ".".join(str(part) for part in error["loc"] if part != "body") or "body"
    given = error.get("input")
    shown = (
        "" if error["type"] == "missing" or isinstance(given, dict | list) else f" (given {_short(given)})"
    )
    return f"{where}: {error['msg'].removeprefix('Value error, ')}{shown}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _route(scope: Scope) -> str:
    route = scope.get("route")
    return getattr(route, "path", "other")


def _count(scope: Scope, status: int) -> None:
    metric("requests_total").inc(tags={"route": _route(scope), "status": str(status)})
    if status == 429:
        metric("rejected_total").inc(tags={"route": _route(scope)})
