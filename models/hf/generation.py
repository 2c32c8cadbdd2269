"""Choosing the next token, and knowing when to stop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import Tensor

from models.backbone import Reluctance, Sampling

_CONTEXT = 16  # ids decoded before the held ones, so that a piece of a character is seen whole


class Sampler:
    """Draws ids with a generator of its own: the same seed and logits give the same ids."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def next(self, logits: Tensor, suppress: Sequence[int] = ()) -> int:
        """The next id from `logits [vocabulary]`, never one of `suppress`."""
        if suppress:
            logits = logits.clone()
            logits[list(suppress)] = float("-inf")
        if self._sampling.temperature == 0.0:
            return int(logits.argmax())
        shares = (logits.float().cpu() / self._sampling.temperature).softmax(-1)
        ordered, ids = shares.sort(descending=True)
        # drop what lies beyond the wanted share; the likeliest always stays
        ordered[ordered.cumsum(-1) - ordered >= self._sampling.top_p] = 0.0
        return int(ids[torch.multinomial(ordered, 1, generator=self._generator)])


def not_first(
    logits: Tensor, suppress: Sequence[int], reluctant: Reluctance | None, ends: Collection[int]
) -> list[int]:
    """The ids that may not begin an answer after `logits [vocabulary]`: `suppress`, and that of `reluctant` where
    it is the likeliest by less than its margin and the next one is none of `ends`."""
    barred = list(suppress)
    if reluctant is None or reluctant.token in barred:
        return barred
    likeliest = Sampler(Sampling())
    if likeliest.next(logits, barred) != reluctant.token:
        return barred
    other = likeliest.next(logits, [*barred, reluctant.token])
    told = logits.float().log_softmax(-1)
    if other in ends or not float(told[reluctant.token]) - float(told[other]) < reluctant.margin:
        return barred
    return [*barred, reluctant.token]


class StopTexts:
    """Holds ids back while their text might be the beginning of a stop text."""

    def __init__(self, decode: Callable[[Iterable[int]], str], stop_texts: Sequence[str]) -> None:
        if any(not text for text in stop_texts):
            raise ValueError("a stop text is empty; give texts of at least one character")
        self._decode, self._stops = decode, tuple(stop_texts)
        self._context: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> tuple[list[int], bool]:
        """Ids that are free to leave, and whether a stop text is complete.

        An id that carries part of the stop text stays behind, even if it also carries text before it.
        """
        if not self._stops:
            return [token], False
        self._held.append(token)
        text, start = self._decode([*self._context, *self._held]), len(self._decode(self._context))
        found = [at for stop in self._stops if (at := text.find(stop, start)) >= 0]
        if found:
            return self._release(min(found)), True
        return self._release(self._possible_start(text, start)), False

    def flush(self) -> list[int]:
        """The ids still held, once no more will come."""
        held, self._held = self._held, []
        return held

    def _possible_start(self, text: str, start: int) -> int:
        """Where the longest tail of `text` begins that a stop text begins with."""
        longest = max(map(len, self._stops)) - 1
        for at in range(max(start, len(text) - longest), len(text)):
            if any(stop.startswith(text[at:]) for stop in self._stops):
                return at
        return len(text)

    def _release(self, end: int) -> list[int]:
        """Let go of the held ids whose text ends at or before `end`."""
        count = len(self._held)
        while count and len(self._decode([*self._context, *self._held[:count]])) > end:
            count -= 1
        free, self._held = self._held[:count], self._held[count:]
        self._context = [*self._context, *free][-_CONTEXT:]
        return free
