"""One decoded token over ring, latents and chosen chunks, against our GCA baseline and dense SDPA, by tokens seen.

Heads: 16 of 128 over 2 key heads, bf16. Ours: ring of 512, 16 latent blocks of 64 tokens (rank 32), 8 chosen
chunks of 64, landmarks of width 256. GCA reads the same window and 8 chunks, as its paper says: exhaustive
landmark scores, top 8, chunks gathered, a softmax inside each, mixed by the scores' softmax; plain PyTorch, and
beside it the same compiled by torch.compile. Where our operator reads codes of landmarks (4 bits, beside the
landmarks) the step gives them: a row says how many bytes they take, which share of the best chunks is found over
them, and what the step takes without. Batch rows are questions over one shared stream, so that the stream's keys
exist once. Times are CUDA graph replays, the L2 overwritten before each (`clean`: filled by
reading). FlashInfer is a peer of dense attention where it can be imported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from infra.bench.measure import copy_bandwidth, environment, fastest, floor_ms, matmul_rate, time_cuda
from infra.bench.peers import flashinfer_decode
from models.kernels.landmark_topk import landmark_topk
from models.kernels.landmark_topk.codes import encode_landmarks
from models.kernels.latent_decode import ChosenChunks, Latents, latent_decode
from models.kernels.retrieve_decode import Search, retrieve_decode

HEADS, KV_HEADS, DIM = 16, 2, 128
CHUNK, CHOSEN, WINDOW = 64, 8, 512
LATENT_BLOCKS, LATENT_TOKENS, LATENT_RANK = 16, 64, 32
LANDMARK_DIM = 256
CODE_BITS = 4
QUESTIONS = 64  # random queries over which recall of a step over codes is counted
TOKENS = (16_384, 131_072, 1_048_576, 16_777_216)
LABELS = {131_072: "128k", 1_048_576: "1m", 16_777_216: "16m"}
BATCHES = (1, 8, 64)
DENSE_LIMIT = 1_048_576
CLEAN = ("ours", "attend", "gca")  # timed after an L2 filled by reading too
_DENSE = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


class Stream:
    """Keys, values and landmarks of a stream of `tokens` tokens, shared by all rows of a batch."""

    def __init__(self, tokens: int) -> None:
        make = functools.partial(torch.randn, device="cuda", dtype=torch.bfloat16)
        self.tokens = tokens
        self.chunks = tokens // CHUNK
        self.k = make(self.chunks, CHUNK, KV_HEADS, DIM)
        self.v = make(self.chunks, CHUNK, KV_HEADS, DIM)
        self.landmarks = torch.randn(self.chunks, LANDMARK_DIM, device="cuda", dtype=torch.float16)
        self.codes = encode_landmarks(self.landmarks, CODE_BITS)


class Step:
    """Inputs of one decoding step of `batch` rows, and the contenders."""

    def __init__(self, stream: Stream, batch: int) -> None:
        make = functools.partial(torch.randn, device="cuda", dtype=torch.bfloat16)
        self.stream, self.batch = stream, batch
        self.q = make(batch, 1, HEADS, DIM)
        self.query = torch.randn(1, batch, LANDMARK_DIM, device="cuda", dtype=torch.float16)
        self.ring_k, self.ring_v = make(batch, WINDOW, KV_HEADS, DIM), make(batch, WINDOW, KV_HEADS, DIM)
        place = torch.arange(WINDOW, device="cuda", dtype=torch.int32) + 2_048
        self.ring_place = place.expand(batch, WINDOW).contiguous()
        self.q_place = torch.full((batch,), 2_048 + WINDOW, device="cuda", dtype=torch.int32)
        factor = (batch, KV_HEADS, LATENT_BLOCKS, LATENT_TOKENS, LATENT_RANK)
        basis = (batch, KV_HEADS, LATENT_BLOCKS, LATENT_RANK, DIM)
        runs = torch.arange(LATENT_BLOCKS, device="cuda", dtype=torch.int32) * LATENT_TOKENS
        self.latents = Latents(
            make(factor),
            make(basis),
            make(factor),
            make(basis),
            runs.expand(batch, -1)[..., None].contiguous(),
        )
        angle = torch.arange(4_096, device="cuda")[:, None] / 10_000 ** (
            torch.arange(DIM // 2, device="cuda") / (DIM // 2)
        )
        self.rotary = (angle.cos(), angle.sin())
        self.page_place = torch.zeros(batch, CHOSEN, device="cuda", dtype=torch.int32)
        self.pages = self.search()
        from models.kernels.retrieve_decode.fused import plan_for

        self.coded = plan_for(batch, stream.chunks, self.q.element_size() * DIM, CODE_BITS).coded

    def search(self) -> torch.Tensor:
        """Pages [B, 8] of the chunks with the best landmarks."""
        _, index = landmark_topk(self.query, self.stream.landmarks, CHOSEN, exclude_newest=WINDOW // CHUNK)
        return index[0]

    def attend(self, pages: torch.Tensor | None = None) -> Any:
        """Our operator, chunks already chosen."""
        chosen = self.pages if pages is None else pages
        chunks = ChosenChunks(self.stream.k, self.stream.v, chosen, self.page_place)
        return latent_decode(
            self.q, self.ring_k, self.ring_v, self.ring_place, self.q_place,
            latents=self.latents, chunks=chunks, rotary=self.rotary,
        )  # fmt: skip

    def ours(self, coded: bool = True) -> Any:
        """A step that retrieves: search and attention in one call, over codes where they are read."""
        search = Search(
            self.query[0], self.stream.landmarks, self.stream.k, self.stream.v, self.page_place,
            exclude_newest=WINDOW // CHUNK, codes=self.stream.codes if coded and self.coded else None,
        )  # fmt: skip
        return retrieve_decode(
            self.q, self.ring_k, self.ring_v, self.ring_place, self.q_place, search,
            latents=self.latents, rotary=self.rotary,
        )  # fmt: skip

    def disagreement(self) -> float:
        """Relative difference of our step from search and attention apart."""
        expected, found = self.attend(self.search()).float(), self.ours()[0].float()
        return round(float((found - expected).norm() / expected.norm()), 5)

    def recall(self) -> float:
        """Share of the best chunks that our step finds, over QUESTIONS random queries or more."""
        kept, found, rounds = self.query.clone(), 0, -(-QUESTIONS // self.batch)
        for _ in range(rounds):
            self.query.copy_(torch.randn_like(kept))
            best, pages = self.search(), self.ours()[2]
            found += int((best[:, :, None] == pages[:, None, :]).any(2).sum())
        self.query.copy_(kept)
        return round(found / (rounds * self.batch * CHOSEN), 5)

    def gca_search(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """GCA's retrieval: all scores, top 8, their softmax, and the chunks' keys and values copied out."""
        scores = (self.query[0] @ self.stream.landmarks[: -WINDOW // CHUNK].T).float() * LANDMARK_DIM**-0.5
        top, index = scores.topk(CHOSEN, dim=-1)
        flat = index.flatten()
        shape = (self.batch, CHOSEN, CHUNK, KV_HEADS, DIM)
        keys, values = (x.index_select(0, flat).view(shape) for x in (self.stream.k, self.stream.v))
        return top.softmax(-1), keys, values

    def gca_attend(self, weights: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """A softmax inside each chunk, mixed by weights, beside attention over the window."""
        q = self.q.view(self.batch * 1, KV_HEADS, HEADS // KV_HEADS, DIM)
        batched_q = q[:, None].expand(-1, CHOSEN, -1, -1, -1).flatten(0, 1)
        k, v = (x.flatten(0, 1).transpose(1, 2) for x in (keys, values))
        inside = (batched_q @ k.transpose(2, 3) * DIM**-0.5).softmax(-1, dtype=torch.float32).to(v.dtype) @ v
        inside = inside.view(self.batch, CHOSEN, HEADS * DIM)
        mixed = torch.bmm(weights.to(inside.dtype)[:, None], inside).view(self.batch, 1, HEADS, DIM)
        window = F.scaled_dot_product_attention(
            self.q.transpose(1, 2), self.ring_k.transpose(1, 2), self.ring_v.transpose(1, 2), enable_gqa=True
        )
        return mixed + window.transpose(1, 2)

    def gca(self) -> torch.Tensor:
        """Retrieval and attention of one GCA step."""
        return self.gca_attend(*self.gca_search())

    def dense(self) -> Callable[[], torch.Tensor]:
        """Attention of one token to the whole stream, each row over keys of its own."""
        k, v = (
            x.view(1, self.stream.tokens, KV_HEADS, DIM).transpose(1, 2).expand(self.batch, -1, -1, -1)
            for x in (self.stream.k, self.stream.v)
        )
        q = self.q.transpose(1, 2)
        return lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    def attend_bytes(self) -> int:
        """Bytes that one attending step must move: ring, latents' factors and chosen chunks, once each."""
        raw = self.batch * WINDOW * KV_HEADS * DIM * 4
        raw += int(torch.unique(self.pages).numel()) * CHUNK * KV_HEADS * DIM * 4
        latents = sum(
            x.numel() * 2
            for x in (
                self.latents.key_factor,
                self.latents.key_basis,
                self.latents.value_factor,
                self.latents.value_basis,
            )
        )
        return raw + latents + 2 * self.q.numel() * 2


def run(
    *,
    tokens: Sequence[int] = TOKENS,
    batches: Sequence[int] = BATCHES,
    runs: int = 20,
    ceilings: tuple[float, float] | None = None,
    compiled: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Rows for every length and batch, and the named ratios (batch 1 unless the name says otherwise).

    `compiled`: also GCA by torch.compile, at batch 1.
    """
    bandwidth, rate = ceilings or (copy_bandwidth(), matmul_rate())
    rows = []
    for length in tokens:
        stream = Stream(length)
        for batch in batches:
            row = _row(Step(stream, batch), bandwidth, rate, runs, compiled)
            rows.append(row)
            if report is not None:
                report(row)
        del stream
        torch.cuda.empty_cache()
    return {
        "bench": "decode",
        **environment(),
        "copy_bandwidth_gb_s": round(bandwidth / 1e9, 1),
        "matmul_tflop_s": round(rate / 1e12, 1),
        "rows": rows,
        "ratios": ratios(rows),
    }


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The named ratios; `per_chunk` spreads one retrieval over the 64 tokens of a chunk, in both alike."""
    by = {(row["tokens"], row["batch"]): row for row in rows}
    found: dict[str, float] = {}
    long = [row for row in rows if row["tokens"] >= 131_072]
    for row in long:
        length = LABELS.get(row["tokens"], str(row["tokens"]))
        name = f"decode_speedup_over_gca_{length}" + ("" if row["batch"] == 1 else f"_batch{row['batch']}")
        found[name] = row["gca_ms"] / row["ours_ms"]
        if "ours_clean_ms" in row:
            found[f"{name}_clean"] = row["gca_clean_ms"] / row["ours_clean_ms"]
    if (131_072, 1) in by:
        found["decode_speedup_over_gca_128k_per_chunk"] = (
            by[131_072, 1]["gca_per_chunk_ms"] / by[131_072, 1]["ours_per_chunk_ms"]
        )
        if "gca_compiled_ms" in by[131_072, 1]:
            found["decode_speedup_over_compiled_gca_128k"] = (
                by[131_072, 1]["gca_compiled_ms"] / by[131_072, 1]["ours_ms"]
            )
    if long:
        found["decode_speedup_over_gca_min"] = min(row["gca_ms"] / row["ours_ms"] for row in long)
    for batch in sorted({row["batch"] for row in rows}):
        suffix = "" if batch == 1 else f"_batch{batch}"
        million = by.get((1_048_576, batch), {})
        if million.get("dense_ms"):
            found[f"decode_speedup_over_dense_1m{suffix}"] = million["dense_ms"] / million["ours_ms"]
        if million.get("flashinfer_ms"):
            found[f"decode_speedup_over_flashinfer_1m{suffix}"] = (
                million["flashinfer_ms"] / million["ours_ms"]
            )
        if (16_384, batch) in by and (16_777_216, batch) in by:
            small, large = by[16_384, batch], by[16_777_216, batch]
            found[f"decode_16m_over_16k{suffix}"] = large["ours_per_chunk_ms"] / small["ours_per_chunk_ms"]
            found[f"decode_16m_over_16k_retrieving_each_token{suffix}"] = large["ours_ms"] / small["ours_ms"]
        if (131_072, batch) in by:
            found[f"decode_bandwidth_share_128k{suffix}"] = by[131_072, batch]["attend_bandwidth_share"]
    return {name: round(value, 3) for name, value in found.items()}


def _row(step: Step, bandwidth: float, rate: float, runs: int, compiled: bool) -> dict[str, Any]:
    retrieved = step.gca_search()
    codes = step.stream.codes
    code_bytes = 4 * (codes.words.numel() + codes.scale.numel())
    landmark_bytes = step.stream.landmarks.numel() * 2
    landmarks = code_bytes if step.coded else landmark_bytes
    attend_floor = floor_ms(step.attend_bytes(), 0, bandwidth, rate)
    row: dict[str, Any] = {
        "tokens": step.stream.tokens,
        "batch": step.batch,
        "attend_floor_ms": round(attend_floor, 5),
        "step_floor_ms": round(attend_floor + floor_ms(landmarks, 0, bandwidth, rate), 5),
    }
    row["difference_from_apart"] = step.disagreement()
    if step.coded:
        row.update(codes_bits=codes.bits, codes_bytes=code_bytes, landmark_bytes=landmark_bytes)
        row["codes_recall"] = step.recall()
    timed: dict[str, Callable[[], Any]] = {
        "ours": step.ours,
        "apart": lambda: step.attend(step.search()),
        "attend": step.attend,
        "search": step.search,
        "gca": step.gca,
        "gca_attend": lambda: step.gca_attend(*retrieved),
    }
    if step.coded:
        timed["ours_without_codes"] = lambda: step.ours(coded=False)
    for name, function in timed.items():
        row.update(time_cuda(function, runs=runs, graph=True).row(name))
        row[f"{name}_eager_ms"] = round(time_cuda(function, runs=runs).median_ms, 5)
        if name in CLEAN:
            row.update(time_cuda(function, runs=runs, graph=True, clean=True).row(f"{name}_clean"))
    row["ours_per_chunk_ms"] = round(row["attend_ms"] + row["search_ms"] / CHUNK, 5)
    row["gca_per_chunk_ms"] = round(row["gca_attend_ms"] + (row["gca_ms"] - row["gca_attend_ms"]) / CHUNK, 5)
    row["attend_bandwidth_share"] = round(attend_floor / row["attend_ms"], 4)
    if step.stream.tokens <= DENSE_LIMIT and (
        step.batch == 1 or step.stream.tokens * step.batch <= 8 * DENSE_LIMIT
    ):
        dense = step.dense()
        choices = {name: _with_backend(dense, backend) for name, backend in _DENSE.items()}
        choice, timing = fastest(choices, runs=runs, graph=True)
        if timing is not None:
            row.update(timing.row("dense"))
            row["dense_backend"] = choice
        row.update(against_flashinfer(step, dense, runs))
    if compiled and step.batch == 1:
        row.update(_compiled_gca(step, runs))
    return row


def against_flashinfer(step: Step, dense: Callable[[], torch.Tensor], runs: int) -> dict[str, Any]:
    """Time of FlashInfer's fastest way that runs and agrees with SDPA, or why there is none."""
    expected = dense().view(step.batch, HEADS, DIM)
    return flashinfer_decode.timed(step.q[:, 0], step.stream.k, step.stream.v, expected, runs)


def _compiled_gca(step: Step, runs: int) -> dict[str, Any]:
    """GCA's step as torch.compile fuses it."""
    try:
        function = torch.compile(step.gca, dynamic=False)
        function()
        return time_cuda(function, runs=runs, graph=True).row("gca_compiled")
    except Exception as error:
        return {"gca_compiled_error": str(error)[:200]}


def _with_backend(function: Callable[[], Any], backend: SDPBackend) -> Callable[[], Any]:
    def call() -> Any:
        with sdpa_kernel(backend):
            return function()

    return call
