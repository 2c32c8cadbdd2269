"""The reader behind a name: asks a Ray actor, waits no longer than it may, finds it again after a restart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rl.episodes import Outcome, Request


class ActorReader:
    """A `Reader` that asks the named actor (`actors/reader_actor.py`); can be pickled into any process of Ray."""

    def __init__(self, name: str, namespace: str, timeout_s: float = 300.0) -> None:
        if timeout_s <= 0:
            raise ValueError(f"timeout_s: given {timeout_s}; allowed: above 0")
        self.name, self.namespace, self.timeout_s = name, namespace, timeout_s

    def read(self, requests: Sequence[Request]) -> list[Outcome]:
        """The outcomes, in order; TimeoutError where the actor gives none in time, however often it restarts."""
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        deadline = time.monotonic() + self.timeout_s
        why = "it does not exist"
        while (left := deadline - time.monotonic()) > 0:
            try:
                handle = ray.get_actor(self.name, namespace=self.namespace)
                rows = [(row, tuple(picks)) for row, picks in requests]
                told: list[Any] = ray.get(handle.read.remote(rows), timeout=left)
                return [Outcome(*found) for found in told]
            except GetTimeoutError:
                break
            except (ValueError, RayActorError) as error:
                why = str(error).splitlines()[0]
                time.sleep(min(1.0, max(0.05, left)))
        raise TimeoutError(f"reader {self.name} gave no answer within {self.timeout_s:.0f} s: {why}")
