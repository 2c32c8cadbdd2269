"""Search over all shards: one question embedded once, every shard asked, what came in time merged."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from actors.late_calls import LateCalls
from actors.metrics import metric
from actors.remote import Outage, call, first_line, unwrapped
from models.embed import Vectors
from pipeline.errors import DependencyUnreachable, DysraError
from pipeline.log import get_logger
from pipeline.merge import merge_candidates
from pipeline.store import Candidates, Passage, SearchConfig, SearchRequest

_EMBED_QUESTION_S = 15.0
_FETCH_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """Passages of each question, best first. `partial`: a shard or the embedder was missing."""

    passages: list[list[Passage]]
    partial: bool
    missing_shards: tuple[int, ...] = ()


class StoreSearch(ABC):
    """The searching half of a store client."""

    name: str
    num_shards: int
    dim: int
    search_config: SearchConfig
    late: LateCalls

    def search(
        self,
        texts: Sequence[str],
        k: int | None = None,
        mode: str | None = None,
        streams: Iterable[str] | None = None,
        sources: Iterable[str] | None = None,
        since_ms: int | None = None,
        as_of_ms: int | None = None,
        deadline_s: float | None = None,
    ) -> SearchResult:
        """The best passages for each text; raises DependencyUnreachable only when no shard answers.

        Where the embedder is missing, hybrid falls back to keywords and says so (`partial`).
        """
        started = time.monotonic()
        request = self._request(texts, k, mode, streams, sources, since_ms, as_of_ms)
        if request.mode != "bm25":
            try:
                request = replace(request, vectors=self.embed_questions(texts))
            except DependencyUnreachable:
                request = self._without_vectors(request)
        limit_s = self.search_config.deadline_s if deadline_s is None else deadline_s
        replies: dict[int, Candidates] = {}
        errors: list[BaseException] = []
        asked = self._ask_shards(request, limit_s, errors)
        refs = [ref for _, ref in asked.values()]
        done = set(ray.wait(refs, num_returns=len(refs), timeout=limit_s)[0]) if refs else set()
        for shard, (actor, ref) in asked.items():
            try:
                if ref in done:
                    replies[shard] = call(ref, _FETCH_S)
                else:
                    self.late.note(actor, ref)
                    errors.append(TimeoutError(f"shard {shard} needed more than {limit_s} s"))
            except RayError as error:
                self._forget(shard)
                errors.append(error)
            except TimeoutError as error:  # the shard did not get to it in time, and lives
                errors.append(error)
        return self._merged(request, replies, errors, mode, started)

    async def search_async(
        self,
        texts: Sequence[str],
        k: int | None = None,
        mode: str | None = None,
        streams: Iterable[str] | None = None,
        sources: Iterable[str] | None = None,
        since_ms: int | None = None,
        as_of_ms: int | None = None,
        deadline_s: float | None = None,
    ) -> SearchResult:
        """`search` for event loops: awaits, never blocks."""
        started = time.monotonic()
        request = self._request(texts, k, mode, streams, sources, since_ms, as_of_ms)
        if request.mode != "bm25":
            try:
                embedder = self._embedder()
                reply = embedder.encode_questions.remote(list(texts))
                try:
                    vectors = await asyncio.wait_for(awaited(reply), _EMBED_QUESTION_S)
                except TimeoutError:
                    self.late.note(embedder, reply)
                    raise
                request = replace(request, vectors=np.asarray(vectors, dtype=np.float32))
            except (RayError, TimeoutError, DependencyUnreachable):
                request = self._without_vectors(request)
        limit_s = self.search_config.deadline_s if deadline_s is None else deadline_s
        replies: dict[int, Candidates] = {}
        errors: list[BaseException] = []
        asked = self._ask_shards(request, limit_s, errors)
        tasks = {shard: asyncio.ensure_future(awaited(ref)) for shard, (_, ref) in asked.items()}
        if tasks:
            await asyncio.wait(tasks.values(), timeout=limit_s)
        for shard, task in tasks.items():
            if not task.done():
                task.cancel()
                self.late.note(*asked[shard])
                errors.append(TimeoutError(f"shard {shard} needed more than {limit_s} s"))
                continue
            error = task.exception()
            if error is None:
                replies[shard] = task.result()
            elif isinstance(unwrapped(error), ValueError | DysraError):
                raise unwrapped(error)
            elif isinstance(unwrapped(error), TimeoutError):
                errors.append(unwrapped(error))
            else:
                self._forget(shard)
                errors.append(error)
        return self._merged(request, replies, errors, mode, started)

    def embed_questions(self, texts: Sequence[str]) -> Vectors:
        """Vectors float32 [Q, D] of questions, ahead of the articles that wait to be embedded."""
        embedder = self._embedder()
        reply = embedder.encode_questions.remote(list(texts))
        try:
            vectors = call(reply, _EMBED_QUESTION_S)
        except Outage as error:
            self.late.note(embedder, reply)
            raise DependencyUnreachable(
                f"the embedder of {self.name} does not answer ({first_line(error)}); look at `dysra status`"
            ) from None
        return np.asarray(vectors, dtype=np.float32)

    @abstractmethod
    def _shard(self, shard: int) -> Any: ...

    @abstractmethod
    def _embedder(self) -> Any: ...

    @abstractmethod
    def _forget(self, shard: int) -> None: ...

    def _ask_shards(
        self, request: SearchRequest, limit_s: float, errors: list[BaseException]
    ) -> dict[int, tuple[Any, Any]]:
        """Each living shard's actor and a reference to its candidates, and why others were not asked (`errors`).
        A shard drops what it has not begun within `limit_s`."""
        shared = ray.put(request) if self.num_shards > 1 else request
        asked: dict[int, tuple[Any, Any]] = {}
        for shard in range(self.num_shards):
            try:
                actor = self._shard(shard)
                asked[shard] = actor, actor.candidates.remote(shared, limit_s)
            except (DependencyUnreachable, RayError) as error:
                self._forget(shard)
                errors.append(error)
        return asked

    def _request(
        self,
        texts: Sequence[str],
        k: int | None,
        mode: str | None,
        streams: Iterable[str] | None,
        sources: Iterable[str] | None,
        since_ms: int | None,
        as_of_ms: int | None,
    ) -> SearchRequest:
        chosen = mode or self.search_config.mode
        # The vectors follow once they are made; zeros of the right shape keep the request valid until then.
        placeholder = None if chosen == "bm25" else np.zeros((len(texts), self.dim), dtype=np.float32)
        return SearchRequest(
            k=self.search_config.k if k is None else k,
            mode=chosen,  # type: ignore[arg-type]
            vectors=placeholder,
            texts=None if chosen == "dense" else list(texts),
            streams=None if streams is None else frozenset(streams),
            sources=None if sources is None else frozenset(sources),
            since_ms=since_ms,
            as_of_ms=as_of_ms,
            depth=self.search_config.depth,
        )

    def _without_vectors(self, request: SearchRequest) -> SearchRequest:
        if request.mode == "dense":
            raise DependencyUnreachable(
                f"the embedder of {self.name} does not answer, and mode dense needs it; try mode bm25"
            )
        get_logger(store=self.name).warning("search_without_embedder")
        return replace(request, mode="bm25", vectors=None)

    def _merged(
        self,
        request: SearchRequest,
        replies: dict[int, Candidates],
        errors: list[BaseException],
        asked_mode: str | None,
        started: float,
    ) -> SearchResult:
        missing = tuple(shard for shard in range(self.num_shards) if shard not in replies)
        if not replies:
            reason = first_line(errors[0]) if errors else "no shard is running"
            raise DependencyUnreachable(f"no shard of {self.name} answers ({reason}); look at `dysra status`")
        partial = bool(missing) or request.mode != (asked_mode or self.search_config.mode)
        if partial:
            metric("partial_searches_total").inc()
        passages = merge_candidates(
            [replies[shard] for shard in sorted(replies)], request, self.search_config
        )
        metric("search_ms").observe(max(1.0, (time.monotonic() - started) * 1_000), {"mode": request.mode})
        return SearchResult(passages=passages, partial=partial, missing_shards=missing)


async def awaited(ref: Any) -> Any:
    """The result of a call, for asyncio's own waits."""
    return await ref
