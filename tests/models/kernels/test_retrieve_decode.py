"""A decoding step that retrieves, picking where a chunk is read or searching apart: what the reference gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

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


def assert_agree(
    inputs: dict[str, Any],
    search: Search,
    tolerance: float,
    ways: tuple[bool | None, ...],
    form: tuple[Any, ...] | None = None,
) -> None:
    """Same pages, same lse where finite, same output as the reference, whoever picks the candidates."""
    from models.kernels.retrieve_decode.fused import retrieve_decode_fused

    expected, expected_lse, expected_pages = retrieve_decode(**inputs, search=search, implementation="naive")
    scale = inputs["q"].shape[-1] ** -0.5
    for picking in ways:
        given: Any = {} if form is None else {"form": form}
        out, lse, pages = retrieve_decode_fused(
            **inputs, search=search, scale=scale, picking=picking, **given
        )
        assert torch.equal(pages, expected_pages)
        assert torch.equal(lse.isinf(), expected_lse.isinf())
        assert relative_error(out, expected) < tolerance
        seen = ~lse.isinf()
        assert relative_error(lse[seen], expected_lse[seen]) < tolerance


CASES: dict[str, dict[str, Any]] = {
    "unequal-rows": {"batch": 2, "landmarks": 77, "chosen": 3},
    "a-row-that-sees-nothing-else": {"batch": 2, "landmarks": 40, "chosen": 4, "hide_first": True},
    "one-chunk": {"batch": 1, "landmarks": 50, "chosen": 1, "lengths": False},
    "fewer-landmarks-than-chosen": {"batch": 2, "landmarks": 5, "chosen": 6},
    "more-than-16": {"batch": 1, "landmarks": 60, "chosen": 18},
    "index-per-row-no-latents": {"batch": 2, "landmarks": 33, "chosen": 2, "shared": False, "blocks": 0},
    "one-row": {"batch": 1, "landmarks": 40, "chosen": 2, "blocks": 1},
    "as-given": {"batch": 1, "landmarks": 20, "chosen": 2, "rotary": False},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_fused_agrees_with_naive(device: str, case: dict[str, Any]) -> None:
    """Rows of unequal length, empty selections and free slots: as the reference, both ways."""
    inputs, search = make_step(device, **case)
    ways = (True, False) if case["chosen"] <= 16 else (None, False)
    assert_agree(inputs, search, TOLERANCE[torch.float32], ways)


FORMS: dict[str, dict[str, Any]] = {
    "ranked": {"ranked": True},
    "cut": {"cut": 2},
    "merge-cut": {"merge_cut": 2},
    "all": {"ranked": True, "cut": 4, "merge_cut": 2},
}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int, int]]:
    """As on a card where each part has a program of its own; each step's list_width > 0, cut and merge_cut."""
    from models.kernels.latent_decode import fused as decode_launch
    from models.kernels.retrieve_decode import fused

    monkeypatch.setattr(decode_launch, "processors", lambda _: 132)
    taken: list[tuple[bool, int, int]] = []

    def seen(*given: Any, **named: Any) -> Any:
        taken.append((named["list_width"] > 0, named["cut"], named["merge_cut"]))
        return decode_launch.latent_decode_fused(*given, **named)

    monkeypatch.setattr(fused, "latent_decode_fused", seen)
    return taken


@pytest.mark.parametrize(
    "case", ["unequal-rows", "fewer-landmarks-than-chosen", "one-chunk", "index-per-row"]
)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_form_of_a_picked_step_agrees_with_naive(
    device: str, form: dict[str, Any], case: str, launched: list[tuple[bool, int, int]]
) -> None:
    """Candidates by rank, chunks read by several programs, rows joined by several: the same pages and sums."""
    from models.kernels.retrieve_decode.fused import Form

    settings = {"index-per-row": CASES["index-per-row-no-latents"], **CASES}[case]
    inputs, search = make_step(device, **{"blocks": 1, **settings, "chunk": 64})
    assert_agree(inputs, search, TOLERANCE[torch.float32], (True,), Form(**form))
    assert launched == [tuple(Form(**form))]


NEAR, FAR, ROWS = (True, 2, 2), (False, 1, 2), (False, 1, 1)


@pytest.mark.parametrize(
    ("batch", "landmarks", "chosen", "expected"),
    [
        (1, 5, 8, NEAR),
        (1, 63, 8, NEAR),
        (1, 65, 3, NEAR),
        (1, 1_000, 8, NEAR),
        (1, 130, 9, FAR),
        (2, 130, 8, ROWS),
    ],
)
def test_the_form_follows_from_rows_and_candidates(
    device: str,
    batch: int,
    landmarks: int,
    chosen: int,
    expected: tuple[bool, int, int],
    launched: list[tuple[bool, int, int]],
) -> None:
    """One row takes the near form, for more than 8 chunks the far one; more rows neither: all as the reference."""
    inputs, search = make_step(
        device,
        batch=batch,
        landmarks=landmarks,
        chosen=chosen,
        chunk=64,
        width=256,
        blocks=1,
        lengths=batch > 1,
    )
    assert_agree(inputs, search, TOLERANCE[torch.float32], (True,))
    assert launched == [expected]


def test_the_near_form_ends_at_64_spans_of_64() -> None:
    """One row of up to 4,096 landmarks (256k tokens) takes the near form, of one more the far one."""
    from models.kernels.landmark_topk.fused import Spans
    from models.kernels.retrieve_decode.fused import _FAR, _NEAR, _form_for, _span

    found = Spans(torch.zeros(1, 1, 256), torch.zeros(16_384, 256, dtype=torch.float16), 8, None, 0)
    spans = {count: _span(found, count, 1, None) for count in (2_048, 4_096, 4_097, 16_384)}
    assert spans == {2_048: 64, 4_096: 64, 4_097: 64, 16_384: 128}
    chosen = {count: _form_for(1, 8, span, count) for count, span in spans.items()}
    assert chosen == {2_048: _NEAR, 4_096: _NEAR, 4_097: _FAR, 16_384: _FAR}


def test_picking_is_refused_where_it_does_not_fit(device: str) -> None:
    """More chunks than are picked one after the other: an error names what is allowed."""
    from models.kernels.retrieve_decode.fused import retrieve_decode_fused

    inputs, search = make_step(device, batch=1, landmarks=60, chosen=18)
    with pytest.raises(ValueError, match="up to 16 chunks"):
        retrieve_decode_fused(**inputs, search=search, scale=1.0, picking=True)


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
    """As compiled for the GPU, one and four queries, one index for all rows and one for each."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from models.kernels.retrieve_decode.fused import Form

    torch.backends.cuda.matmul.allow_tf32 = False
    for num_q, landmarks, chosen in ((1, 3_001, 8), (4, 517, 5)):
        inputs, search = make_step(
            "cuda", batch=batch, landmarks=landmarks, chosen=chosen, chunk=64, dim=dim, dtype=dtype, width=256,
            slots=301, num_q=num_q,
        )  # fmt: skip
        assert_agree(inputs, search, TOLERANCE[dtype], (None, True, False))
        for form in FORMS.values():
            assert_agree(inputs, search, TOLERANCE[dtype], (True,), Form(**form))


@pytest.mark.gpu
@pytest.mark.parametrize("picking", [False, True], ids=["apart", "picking"])
def test_replayed_steps_see_what_was_written_just_before(picking: bool) -> None:
    """Dependent launches wait: queries written before a step and wiped after it, in one graph, are seen whole."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from models.kernels.retrieve_decode.fused import retrieve_decode_fused

    inputs, search = make_step("cuda", batch=1, landmarks=2_000, chosen=8, chunk=64, dim=128, lengths=False)
    expected, fresh = [], [torch.randn_like(inputs["q"]) for _ in range(50)]
    queries = [torch.randn_like(search.queries) for _ in fresh]
    for q, query in zip(fresh, queries, strict=True):
        inputs["q"].copy_(q)
        search.queries.copy_(query)
        expected.append(retrieve_decode(**inputs, search=search, implementation="naive")[0])
    given, given_query = torch.empty_like(inputs["q"]), torch.empty_like(search.queries)
    many = torch.empty(2**24, device="cuda")

    def step() -> torch.Tensor:
        inputs["q"].copy_(many[: given.numel()].view_as(given))  # waits for all of `many`, then the real ones
        inputs["q"].copy_(given)
        search.queries.copy_(given_query)
        out = retrieve_decode_fused(**inputs, search=search, scale=128**-0.5, picking=picking)[0]
        inputs["q"].zero_()
        search.queries.zero_()
        return out

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        many.normal_()
        out = step()
    for q, query, own in zip(fresh, queries, expected, strict=True):
        given.copy_(q)
        given_query.copy_(query)
        graph.replay()
        assert relative_error(out, own) < TOLERANCE[torch.float32]
