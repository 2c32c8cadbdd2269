"""Which shard owns a record: rendezvous hashing, so that every process agrees without asking."""

from __future__ import annotations

import xxhash


def shard_of(key: str, num_shards: int) -> int:
    """The shard of an article id (or of any other key): the one whose hash with the key is greatest.

    Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998).
    """
    if num_shards == 1:
        return 0
    body = key.encode("utf-8", "surrogatepass")
    hashes = [xxhash.xxh3_64_intdigest(body, seed) for seed in range(num_shards, 0, -1)]
    return num_shards - 1 - hashes.index(max(hashes))  # the last shard of several with the greatest hash
