"""The Serve deployment `SessionHost`: one model and the sessions of its slots, in one process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.library import StoreLibrary
from actors.metrics import metric
from actors.rank_claim import RankClaim
from actors.remote import given_up
from actors.serve_settings import ServeSettings
from actors.session_service import SessionService
from actors.slot_router import rank_of, slot_table
from actors.store_client import open_store
from pipeline.errors import UsageError
from pipeline.log import configure_logging, get_logger
from pipeline.session import SessionConfig
from pipeline.session.answer import Question
from pipeline.session.asking import AskParts
from pipeline.session.chooser import Chooser, HybridChooser
from pipeline.session.model_thread import QUESTION, ModelThread
from pipeline.session.pool import SessionPool
from pipeline.session.ports import Library
from pipeline.session.session import SessionParts
from pipeline.session.state import SessionKey
from pipeline.session.summary import SummaryRequest
from pipeline.session.tail import StreamTail

if TYPE_CHECKING:
    # Imported where it is needed: who deploys, and Serve's way in, need no torch (seconds of a processor each).
    from models.hf import HfBackbone

_METRICS_S = 5.0
_CLAIM_GRACE_S = 60.0
_DEAR = "its pair readers take about 36 s of processor time a question without a GPU (session.policy shipped: 2.8)"


@dataclass(frozen=True, slots=True)
class _Built:
    """What the sessions of a process are made of, besides its threads."""

    sessions: SessionParts
    asking: AskParts
    tails: Callable[[str], StreamTail]


def build_service(
    settings: ServeSettings, library: Library, owner: str, ours: Callable[[], bool] = lambda: True
) -> SessionService:
    """The sessions of one process over a store: loads the model, starts the threads. See SessionPool for `ours`."""
    from models.hf import HfBackbone

    model = ModelThread(silent_limit_s=settings.serve.model_silent_s)
    built = _build(settings, library, HfBackbone.load(settings.backbone), model)
    pool = SessionPool(
        sessions=built.sessions,
        asking=built.asking,
        tails=built.tails,
        root=sessions_root(settings),
        owner=owner,
        model=model,
        ours=ours,
        let_go_s=settings.serve.drain_s,  # the longest answer and its snapshot, as where a replica is stopped
    )
    return SessionService(pool, settings.serve)


def _build(settings: ServeSettings, library: Library, backbone: HfBackbone, model: ModelThread) -> _Built:
    from models.hf.adapter import adapter_folder

    config = settings.session

    def embed(texts: Any) -> Any:
        return library.embed(texts, config.search_deadline_s)

    return _Built(
        SessionParts(config=config, cache=settings.cache, limits=settings.articles, backbone=backbone),
        AskParts(
            config=config,
            backbone=backbone,
            library=library,
            chooser=chooser_of(config, embed, settings.backbone.model, str(backbone.device), backbone.words),
            runner=model.lane(QUESTION),
            adapted=adapter_folder(settings.backbone) is not None,
        ),
        lambda stream: StreamTail(settings.kafka, config, settings.articles, stream),
    )


def chooser_of(
    config: SessionConfig, embed: Any, model: str | None = None, device: str = "cpu", words: Any = None
) -> Chooser:
    """Who chooses the sentences: the policy of `session.policy`, with its promotions, else hybrid ranking.

    `model` (`backbone.model`): over whose weights a pair reader works that was trained on the reader's decoder;
    `device`: where that one reads; `words`: the model's input embedding there, which serves both. `decoder` is
    loaded at once: UsageError where it cannot be had.
    """
    hybrid = HybridChooser(embed, config.dense_sentences)
    if config.policy in (None, "", "none"):
        return hybrid
    from models.retriever.decoder_base import folder_of
    from models.retriever.storage import decoder_policy, shipped_policy
    from pipeline.session.policy_chooser import PolicyChooser

    by_name = {"shipped": shipped_policy, "decoder": decoder_policy}.get(str(config.policy))
    folder = by_name() if by_name else Path(str(config.policy)).expanduser().absolute()
    if folder is None and config.policy == "decoder":
        raise UsageError(
            "session.policy: decoder is not installed here (`make weights` copies it); allowed: shipped"
        )
    if folder is None:
        return hybrid
    base = None if model is None else partial(folder_of, model)
    chooser = PolicyChooser(
        folder, embed, hybrid, pair_reader=config.pair_reader, pair_base=base, pair_device=device,
        pair_words=words,
    )  # fmt: skip
    if config.policy == "decoder":
        try:
            chooser.load_now()
        except ValueError as error:
            raise UsageError(f"session.policy: decoder cannot serve: {error}; or take shipped") from None
        if not device.startswith("cuda"):
            get_logger().warning("policy_without_gpu", policy="decoder", device=device, cost=_DEAR)
    return chooser


def configure_service(
    service: SessionService, old: ServeSettings, new: ServeSettings, library: Library
) -> None:
    """Give running sessions other settings.

    They stay in memory, unless the model or the shape of the cache changes: then each is saved and opened again,
    and goes on as `session.other_cache` says.

    What cannot be had (a model that does not load) raises before anything changes.
    """
    from models.hf import HfBackbone

    pool = service.pool
    same_model = (old.backbone, old.cache) == (new.backbone, new.cache)
    backbone = pool.sessions.backbone if old.backbone == new.backbone else HfBackbone.load(new.backbone)
    built = _build(new, library, backbone, pool.model)
    pool.configure(built.sessions, built.asking, built.tails, reopen=not same_model)


class SessionHost:
    """A Ray shell around SessionService: rank, health, metrics, drain. Arguments and results are plain."""

    def __init__(self, settings: ServeSettings, deferred: bool = False) -> None:
        """With `deferred` the sessions wait for `reconfigure`, which Serve calls with the user_config."""
        configure_logging(os.environ.get("DYSRA_LOG", "INFO"), json_lines=True)
        # Taken here and not with the sessions: Serve asks for it once, when this returns.
        self._claim = RankClaim.claim(
            sessions_root(settings), settings.serve.replicas, settings.serve.drain_s + _CLAIM_GRACE_S
        )
        self._rank = self._claim.rank
        self._tags = {"replica": str(self._rank)}
        self._settings = with_threads(settings)
        self._current: ServeSettings | None = None
        self._refused: str | None = None
        self._changing = asyncio.Lock()
        self._reporting: asyncio.Task[None] | None = None
        self._told: dict[str, int] = {}
        if not deferred:
            self._apply(self._settings)

    async def reconfigure(self, user_config: dict[str, Any] | None) -> None:
        """Take over the sections of a Serve user_config; the sessions are kept.

        A replica that starts raises for one that cannot be had: UsageError names a wrong field. One that serves
        goes on as it was, and its pages tell why (`replica.refused`): Serve would end it, and others would fail.
        """
        async with self._changing:
            try:
                wanted = self._settings.changed(user_config or {})
                if wanted != self._current:
                    await asyncio.to_thread(self._apply, wanted)
                self._refused = None
            except Exception as error:
                if self._current is None:
                    raise
                self._refused = f"{type(error).__name__}: {error}"
                get_logger(replica=self._rank).error("user_config_refused", reason=self._refused)

    def _apply(self, settings: ServeSettings) -> None:
        if self._current is None:
            owner = f"rank{self._rank}-pid{os.getpid()}-{time.time_ns():x}"
            store = open_store(settings.store, settings.embedder, settings.search, detached=True)
            self._library = StoreLibrary(store)
            claim = self._claim
            self._service = build_service(settings, self._library, owner, lambda: claim.held)
            table = slot_table(settings.serve.slots, settings.serve.replicas)
            resumed = self._service.pool.resume(lambda key: rank_of(key.id, table) == self._rank)
            get_logger(replica=self._rank).info("replica_ready", resumed=len(resumed), owner=owner)
        else:
            configure_service(self._service, self._current, settings, self._library)
            get_logger(replica=self._rank).info("replica_configured")
        self._current = settings

    def record_replica_metadata(self) -> dict[str, Any]:
        """What the slot router knows this replica by."""
        return {"rank": self._rank}

    async def ask(self, tenant: str, stream: str, question: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The events of one answer."""
        async for event in self._service.ask(SessionKey(tenant, stream), Question(**question)):
            yield event

    async def summarize(self, tenant: str, stream: str, request: dict[str, Any]) -> dict[str, Any]:
        """A summary."""
        return await self._service.summarize(SessionKey(tenant, stream), SummaryRequest(**request))

    async def create(self, tenant: str, stream: str) -> dict[str, Any]:
        """Open a session; its page."""
        return await self._service.create(SessionKey(tenant, stream))

    async def remove(self, tenant: str, stream: str) -> dict[str, Any]:
        """Forget a session."""
        return await self._service.remove(SessionKey(tenant, stream))

    async def info(self, tenant: str, stream: str, digest: bool = False) -> dict[str, Any] | None:
        """A session's page."""
        page = await self._service.info(SessionKey(tenant, stream), digest)
        return page and {**page, "replica": self._about()}

    async def events_after(self, tenant: str, stream: str, number: int) -> list[dict[str, Any]]:
        """A session's events later than `number`."""
        return await self._service.events_after(SessionKey(tenant, stream), number)

    async def infos(self, tenant: str) -> list[dict[str, Any]]:
        """The pages of a tenant's sessions held here."""
        return await self._service.infos(tenant)

    async def stored(self, tenant: str) -> list[str]:
        """Streams of which the tenant has a session on disk."""
        return await self._service.stored(tenant)

    async def model(self) -> dict[str, Any]:
        """Which model answers here, and by which process."""
        return {**await self._service.model(), **self._about()}

    def _about(self) -> dict[str, Any]:
        """Which process this is, and the user_config that it did not take over."""
        refused = {} if self._refused is None else {"refused": self._refused}
        return {"rank": self._rank, "pid": os.getpid(), **refused}

    async def check_health(self) -> None:
        """Fail if a thread that the sessions need has ended; a slow answer is no failure."""
        self._service.check()
        if self._reporting is None or self._reporting.done():
            self._reporting = asyncio.get_running_loop().create_task(self._report())

    async def _end_if_given_up(self) -> None:
        """End this process where Ray has given its node up: the replica that was started in its place waits for its
        rank, and its sessions stay away as long as it lives."""
        if await asyncio.to_thread(given_up):
            get_logger(replica=self._rank).error("given_up")
            os._exit(1)

    async def _report(self) -> None:
        while True:
            await self._end_if_given_up()
            for name, total in self._service.pool.totals().items():
                if total > self._told.get(name, 0):
                    metric(name).inc(total - self._told.get(name, 0), tags=self._tags)
                    self._told[name] = total
            for name, value in self._service.pool.gauges().items():
                metric(name).set(value, tags=self._tags)
            await asyncio.sleep(_METRICS_S)

    def __del__(self) -> None:
        """Drain: save every session. Serve calls this once the last question has been answered."""
        service: SessionService | None = self.__dict__.pop("_service", None)
        for problem in [] if service is None else service.close():
            get_logger(replica=self._rank).warning("session_not_saved", reason=problem)
        claim: RankClaim | None = self.__dict__.pop("_claim", None)
        if claim is not None:
            claim.release()


def sessions_root(settings: ServeSettings) -> Path:
    """The folder of the sessions, as every process of this machine finds it."""
    return settings.serve.sessions_dir.expanduser().absolute()


def with_threads(settings: ServeSettings) -> ServeSettings:
    """The settings with CPU threads for the model where none were set: this machine's, shared by its replicas.

    Ray gives an actor as many threads as it reserves CPUs, which is a matter of placement and often one.
    """
    if settings.backbone.threads:
        return settings
    threads = max(1, len(os.sched_getaffinity(0)) // settings.serve.replicas)
    return replace(settings, backbone=replace(settings.backbone, threads=threads))
