"""Sparse attention: the fused kernels against the plain reference, forward and gradients."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from models.kernels.sparse_attention import invert_indices, sparse_attention
from models.kernels.sparse_attention.inverse import _invert_by_sorting
from tests.models.kernels.conftest import relative_error

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2}
Tensors = dict[str, torch.Tensor]
HOPPER_KINDS = list(
    itertools.product([64, 128], [torch.bfloat16, torch.float16], [1, 2])
)  # width, dtype, form


def kinds(*chosen: int) -> list[Any]:
    """Every kind with each number of chunks, an index for all heads or for each by turns: each case is compiled."""
    cases = enumerate(itertools.product(HOPPER_KINDS, chosen))
    return [(*kind, each, 1 + (case + case // len(chosen)) % 2) for case, (kind, each) in cases]


def make_inputs(
    device: str, *, batch: int, num_q: int, num_k: int, q_heads: int, kv_heads: int, dim: int, index_heads: int,
    chosen: int, block_q: int, chunk: int, dtype: torch.dtype, mixed: bool, empty: float = 0.2,
) -> Tensors:  # fmt: skip
    """Random inputs; the first query block of the first row chose nothing."""
    make = torch.Generator().manual_seed(7)
    blocks, chunks = -(-num_q // block_q), -(-num_k // chunk)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=make).to(device, dtype)

    order = torch.rand(batch, blocks, index_heads, max(chunks, chosen), generator=make).argsort(-1)[
        ..., :chosen
    ]
    indices = order.masked_fill(order >= chunks, -1)
    indices[torch.rand(indices.shape, generator=make) < empty] = -1
    indices[0, 0] = -1
    inputs = {
        "q": normal(batch, num_q, q_heads, dim),
        "k": normal(batch, num_k, kv_heads, dim),
        "v": normal(batch, num_k, kv_heads, dim),
        "grad": normal(batch, num_q, q_heads, dim),
        "indices": indices.int().to(device),
    }
    if mixed:
        inputs["weights"] = torch.rand(indices.shape, generator=make).to(device)
    return inputs


def run(inputs: Tensors, implementation: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensors:
    """Output and gradients of one implementation, inputs cast to `dtype` first if given."""
    leaves = {
        name: inputs[name].detach().clone().to(dtype or inputs[name].dtype).requires_grad_()
        for name in ("q", "k", "v", "weights")
        if name in inputs
    }
    out = sparse_attention(
        leaves["q"],
        leaves["k"],
        leaves["v"],
        inputs["indices"],
        chunk_weights=leaves.get("weights"),
        implementation=implementation,
        **options,
    )
    assert isinstance(out, torch.Tensor)
    grads = torch.autograd.grad(out, list(leaves.values()), inputs["grad"].to(out.dtype))
    return {"out": out, **{f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}}


def assert_agree(inputs: Tensors, tolerance: float, **options: Any) -> None:
    """The fused kernel's output and gradients are those of the reference on the same values in float32."""
    fused = run(inputs, "fused", **options)
    options.pop("deterministic", None)
    naive = run(inputs, "naive", torch.float32, **options)
    errors = {name: relative_error(fused[name], naive[name]) for name in naive}
    assert {name: error for name, error in errors.items() if not error <= tolerance} == {}


@pytest.mark.parametrize(
    ("mixed", "causal", "deterministic"),  # each pair of choices is met
    [(False, False, False), (False, True, True), (True, False, True), (True, True, False)],
    ids=["open-atomics", "causal-inverted-list", "mixed-open-inverted-list", "mixed-causal-atomics"],
)
def test_fused_agrees_with_naive_at_odd_sizes(
    device: str, mixed: bool, causal: bool, deterministic: bool
) -> None:
    """Lengths that divide nothing, empty slots, grouped heads, choices per key head: same output and gradients."""
    inputs = make_inputs(
        device, batch=2, num_q=21, num_k=75, q_heads=4, kv_heads=2, dim=16, index_heads=2, chosen=3, block_q=16,
        chunk=16, dtype=torch.float32, mixed=mixed,
    )  # fmt: skip
    assert_agree(
        inputs, 2e-5, chunk_size=16, block_q=16, causal=causal, query_start=40, deterministic=deterministic
    )


@pytest.mark.parametrize("block_q", [1, 8])
def test_choice_can_differ_for_every_query(device: str, block_q: int) -> None:
    """Blocks smaller than a matrix tile, down to one query, with one choice for all heads."""
    inputs = make_inputs(
        device, batch=1, num_q=19, num_k=100, q_heads=6, kv_heads=2, dim=64, index_heads=1, chosen=2,
        block_q=block_q, chunk=32, dtype=torch.float32, mixed=False,
    )  # fmt: skip
    assert_agree(inputs, 2e-5, chunk_size=32, block_q=block_q)


@pytest.mark.gpu
@pytest.mark.parametrize("mixed", [False, True], ids=["one-softmax", "softmax-per-chunk"])
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("deterministic", [False, True], ids=["atomics", "inverted-list"])
def test_every_width_and_dtype_on_the_gpu(
    dim: int, dtype: torch.dtype, mixed: bool, deterministic: bool
) -> None:
    """Heads of 64, 128 and 256 in both dtypes, as compiled for the GPU: output and gradients against float32."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False
    for num_k, chosen in ((640, 4), (1_000, 9)):
        inputs = make_inputs(
            "cuda", batch=2, num_q=200, num_k=num_k, q_heads=8, kv_heads=2, dim=dim, index_heads=2, chosen=chosen,
            block_q=64, chunk=64, dtype=dtype, mixed=mixed,
        )  # fmt: skip
        assert_agree(inputs, TOLERANCE[dtype], deterministic=deterministic)


@pytest.mark.gpu
@pytest.mark.parametrize(("dim", "dtype", "form", "chosen", "index_heads"), kinds(1, 2, 9), ids=str)
def test_hopper_kernel_agrees_with_naive(
    dim: int, dtype: torch.dtype, form: int, chosen: int, index_heads: int
) -> None:
    """The kernel for Hopper, insisted on: empty slots, an empty block, fewer tiles than processors and more."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("no Hopper device")
    from models.kernels.sparse_attention.tuning import fits, tiles_for

    for batch, num_q, q_heads in ((1, 64, 8), (2, 2_560, 16)):
        inputs = make_inputs(
            "cuda", batch=batch, num_q=num_q, num_k=1_024, q_heads=q_heads, kv_heads=2, dim=dim,
            index_heads=index_heads, chosen=chosen, block_q=64, chunk=64, dtype=dtype, mixed=False,
        )  # fmt: skip
        assert fits(inputs["q"], inputs["k"], inputs["v"], 64, 64, mixed=False, causal=False)
        tiles = {"forward": tiles_for("forward", dim, dtype, 256, False)._replace(hopper=form)}
        q, k, v, indices = (inputs[name] for name in ("q", "k", "v", "indices"))
        fused = [sparse_attention(q, k, v, indices, return_lse=True, tiles=tiles) for _ in range(3)]
        exact = sparse_attention(
            q.float(), k.float(), v.float(), indices, return_lse=True, implementation="naive"
        )
        for out, lse in fused:
            assert relative_error(out, exact[0]) < TOLERANCE[torch.bfloat16]
            assert torch.equal(lse.isinf(), exact[1].isinf())
            assert torch.allclose(lse, exact[1], atol=1e-2)  # infinite on both sides where nothing is seen


@pytest.mark.gpu
@pytest.mark.parametrize(("dim", "dtype", "form", "chosen", "index_heads"), kinds(1, 9), ids=str)
def test_hopper_gradients_agree_with_naive(
    dim: int, dtype: torch.dtype, form: int, chosen: int, index_heads: int
) -> None:
    """The backward kernels for Hopper, insisted on, a gradient of lse included; twice the same bits."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("no Hopper device")
    from models.kernels.sparse_attention.tuning import tiles_for

    inputs = make_inputs(
        "cuda", batch=2, num_q=1_920, num_k=1_024, q_heads=16, kv_heads=2, dim=dim, index_heads=index_heads,
        chosen=chosen, block_q=64, chunk=64, dtype=dtype, mixed=False,
    )  # fmt: skip
    tiles = {
        kernel: tiles_for(kernel, dim, dtype, 512, False)._replace(hopper=form)
        for kernel in ("forward", "dq", "dkv")
    }

    def gradients(exact: bool) -> list[torch.Tensor]:
        leaves = [inputs[name].to(torch.float32 if exact else dtype).requires_grad_() for name in "qkv"]
        q, k, v = leaves
        out, lse = sparse_attention(
            q, k, v, inputs["indices"], return_lse=True, tiles=None if exact else tiles,
            implementation="naive" if exact else "fused",
        )  # fmt: skip
        seen = ~lse.isinf()
        loss = (out.float() * inputs["grad"].float()).sum() + lse[seen].sum()
        return list(torch.autograd.grad(loss, leaves))

    first, second, expected = gradients(False), gradients(False), gradients(True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    errors = {name: relative_error(a, b) for name, a, b in zip("qkv", first, expected, strict=True)}
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE[torch.bfloat16]} == {}


@pytest.mark.gpu
def test_inverted_list_gives_the_same_bits_twice() -> None:
    """Without atomics two runs agree bit for bit."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    inputs = make_inputs(
        "cuda", batch=1, num_q=1024, num_k=2048, q_heads=8, kv_heads=2, dim=128, index_heads=1, chosen=8,
        block_q=64, chunk=64, dtype=torch.bfloat16, mixed=False,
    )  # fmt: skip
    first, second = run(inputs, "fused"), run(inputs, "fused")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_naive_is_dense_attention_when_everything_is_chosen() -> None:
    """The reference itself: all chunks chosen equals PyTorch's attention, causal too."""
    q, k, v = torch.randn(2, 40, 4, 16), torch.randn(2, 40, 2, 16), torch.randn(2, 40, 2, 16)
    indices = torch.arange(3, dtype=torch.int32).expand(2, 5, 1, 3).contiguous()
    for causal in (False, True):
        out = sparse_attention(q, k, v, indices, chunk_size=16, block_q=8, causal=causal)
        expected = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal, enable_gqa=True
        ).transpose(1, 2)
        assert isinstance(out, torch.Tensor)
        assert torch.allclose(out, expected, atol=1e-5)


def test_naive_gradients_pass_gradcheck() -> None:
    """The reference's gradients are right in float64, rows with nothing chosen included."""
    inputs = make_inputs(
        "cpu", batch=1, num_q=6, num_k=20, q_heads=2, kv_heads=1, dim=4, index_heads=1, chosen=2, block_q=4,
        chunk=16, dtype=torch.float64, mixed=True,
    )  # fmt: skip
    leaves = [inputs[name].double().requires_grad_() for name in ("q", "k", "v", "weights")]

    def mixed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: torch.Tensor) -> Any:
        return sparse_attention(q, k, v, inputs["indices"], chunk_size=16, block_q=4, chunk_weights=weights)

    def single(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        return sparse_attention(q, k, v, inputs["indices"], chunk_size=16, block_q=4)

    assert torch.autograd.gradcheck(mixed, leaves)
    assert torch.autograd.gradcheck(single, leaves[:3])


def test_lse_joins_two_halves(device: str) -> None:
    """Two calls over half of the chunks each, joined by their lse, are one call over all; gradients too."""
    inputs = make_inputs(
        device, batch=1, num_q=16, num_k=64, q_heads=2, kv_heads=1, dim=16, index_heads=1, chosen=4, block_q=16,
        chunk=16, dtype=torch.float32, mixed=False, empty=0.0,
    )  # fmt: skip
    inputs["indices"][:] = torch.arange(4, dtype=torch.int32, device=device)
    q = inputs["q"].clone().requires_grad_()

    def attend(indices: torch.Tensor, implementation: Any) -> Any:
        return sparse_attention(
            q, inputs["k"], inputs["v"], indices.contiguous(), chunk_size=16, block_q=16, return_lse=True,
            implementation=implementation,
        )  # fmt: skip

    (out_a, lse_a), (out_b, lse_b) = (
        attend(inputs["indices"][..., part], "fused") for part in ([0, 1], [2, 3])
    )
    share = torch.sigmoid(lse_a - lse_b)[..., None]
    joined = out_a * share + out_b * (1 - share)
    whole, _ = attend(inputs["indices"], "naive")
    assert relative_error(joined, whole) < 2e-5
    found, expected = (torch.autograd.grad(x, q, inputs["grad"])[0] for x in (joined, whole))
    assert relative_error(found, expected) < 2e-5


@pytest.mark.parametrize(
    "width",
    [
        pytest.param(1, id="one"), pytest.param(185, id="one-block"),
        pytest.param(1_100, id="two-blocks", marks=pytest.mark.slow),  # 12 s in the interpreter
    ],
)  # fmt: skip
def test_merging_and_sorting_give_one_inverted_list(device: str, width: int) -> None:
    """The two ways to build the list agree on every entry, chunks chosen twice and empty slots included."""
    make = torch.Generator().manual_seed(3)
    indices = torch.randint(-1, 40, (1, width, 2, 1), dtype=torch.int32, generator=make).to(device)
    merged = invert_indices(indices, 40)
    flat = indices.permute(0, 2, 1, 3).reshape(2, -1)
    ordered = _invert_by_sorting(flat, 40)
    assert torch.equal(merged.starts, ordered.starts)
    assert torch.equal(merged.entries, ordered.entries)
    lengths = (merged.starts[:, 1:] - merged.starts[:, :-1]).cpu()
    assert merged.order is not None
    assert torch.equal(merged.order.cpu(), lengths.argsort(dim=-1, descending=True, stable=True).int())


def test_inverted_list_names_each_choice_once() -> None:
    """Every chosen slot appears in the list of its chunk, in ascending order, and empty slots in none."""
    indices = torch.tensor([[[[0, 2], [2, -1]], [[-1, 0], [1, 2]]]], dtype=torch.int32)
    inverse = invert_indices(indices, 3)
    lists = [
        [inverse.entries[inverse.starts[h, c] : inverse.starts[h, c + 1]].tolist() for c in range(3)]
        for h in range(2)
    ]
    assert lists == [[[0, 3], [], [1]], [[], [2], [0, 3]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(1, 64, 3, 16), "v": torch.zeros(1, 64, 3, 16)}, "multiple of the key heads"),
        ({"k": torch.zeros(1, 64, 2, 16).half(), "v": torch.zeros(1, 64, 2, 16).half()}, "same dtype"),
        ({name: torch.zeros(1, 32, 2, 16).int() for name in "qkv"}, "q is torch.int32; allowed: float32"),
        ({"indices": torch.zeros(1, 3, 1, 2, dtype=torch.int32)}, r"blocks of 16"),
        ({"indices": torch.zeros(1, 2, 1, 2)}, "int32"),
        ({"indices": torch.zeros(1, 2, 1, 0, dtype=torch.int32)}, "at least one"),
        ({"chunk_size": 48}, "allowed: 16, 32, 64, 128"),
        ({"scale": -1.0}, "positive"),
        ({"chunk_weights": torch.ones(1, 2, 1, 3)}, "one weight per slot"),
        ({"implementation": "fast"}, "'auto', 'naive', 'fused'"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    """Each mistake raises ValueError that states what was given and what is allowed."""
    arguments: dict[str, Any] = {
        "q": torch.zeros(1, 32, 4, 16),
        "k": torch.zeros(1, 64, 2, 16),
        "v": torch.zeros(1, 64, 2, 16),
        "indices": torch.zeros(1, 2, 1, 2, dtype=torch.int32),
        "chunk_size": 16,
        "block_q": 16,
    }
    with pytest.raises(ValueError, match=message):
        sparse_attention(**{**arguments, **change})
