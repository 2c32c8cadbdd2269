"""The forkserver of a worker's tests: it has imported what their processes need, so that each starts in no time.

It starts once and takes no other list afterwards, so there is one for all files.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

_PRELOAD = ["infra.bench.faults.shard_worker", "tests.pipeline.store.kill_writer"]


def forkserver() -> ForkServerContext:
    """The context to start processes with."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context
