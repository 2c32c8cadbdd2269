"""Connections of Serve's HTTP proxy with limits that its server does not set: how long a request's head may take
to come, how many bytes it and its wrapping may have, how long a closed connection may keep its last bytes, and how
many connections there are.

uvicorn waits for an unended head for ever, its parser keeps a header's bytes until the header ends, both before any
application is asked, and what it closes stays open until the client has taken all. Another protocol is put in where
uvicorn looks protocols up by name.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT_S = 20.0
"""How long a head may take: from the connection, or from the first byte after the request before."""
MAX_WRAPPING_BYTES = 65_536
"""Bytes of a head, or of chunk sizes and trailers around a body; the front door refuses smaller ones by name."""
_WRAPPING_PER_BODY_BYTE = 8
"""A body sent in chunks of one byte has six bytes around each."""
LAST_BYTES_S = 60.0
"""How long a client may leave its last bytes untaken once the connection is to be closed (at most twice that)."""
MAX_CONNECTIONS = 2_000
"""Open connections of one proxy; beyond them the one that has waited longest for a request makes room."""

_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s"
)
_BODY = (
    b'{"error":{"message":"the request\'s head is larger than %d bytes","type":"request_too_large","code":431}}'
    % MAX_WRAPPING_BYTES
)


class BoundedHttp(HttpToolsProtocol):
    """One connection; gives itself up where no head comes, and where a head has no end."""

    head_limit_s = HEAD_LIMIT_S
    last_bytes_s = LAST_BYTES_S
    max_connections = MAX_CONNECTIONS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._closing_seen = False
        self._wrapping = self._body = 0
        self.waiting_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head, and make room where there are too many connections."""
        super().connection_made(transport)
        self._await_head()
        self._look_timer = self.loop.call_later(self.last_bytes_s, self._look)
        if len(self.connections) > self.max_connections:
            waiting = [one for one in self.connections if getattr(one, "waiting_since", None) is not None]
            min(waiting, key=lambda one: one.waiting_since).give_up()  # type: ignore[union-attr]

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._head_came()
        if self._look_timer is not None:
            self._look_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, its wrapping counted."""
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()
        self._wrapping += len(data)
        super().data_received(data)
        if self._wrapping > MAX_WRAPPING_BYTES + _WRAPPING_PER_BODY_BYTE * self._body:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_REFUSAL % (len(_BODY), _BODY))
            self.give_up()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._body = 0

    def on_headers_complete(self) -> None:
        """A head has come."""
        self._head_came()
        self._wrapping = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Part of a body, which the application bounds."""
        self._wrapping -= min(self._wrapping, len(body))
        self._body += len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        """An answer has ended; until the next request the connection is one that may be given up."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self.waiting_since = self.loop.time()

    def give_up(self) -> None:
        """Hang up."""
        self._head_came()
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # it takes nothing either: closing would wait for it
        else:
            self.transport.close()

    def _look(self) -> None:
        """End a connection that was to be closed by the last look and is still there."""
        if self._closing_seen:
            self.transport.abort()
            return
        self._closing_seen = self.transport.is_closing()
        self._look_timer = self.loop.call_later(self.last_bytes_s, self._look)

    def _await_head(self) -> None:
        self.waiting_since = self.loop.time()
        self._head_timer = self.loop.call_later(self.head_limit_s, self.give_up)

    def _head_came(self) -> None:
        self.waiting_since = None
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bound_connections() -> None:
    """Have the servers that this process starts from now on use `BoundedHttp`."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedHttp.__name__}"
