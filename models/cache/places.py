"""Where summaries of evicted blocks stand: in a ring of their own, or in the place of the raw pairs that left.

In a ring of their own the raw ring is as long as configured from the first token to the last. In the raw pairs'
place (`summaries = "in_place"`) there is one memory of `ring` pairs: while a stream is young all of it holds raw
pairs, and when it is full the oldest `each` blocks become summaries that share the place of the first of them. So
the raw window shrinks, place by place, until as many summaries are held as configured; from then on the two parts
stay as they are, and the bytes are those of the memory, at every moment.

Numbers: `N` places of a block of raw pairs, `P` summaries a place (`each`), `L` places that summaries take. Raw
block `j` stands at place `j` while nothing was evicted; later ones take the other places, oldest first, in turn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.cache.config import CacheConfig
from models.cache.latents import LatentRing
from models.cache.ring import PairRing


class OwnPlaces:
    """The raw ring keeps its length; one block leaves at a time."""

    def __init__(self, config: CacheConfig) -> None:
        self._ring = config.ring

    def capacity(self, evicted: int) -> int:
        """Raw pairs that fit after `evicted` blocks have left."""
        return self._ring

    def step(self, evicted: int) -> int:
        """Blocks that leave together then."""
        return 1


class SharedPlaces(OwnPlaces):
    """See the module's text."""

    def __init__(self, config: CacheConfig, dim: int) -> None:
        """Raises ValueError for budgets that cannot share one memory of pairs of width `dim`."""
        super().__init__(config)
        self.block, self.blocks = config.evict_block, config.ring // config.evict_block
        numbers = [rank * (config.block_tokens + dim) for rank in config.key_and_value_ranks]
        self.each = self.block * dim // max(numbers)
        if self.each < 2:
            raise ValueError(
                f"cache.summaries is in_place and cache.rank {max(config.key_and_value_ranks)}: a summary takes "
                f"{max(numbers)} numbers of the {self.block * dim} that a block of {self.block} raw pairs leaves, "
                "and at least two must fit; lower rank, raise evict_block, or keep summaries in their own ring"
            )
        self.taken, rest = divmod(config.latent_blocks, self.each)
        if rest:
            raise ValueError(
                f"cache.latent_blocks is {config.latent_blocks}; {self.each} summaries fit in the place of a block "
                f"of raw pairs, so with cache.summaries in_place it must be a multiple of {self.each}"
            )
        need = config.read_block + self.each * self.block
        left = (self.blocks - self.taken) * self.block
        if config.latent_blocks > self.blocks or left < need:
            raise ValueError(
                f"cache.ring is {config.ring}, of which {config.latent_blocks} summaries in place take "
                f"{self.taken * self.block}: {left} raw pairs are left, and read_block {config.read_block} + "
                f"{self.each} blocks of {self.block} = {need} are needed, and a ring of at least latent_blocks "
                f"x evict_block = {config.latent_blocks * self.block}; raise ring or lower latent_blocks"
            )

    def capacity(self, evicted: int) -> int:
        """See OwnPlaces.capacity."""
        summaries = min(evicted, self.taken * self.each)
        return (self.blocks - -(-summaries // self.each)) * self.block

    def step(self, evicted: int) -> int:
        """See OwnPlaces.step: until all places of summaries are taken, as many as fill one."""
        return self.each if evicted < self.taken * self.each else 1

    def of(self, blocks: Tensor) -> Tensor:
        """The places of raw blocks, by their numbers in the stream."""
        among = (blocks - self.blocks) % (self.blocks - self.taken)  # of the places that summaries leave
        within = self.taken * (self.each - 1)
        # of each first `each` places the first is taken, up to the last place taken
        later = torch.where(
            among < within,
            among + among // max(1, self.each - 1) + 1,
            among - within + self.taken * self.each,
        )
        return torch.where(blocks < self.taken * self.each, blocks, later)


def places_of(config: CacheConfig, dim: int) -> OwnPlaces:
    """What `config` wants for pairs of width `dim`."""
    return SharedPlaces(config, dim) if config.summaries == "in_place" else OwnPlaces(config)


def raw_tokens(config: CacheConfig, dim: int) -> int:
    """Raw pairs in the ring once as many summaries are held as configured: the nearest that a summary is read."""
    return places_of(config, dim).capacity(config.latent_blocks)


class SharedRing(PairRing):
    """Raw pairs in the places that `SharedPlaces` gives them; `capacity` is the whole memory's."""

    def __init__(
        self,
        places: SharedPlaces,
        num_heads: int,
        capacity: int,
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(num_heads, capacity, dim, dtype, device)
        self.places = places

    def write(self, first: int, keys: Tensor, values: Tensor) -> None:
        """See PairRing.write; there is never more than fits."""
        slots = self._slots(first, keys.shape[1])
        self.keys[:, slots] = keys.to(self.keys.dtype)
        self.values[:, slots] = values.to(self.values.dtype)

    def read(self, first: int, n: int) -> tuple[Tensor, Tensor]:
        """See PairRing.read; copies, which stay when the places are taken."""
        slots = self._slots(first, n)
        return self.keys[:, slots], self.values[:, slots]

    def _slots(self, first: int, n: int) -> Tensor:
        assert 0 <= n <= self.capacity
        counts, block = torch.arange(first, first + n, device=self.keys.device), self.places.block
        return self.places.of(counts // block) * block + counts % block


def ring_of(
    places: OwnPlaces, num_heads: int, capacity: int, dim: int, dtype: torch.dtype, device: torch.device
) -> PairRing:
    """The ring of raw pairs for such places."""
    if isinstance(places, SharedPlaces):
        return SharedRing(places, num_heads, capacity, dim, dtype, device)
    return PairRing(num_heads, capacity, dim, dtype, device)


class SharedLatents(LatentRing):
    """The factors in the places of raw pairs: keys' in the keys' memory, values' in the values'."""

    def __init__(self, ring: SharedRing, block_tokens: int, ranks: tuple[int, int]) -> None:
        places, (heads, capacity, dim) = ring.places, ring.keys.shape
        self.num_blocks, self.block_tokens = places.taken * places.each, block_tokens
        self.shared, self._each = None, places.each

        def within(memory: Tensor, rank: int) -> tuple[Tensor, Tensor]:
            numbers = rank * (block_tokens + dim)
            shape, steps = (
                (heads, places.taken, places.each),
                (capacity * dim, places.each * places.block * dim, numbers),
            )
            rows = memory.as_strided((*shape, block_tokens, rank), (*steps, rank, 1))
            return rows, memory.as_strided((*shape, rank, dim), (*steps, dim, 1), block_tokens * rank)

        self.key_rows, self.key_basis = within(ring.keys, ranks[0])
        self.value_rows, self.value_basis = within(ring.values, ranks[1])
        self.offsets = torch.zeros(
            heads, self.num_blocks, block_tokens, dtype=torch.int32, device=ring.keys.device
        )

    def tensors(self) -> dict[str, Tensor]:
        """The memory that is not the ring's."""
        return {"offsets": self.offsets}

    def _at(self, slots: Tensor | int) -> tuple[slice | Tensor | int, ...]:
        return (slice(None), slots // self._each, slots % self._each)
