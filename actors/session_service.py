"""A replica's sessions as asynchronous calls, without Ray: order, queues, limits, and who hung up.

What goes out are plain dicts. A refusal is one too: {"kind": "error", "status": …, "message": …}.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from actors.serve_config import ServeConfig
from pipeline.errors import DependencyUnreachable, DysraError, UsageError
from pipeline.log import get_logger
from pipeline.session.answer import Question
from pipeline.session.places import TooManySessions
from pipeline.session.pool import SessionPool
from pipeline.session.state import SessionKey
from pipeline.session.summary import SummaryRequest

T = TypeVar("T")
_CONTROL_THREADS = 8
_END = object()


class Refused(DysraError):
    """A request that is not served, with the HTTP status that says why."""

    def __init__(self, status: int, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s

    def to_event(self) -> dict[str, Any]:
        """The refusal as it travels between replicas."""
        return {
            "kind": "error",
            "status": self.status,
            "message": str(self),
            "retry_after_s": self.retry_after_s,
        }


class SessionService:
    """Questions of a session are answered one after another; those of different sessions share the model."""

    def __init__(self, pool: SessionPool, config: ServeConfig) -> None:
        self.pool = pool
        self.config = config
        self._questions = 0
        self._turns: dict[SessionKey, tuple[asyncio.Lock, int]] = {}
        self._working = ThreadPoolExecutor(config.max_questions, thread_name_prefix="answer")
        self._control = ThreadPoolExecutor(_CONTROL_THREADS, thread_name_prefix="control")
        self._log = get_logger()

    async def ask(self, key: SessionKey, question: Question) -> AsyncIterator[dict[str, Any]]:
        """The events of one answer. Closing the iterator stops the work; the session is left as it was."""
        cancelled = threading.Event()
        # No time limit may span a yield: it would strike whatever its consumer does then.
        deadline = asyncio.get_running_loop().time() + self.config.answer_timeout_s
        try:
            async with self._turn(key, deadline):
                async with asyncio.timeout_at(deadline):
                    await self._require(key)
                job = partial(self.pool.ask, key, question, cancelled)
                pumped = self._pump(self._working, job, deadline)
                async with aclosing(pumped) as events:
                    async for event in events:
                        yield {"kind": event.kind, **event.data}
        except Exception as error:
            yield self._refusal(error).to_event()
        finally:
            cancelled.set()

    async def summarize(self, key: SessionKey, request: SummaryRequest) -> dict[str, Any]:
        """A summary, or a refusal."""
        deadline = asyncio.get_running_loop().time() + self.config.answer_timeout_s
        try:
            async with self._turn(key, deadline), asyncio.timeout_at(deadline):
                await self._require(key)
                return await self._run(self._working, lambda: self.pool.summarize(key, request))
        except Exception as error:
            return self._refusal(error).to_event()

    async def create(self, key: SessionKey) -> dict[str, Any]:
        """Open the session, whether or not anything was published on its stream yet; its page."""
        try:
            resident = await self._run(self._control, lambda: self.pool.open(key))
            return resident.info()
        except Exception as error:
            return self._refusal(error).to_event()

    async def remove(self, key: SessionKey) -> dict[str, Any]:
        """Forget the session and its snapshots; whether there was one, or a refusal."""
        try:
            return {"removed": await self._run(self._control, lambda: self.pool.remove(key))}
        except Exception as error:
            return self._refusal(error).to_event()

    async def info(self, key: SessionKey, digest: bool = False) -> dict[str, Any] | None:
        """The session's page, None if there is none."""
        return await self._run(self._control, lambda: self.pool.info(key, digest=digest))

    async def infos(self, tenant: str) -> list[dict[str, Any]]:
        """The pages of the tenant's sessions held here."""
        return self.pool.infos(tenant)

    async def stored(self, tenant: str) -> list[str]:
        """Streams of which the tenant has a session on disk."""
        return await self._run(self._control, lambda: self.pool.stored(tenant))

    async def events_after(self, key: SessionKey, number: int) -> list[dict[str, Any]]:
        """The session's events later than `number`."""
        return self.pool.events_after(key, number)

    async def model(self) -> dict[str, Any]:
        """Which model answers here, and how."""
        parts = self.pool.asking
        return {"model": parts.backbone.identity, "prompt_form": parts.form, "attend": parts.config.attend}

    def check(self) -> None:
        """Raise RuntimeError if a thread that the sessions need has ended, or the model stands still."""
        if not self.pool.healthy:
            raise RuntimeError("the reader or the model thread of this replica has ended, or stands still")

    def close(self) -> list[str]:
        """Save everything and stop, within what the longest answer leaves of a drain; what could not be saved."""
        # A third for the reader's article; the rest for the snapshots, and for one that does not come to rest.
        problems = self.pool.close(self.config.saving_s / 3)
        for executor in (self._working, self._control):
            executor.shutdown(wait=False, cancel_futures=True)
        return problems

    @asynccontextmanager
    async def _turn(self, key: SessionKey, deadline: float) -> AsyncIterator[None]:
        """Wait for this session's turn; Refused with 429 where too many wait already."""
        lock, waiting = self._turns.get(key, (asyncio.Lock(), 0))
        if self._questions >= self.config.max_questions:
            raise self._busy(f"{self._questions} questions are being worked on here")
        if waiting > self.config.max_waiting_per_session:
            raise self._busy(f"{waiting} questions to stream {key.stream!r} wait already")
        self._turns[key] = (lock, waiting + 1)
        self._questions += 1
        try:
            async with asyncio.timeout_at(deadline):
                await lock.acquire()
            try:
                yield
            finally:
                lock.release()
        finally:
            self._questions -= 1
            lock, waiting = self._turns[key]
            if waiting == 1:
                del self._turns[key]
            else:
                self._turns[key] = (lock, waiting - 1)

    async def _require(self, key: SessionKey) -> None:
        if not await self._run(self._control, lambda: self.pool.known(key)):
            raise Refused(
                404,
                f"no article of stream {key.stream!r} is in the store and there is no session of it; "
                "POST /v1/streams/{id} opens one that waits for its first article",
            )

    async def _run(self, executor: ThreadPoolExecutor, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, job)

    async def _pump(
        self, executor: ThreadPoolExecutor, make: Callable[[], Iterator[T]], deadline: float
    ) -> AsyncGenerator[T, None]:
        """The items of an iterator that runs in a thread, as they come; closed with its consumer.

        TimeoutError once the event loop's clock passes `deadline`.
        """
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[Any] = asyncio.Queue()  # as many as an answer has tokens
        left = threading.Event()

        def hand(item: Any) -> None:
            if not left.is_set():
                loop.call_soon_threadsafe(items.put_nowait, item)

        def drive() -> None:
            iterator = make()
            try:
                for item in iterator:
                    if left.is_set():
                        break
                    hand(item)
            except BaseException as error:
                hand(error)
            else:
                hand(_END)
            finally:
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()

        driven = executor.submit(drive)
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    item = await items.get()
                if item is _END:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            left.set()
            driven.cancel()  # where it has not begun: no place is held for one who has left

    def _busy(self, what: str) -> Refused:
        wait_s = self.config.retry_after_s
        return Refused(429, f"{what}; try again in {wait_s} s", wait_s)

    def _refusal(self, error: Exception) -> Refused:
        if isinstance(error, Refused):
            return error
        if isinstance(error, UsageError):
            return Refused(422, str(error))
        if isinstance(error, TooManySessions):
            return Refused(409, str(error))
        if isinstance(error, TimeoutError):
            limit_s = self.config.answer_timeout_s
            return Refused(504, f"no answer within {limit_s:.0f} s", self.config.retry_after_s)
        if isinstance(error, DependencyUnreachable | DysraError):
            return Refused(503, str(error), self.config.retry_after_s)
        if isinstance(error, OSError):  # a full disk, most of all: an outage of ours
            return Refused(
                503,
                f"the session's files cannot be used: {error.strerror or type(error).__name__}",
                self.config.retry_after_s,
            )
        began = time.strftime("%H:%M:%S")
        self._log.exception("answer_failed", exc_info=error)
        return Refused(500, f"{type(error).__name__} while answering; see the replica's log at {began}")
