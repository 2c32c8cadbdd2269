"""Decode over ring, latents and chosen chunks: the fused kernel against the reference, and the reference itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.kernels.latent_decode import ChosenChunks, Latents, latent_decode
from models.kernels.latent_decode.naive import rotate
from tests.models.kernels.conftest import relative_error

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def tables(places: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the usual rotary embedding."""
    angle = torch.arange(places)[:, None] / 10_000 ** (torch.arange(dim // 2) / (dim // 2))
    return angle.cos(), angle.sin()


def make_inputs(
    device: str, *, batch: int, num_q: int, q_heads: int, kv_heads: int, dim: int, slots: int, blocks: int,
    tokens: int, runs: int, rank: tuple[int, int], chosen: int, chunk: int, dtype: torch.dtype, rotary: bool = True,
    hide_first: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Random arguments; a third of the ring is free and holds NaN, and `hide_first` leaves row 0 nothing at all."""
    make = torch.Generator().manual_seed(11)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=make) * scale).to(device, dtype)

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=make).int().to(device)

    place = torch.stack([torch.randperm(slots, generator=make) for _ in range(batch)]).int().to(device)
    place[torch.rand(place.shape, generator=make).to(device) < 0.33] = -1
    arguments: dict[str, Any] = {
        "q": normal(batch, num_q, q_heads, dim),
        "ring_k": normal(batch, slots, kv_heads, dim),
        "ring_v": normal(batch, slots, kv_heads, dim),
        "q_place": torch.tensor([slots + 3] * (batch - 1) + [slots // 2], dtype=torch.int32, device=device),
    }
    latents = chunks = None
    if blocks:
        key_rank, value_rank = rank
        latents = Latents(
            normal(batch, kv_heads, blocks, tokens, key_rank),
            normal(batch, kv_heads, blocks, key_rank, dim, scale=key_rank**-0.5),
            normal(batch, kv_heads, blocks, tokens, value_rank),
            normal(batch, kv_heads, blocks, value_rank, dim, scale=value_rank**-0.5),
            integers(-1, slots, batch, blocks, runs),
        )
    if chosen:
        chunks = ChosenChunks(
            normal(7, chunk, kv_heads, dim),
            normal(7, chunk, kv_heads, dim),
            integers(-1, 7, batch, chosen),
            integers(0, slots, batch, chosen),
            integers(1, chunk + 1, 7),
        )
    if hide_first:
        place[0] = -1
        if latents is not None:
            latents.place[0] = -1
        if chunks is not None:
            chunks.pages[0] = -1
    arguments["ring_k"][place < 0] = float("nan")
    arguments["ring_v"][place < 0] = float("nan")
    cos, sin = tables(slots + chunk + num_q + 8, dim)
    arguments.update(
        ring_place=place,
        latents=latents,
        chunks=chunks,
        rotary=(cos.to(device), sin.to(device)) if rotary else None,
        return_lse=True,
    )
    return arguments


SHAPES = {
    "everything": {"blocks": 3, "tokens": 20, "runs": 4, "chosen": 3},
    "one-place-a-block": {"blocks": 3, "tokens": 16, "runs": 1, "chosen": 2},
    "every-token-its-place": {"blocks": 2, "tokens": 6, "runs": 6, "chosen": 0},
    "ring-only": {"blocks": 0, "tokens": 1, "runs": 1, "chosen": 0},
    "ring-and-chunks": {"blocks": 0, "tokens": 1, "runs": 1, "chosen": 4},
}


# Every shape in every number of splits; without rotary embedding, which is a branch of each part, once a part.
CASES = [(shape, splits, True) for shape in SHAPES for splits in (1, 3, None)]
CASES += [("everything", 3, False), ("every-token-its-place", None, False), ("ring-and-chunks", 1, False)]


@pytest.mark.parametrize(("shape", "splits", "rotary"), CASES)
def test_fused_agrees_with_naive(device: str, shape: str, splits: int | None, rotary: bool) -> None:
    """Odd sizes, free slots full of NaN, a row with nothing visible: same output and lse, zeros where empty.

    A split each: every ring tile (one here), block and chunk has a program compiled for having one.
    """
    parts = SHAPES[shape]
    splits = splits or 1 + parts["blocks"] + parts["chosen"]
    inputs = make_inputs(
        device, batch=2, num_q=3, q_heads=4, kv_heads=2, dim=32, slots=45, rank=(5, 7), chunk=16,
        dtype=torch.float32, rotary=rotary, hide_first=True, **parts,
    )  # fmt: skip
    out, lse = latent_decode(**inputs, implementation="fused", splits=splits)
    expected, expected_lse = latent_decode(**inputs, implementation="naive")
    assert relative_error(out, expected) < 2e-5
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    assert torch.equal(lse.isinf(), expected_lse.isinf())
    assert relative_error(lse[1], expected_lse[1]) < 2e-5


@pytest.mark.parametrize("given", ["expanded", "every second"])
def test_places_of_queries_may_lie_apart(device: str, given: str) -> None:
    """One place for all rows, and places with others between them: what is read is theirs."""
    inputs = make_inputs(
        device, batch=2, num_q=1, q_heads=2, kv_heads=1, dim=32, slots=45, blocks=2, tokens=16, runs=1, rank=(5, 7),
        chosen=0, chunk=1, dtype=torch.float32,
    )  # fmt: skip
    among = torch.tensor([40, 3, 21, 7], dtype=torch.int32, device=device)
    inputs["q_place"] = among[:1].expand(2) if given == "expanded" else among[::2]
    out, lse = latent_decode(**inputs, implementation="fused")
    expected, expected_lse = latent_decode(**inputs, implementation="naive")
    assert relative_error(out, expected) < 2e-5 and relative_error(lse, expected_lse) < 2e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("batch", [1, 8, 64])
def test_every_width_dtype_and_batch_on_the_gpu(dim: int, dtype: torch.dtype, batch: int) -> None:
    """Heads of 64, 128 and 256, one and four queries, as compiled for the GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False
    for num_q, runs in ((1, 1), (4, 4)):
        inputs = make_inputs(
            "cuda", batch=batch, num_q=num_q, q_heads=8, kv_heads=2, dim=dim, slots=301, blocks=5, tokens=64,
            runs=runs, rank=(24, 32), chosen=5, chunk=64, dtype=dtype,
        )  # fmt: skip
        out, _ = latent_decode(**inputs, implementation="fused")
        exact: dict[str, Any] = {
            name: value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for name, value in inputs.items()
        }
        for name in ("latents", "chunks"):
            part = inputs[name]
            fields = {field: getattr(part, field) for field in type(part).__slots__}
            exact[name] = type(part)(
                **{
                    field: x.float() if x is not None and x.is_floating_point() else x
                    for field, x in fields.items()
                }
            )
        expected, _ = latent_decode(**exact, implementation="naive")
        assert relative_error(out, expected) < TOLERANCE[dtype]


def test_full_rank_latents_at_their_own_places_are_raw_pairs() -> None:
    """Factors of full rank, each token at its own place, read as the raw pairs in the ring would."""
    inputs = make_inputs(
        "cpu", batch=1, num_q=1, q_heads=2, kv_heads=1, dim=16, slots=20, blocks=0, tokens=1, runs=1, rank=(1, 1),
        chosen=0, chunk=16, dtype=torch.float32,
    )  # fmt: skip
    old_k, old_v = torch.randn(1, 8, 1, 16), torch.randn(1, 8, 1, 16)
    place = torch.arange(8, dtype=torch.int32)
    basis = torch.eye(16).expand(1, 1, 1, 16, 16)
    latents = Latents(
        old_k.transpose(1, 2)[:, :, None],
        basis,
        old_v.transpose(1, 2)[:, :, None],
        basis,
        place.view(1, 1, 8),
    )
    found = latent_decode(**{**inputs, "latents": latents, "return_lse": False})
    raw = {
        **inputs,
        "ring_k": torch.cat([inputs["ring_k"], old_k], 1),
        "ring_v": torch.cat([inputs["ring_v"], old_v], 1),
        "ring_place": torch.cat([inputs["ring_place"], place[None]], 1),
        "return_lse": False,
    }
    whole = latent_decode(**raw)
    assert isinstance(found, torch.Tensor) and isinstance(whole, torch.Tensor)
    assert relative_error(found, whole) < 1e-5


def test_shifting_all_places_changes_nothing() -> None:
    """Only distances between places count: the cache may renumber them at any time."""
    inputs = make_inputs(
        "cpu", batch=2, num_q=2, q_heads=2, kv_heads=1, dim=32, slots=24, blocks=2, tokens=8, runs=2, rank=(4, 4),
        chosen=2, chunk=16, dtype=torch.float64,
    )  # fmt: skip
    cos, sin = tables(400, 32)
    inputs.update(rotary=(cos.double(), sin.double()), return_lse=False)
    before = latent_decode(**inputs)

    def moved(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x >= 0, x + 211, x)

    latents, chunks = inputs["latents"], inputs["chunks"]
    inputs["latents"] = Latents(
        latents.key_factor,
        latents.key_basis,
        latents.value_factor,
        latents.value_basis,
        moved(latents.place),
    )
    inputs["chunks"] = ChosenChunks(
        chunks.keys, chunks.values, chunks.pages, moved(chunks.place), chunks.lengths
    )
    inputs.update(ring_place=moved(inputs["ring_place"]), q_place=inputs["q_place"] + 211)
    after = latent_decode(**inputs)
    assert isinstance(after, torch.Tensor) and isinstance(before, torch.Tensor)
    assert relative_error(after, before) < 1e-5


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    """The rotary embedding of the reference: an isometry whose products depend on the difference of places."""
    x, y = torch.randn(1, 1, 1, 16).double(), torch.randn(1, 1, 1, 16).double()
    cos, sin = tables(64, 16)
    rotary = (cos.double(), sin.double())

    def turned(z: torch.Tensor, place: int) -> torch.Tensor:
        return rotate(z, torch.tensor([[place]]), rotary)

    assert torch.allclose(turned(x, 9).norm(), x.norm())
    assert torch.allclose(
        (turned(x, 9) * turned(y, 4)).sum(), (turned(x, 55) * turned(y, 50)).sum(), atol=1e-6
    )


def latents_of(batch: int = 1, **changes: torch.Tensor) -> Latents:
    """Three blocks of 8 tokens at rank 4 for two key heads of width 16, with `changes`."""
    factor, basis = torch.zeros(batch, 2, 3, 8, 4), torch.zeros(batch, 2, 3, 4, 16)
    fitting = {
        "key_factor": factor, "key_basis": basis, "value_factor": factor, "value_basis": basis,
        "place": torch.zeros(batch, 3, 1).int(),
    }  # fmt: skip
    return Latents(**{**fitting, **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ring_place": torch.zeros(2, 9, dtype=torch.int32)}, "ring_place"),
        ({"q_place": torch.zeros(2)}, "q_place"),
        ({"q": torch.zeros(2, 1, 3, 16)}, "multiple of the key heads"),
        ({"rotary": (torch.zeros(5, 16), torch.zeros(5, 16))}, r"\[places, 8\]"),
        (
            {
                "chunks": ChosenChunks(
                    torch.zeros(3, 16, 1, 16), torch.zeros(3, 16, 1, 16), *[torch.zeros(2, 1).int()] * 2
                )
            },
            "chunks are",
        ),
        ({"scale": 0.0}, "scale is 0.0; give a positive"),
        ({"splits": 0}, "splits is 0"),
        ({"rotary": (torch.zeros(5, 8).int(), torch.zeros(5, 8).int())}, "rotary table is torch.int32"),
        (
            {"latents": latents_of(batch=2, value_basis=torch.zeros(2, 2, 3, 4, 16).double())},
            "latents' value_basis is torch.float64 on cpu but q is torch.float32",
        ),
        (
            {
                "chunks": ChosenChunks(
                    torch.zeros(3, 16, 2, 16),
                    torch.zeros(3, 16, 2, 16).half(),
                    *[torch.zeros(2, 1).int()] * 2,
                )
            },
            "chunks' values is torch.float16",
        ),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    """Each mistake raises ValueError that names the argument and both sides."""
    inputs = make_inputs(
        "cpu", batch=2, num_q=1, q_heads=4, kv_heads=2, dim=16, slots=8, blocks=0, tokens=1, runs=1, rank=(1, 1),
        chosen=0, chunk=16, dtype=torch.float32,
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        latent_decode(**{**inputs, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"key_basis": torch.zeros(1, 2, 3, 5, 16)},
            r"key_basis is \(1, 2, 3, 5, 16\); .* must be \(1, 2, 3, 4, 16\)",
        ),
        (
            {"key_factor": torch.zeros(2, 3, 8, 4)},
            r"key_factor is \(2, 3, 8, 4\), .* as \[B, Hkv, N, tokens, rank\]",
        ),
        ({"key_factor": torch.zeros(1, 2, 3, 8, 0)}, "rank of at least 1"),
        ({"place": torch.zeros(1, 3, 3).int()}, "divides the 8 tokens"),
    ],
)
def test_latents_state_which_shape_is_wrong(change: dict[str, Any], message: str) -> None:
    """Factors that do not belong together are refused when they are put together."""
    with pytest.raises(ValueError, match=message):
        latents_of(**change)
