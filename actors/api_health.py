"""Whether the replicas that hold sessions answer, asked once for all who want to know at the same time."""

from __future__ import annotations

import asyncio
from typing import Any

from actors.api_guard import raise_if_refused
from actors.hosts import Hosts

FRESH_S = 2.0
"""How long an answer is told again. Anybody may ask, without a key: that must not take questions' places."""
_REPLICA_S = 5.0


class Health:
    """What is known of the replicas, at most `FRESH_S` old."""

    def __init__(self, hosts: Hosts, fresh_s: float = FRESH_S) -> None:
        self._hosts = hosts
        self._fresh_s = fresh_s
        self._asked: asyncio.Task[list[dict[str, Any]]] | None = None
        self._asked_at = 0.0

    async def replicas(self) -> list[dict[str, Any]]:
        """A row a replica: rank, status (`ok`, `down`) and the reason."""
        loop = asyncio.get_running_loop()
        old = loop.time() - self._asked_at > self._fresh_s
        if self._asked is None or (self._asked.done() and old):
            self._asked_at = loop.time()
            self._asked = loop.create_task(self._ask())
        # shielded: who hangs up must not end it for the others
        return await asyncio.shield(self._asked)

    async def _ask(self) -> list[dict[str, Any]]:
        ranks = range(self._hosts.num_replicas)
        return list(await asyncio.gather(*(self._replica(rank) for rank in ranks)))

    async def _replica(self, rank: int) -> dict[str, Any]:
        try:
            async with asyncio.timeout(_REPLICA_S):
                raise_if_refused(await self._hosts.call_rank(rank, "model"))
        except Exception as error:
            return {"rank": rank, "status": "down", "reason": type(error).__name__}
        return {"rank": rank, "status": "ok"}
