"""A client of the sessions' HTTP API for the shell: answers as dicts, refusals as errors with exit codes."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx

from pipeline.errors import DependencyUnreachable, DysraError, UsageError

_CONNECT_S = 5.0
_ANSWER_S = 180.0
_BUSY = (429, 502, 503, 504)


class SessionClient:
    """One connection to a service; close it, or use it as a context manager."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self._url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._http = httpx.Client(
                base_url=self._url, headers=headers, timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S)
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise UsageError(f"--url is {url!r}: {error}; give for example http://127.0.0.1:8000") from None

    def ask(self, stream: str, body: dict[str, Any]) -> dict[str, Any]:
        """One answer."""
        return self._send("POST", f"/v1/streams/{quote(stream)}/ask", body)

    def summarize(self, stream: str, body: dict[str, Any]) -> dict[str, Any]:
        """One summary."""
        return self._send("POST", f"/v1/streams/{quote(stream)}/summary", body)

    def open(self, stream: str) -> dict[str, Any]:
        """Open a session of the stream; its page."""
        return self._send("POST", f"/v1/streams/{quote(stream)}")

    def page(self, stream: str) -> dict[str, Any]:
        """The session's page."""
        return self._send("GET", f"/v1/streams/{quote(stream)}")

    def streams(self) -> list[dict[str, Any]]:
        """The pages of all sessions of the key's tenant."""
        return list(self._send("GET", "/v1/streams")["streams"])

    def close(self) -> None:
        """Let the connection go."""
        self._http.close()

    def __enter__(self) -> SessionClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, json=body)
        except httpx.UnsupportedProtocol as error:
            raise UsageError(
                f"--url is {self._url!r}: {error}; give for example http://127.0.0.1:8000"
            ) from None
        except httpx.TimeoutException:
            raise DependencyUnreachable(
                f"{self._url} did not answer in time; look at `dysra status`, or try again"
            ) from None
        except httpx.HTTPError as error:
            raise DependencyUnreachable(
                f"nothing answers at {self._url} ({error}); start it with `dysra serve`, or name it with --url"
            ) from None
        return self._result(response)

    def _result(self, response: httpx.Response) -> dict[str, Any]:
        try:
            value = response.json()
        except ValueError:
            value = None
        if response.is_success and isinstance(value, dict):
            return value
        said = value.get("error", {}).get("message") if isinstance(value, dict) else None
        message = said or f"{self._url} answered {response.status_code} and is not a DySRA service"
        if response.status_code == 401:
            message += " (here: --key KEY, or DYSRA_KEY)"
        if response.status_code in _BUSY:
            raise DependencyUnreachable(message)
        if 400 <= response.status_code < 500 or said is None:
            raise UsageError(message)
        raise DysraError(message)
