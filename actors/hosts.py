"""How the HTTP layer reaches the replicas that hold sessions: through Serve handles, by session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any, Protocol

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from actors.session_service import Refused, SessionService
from actors.slot_router import RANK_KEY
from pipeline.session.answer import Question
from pipeline.session.state import SessionKey
from pipeline.session.summary import SummaryRequest


class Hosts(Protocol):
    """The replicas that hold sessions, as one."""

    num_replicas: int

    def ask(self, key: SessionKey, question: Question) -> AsyncIterator[dict[str, Any]]:
        """The events of one answer, by the session's owner."""

    async def call(self, key: SessionKey, method: str, *args: Any) -> Any:
        """The result of a method of `SessionService` at the session's owner."""

    async def call_rank(self, rank: int, method: str, *args: Any) -> Any:
        """The result of a method of `SessionService` at one replica."""


class ServeHosts:
    """Through a Serve handle; a request waits while its session's owner is being replaced, but not for ever."""

    def __init__(self, handle: Any, num_replicas: int, *, retry_after_s: int, limit_s: float) -> None:
        self.num_replicas = num_replicas
        self._handle = handle
        self._retry_after_s = retry_after_s
        self._limit_s = limit_s

    async def ask(self, key: SessionKey, question: Question) -> AsyncIterator[dict[str, Any]]:
        """The events of one answer; a full queue and a lost replica are refusals."""
        handle = self._handle.options(stream=True, session_id=key.id)
        events = handle.ask.remote(key.tenant, key.stream, asdict(question))
        deadline = asyncio.get_running_loop().time() + self._limit_s
        finished = False
        try:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        event = await anext(events)
                except StopAsyncIteration:
                    break
                except _FAILURES as error:
                    yield self._refused(error).to_event()
                    return
                yield event
            finished = True
        finally:
            if not finished:
                events.cancel()

    async def call(self, key: SessionKey, method: str, *args: Any) -> Any:
        """A method at the session's owner."""
        return await self._call(key.id, method, key.tenant, key.stream, *args)

    async def call_rank(self, rank: int, method: str, *args: Any) -> Any:
        """A method at the replica of a rank."""
        return await self._call(f"{RANK_KEY}{rank}", method, *args)

    async def _call(self, session_id: str, method: str, *args: Any) -> Any:
        response = getattr(self._handle.options(session_id=session_id), method).remote(*args)
        try:
            async with asyncio.timeout(self._limit_s):
                return await response
        except _FAILURES as error:
            return self._refused(error).to_event()

    def _refused(self, error: BaseException) -> Refused:
        wait_s = self._retry_after_s
        if isinstance(error, BackPressureError):
            return Refused(429, f"too many requests wait already; try again in {wait_s} s", wait_s)
        if isinstance(error, TimeoutError):
            return Refused(503, f"the session's replica did not answer in {self._limit_s:.0f} s", wait_s)
        return Refused(
            503, "the session's replica is being replaced; its sessions come back, ask again", wait_s
        )


_FAILURES = (BackPressureError, RayActorError, DeploymentUnavailableError, TimeoutError)


class LocalHosts:
    """One service in this process: for scripts and tests of the HTTP layer."""

    num_replicas = 1

    def __init__(self, service: SessionService) -> None:
        self._service = service

    def ask(self, key: SessionKey, question: Question) -> AsyncIterator[dict[str, Any]]:
        """The events of one answer."""
        return self._service.ask(key, question)

    async def call(self, key: SessionKey, method: str, *args: Any) -> Any:
        """A method of the service for a session."""
        if method == "summarize":
            args = (SummaryRequest(**args[0]),)
        return await getattr(self._service, method)(key, *args)

    async def call_rank(self, rank: int, method: str, *args: Any) -> Any:
        """A method of the service."""
        return await getattr(self._service, method)(*args)
