"""A cache as bytes and back: safetensors with one metadata field and a checksum over everything."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from models.cache.config import CacheConfig

if TYPE_CHECKING:
    from models.cache.rotating import RotatingCompressiveCache
    from models.hf.backbone import HfBackbone

FORMAT = 2
"""Format 1 knew no dropped spans; it is read as having none."""
_FIELD = "dysra_cache"


class NewerSnapshot(ValueError):
    """A snapshot that a later version has written: whole, and not to be passed over as if it were damaged."""


def pack(cache: RotatingCompressiveCache) -> bytes:
    """See RotatingCompressiveCache.to_bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in cache.tensors().items()}
    about: dict[str, Any] = {
        "format": FORMAT,
        "model": cache.model,
        "dtype": str(cache.dtype),
        "config": dataclasses.asdict(cache.config),
        "tokens_seen": cache.tokens_seen,
        "counters": cache.counters(),
    }
    about["checksum"] = _checksum(about, tensors)
    return save(tensors, {_FIELD: json.dumps(about, sort_keys=True)})


def unpack(data: bytes, backbone: HfBackbone, config: CacheConfig | None) -> RotatingCompressiveCache:
    """See RotatingCompressiveCache.from_bytes."""
    try:
        tensors = load(data)
        about = json.loads(_metadata(data)[_FIELD])
        checksum = about.pop("checksum")
        intact = checksum == _checksum(about, tensors)
        _migrate(about)
    except (
        SafetensorError,
        KeyError,
        TypeError,
        AttributeError,
        UnicodeDecodeError,
        json.JSONDecodeError,
    ) as error:
        raise ValueError(f"not an intact snapshot of a cache ({error}); use an older one") from error
    if not intact:
        raise ValueError("the snapshot's checksum does not match its content; use an older one")
    if about["model"] != backbone.identity:
        raise ValueError(
            f"the snapshot was made with model {about['model']}, this backbone is {backbone.identity}; "
            "load that model, or read the stream again"
        )
    if about["dtype"] != str(backbone.dtype):
        raise ValueError(
            f"the snapshot was made in {about['dtype']}, this backbone computes in {backbone.dtype}; "
            f"load it with that dtype, or read the stream again"
        )
    stored = _config(about["config"])
    if config is not None and stored != config:
        raise ValueError(f"the snapshot has other budgets than configured: {_difference(stored, config)}")
    cache = backbone.new_cache(stored)
    own = cache.tensors()
    kinds = [{name: (t.shape, t.dtype) for name, t in side.items()} for side in (own, tensors)]
    if kinds[0] != kinds[1]:
        raise ValueError("the snapshot's tensors are not those of its configuration; use an older one")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])
    for layer in cache.stored:
        compressor = getattr(layer, "compressor", None)
        if compressor is not None:
            compressor.check()
    cache.set_counters(about["counters"])
    return cache


def _migrate(about: dict[str, Any]) -> None:
    """Bring the description of an older format to this one; NewerSnapshot for a later one."""
    found = about["format"]
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        raise (NewerSnapshot if newer else ValueError)(
            f"the snapshot has format {found}; this version reads formats 1 to {FORMAT}: "
            "use the version that wrote it, or read the stream again"
        )
    if found == 1:
        about["counters"]["dropped"] = []


def _config(fields: dict[str, Any]) -> CacheConfig:
    """Budgets as they were stored; fields that are newer than the snapshot have their defaults."""
    unknown = sorted(set(fields) - {f.name for f in dataclasses.fields(CacheConfig)})
    if unknown:
        raise NewerSnapshot(
            f"the snapshot's configuration has a field {unknown[0]!r} that this version does not know: "
            "use the version that wrote it, or read the stream again"
        )
    return CacheConfig(**fields)


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata


def _checksum(about: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    digest = xxhash.xxh3_128(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _difference(stored: CacheConfig, wanted: CacheConfig) -> str:
    pairs = [(f.name, getattr(stored, f.name), getattr(wanted, f.name)) for f in dataclasses.fields(stored)]
    return ", ".join(f"{name} {a} in the snapshot, {b} configured" for name, a, b in pairs if a != b)
