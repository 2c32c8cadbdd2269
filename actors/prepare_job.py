"""Shards made by Ray Data: an actor pool in which each actor opens its sources once and makes shard after shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from actors.remote import unwrapped
from pipeline.errors import DysraError

Task = dict[str, Any]
MakeShard = Callable[[Task], dict[str, Any]]


class _Shell:
    """One actor of the pool: `open_maker()` gives the function that makes a shard of a task."""

    def __init__(self, open_maker: Callable[[], MakeShard]) -> None:
        self._make = open_maker()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"note": [json.dumps(self._make(json.loads(str(task)))) for task in batch["task"]]}


def make_shards(
    open_maker: Callable[[], MakeShard], tasks: Sequence[Task], workers: int
) -> Iterator[dict[str, Any]]:
    """The notes of all tasks' shards as they are done, in any order; Ray must run already.

    An error of ours that a shard raised is raised here as itself; shards done before stay.
    """
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext
    from ray.exceptions import RayError

    context = DataContext.get_current()
    context.enable_progress_bars = False
    rows = [{"task": json.dumps(task)} for task in tasks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Shell,
        fn_constructor_args=(open_maker,),
        batch_size=1,
        compute=ActorPoolStrategy(size=max(1, min(workers, len(rows)))),
        num_cpus=1,
    )
    try:
        for row in dataset.iter_rows():
            yield json.loads(row["note"])
    except RayError as error:
        cause: BaseException | None = unwrapped(error)
        while cause is not None and not isinstance(cause, DysraError | ValueError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            told = str(unwrapped(error)).strip().splitlines() or [type(error).__name__]
            raise DysraError(
                f"a shard could not be made: {told[-1]}; mend the cause, and the same command makes what is missing"
            ) from error
        raise cause from None
