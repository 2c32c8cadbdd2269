"""Faults on purpose: kill, pause, cut, flip, fill; then every id and version is compared with what was published.

`dysra bench faults`. Shards and their files are real, in processes of their own; the cluster's faults hit a real
broker, a real Ray and `dysra ingest` as an operator runs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def run(
    faults: int = 50,
    seed: int = 0,
    kinds: str = "",
    minutes: float = 0.0,
    work: str = "",
    resume: bool = False,
    cluster_every: int = 12,
    settle_s: float = 300.0,
) -> dict[str, Any]:
    """Inject `faults` faults and check after each; see FaultsConfig for what the arguments mean."""
    from infra.bench.faults.plan import FaultsConfig
    from infra.bench.faults.run import run as run_faults
    from infra.console import say

    config = FaultsConfig(
        faults=faults,
        seed=seed,
        kinds=tuple(name.strip() for name in kinds.split(",") if name.strip()),
        minutes=minutes,
        work=Path(work) if work else None,
        resume=resume,
        cluster_every=cluster_every,
        settle_s=settle_s,
    )
    return run_faults(config, say)
