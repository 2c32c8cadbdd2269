"""The embedder as an actor: requests of many callers share batches, and questions go before articles."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from actors.metrics import metric
from actors.remote import first_line, log_in_actor
from models.embed import Embedder, EmbedderConfig, Vectors, load_embedder
from pipeline.log import get_logger

NUM_WAITING_CALLS = 64
CONCURRENCY = {"questions": 32, "control": 4}
_WINDOW_BATCHES = 8
_REQUEST_LIMIT_S = 600.0
_FAILURES_TO_RESTART = 3


@dataclass(slots=True)
class _Request:
    texts: Sequence[str]
    vectors: Vectors
    future: Future[Vectors] = field(default_factory=Future)
    missing: int = 0
    given_up: bool = False
    """Whether its caller waits no longer: nothing more is embedded for it."""


class MicroBatcher:
    """Runs one embedder in a thread of its own; `encode` may be called from many threads."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._batch_texts = max(1, getattr(embedder, "batch_texts", 16))
        self._condition = threading.Condition()
        self._urgent: list[_Request] = []
        self._pending: list[tuple[int, _Request, int]] = []
        self._closed = False
        self.busy_s = 0.0
        self.num_texts = 0
        self.num_batches = 0
        self._thread = threading.Thread(target=self._run, name="embed", daemon=True)
        self._thread.start()

    def encode(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        """Vectors float32 [N, D]; urgent requests are taken before all others, between two batches."""
        if not texts:
            return np.zeros((0, self._embedder.dim), dtype=np.float32)
        request = _Request(texts, np.empty((len(texts), self._embedder.dim), np.float32), missing=len(texts))
        with self._condition:
            if self._closed:
                raise RuntimeError("the embedder has been closed")
            if urgent:
                self._urgent.append(request)
            else:
                self._pending += [(len(text), request, row) for row, text in enumerate(texts)]
            self._condition.notify()
        try:
            return request.future.result(timeout=_REQUEST_LIMIT_S)
        except TimeoutError:
            request.given_up = True
            raise

    def close(self) -> None:
        """Finish the batch at hand and refuse the rest."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        window: list[tuple[int, _Request, int]] = []
        while True:
            with self._condition:
                while not (self._urgent or window or self._pending or self._closed):
                    self._condition.wait()
                if self._closed:
                    for request in {
                        id(r): r for r in [*self._urgent, *(e[1] for e in [*window, *self._pending])]
                    }.values():
                        request.future.set_exception(RuntimeError("the embedder has been closed"))
                    return
                urgent, self._urgent = self._urgent, []
                if not urgent and not window:
                    limit = self._batch_texts * _WINDOW_BATCHES
                    window, self._pending = self._pending[:limit], self._pending[limit:]
                    window.sort(key=lambda entry: entry[0])
            if urgent:
                self._encode([(0, request, row) for request in urgent for row in range(len(request.texts))])
                continue
            batch, window = window[-self._batch_texts :], window[: -self._batch_texts]
            self._encode(batch)

    def _encode(self, batch: list[tuple[int, _Request, int]]) -> None:
        started = time.perf_counter()
        live = [entry for entry in batch if not (entry[1].given_up or entry[1].future.done())]
        if not live:
            return
        try:
            vectors = self._embedder.encode([request.texts[row] for _, request, row in live])
        except Exception as error:
            for _, request, _ in live:
                if not request.future.done():
                    request.future.set_exception(error)
            return
        for (_, request, row), vector in zip(live, vectors, strict=True):
            request.vectors[row] = vector
            request.missing -= 1
            if request.missing == 0:
                request.future.set_result(request.vectors)
        self.busy_s += time.perf_counter() - started
        self.num_texts += len(live)
        self.num_batches += 1


class EmbedderActor:
    """A Ray shell around MicroBatcher.

    At most NUM_WAITING_CALLS calls with articles wait in it at once; questions and looks at it have places of their
    own (CONCURRENCY), so a topic that is being caught up with holds up neither.
    """

    def __init__(self, config: EmbedderConfig) -> None:
        log_in_actor()
        self._config = config
        self._batcher: MicroBatcher | None = None
        self._embedder: Embedder | None = None
        self._failure: Exception | None = None
        self._failures = 0
        try:
            self._embedder = load_embedder(config)
            self._batcher = MicroBatcher(self._embedder)
        except (ValueError, RuntimeError, OSError) as error:
            self._failure = error  # raised by every call, as itself, instead of killing the actor

    @ray.method(concurrency_group="control")
    def describe(self) -> dict[str, Any]:
        """identity, dim, max_tokens, model, precision and pid."""
        embedder, _ = self._ready()
        return {
            "identity": embedder.identity,
            "dim": embedder.dim,
            "max_tokens": embedder.max_tokens,
            "model": self._config.model,
            "precision": self._config.precision,
            "pid": os.getpid(),
        }

    def encode(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """float16 [N, D] for articles."""
        return self._encode(texts, urgent=False).astype(np.float16)

    @ray.method(concurrency_group="questions")
    def encode_questions(self, texts: Sequence[str]) -> Vectors:
        """float32 [N, D], ahead of all articles that wait."""
        return self._encode(texts, urgent=True)

    @ray.method(concurrency_group="control")
    def stats(self) -> dict[str, float]:
        """Seconds spent embedding, texts and batches since the start."""
        _, batcher = self._ready()
        return {"busy_s": batcher.busy_s, "texts": batcher.num_texts, "batches": batcher.num_batches}

    @ray.method(concurrency_group="control")
    def ping(self) -> int:
        """The process id, for health checks."""
        return os.getpid()

    def _encode(self, texts: Sequence[str], *, urgent: bool) -> Vectors:
        _, batcher = self._ready()
        try:
            vectors = batcher.encode(texts, urgent=urgent)
        except RuntimeError as error:
            self._fail(error)
            raise
        self._failures = 0
        metric("embed_batch_chunks").observe(len(texts))
        return vectors

    def _fail(self, error: RuntimeError) -> None:
        """End the process after failures in a row (a lost CUDA context stays lost); Ray starts a new one."""
        self._failures += 1
        get_logger().error("embedding_failed", error=first_line(error), failures=self._failures)
        if self._failures >= _FAILURES_TO_RESTART:
            os._exit(1)

    def _ready(self) -> tuple[Embedder, MicroBatcher]:
        if self._failure is not None:
            raise self._failure
        assert self._embedder is not None and self._batcher is not None
        return self._embedder, self._batcher
