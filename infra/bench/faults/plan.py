"""What a run of faults is asked to do, and which fault comes when: the same seed gives the same row."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from infra.bench.faults.kinds import KINDS, Kind
from pipeline.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultsConfig:
    """A run of faults."""

    faults: int = field(
        default=50, metadata={"help": "how many faults are injected, over all pieces of a run"}
    )
    seed: int = field(default=0, metadata={"help": "draws kinds, moments and places"})
    kinds: tuple[str, ...] = field(
        default=(),
        metadata={"help": "names of kinds or of places (shard, tmpfs, session, cluster); none: all"},
    )
    minutes: float = field(
        default=0.0, metadata={"help": "stop after so long with what was done; 0: no limit"}
    )
    cluster_every: int = field(
        default=12,
        metadata={"help": "one in so many faults is one of a whole cluster, which takes seconds; 0: none"},
    )
    settle_s: float = field(
        default=300.0,
        metadata={
            "help": "a fault that is not made good after so long counts as not held, s (of a shard or session: one "
            "reply of its process); what stands in a cluster is told after 90 s, or half of it"
        },
    )
    work: Path | None = field(
        default=None, metadata={"help": "folder for stores and results; none: a temporary one"}
    )
    resume: bool = field(default=False, metadata={"help": "go on after the results that are in `work`"})

    def __post_init__(self) -> None:
        if self.faults < 1:
            raise UsageError(f"--faults is {self.faults}; it must be at least 1")
        if self.minutes < 0 or self.cluster_every < 0:
            raise UsageError("--minutes and --cluster-every must not be negative")
        if self.settle_s <= 0:
            raise UsageError(f"settle_s is {self.settle_s:g}; it must be above 0")
        if self.resume and self.work is None:
            raise UsageError("--resume needs --work, the folder of the run to go on with")
        known = {*KINDS, *(kind.place for kind in KINDS.values())}
        unknown = [name for name in self.kinds if name not in known]
        if unknown:
            raise UsageError(f"--kinds names {', '.join(unknown)}; there are: {', '.join(sorted(known))}")

    def chosen(self) -> list[Kind]:
        """The kinds to draw from."""
        return [
            kind
            for kind in KINDS.values()
            if not self.kinds or kind.name in self.kinds or kind.place in self.kinds
        ]


def faults(
    config: FaultsConfig, available: set[str], without: tuple[str, ...] = ()
) -> Iterator[tuple[int, Kind]]:
    """The number and kind of every fault of the run; kinds of places that are not `available` are left out, and
    those that are named in `without`. Each kind comes once, in an order that the seed draws, before they are drawn
    by weight: a run that is long enough leaves none out."""
    kinds = [kind for kind in config.chosen() if kind.place in available and kind.name not in without]
    slow = [kind for kind in kinds if kind.place == "cluster"]
    quick = [kind for kind in kinds if kind.place != "cluster"]
    if not kinds:
        raise UsageError("no kind of fault can be injected here; look at --kinds and the notes above")
    first = {
        id(pool): random.Random(f"{config.seed}/first").sample(pool, len(pool)) for pool in (slow, quick)
    }
    for number in range(config.faults):
        draw = random.Random(f"{config.seed}/{number}")
        turn = bool(config.cluster_every) and number % config.cluster_every == config.cluster_every - 1
        pool = (slow if turn else quick) or slow or quick
        if first[id(pool)]:
            yield number, first[id(pool)].pop()
        else:
            yield number, draw.choices(pool, [kind.weight for kind in pool])[0]
