"""A stream as bytes and back, with identical continuation."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from models.cache.snapshot import NewerSnapshot
from models.subq.memory import MemoryConfig
from models.subq.model import BlockState, SubqModel
from models.subq.streaming import SubqStream

_FORMAT = 2
"""Format 1 knew no memory that evicts; it is read as having evicted nothing."""


def stream_to_bytes(stream: SubqStream, model: str) -> bytes:
    """Block states, what waits, and all chunks of the memory, as one safetensors file."""
    tensors: dict[str, Tensor] = {}
    for half, states in (("lower", stream._lower), ("upper", stream._upper)):
        for at, state in enumerate(states or []):
            tensors[f"{half}.{at}.inputs"] = state.inputs
            for part, tensor in enumerate(state.mixer):
                tensors[f"{half}.{at}.mixer.{part}"] = tensor
    for name, held in (("recent", stream._recent), ("waiting", stream._waiting)):
        if held is not None:
            tensors[name] = held
    for at, query in stream._queries.items():
        tensors[f"query.{at}"] = query
    if stream.model.encoder is not None and len(stream.memory):
        tensors["memory.landmarks"] = stream.memory.index.landmarks()
        keys, values, copied = stream.memory.split(stream.memory.all_rows())
        tensors["memory.kv"] = torch.stack((keys, values), 2)
        if copied is not None:
            tensors["memory.copied"] = copied
        tensors["memory.ids"] = stream.memory.ids()
    about = {
        "format": _FORMAT, "model": model, "seen": stream.seen, "anchor": stream._anchor,
        "recent_ids": stream._recent_ids, "first": stream.memory.first, "ids_first": stream.memory.ids_first,
    }  # fmt: skip
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return bytes(save(plain, metadata={"stream": json.dumps(about)}))


def stream_from_bytes(data: bytes, model: SubqModel, identity: str, memory: MemoryConfig) -> SubqStream:
    """What `stream_to_bytes` gave; raises ValueError for bytes of another model or of nothing of ours,
    its kind NewerSnapshot for what a later version wrote."""
    about = _about(data)
    found = about.get("format")
    if found not in (1, _FORMAT):
        newer = isinstance(found, int) and found > _FORMAT
        raise (NewerSnapshot if newer else ValueError)(
            f"the snapshot has format {found}; this version reads formats 1 to {_FORMAT}: "
            "use the version that wrote it, or read the stream again"
        )
    if about["model"] != identity:
        raise ValueError(f"the cache belongs to model {about['model']}, this backbone is {identity}")
    tensors = {name: tensor.to(model.device) for name, tensor in load(data).items()}
    stream = SubqStream(model, memory)
    stream.seen, stream._anchor = int(about["seen"]), int(about["anchor"])
    stream._recent_ids = [int(i) for i in about["recent_ids"]]
    stream._lower, stream._upper = (_states(tensors, half) for half in ("lower", "upper"))
    stream._recent, stream._waiting = tensors.get("recent"), tensors.get("waiting")
    stream._queries = {
        int(name.split(".")[1]): tensor for name, tensor in tensors.items() if name.startswith("query.")
    }
    if "memory.kv" in tensors:
        kv, ids = tensors["memory.kv"], tensors["memory.ids"]
        first, ids_first = int(about.get("first", 0)), int(about.get("ids_first", 0))
        stream.memory.start_at(first, ids_first, ids[: first - ids_first])
        stream.memory.append(
            tensors["memory.landmarks"], kv[:, :, 0], kv[:, :, 1], ids[first - ids_first :],
            tensors.get("memory.copied"),
        )  # fmt: skip
    return stream


def _states(tensors: dict[str, Tensor], half: str) -> list[BlockState] | None:
    states: list[BlockState] = []
    while f"{half}.{len(states)}.inputs" in tensors:
        at = f"{half}.{len(states)}"
        parts = sum(name.startswith(f"{at}.mixer.") for name in tensors)
        states.append(
            BlockState(tensors[f"{at}.inputs"], tuple(tensors[f"{at}.mixer.{part}"] for part in range(parts)))
        )
    return states or None


def _about(data: bytes) -> dict[str, Any]:
    """The description in the file's header: eight bytes of its length, then JSON."""
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        about: dict[str, Any] = json.loads(header["__metadata__"]["stream"])
    except (ValueError, KeyError, UnicodeDecodeError) as error:
        raise ValueError("these bytes are no snapshot of a subq stream") from error
    return about
