"""The articles of one stream by publication time, in short sorted blocks: each comes and goes in microseconds.

One list of all would be sorted anew after every article out of time, and freed of what has left in one sweep,
both under the shard's lock and for as long as there are articles.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

_MOST = 1_024
"""Articles of a block before it is cut in two."""

Item = tuple[int, str]
"""Publication time (ms) and id of an article."""


class StreamOrder:
    """What lives in a stream, oldest first, each once; a shard's locks guard it."""

    __slots__ = ("_blocks", "_lasts")

    def __init__(self) -> None:
        self._blocks: list[list[Item]] = []  # none is empty
        self._lasts: list[Item] = []  # the last of each block

    def __len__(self) -> int:
        return sum(map(len, self._blocks))

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def __iter__(self) -> Iterator[Item]:
        for block in self._blocks:
            yield from block

    def add(self, published_ms: int, article_id: str) -> None:
        """Note an article; one that is noted already stays as it is."""
        item = (published_ms, article_id)
        if not self._blocks:
            self._blocks.append([item])
            self._lasts.append(item)
            return
        at = min(bisect_left(self._lasts, item), len(self._lasts) - 1)
        block = self._blocks[at]
        if item > block[-1]:
            block.append(item)
        else:
            place = bisect_left(block, item)
            if block[place] == item:
                return
            block.insert(place, item)
        if len(block) > _MOST:
            # most come in order: what lies before the last quarter will hardly grow
            cut = max(1, 3 * _MOST // 4)
            self._blocks.insert(at + 1, block[cut:])
            del block[cut:]
            self._lasts.insert(at, block[-1])
            at += 1
        self._lasts[at] = self._blocks[at][-1]

    def discard(self, published_ms: int, article_id: str) -> None:
        """Forget an article; nothing where it is not noted."""
        item = (published_ms, article_id)
        at = bisect_left(self._lasts, item)
        if at == len(self._lasts):
            return
        block = self._blocks[at]
        place = bisect_left(block, item)
        if block[place] != item:
            return
        del block[place]
        if block:
            self._lasts[at] = block[-1]
        else:
            del self._blocks[at], self._lasts[at]

    def newest(self, before_ms: int | None = None) -> Iterator[Item]:
        """What was published before `before_ms` (None: all), newest first. Nothing may come or go meanwhile."""
        at, until = len(self._blocks), None if before_ms is None else (before_ms, "")
        if until is not None:
            at = bisect_left(self._lasts, until)
            if at < len(self._blocks):
                block = self._blocks[at]
                yield from reversed(block[: bisect_left(block, until)])
        for block in reversed(self._blocks[:at]):
            yield from reversed(block)
