"""A decoding step that retrieves: one launch or two give what search and attention apart give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.kernels.counters import counters
from models.kernels.retrieve_decode import Search, retrieve_decode
from tests.models.kernels.conftest import relative_error
from tests.models.kernels.test_latent_decode import make_inputs

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def make_step(
    device: str,
    *,
    batch: int,
    landmarks: int,
    chosen: int,
    chunk: int = 16,
    dim: int = 32,
    dtype: torch.dtype = torch.float32,
    width: int = 24,
    blocks: int = 3,
    hide_first: bool = False,
    shared: bool = True,
    lengths: bool = True,
    slots: int = 45,
    num_q: int = 2,
    rotary: bool = True,
) -> tuple[dict[str, Any], Search]:
    """Arguments of a step; landmarks are far apart, so that no rounding changes what is chosen."""
    inputs = make_inputs(
        device, batch=batch, num_q=num_q, q_heads=8, kv_heads=2, dim=dim, slots=slots, blocks=blocks, tokens=20,
        runs=4, rank=(5, 7), chosen=0, chunk=chunk, dtype=dtype, rotary=rotary, hide_first=hide_first,
    )  # fmt: skip
    for name in ("return_lse", "chunks"):
        inputs.pop(name)
    make = torch.Generator().manual_seed(5)
    pages = landmarks + 3
    shape = (landmarks, width) if shared else (batch, landmarks, width)
    search = Search(
        queries=torch.randn(batch, width, generator=make).to(device),
        landmarks=torch.randn(*shape, generator=make).to(device),
        keys=torch.randn(pages, chunk, 2, dim, generator=make).to(device, dtype),
        values=torch.randn(pages, chunk, 2, dim, generator=make).to(device, dtype),
        place=torch.randint(0, slots, (batch, chosen), generator=make).int().to(device),
        length=torch.randint(0, landmarks + 1, (batch,), generator=make).int().to(device)
        if lengths
        else None,
        exclude_newest=2,
        page_lengths=torch.randint(1, chunk + 1, (pages,), generator=make).int().to(device),
    )
    return inputs, search


def assert_agree(inputs: dict[str, Any], search: Search, tolerance: float, launches: int | None) -> None:
    """Same pages, same lse where finite, same output as the reference."""
    out, lse, pages = retrieve_decode(**inputs, search=search, implementation="fused", launches=launches)
    expected, expected_lse, expected_pages = retrieve_decode(**inputs, search=search, implementation="naive")
    assert torch.equal(pages, expected_pages)
    assert torch.equal(lse.isinf(), expected_lse.isinf())
    assert relative_error(out, expected) < tolerance
    seen = ~lse.isinf()
    assert relative_error(lse[seen], expected_lse[seen]) < tolerance


CASES: dict[str, dict[str, Any]] = {
    "unequal-rows": {"batch": 3, "landmarks": 77, "chosen": 3},
    "a-row-that-sees-nothing-else": {"batch": 2, "landmarks": 40, "chosen": 4, "hide_first": True},
    "one-chunk": {"batch": 1, "landmarks": 50, "chosen": 1, "lengths": False},
    "fewer-landmarks-than-chosen": {"batch": 2, "landmarks": 5, "chosen": 6},
    "more-than-16": {"batch": 1, "landmarks": 60, "chosen": 18},
    "index-per-row-no-latents": {"batch": 2, "landmarks": 33, "chosen": 2, "shared": False, "blocks": 0},
    "as-given": {"batch": 1, "landmarks": 20, "chosen": 2, "rotary": False},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_fused_agrees_with_naive(device: str, case: dict[str, Any]) -> None:
    """Rows of unequal length, empty selections and free slots, in every number of launches that runs here."""
    inputs, search = make_step(device, **case)
    for launches in (2, 0) if device == "cpu" else (1, 2, 0, None):
        assert_agree(inputs, search, TOLERANCE[torch.float32], launches)


def test_counters_are_zero_again(device: str) -> None:
    """What a launch counted it clears: the next one on the stream starts from nothing."""
    inputs, search = make_step(device, batch=2, landmarks=30, chosen=3)
    held = counters(torch.device(device), 6)
    retrieve_decode(**inputs, search=search, implementation="fused", launches=2)
    assert held.count_nonzero().item() == 0


def test_one_launch_is_refused_where_programs_cannot_wait() -> None:
    """On the interpreter, which runs one program after the other, waiting would never end: an error says so."""
    if torch.cuda.is_available():
        pytest.skip("a CUDA device runs programs side by side")
    inputs, search = make_step("cpu", batch=1, landmarks=30, chosen=3)
    with pytest.raises(ValueError, match="launches=2"):
        retrieve_decode(**inputs, search=search, implementation="fused", launches=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"place": torch.zeros(2, 3)}, "int32"),
        ({"landmarks": torch.zeros(20, 7)}, "same E"),
        ({"landmarks": torch.zeros(4_000, 24)}, "as many pages"),
    ],
)
def test_wrong_searches_are_named(change: dict[str, Any], message: str) -> None:
    """Each mistake raises ValueError that states both sides when the search is put together."""
    _, search = make_step("cpu", batch=2, landmarks=30, chosen=3)
    fields = {name: getattr(search, name) for name in Search.__slots__}
    with pytest.raises(ValueError, match=message):
        Search(**{**fields, **change})


def test_a_search_for_other_rows_is_refused() -> None:
    """Queries for another number of rows raise ValueError."""
    inputs, _ = make_step("cpu", batch=2, landmarks=30, chosen=3)
    _, search = make_step("cpu", batch=3, landmarks=30, chosen=3)
    with pytest.raises(ValueError, match=r"rows of q|pages"):
        retrieve_decode(**inputs, search=search)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dim", "dtype", "batch"),
    [
        (64, torch.float32, 20),
        (64, torch.bfloat16, 8),
        (128, torch.float32, 1),
        (128, torch.bfloat16, 1),
        (128, torch.bfloat16, 8),
        (128, torch.bfloat16, 20),
        (128, torch.float16, 8),
        (256, torch.float32, 8),
        (256, torch.bfloat16, 1),
    ],
)
def test_every_width_dtype_and_batch_on_the_gpu(dim: int, dtype: torch.dtype, batch: int) -> None:
    """As compiled for the GPU, one and four queries, in one launch where it fits, again and again."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False
    for num_q, landmarks, chosen in ((1, 3_001, 8), (4, 517, 5)):
        inputs, search = make_step(
            "cuda", batch=batch, landmarks=landmarks, chosen=chosen, chunk=64, dim=dim, dtype=dtype, width=256,
            slots=301, num_q=num_q,
        )  # fmt: skip
        for launches in (None, None, 2, 0):
            assert_agree(inputs, search, TOLERANCE[dtype], launches)


@pytest.mark.gpu
def test_replayed_graphs_on_two_streams_do_not_share_counters() -> None:
    """Two captured steps replayed side by side many times give what they gave alone."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    steps = [make_step("cuda", batch=b, landmarks=900 * b, chosen=8, chunk=64, dim=128) for b in (1, 2)]
    expected = [retrieve_decode(**inputs, search=search, launches=1)[0].clone() for inputs, search in steps]
    graphs, outs = [], []
    for inputs, search in steps:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outs.append(retrieve_decode(**inputs, search=search, launches=1)[0])
        graphs.append(graph)
    streams = [torch.cuda.Stream() for _ in steps]
    for _ in range(200):
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    for out, own in zip(outs, expected, strict=True):
        assert relative_error(out, own) < 1e-5
