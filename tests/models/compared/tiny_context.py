"""A context that the tiny model has read, and methods with settings small enough for it."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

from models.compared import method
from models.compared.kept import Kept
from models.compared.trace import Trace, read_exactly
from tests.models import tiny

N = 90
SETTINGS: dict[str, dict[str, Any]] = {
    "razor": {"copy_tokens": 20},
    "kv_compress": {"block_size": 4, "protected": 8},
    "snapkv": {"window": 8},
    "squeeze": {"share": 0.5},
}


@lru_cache(maxsize=1)
def trace() -> Trace:
    """A context of letters as the tiny model reads it."""
    return read_exactly(tiny.backbone(), [1, *tiny.ids(N - 1)])


@lru_cache(maxsize=32)
def ready(name: str) -> Any:
    """The method with small settings, prepared."""
    return method(name, **SETTINGS.get(name, {})).prepare(tiny.backbone())


def chosen(kept: Kept, head: int) -> set[int]:
    """Positions kept, for methods that leave keys at their places."""
    return set(kept.places[head].tolist())


def compressed(name: str, budget: float, **settings: Any) -> list[Kept]:
    """What the method keeps of the context."""
    made = dataclasses.replace(ready(name), **settings)
    return list(made.compress(trace(), int(trace().full_bytes * budget)))
