"""Questions to a shard's keyword index that outlive a bit which flips in one of its files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from pipeline.store.errors import StoreFailed
from pipeline.store.lexical import LexicalIndex

if TYPE_CHECKING:
    from pipeline.store.core import ShardCore

T = TypeVar("T")


def ask_words(core: ShardCore, ask: Callable[[LexicalIndex], T], otherwise: T | None) -> T:
    """What the keyword index answers.

    Where that fails over a damaged file the index is noted as broken, and the next maintenance makes it again; the
    answer is `otherwise` meanwhile, or StoreFailed where there is none.
    """
    try:
        return ask(core.lexical)
    except BaseException as error:  # the Rust side panics over damage, and a panic is no Exception
        damaged = core.lexical.damaged_file()
        if not damaged and isinstance(error, Exception):
            raise
        core._lexical_failed(error)
        if otherwise is not None:
            return otherwise
        raise StoreFailed(
            f"{core.folder}: keyword search failed ({damaged or error}); its index is made again within seconds, "
            "and searches by vector go on"
        ) from None
