"""A memory of chunks that evicts: numbers stay, the oldest are gone, bytes are bounded, snapshots go on."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load, save

from models.cache.snapshot import NewerSnapshot
from models.subq import SubqConfig, SubqModel, SubqStream
from models.subq.memory import SEGMENT, ChunkMemory, MemoryConfig
from models.subq.snapshot import stream_from_bytes, stream_to_bytes
from tests.infra.training.subq_case import MODEL

CPU = torch.device("cpu")


def filled(
    kind: str, config: MemoryConfig, count: int, step: int
) -> tuple[ChunkMemory, torch.Tensor, torch.Tensor]:
    """A memory after `count` chunks in steps, and all landmarks and keys that went in."""
    torch.manual_seed(0)
    model = dataclasses.replace(MODEL, index=kind)
    memory = ChunkMemory(model, config, CPU)
    landmarks = torch.nn.functional.normalize(torch.randn(count, model.landmark_dim), dim=-1)
    keys = torch.randn(count, model.chunk, model.kv_heads, model.head_dim)
    ids = torch.arange(count)[:, None].expand(-1, model.chunk)
    for at in range(0, count, step):
        part = slice(at, at + step)
        memory.append(landmarks[part], keys[part], -keys[part], ids[part])
    return memory, landmarks, keys


@pytest.mark.parametrize("kind", ["flat", "groups", "ivf", "tree"])
@pytest.mark.parametrize(("count", "step"), [(100, 7), (1_000, 7), (1_000, 333), (900, 1)])
def test_only_the_newest_are_found_under_their_own_numbers(kind: str, count: int, step: int) -> None:
    """At most `most_chunks` are held; a search offers what is held and old enough, a fetch gives what went in."""
    config = MemoryConfig(most_chunks=256, landmark_dtype="float32")
    memory, landmarks, keys = filled(kind, config, count, step)
    assert len(memory) == count and count - memory.first <= 256
    assert memory.first % SEGMENT == 0 and (memory.first > 0) == (count > 256)
    held = torch.arange(memory.first, count)
    limits = torch.tensor([count - 1, memory.first + 3, memory.first - 1, -1])
    scores, found = memory.search(
        landmarks[[count - 1, memory.first + 2, memory.first, memory.first]], limits
    )
    assert int(found[0, 0]) == count - 1 and int(found[1, 0]) == memory.first + 2
    assert bool((found[2:] == -1).all()) and bool(scores[2:].isinf().all())
    assert bool(((found == -1) | ((found >= memory.first) & (found <= limits[:, None]))).all())
    key, value = memory.fetch(held)
    torch.testing.assert_close(key, keys[held])
    torch.testing.assert_close(value, -keys[held])
    assert memory.ids()[memory.first - memory.ids_first :, 0].tolist() == held.tolist()
    if memory.first:
        with pytest.raises(
            ValueError, match=f"chunk {memory.first - 1} is gone; the memory holds {memory.first}"
        ):
            memory.fetch(torch.tensor([memory.first - 1]))


@pytest.mark.parametrize("changes", [{}, {"device_bytes": 0}, {"device_bytes": 0, "host_bytes": 0}])
def test_a_stream_of_any_length_has_bounded_bytes_and_goes_on_from_its_snapshot(
    changes: dict[str, int],
) -> None:
    """Wherever chunks live; what a bounded stream can still see it reads as an unbounded one does."""
    torch.manual_seed(0)
    config = dataclasses.replace(MODEL, top_k=2, chunk=32)
    model = SubqModel(config).eval().requires_grad_(False)
    memory = MemoryConfig(most_chunks=256, compressed=False, **changes)
    stream, whole = SubqStream(model, memory), SubqStream(model, MemoryConfig())
    ids = torch.randint(3, 600, (500 * 32 + 5,))
    sizes = []
    for part in ids.split(32 * 20):
        stream.read(part)
        whole.read(part)
        sizes.append(stream.state_bytes + sum(stream.memory.nbytes.values()))
    assert len(stream.memory) == len(whole.memory) == 500 and 500 - stream.memory.first <= 256
    pair = 2 * config.chunk * config.kv_heads * config.head_dim * 4
    most = 256 * (pair + 2 * config.landmark_dim) + (256 + SEGMENT) * 4 * config.chunk
    assert max(sizes) <= most + 2 * stream.state_bytes
    assert sum(stream.memory.nbytes.values()) <= most < sum(whole.memory.nbytes.values())
    newest = torch.arange(stream.memory.first, 500)
    for ours, theirs in zip(stream.memory.fetch(newest), whole.memory.fetch(newest), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    twin = stream_from_bytes(stream_to_bytes(stream, "m"), model, "m", memory)
    more = torch.randint(3, 600, (32 * 150,))
    for each in (stream, twin):
        each.read(more)
    assert twin.memory.first == stream.memory.first > 0
    question = torch.randint(3, 600, (9,))
    torch.testing.assert_close(twin.fork().ask(question), stream.fork().ask(question), atol=1e-4, rtol=1e-3)


def test_a_stream_of_a_later_version_is_refused_and_one_of_the_first_is_read() -> None:
    """The later one by its kind, so that nobody takes it for damage and begins anew over it."""
    torch.manual_seed(0)
    model = SubqModel(MODEL).eval().requires_grad_(False)
    stream = SubqStream(model, MemoryConfig())
    stream.read(torch.randint(3, 600, (300,)))
    data = stream_to_bytes(stream, "m")

    def of_format(number: object) -> bytes:
        about = json.loads(
            json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["stream"]
        )
        kept = {name: value for name, value in about.items() if number != 1 or "first" not in name}
        return bytes(save(load(data), metadata={"stream": json.dumps({**kept, "format": number})}))

    with pytest.raises(NewerSnapshot, match="has format 3; this version reads formats 1 to 2"):
        stream_from_bytes(of_format(3), model, "m", MemoryConfig())
    for number in (0, "2", None):
        with pytest.raises(ValueError, match="has format") as refused:
            stream_from_bytes(of_format(number), model, "m", MemoryConfig())
        assert not isinstance(refused.value, NewerSnapshot)
    question = torch.randint(3, 600, (9,))
    first = stream_from_bytes(of_format(1), model, "m", MemoryConfig())
    torch.testing.assert_close(first.ask(question), stream.ask(question))


def test_a_fork_keeps_what_its_origin_evicts() -> None:
    """The two go on by themselves."""
    memory, _, keys = filled("flat", MemoryConfig(most_chunks=128), 128, 64)
    twin = memory.fork(None)
    extra = torch.randn(64, MODEL.landmark_dim)
    memory.append(extra, keys[:64], keys[:64], torch.zeros(64, MODEL.chunk))
    assert memory.first == 2 * SEGMENT and twin.first == 0 and len(twin) == 128
    torch.testing.assert_close(twin.fetch(torch.arange(4))[0], keys[:4])


@pytest.mark.parametrize(
    ("most", "top_k", "told"),
    [
        (-1, 2, "most_chunks: given -1; allowed: 0"),
        (127, 2, "or 128 and more"),
        (128, 65, "reads 65 chunks at once"),
    ],
)
def test_bounds_that_cannot_work_name_both_sides(most: int, top_k: int, told: str) -> None:
    """Less than two segments; less than the model reads at once."""
    with pytest.raises(ValueError, match=told):
        ChunkMemory(
            SubqConfig(**{**dataclasses.asdict(MODEL), "top_k": top_k}), MemoryConfig(most_chunks=most), CPU
        )
