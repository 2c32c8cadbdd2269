"""The rotating compressive key-value cache. Names load on first use, so that a configuration needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.cache.config import CacheConfig

if TYPE_CHECKING:
    from models.cache.rotating import RotatingCompressiveCache

__all__ = ["CacheConfig", "RotatingCompressiveCache"]


def __getattr__(name: str) -> Any:
    if name == "RotatingCompressiveCache":
        from models.cache.rotating import RotatingCompressiveCache

        return RotatingCompressiveCache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
