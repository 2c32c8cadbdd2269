"""Decoding into the caches themselves: every token is read by its session, so that evictions fall due.

A step is the captured one where the backbone has it. Between two evictions nothing of a cache changes but the
newest pairs of the ring, so steps run without looking at the cache; before the first full ring the new pairs are
stored, the oldest block leaves, and what is then held is laid out anew. The block that leaves next is begun then
(models/cache/eviction.py): the host factors it while the device decodes. Tokens are those of reading one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from models.cache.compressor import Compressor
from models.cache.full_layer import RotatingLayer
from models.cache.rotating import RotatingCompressiveCache
from models.hf.captured import DecodeStep, StepKey
from models.hf.static_factors import Shapes
from models.hf.static_memory import StaticMemory, rounded

if TYPE_CHECKING:
    from models.hf.backbone import HfBackbone


class SessionDecoding:
    """Greedy decoding of `B` sessions side by side, whatever each of them holds."""

    def __init__(self, backbone: HfBackbone, caches: Sequence[RotatingCompressiveCache]) -> None:
        """Caches of one configuration. Raises ValueError for caches that cannot be decoded into in fixed shapes."""
        if not caches:
            raise ValueError("no cache is given; sessions are decoded one or more at a time")
        for cache in caches:
            backbone._own(cache)
            _check(cache, caches[0])
        self._backbone, self._caches = backbone, list(caches)
        self._room = caches[0].config.evict_block
        shapes = backbone.steps.shapes(caches)
        self._key, step = self._lent_step(shapes)
        if step is None and shapes is not None and backbone.steps.enabled:  # it would not do with factors
            shapes = None
            self._key, step = self._lent_step(None)
        self._lent = step is not None
        if step is None:
            rows, slots, places, recorded, shapes = self._key
            memory = StaticMemory(backbone.specs, rows, dict(slots), places, recorded, shapes)
            step = DecodeStep(backbone, memory, capture=False)
        self.step = step

    @property
    def fused(self) -> bool:
        """Whether latents are read as the factors that they are."""
        return self._key.shapes is not None

    def _lent_step(self, shapes: Shapes | None) -> tuple[StepKey, DecodeStep | None]:
        """A captured step for the caches, if there is one, and its key; `shapes` of latents that stay factors."""
        held, places = 0, 0
        slots: dict[int | None, int] = {}
        for layer in self._caches[0].stored:
            if isinstance(layer, RotatingLayer):
                c = layer.config
                latent = c.latent_blocks if c.has_latents else 0
                unpacked = latent * c.block_tokens if shapes is None else 0
                held = c.sinks + c.heavy + unpacked + c.ring
                # old heavy hitters stand behind the sinks, latents at their own distances
                places = max(places, c.sinks + c.heavy + (latent + 1) * c.evict_block + c.ring)
            else:
                assert layer.spec.window is not None
                held = layer.spec.window - 1
                places = max(places, held)
            slots[layer.spec.window] = max(slots.get(layer.spec.window, 0), held + self._room + 1)
        sizes = {window: rounded(need) for window, need in slots.items()}
        table = rounded(places + self._room + 1)
        return self._backbone.steps.open(len(self._caches), sizes, table, self._room, shapes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the step back and what was begun of the next evictions up; the caches stay as they are."""
        for cache in self._caches:
            cache.forget_foreseen()
        if self._lent:
            self._backbone.steps.give_back(self._key, self.step)
            self._lent = False

    @torch.no_grad()
    def run(self, tokens: Tensor, count: int) -> Tensor:
        """Read `tokens [B]` and then the likeliest next ones, `count` in all; the ids `[B, count]` that came out.

        The last id that comes out is not read.
        """
        if tokens.shape != (len(self._caches),) or count < 1:
            raise ValueError(
                f"given tokens of shape {list(tokens.shape)} and count {count}; wanted a token for each of "
                f"{len(self._caches)} sessions and a count of at least 1"
            )
        self.step.token.copy_(tokens[:, None])
        return torch.stack([self.step.best.clone() for _ in self._steps(count)], dim=1)

    @torch.no_grad()
    def logits(self, told: Tensor) -> Tensor:
        """Read `told [B, count]`, whatever comes out; the logits `[B, count, vocabulary]` after each of them."""
        if told.ndim != 2 or told.shape[0] != len(self._caches) or told.shape[1] < 1:
            raise ValueError(
                f"given tokens of shape {list(told.shape)}; wanted [{len(self._caches)}, count]: a row for each "
                "session, of at least one token"
            )
        told = told.to(self.step.token.device)
        self.step.token.copy_(told[:, :1])
        found = []
        for at, _ in enumerate(self._steps(told.shape[1]), start=1):
            found.append(self.step.logits.clone())
            if at < told.shape[1]:  # the step has put the likeliest one there
                self.step.token.copy_(told[:, at : at + 1])
        return torch.stack(found, dim=1)

    def _steps(self, count: int) -> Iterator[None]:
        """`count` steps; between two of them the step's results may be looked at and its token set."""
        done = 0
        while done < count:
            steps = min(count - done, self._open())
            for _ in range(steps):
                self.step.run()
                yield
            self._store(steps)
            done += steps

    def _open(self) -> int:
        """Evict what is due for one more token, lay out what is held; how many tokens may follow."""
        free = self._room
        for row, cache in enumerate(self._caches):
            for layer in cache.stored:
                layer.make_room(1)
                if isinstance(layer, RotatingLayer):
                    free = min(free, layer.free)
            self.step.memory.lay_cache(row, cache)
        return free

    def _store(self, steps: int) -> None:
        """Let the caches hold the pairs of the last `steps` tokens."""
        for row, cache in enumerate(self._caches):
            for at, layer in enumerate(cache.stored):
                layer.append(*self.step.memory.raw(at, row, steps))


def _check(cache: RotatingCompressiveCache, first: RotatingCompressiveCache) -> None:
    if cache.config != first.config:
        raise ValueError(
            "the caches have different configurations; decode sessions of one configuration together"
        )
    if cache.pending:
        raise ValueError(
            f"the cache has {len(cache.pending)} tokens that wait for a whole step of {cache.config.read_block}; "
            "read whole steps before decoding into it"
        )
    for layer in cache.stored:
        if not isinstance(layer, RotatingLayer):
            continue
        learns = layer.compressor is not None and type(layer.compressor).observe is not Compressor.observe
        if learns or layer.queries.shape[1]:
            raise ValueError(
                f"layer {layer.spec.index} learns from every query (compressor {layer.config.compressor}, scorer "
                f"{layer.config.heavy_scorer}); decode into such a cache by reading token by token"
            )
