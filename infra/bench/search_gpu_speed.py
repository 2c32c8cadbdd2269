"""Searches of a store held on a device beside the bare product over the same vectors, and against brute force.

The peers of a row: `bare_product` (the questions brought to the device, one product over all vectors, a wait),
`bare_torch` (the same, then torch.topk over all scores, and scores and rows brought back), `bare_two_step` (the
same with the store's own choice of the largest), `bare_faiss_flat`. The ratio that counts is over the quicker of
`bare_torch` and `bare_faiss_flat`. Of the store: `store` (a look at the segments, the search, places on the host),
`store_passages` (with texts, titles and exact scores), `inside_products` (its products alone, and a wait).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from infra.bench.held_store import HeldSegment, fill, held_core, texts
from infra.bench.vectors import DIM, clustered_on
from pipeline.store.config import StoreConfig
from pipeline.store.core import ShardCore
from pipeline.store.flat_peer import FlatPeer
from pipeline.store.gpu_index import DeviceMatrix, largest
from pipeline.store.gpu_together import MAX_SCORES, products
from pipeline.store.records import SearchRequest
from pipeline.store.searching import candidates, nearest
from pipeline.store.vector_index import Part

K = 10
BATCHES = (1, 32, 256)


def wait(device: str) -> None:
    """Let the device finish."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(
    calls: dict[str, Callable[[], Any]], device: str, runs: int
) -> dict[str, tuple[float, float, float]]:
    """Median, 10th and 90th percentile in ms of each call, by turns, questions and answers on the host."""
    for call in calls.values():
        for _ in range(3):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            wait(device)
            started = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - started) * 1e3)
    return {
        name: (statistics.median(t), sorted(t)[len(t) // 10], sorted(t)[-1 - len(t) // 10])
        for name, t in times.items()
    }


def exact_top(
    parts: list[torch.Tensor], alive: list[NDArray[np.bool_]], questions: NDArray[np.float32], device: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Brute force in float32 over the living rows of all segments: scores and (segment * 2**32 + row) [Q, K]."""
    given = torch.from_numpy(questions).to(device)
    scores, places = [], []
    for number, (part, living) in enumerate(zip(parts, alive, strict=True)):
        hidden = torch.from_numpy(~living).to(device)
        for begin in range(0, len(part), 131_072):
            product = given @ part[begin : begin + 131_072].float().T
            product.masked_fill_(hidden[begin : begin + 131_072], -torch.inf)
            best, rows = product.topk(min(K, product.shape[1]), dim=1)
            scores.append(best)
            places.append(rows + begin + (number << 32))
    best, at = torch.cat(scores, 1).topk(K, dim=1)
    return best.cpu().numpy(), torch.cat(places, 1).gather(1, at).cpu().numpy()


def compare(
    core: ShardCore, parts: list[torch.Tensor], request: SearchRequest, device: str
) -> dict[str, Any]:
    """The store's answers against brute force over what should be visible."""
    segments = core.segments
    alive = [~segment.dead for segment in segments]
    assert request.vectors is not None
    truth_scores, truth = exact_top(parts, alive, request.vectors, device)
    found = candidates(core, request).dense
    ids = [{int(segments[p >> 32].chunk_id[p & 0xFFFFFFFF]) for p in row} for row in truth.tolist()]
    hidden = {int(i) for segment in segments for i in segment.chunk_id[segment.dead]}
    hits = sum(len(wanted & {p.chunk_id for p in got}) for wanted, got in zip(ids, found, strict=True))
    scores = np.array([[p.score for p in got] for got in found], dtype=np.float32)
    return {
        "questions": len(found),
        "recall_at_10": round(hits / (K * len(found)), 5),
        "worst_score_gap": round(float(np.abs(scores - truth_scores).max()), 6),
        "deleted_or_expired_returned": sum(p.chunk_id in hidden for got in found for p in got),
    }


def speed(rows: int, device: str, runs: int, note: Callable[[dict[str, Any]], None]) -> None:
    """Searches of `rows` vectors in segments of up to a million, beside the bare peers."""
    per_segment = min(1_048_576, max(1_024, rows // 4))
    counts = [min(per_segment, rows - begin) for begin in range(0, rows, per_segment)]
    started = time.perf_counter()
    bare = torch.empty((sum(counts), DIM), dtype=torch.float16, device=device)
    segments, parts, at = [], [], 0
    shared = texts(per_segment)
    for number, count in enumerate(counts):
        bare[at : at + count] = clustered_on(device, count, number)
        host = bare[at : at + count].cpu().numpy()
        index = fill(DeviceMatrix(DIM, count, device), host)
        segments.append(HeldSegment(number, host, index, shared))
        parts.append(bare[at : at + count])
        at += count
    core = held_core(list(segments), StoreConfig(device=device), DIM)
    note({"stage": "build", "rows": at, "segments": len(segments), "seconds": time.perf_counter() - started})
    generator = np.random.default_rng(1)
    picks = generator.integers(0, at, max(BATCHES))
    questions = bare[torch.from_numpy(picks).to(device)].float().cpu().numpy()
    questions += generator.standard_normal(questions.shape, dtype=np.float32) * 0.02
    questions /= np.linalg.norm(questions, axis=1, keepdims=True)
    flat = _flat(bare, device)
    peers = _Peers(bare if device.startswith("cuda") else bare.float(), device)

    for state in ("whole", "tenth_deleted", "segment_expired"):
        if state == "tenth_deleted":
            for segment in segments:
                for dying in np.flatnonzero(generator.random(segment.num_articles) < 0.1).tolist():
                    segment.kill(dying)
        elif state == "segment_expired":
            core.segments = core.segments[1:]
            parts = parts[1:]
        for batch in BATCHES:
            given = np.ascontiguousarray(questions[:batch])
            request = SearchRequest(mode="dense", k=K, vectors=given)
            calls: dict[str, Callable[[], Any]] = {
                "store": partial(_nearest, core, request),
                "store_passages": partial(_passages, core, request),
            }
            if state != "segment_expired":
                calls["bare_torch"] = partial(peers.product_and_topk, given)
            if state == "whole":
                calls |= {
                    "bare_product": partial(peers.product, given),
                    "bare_two_step": partial(peers.two_steps, given),
                }
                if batch * at <= MAX_SCORES:
                    calls["inside_products"] = partial(_products, core, request, device)
                if flat is not None:
                    calls["bare_faiss_flat"] = partial(flat.search, given, K)
            row: dict[str, Any] = {"stage": "speed", "rows": at, "state": state, "batch": batch}
            for name, (median, low, high) in timed(calls, device, runs).items():
                row |= {f"{name}_ms": median, f"{name}_low_ms": low, f"{name}_high_ms": high}
            judged = [row[name] for name in ("bare_torch_ms", "bare_faiss_flat_ms") if name in row]
            if judged:
                row["over_bare"] = row["store_ms"] / min(judged)
                row["passages_over_bare"] = row["store_passages_ms"] / min(judged)
            if "bare_product_ms" in row:
                row["over_product"] = row["store_ms"] / row["bare_product_ms"]
            note(row)
        everything = SearchRequest(mode="dense", k=K, vectors=questions)
        note({"stage": "brute_force", "state": state, **compare(core, parts, everything, device)})
    one = SearchRequest(mode="dense", k=K, vectors=questions, streams=frozenset({"stream-3"}))
    views = core.look(one)
    alive = [view.allowed if view.allowed is not None else ~view.segment.dead for view in views]
    truth, _ = exact_top(parts, alive, questions, device)
    scores = np.array([[p.score for p in got] for got in candidates(core, one).dense], dtype=np.float32)
    note(
        {
            "stage": "brute_force",
            "state": "one stream",
            "worst_score_gap": float(np.abs(scores - truth).max()),
        }
    )


class _Peers:
    """The bare product over all vectors in one matrix, with and without a choice."""

    def __init__(self, vectors: torch.Tensor, device: str) -> None:
        self._vectors, self._device = vectors, device

    def product(self, given: NDArray[np.float32]) -> None:
        """Scores of every row, left on the device."""
        with torch.inference_mode():
            self._scores(given)
        wait(self._device)

    def product_and_topk(self, given: NDArray[np.float32]) -> Any:
        """What one writes without a store: scores and rows [Q, K] on the host."""
        with torch.inference_mode():
            best, found = self._scores(given).topk(K, dim=1)
            return best.float().cpu().numpy(), found.cpu().numpy()

    def two_steps(self, given: NDArray[np.float32]) -> Any:
        """The same with the store's way of choosing."""
        with torch.inference_mode():
            best, found = largest(self._scores(given), K)
            return best.float().cpu().numpy(), found.cpu().numpy()

    def _scores(self, given: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(given).to(self._device, self._vectors.dtype) @ self._vectors.T


def _nearest(core: ShardCore, request: SearchRequest) -> Any:
    return nearest(core.look(request), _fresh(request))


def _passages(core: ShardCore, request: SearchRequest) -> Any:
    return candidates(core, _fresh(request))


def _fresh(request: SearchRequest) -> SearchRequest:
    """The same questions in another array: the store keeps the last ones on the device, which nobody asks twice."""
    assert request.vectors is not None
    return replace(request, vectors=request.vectors.copy())


def _products(core: ShardCore, request: SearchRequest, device: str) -> None:
    """What `_nearest` asks of the device before it chooses."""
    assert request.vectors is not None
    held = [(s.index, Part(s.index, s.num_rows, None)) for s in core.segments]
    matrices = [(index, part) for index, part in held if isinstance(index, DeviceMatrix)]
    with torch.inference_mode():
        products(matrices, matrices[0][0].questions(request.vectors), masked=False)
    wait(device)


def _flat(vectors: torch.Tensor, device: str) -> FlatPeer | None:
    """faiss' flat index over the same rows; None where it cannot be made."""
    try:
        peer = FlatPeer(DIM, device)
        peer.add(vectors.float().cpu().numpy())
        return peer
    except (AttributeError, RuntimeError, MemoryError) as error:
        sys.stdout.write(f"no faiss flat peer: {error}\n")
        return None
