"""A plain restatement of what a full-attention layer holds: lists of tokens, nothing packed, nothing in slots."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.cache import CacheConfig
from models.cache.scorers import Evicted, key_difference
from models.cache.spec import LayerSpec


@dataclass
class Token:
    """One pair of one KV head: its stream position, its key before rotary embedding, its value."""

    position: int
    key: Tensor
    value: Tensor
    score: float = 0.0


@dataclass
class ReferenceHead:
    """One KV head of the layer, with lossless latents and the key_difference score."""

    spec: LayerSpec
    config: CacheConfig
    sinks: list[Token] = field(default_factory=list)
    heavy: list[Token] = field(default_factory=list)
    latents: list[list[Token]] = field(default_factory=list)
    ring: list[Token] = field(default_factory=list)
    seen: int = 0

    def step(self, keys: Tensor, values: Tensor) -> None:
        """Take a step's pairs `[T, d]`, evicting first."""
        new = [Token(self.seen + i, k, v) for i, (k, v) in enumerate(zip(keys, values, strict=True))]
        pinned = max(0, self.config.sinks - self.seen)
        while len(self.ring) + len(new[pinned:]) > self._raw():
            for _ in range(self._each() if len(self.latents) < self.config.latent_blocks else 1):
                self._evict()
        self.sinks += new[:pinned]
        self.ring += new[pinned:]
        self.seen += len(new)

    def _each(self) -> int:
        """Summaries in the place of one raw block; 1 where they have a ring of their own."""
        if self.config.summaries == "own":
            return 1
        size, dim = self.config.evict_block, self.spec.head_dim
        return size * dim // (self.config.rank * (size + dim))

    def _raw(self) -> int:
        """Raw pairs that fit beside the summaries held."""
        places = 0 if self.config.summaries == "own" else len(self.latents) // self._each()
        return self.config.ring - places * self.config.evict_block

    def _evict(self) -> None:
        size = self.config.evict_block
        block = self.ring[:size]
        if self.config.heavy:
            block = self._keep_heavy(block)
        self.ring = self.ring[size:]
        if self.config.has_latents:
            self.latents = [*self.latents, block][-self.config.latent_blocks :]

    def _keep_heavy(self, block: list[Token]) -> list[Token]:
        keys = torch.stack([t.key for t in block])[None]
        ring = torch.stack([t.key for t in self.ring])[None]
        scores = key_difference(Evicted(self.spec, keys, keys, ring, keys, keys, torch.zeros(1)))[0].tolist()
        for token, score in zip(block, scores, strict=True):
            token.score = score
        best = sorted(block, key=lambda t: (-t.score, t.position))[: self.config.heavy_per_block]
        room = self.config.heavy - len(self.heavy)
        leave = max(0, len(best) - room)
        order = (lambda t: t.score) if self.config.heavy_keep == "weakest" else (lambda t: t.position)
        self.heavy = [*sorted(self.heavy, key=order)[leave:], *best]
        chosen = {t.position for t in best}
        return [t for t in block if t.position not in chosen]

    def held(self) -> dict[int, tuple[int, Token]]:
        """Every token held, by stream position, with the place it must have."""
        chunks = [t for block in self.latents for t in block] + self.ring
        if self.ring or self.latents:
            blocks_gone = (self.ring[0].position - self.config.sinks) // self.config.evict_block
            blocks_gone -= len(self.latents)
            oldest = self.config.sinks + blocks_gone * self.config.evict_block
        else:
            oldest = self.config.sinks
        shift = max(0, oldest - self.config.sinks - self.config.heavy)
        out = {t.position: (t.position, t) for t in self.sinks}
        for rank, token in enumerate(sorted(self.heavy, key=lambda t: t.position)):
            out[token.position] = (max(token.position - shift, self.config.sinks + rank), token)
        for token in chunks:
            out[token.position] = (token.position - shift, token)
        return out
