"""Steps over landmarks' codes, and of many rows beside their search: what the reference gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from models.kernels.landmark_topk.codes import Codes, decode_landmarks, encode_landmarks
from models.kernels.retrieve_decode import Search, retrieve_decode
from tests.models.kernels.conftest import relative_error
from tests.models.kernels.test_retrieve_decode import TOLERANCE, make_step


def assert_step(inputs: dict[str, Any], search: Search, tolerance: float, **options: Any) -> None:
    """Same pages and output as the reference, in this form."""
    from models.kernels.retrieve_decode.fused import retrieve_decode_fused

    expected, _, expected_pages = retrieve_decode(**inputs, search=search, implementation="naive")
    scale = inputs["q"].shape[-1] ** -0.5
    out, _, pages = retrieve_decode_fused(**inputs, search=search, scale=scale, **options)
    assert torch.equal(pages, expected_pages)
    assert relative_error(out, expected) < tolerance


@pytest.mark.parametrize(("bits", "lost"), [(4, 0.12), (8, 0.008)])
def test_codes_stand_for_their_landmarks(bits: int, lost: float) -> None:
    """Of normal landmarks 4 bits lose at most 12% of the norm, 8 bits 0.8%; whole numbers and zeros nothing."""
    for width in (24, 256, 100):
        landmarks = torch.randn(50, width, generator=torch.Generator().manual_seed(1))
        assert relative_error(decode_landmarks(encode_landmarks(landmarks, bits), width), landmarks) < lost
    most = 2 ** (bits - 1) - 1
    whole = torch.randint(-most, most + 1, (20, 24), generator=torch.Generator().manual_seed(2)).half()
    whole[:, 5] = most
    whole[3] = 0
    assert torch.equal(decode_landmarks(encode_landmarks(whole, bits), 24), whole.float())


@pytest.mark.parametrize(
    ("bits", "case"),
    [
        (4, {"batch": 1, "landmarks": 300, "chosen": 8, "width": 64, "lengths": False, "blocks": 0}),
        (8, {"batch": 2, "landmarks": 77, "chosen": 3}),
        (4, {"batch": 2, "landmarks": 5, "chosen": 6, "blocks": 0}),
    ],
    ids=["one-row", "unequal-rows", "fewer-landmarks-than-chosen"],
)
def test_a_step_over_codes_agrees_with_naive(device: str, bits: int, case: dict[str, Any]) -> None:
    """Landmarks far apart: the same pages as a search of the landmarks themselves."""
    inputs, search = make_step(device, **case)
    search = replace(search, codes=encode_landmarks(search.landmarks, bits))
    assert_step(inputs, search, TOLERANCE[torch.float32], picking=True)


def test_what_a_code_hides_is_passed_over_and_what_it_shows_is_scored_by_itself(device: str) -> None:
    """Of a span's landmarks those with the best codes are looked at, and found at the rank of their own scores."""
    from models.kernels.landmark_topk.fused import Spans

    landmarks = torch.randn(128, 64, generator=torch.Generator().manual_seed(3)).to(device)
    query = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(4)).to(device)
    best = (landmarks @ query[0, 0]).argsort(descending=True)
    codes = encode_landmarks(landmarks)
    scale = codes.scale.clone()
    scale[best[0]] = 0  # its code says nothing: 16 others of its span are before it
    scale[best[20:30]] *= 3  # codes that say too much bring these to be looked at, and not into the best
    found = Spans(query, landmarks, 4, None, 0)
    spans = found.coded_scan(Codes(codes.words, scale, 4), 128, 1)
    assert found.merge(spans, 4)[1].flatten().tolist() == best[1:5].tolist()


@pytest.mark.parametrize("bits", [4, 8])
def test_landmarks_are_chosen_by_what_their_codes_stand_for(device: str, bits: int) -> None:
    """With no more looked at than are wanted: the best of the decoded landmarks, every dimension counted once."""
    from models.kernels.landmark_topk.fused import Spans

    make = torch.Generator().manual_seed(6)
    landmarks, query = torch.randn(128, 100, generator=make), torch.randn(100, generator=make)
    codes = encode_landmarks(landmarks, bits)
    expected = (decode_landmarks(codes, 100) @ query).topk(4).indices
    found = Spans(query.to(device).view(1, 1, 100), landmarks.to(device), 4, None, 0)
    codes = Codes(codes.words.to(device), codes.scale.to(device), bits)
    spans = found.coded_scan(codes, 128, 1, kept=4)
    assert set(found.merge(spans, 4)[1].flatten().tolist()) == set(expected.tolist())


def test_codes_of_other_landmarks_are_refused() -> None:
    """Codes whose number or width is not the landmarks' raise ValueError that states both."""
    _, search = make_step("cpu", batch=1, landmarks=30, chosen=3)
    for other in (search.landmarks[:-1], torch.zeros(30, 100)):
        with pytest.raises(ValueError, match="codes are"):
            replace(search, codes=encode_landmarks(other))
    with pytest.raises(ValueError, match="4 or 8 bits"):
        encode_landmarks(search.landmarks, 3)


@pytest.mark.parametrize(
    ("case", "early"), [("unequal-rows", True), ("no-latents", False), ("together", True), ("picked", True)]
)
def test_a_step_of_many_rows_agrees_with_naive(
    device: str, case: str, early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks read in parts, small tiles, ring and latents before the search ends: the same pages and sums."""
    from models.kernels.latent_decode.fused import Loops
    from models.kernels.retrieve_decode import fused

    settings: dict[str, dict[str, Any]] = {
        "unequal-rows": {"batch": 3, "landmarks": 77},
        "no-latents": {"batch": 2, "landmarks": 33, "shared": False, "blocks": 0},
        "together": {"batch": 5, "landmarks": 40, "lengths": False},
        "picked": {"batch": 2, "landmarks": 50, "blocks": 1},
    }
    monkeypatch.setattr(fused, "_TOGETHER", (4, 40))
    inputs, search = make_step(device, **settings[case], chosen=3, chunk=32)
    loops = Loops(tile=16, cut=2, programs=2 if case == "together" else 4, registers=128)
    apart = fused.Apart(early=early, chained=early, loops=loops)
    options: dict[str, Any] = {"picking": False, "apart": apart}
    if case == "picked":
        options = {"picking": True, "early": early, "loops": loops, "single": False}
    assert_step(inputs, search, TOLERANCE[torch.float32], **options)


@pytest.mark.parametrize(
    ("batch", "landmarks", "bits", "coded", "picking", "early", "programs"),
    [
        (1, 16_384, 4, False, True, False, None),
        (1, 16_384, 8, True, True, False, None),
        (1, 262_144, 4, True, True, False, None),
        (1, 262_144, None, False, True, False, None),
        (8, 2_048, 4, False, True, True, 3),
        (8, 16_384, None, False, False, True, 4),
        (8, 16_384, 4, True, True, False, 4),
        (8, 16_384, 8, False, False, True, 4),
        (8, 262_144, 4, False, False, False, None),
        (64, 2_048, None, False, False, True, 4),
        (64, 262_144, 4, False, False, True, 4),
    ],
)
def test_what_ships_is_the_fastest_form_that_was_timed(
    batch: int,
    landmarks: int,
    bits: int | None,
    coded: bool,
    picking: bool,
    early: bool,
    programs: int | None,
) -> None:
    """Rows and landmarks that were timed get the form that was the fastest there; wide heads no dense loops."""
    from models.kernels.retrieve_decode.fused import plan_for

    plan = plan_for(batch, landmarks, 256, bits)
    loops = plan.loops if plan.picking else plan.apart.loops
    found = None if loops is None or loops.registers is None else loops.programs
    assert (plan.coded, plan.picking, plan.apart.early, found) == (coded, picking, early, programs)
    wide = plan_for(batch, landmarks, 512, bits)
    assert wide.apart.loops.registers is None
    assert wide.loops is None


@pytest.mark.parametrize(
    ("case", "codes"),
    [
        ("one-row", "read"),
        ("one-row", "left"),
        ("some-rows", "read"),
        ("some-rows", "left"),
        ("picked", "left"),
        ("many-rows", "left"),
        ("too-many-chosen", "left"),
    ],
)
def test_what_ships_agrees_with_naive(
    device: str, case: str, codes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen without a caller's word, at sizes scaled down: pages and sums of the reference, codes read or not."""
    from models.kernels.landmark_topk.fused import Spans
    from models.kernels.retrieve_decode import fused

    least = 30 if codes == "read" or case == "one-row" else 1_000
    monkeypatch.setattr(fused, "_CODED", {4: least})
    monkeypatch.setattr(fused, "_CODED_SOME", {4: least})
    monkeypatch.setattr(fused, "_CODED_WIDTH", 25 if case == "one-row" and codes == "left" else 24)
    monkeypatch.setattr(fused, "_SOME_PICKED", 0 if case == "some-rows" else 100)
    rows = {"one-row": 1, "many-rows": 17}.get(case, 5)
    chosen = 17 if case == "too-many-chosen" else 3
    inputs, search = make_step(device, batch=rows, landmarks=40, chosen=chosen, chunk=32, blocks=1, num_q=1)
    search = replace(search, codes=encode_landmarks(search.landmarks))
    scans: list[int] = []
    scan = Spans.coded_scan

    def counted(self: Spans, codes: Codes, span: int, *args: Any, **options: Any) -> torch.Tensor:
        scans.append(span)
        return scan(self, codes, span, *args, **options)

    monkeypatch.setattr(Spans, "coded_scan", counted)
    assert_step(inputs, search, TOLERANCE[torch.float32])
    assert bool(scans) == (codes == "read")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "batch", "landmarks"),
    [(torch.bfloat16, 8, 3_001), (torch.bfloat16, 64, 17_000), (torch.float32, 8, 17_000)],
)
def test_dense_loops_beside_the_search_on_the_gpu(dtype: torch.dtype, batch: int, landmarks: int) -> None:
    """As compiled for the GPU, with four programs to a processor: pages and sums of the reference."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from models.kernels.latent_decode.fused import DENSE
    from models.kernels.retrieve_decode.fused import Apart

    torch.backends.cuda.matmul.allow_tf32 = False
    inputs, search = make_step(
        "cuda", batch=batch, landmarks=landmarks, chosen=8, chunk=64, dim=128, dtype=dtype, width=256, slots=301,
        num_q=1, lengths=False,
    )  # fmt: skip
    for chained in (False, True):
        apart = Apart(early=True, chained=chained, loops=DENSE)
        assert_step(inputs, search, TOLERANCE[dtype], picking=False, apart=apart)
    if batch == 8 and landmarks < 4_000:
        for single in (False, True):
            assert_step(inputs, search, TOLERANCE[dtype], picking=True, loops=DENSE, single=single, scans=256)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [4, 8])
def test_long_scans_of_codes_on_the_gpu(bits: int) -> None:
    """As compiled for the GPU, at the spans of 16M tokens: the pages of a search of the landmarks themselves."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    inputs, search = make_step(
        "cuda", batch=1, landmarks=262_144, chosen=8, chunk=16, dim=64, width=256, num_q=1, lengths=False
    )
    search = replace(search, codes=encode_landmarks(search.landmarks, bits))
    assert_step(inputs, search, TOLERANCE[torch.float32], picking=True)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [16, 24, 32, 64, 256])
def test_every_candidate_has_a_place_of_its_own_on_the_gpu(width: int, bits: int) -> None:
    """100 queries: a scan over codes gives the same lists twice, and all that are best (scores once left lanes that
    differed in their last bits, which gave two candidates one rank: one lost, a stale one kept)."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from models.kernels.landmark_topk.fused import Spans

    landmarks = torch.randn(2_000, width, generator=torch.Generator().manual_seed(5)).cuda()
    codes = encode_landmarks(landmarks, bits)
    for query in torch.randn(100, 1, 1, width, generator=torch.Generator().manual_seed(6)).cuda():
        found = Spans(query, landmarks, 8, None, 2)
        lists, again, own = (*(found.coded_scan(codes, 128, 16) for _ in range(2)), found.scan(128, None, 16))
        assert torch.equal(lists, again)
        best, expected = ({*found.merge(x, 8)[1].flatten().tolist()} for x in (lists, own))
        assert best == expected


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["beside", "together-beside", "picked", "codes"])
def test_replayed_steps_see_what_was_written_just_before(way: str) -> None:
    """Dependent launches wait: queries written before a step and wiped after it, in one graph, are seen whole."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from models.kernels.latent_decode.fused import DENSE
    from models.kernels.retrieve_decode.fused import Apart, retrieve_decode_fused

    count = 20_000 if way == "together-beside" else 2_000
    inputs, search = make_step(
        "cuda", batch=1 if way == "codes" else 8, landmarks=count, chosen=8, chunk=64, dim=128, lengths=False
    )
    options: dict[str, Any] = {"picking": False, "apart": Apart(early=True, chained=True, loops=DENSE)}
    if way == "picked":
        options = {"picking": True, "loops": DENSE, "single": False}
    if way == "codes":
        search = replace(search, codes=encode_landmarks(search.landmarks, 8))
        options = {"picking": True}
    fresh = [torch.randn_like(inputs["q"]) for _ in range(50)]
    queries = [torch.randn_like(search.queries) for _ in fresh]
    expected = []
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
        out = retrieve_decode_fused(**inputs, search=search, scale=128**-0.5, **options)[0]
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
