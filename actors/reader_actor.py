"""The reader as a named actor: requests of many callers share batches, and nothing is read twice.

What it has read it keeps in a file, so a reader that was killed comes back with its memory.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from actors.remote import NAMESPACE, end_actor, find_actor, log_in_actor, named_actor
from models.formats import FORMAT, check_format, format_of
from models.hf import HfBackbone, HfConfig
from models.hf.adapter import adapter_folder
from pipeline.tasks.material import Material
from pipeline.tasks.reading import MaterialReader, voice_of

Key = tuple[int, tuple[int, ...]]
Found = tuple[float, float, float]
_WAIT_S = 0.02
_KEEP_S = 30.0
_LIMIT_S = 1800.0


class BatchingReader:
    """Collects what many threads ask within 20 ms, reads what is new in one go, and remembers it."""

    def __init__(self, reader: MaterialReader, memory: Path | None = None) -> None:
        self._reader, self._memory = reader, memory
        self._known: dict[Key, Found] = _load(memory)
        self._condition = threading.Condition()
        self._waiting: list[tuple[list[Key], Future[None]]] = []
        self._closed = False
        self._kept, self._kept_at = len(self._known), time.monotonic()
        self.num_asked = self.num_batches = 0
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._thread.start()

    @property
    def num_known(self) -> int:
        """Readings remembered."""
        return len(self._known)

    def read(self, requests: Sequence[Key]) -> list[Found]:
        """(f1, loss, margin) of each request, in order; may be called from many threads."""
        keys = [(int(row), tuple(sorted(int(pick) for pick in picks))) for row, picks in requests]
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        if missing:
            future: Future[None] = Future()
            with self._condition:
                if self._closed:
                    raise RuntimeError("the reader has been closed")
                self._waiting.append((missing, future))
                self._condition.notify()
            future.result(timeout=_LIMIT_S)
        self.num_asked += len(keys)
        return [self._known[key] for key in keys]

    def close(self) -> None:
        """Finish the batch at hand, write down what was read, refuse the rest."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join(timeout=60.0)
        self._keep()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._waiting and not self._closed:
                    self._condition.wait()
                if not self._waiting:
                    return
            time.sleep(_WAIT_S)  # others ask at the same moment: their readings fill the batch
            with self._condition:
                batch, self._waiting = self._waiting, []
            asked = [key for keys, _ in batch for key in keys]
            new = [key for key in dict.fromkeys(asked) if key not in self._known]
            try:
                self._known.update(zip(new, self._reader.outcomes(new), strict=True))
                self.num_batches += 1
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
                continue
            for _, future in batch:
                future.set_result(None)
            if time.monotonic() - self._kept_at > _KEEP_S:
                self._keep()

    def _keep(self) -> None:
        self._kept_at = time.monotonic()
        if self._memory is None or len(self._known) == self._kept:
            return
        self._kept = len(self._known)
        keys = list(self._known)
        part = self._memory.with_suffix(".part.npz")
        np.savez_compressed(
            part,
            rows=np.array([row for row, _ in keys], np.int32),
            masks=np.array([sum(1 << pick for pick in picks) for _, picks in keys], np.uint64),
            found=np.array([self._known[key] for key in keys], np.float32),
            dysra_format=np.array(FORMAT),
        )
        os.replace(part, self._memory)


class ReaderActor:
    """A Ray shell around BatchingReader; the model is loaded when the actor starts."""

    def __init__(self, material: str, config: HfConfig, memory: str = "") -> None:
        log_in_actor()
        whole = Material.load(Path(material))
        backbone = HfBackbone.load(config)
        reader = MaterialReader(whole, voice_of(backbone, adapter_folder(config) is not None))
        self._reader = BatchingReader(reader, Path(memory) if memory else None)
        self._identity = backbone.identity

    def read(self, requests: Sequence[Key]) -> list[Found]:
        """(f1, loss, margin) of each (row, picks), in order."""
        return self._reader.read(requests)

    def stats(self) -> dict[str, Any]:
        """Who reads, and how much it has read."""
        reader = self._reader
        return {
            "identity": self._identity,
            "known": reader.num_known,
            "asked": reader.num_asked,
            "batches": reader.num_batches,
            "pid": os.getpid(),
        }

    def close(self) -> None:
        """Write down what was read."""
        self._reader.close()


def open_reader(
    name: str, material: Path, config: HfConfig, *, memory: Path | None = None, num_gpus: float = 0.0
) -> dict[str, Any]:
    """Start the reader called `name` unless it lives, wait until it reads, and return how to reach it.

    It restarts by itself with its memory. The result is what `rl.ppo.PpoJob` takes as `reader`.
    """
    import ray

    args = (str(material.absolute()), config, str(memory.absolute()) if memory else "")
    options: dict[str, Any] = {"max_concurrency": 32, "max_restarts": 100, "max_task_retries": 5}
    if num_gpus:
        options["num_gpus"] = num_gpus
    handle = find_actor(name) or named_actor(ReaderActor, name, *args, detached=False, **options)
    ray.get(handle.stats.remote(), timeout=900.0)
    return {"name": name, "namespace": NAMESPACE, "timeout_s": 600.0}


def close_reader(name: str, timeout_s: float = 90.0) -> None:
    """Let the reader called `name` write down what it has read, and end it; nothing happens where there is none."""
    import ray
    from ray.exceptions import RayError

    handle = find_actor(name)
    if handle is None:
        return
    with contextlib.suppress(RayError, TimeoutError):
        ray.get(handle.close.remote(), timeout=timeout_s)
    end_actor(name)


def _load(memory: Path | None) -> dict[Key, Found]:
    if memory is None or not memory.exists():
        return {}
    with np.load(memory) as packed:
        check_format(format_of(packed), memory)
        masks, found = packed["masks"], packed["found"]
        return {
            (int(row), tuple(at for at in range(64) if int(mask) >> at & 1)): (float(f), float(n), float(m))
            for row, mask, (f, n, m) in zip(packed["rows"], masks, found, strict=True)
        }
