"""What a sub-quadratic sequence costs by length: search by every index, reading, bytes, and the fit over lengths.

Landmarks are clustered unit vectors; each query is near one of them, so recall says what an index misses. The
time of a sequence is reading all its tokens (measured on one segment; it does not depend on what came before) plus
one search a chunk, each over the landmarks so far: estimated from single searches (`sequence_s`), and measured with
all queries of the sequence asked in batches as it grows (`searched_s`; on a GPU in a second life of the sequence,
when nothing is compiled any more). The cost in vectors scored is exact and has no noise. Beside each single search:
its floor (the bytes of what it scores, or the operations, at this device's own rates) and its peer, torch's product
with all landmarks and topk.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from infra.bench.measure import device_rates, environment, floor_ms
from models.subq import SubqConfig, SubqModel
from models.subq.index import FlatIndex, LandmarkIndex, build_index

KINDS = ("flat", "groups", "ivf", "tree")
TOKENS = (16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216)
PROBES = {"flat": 1, "groups": 128, "ivf": 16, "tree": 8}
_QUERIES = 64
NEAR = 4
LEAST_CHUNKS = 16
_GATHERED = {"cuda": 1 << 21, "cpu": 1 << 15}  # vectors that a batch of searches may bring together


def run(
    *,
    tokens: Sequence[int] = TOKENS,
    kinds: Sequence[str] = KINDS,
    device: str = "",
    dim: int = 256,
    model: SubqConfig | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Rows for every length and index; ratios state the growth from the shortest to the longest length.

    `report` is given every row, `keep` the whole result so far after each.
    """
    config = model or SubqConfig()
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"kinds: given {', '.join(unknown)}; allowed: {', '.join(KINDS)}")
    least = LEAST_CHUNKS * config.chunk
    if not tokens or min(tokens) < least or dim < 1:
        raise ValueError(f"tokens: given {list(tokens)}, dim {dim}; allowed: {least} or more, and 1 or more")
    if device and device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device: given {device!r}; allowed: cpu, cuda, cuda:N")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    per_token = _read_seconds(config, place)
    rows: list[dict[str, Any]] = []
    landmarks = _clustered(max(tokens) // config.chunk, dim, place)
    rates, about = device_rates(place, torch.float16), environment()

    def result() -> dict[str, Any]:
        return {
            "bench": "subq", **about, "read_us_a_token": round(per_token * 1e6, 3), "rows": rows,
            "ratios": ratios(rows),
        }  # fmt: skip

    for kind in kinds:
        for length in tokens:
            row = _row(kind, length, landmarks[: length // config.chunk], config, per_token, rates)
            rows.append(row)
            if report is not None:
                report(row)
            if keep is not None:
                keep(result())
    return result()


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How each index grows: its exponent over length (1: linear), and how well a·n·log n fits a sequence's cost."""
    found: dict[str, float] = {}
    for kind in dict.fromkeys(row["index"] for row in rows):
        own = [row for row in rows if row["index"] == kind]
        if len(own) < 3:
            continue
        lengths = np.array([row["tokens"] for row in own], float)
        cost = np.array([row["scored_a_sequence"] for row in own], float)
        found[f"{kind}_exponent_of_scored"] = round(float(np.polyfit(np.log(lengths), np.log(cost), 1)[0]), 3)
        found[f"{kind}_misfit_n_log_n"] = round(misfit(lengths * np.log2(lengths), cost), 3)
        found[f"{kind}_misfit_n_squared"] = round(misfit(lengths**2, cost), 3)
        seconds = np.array([row["sequence_s"] for row in own], float)
        found[f"{kind}_exponent_of_time"] = round(
            float(np.polyfit(np.log(lengths), np.log(seconds), 1)[0]), 3
        )
        found |= _measured(kind, lengths, own)
        longest = own[-1]
        found[f"{kind}_search_over_floor"] = round(longest["search_ms"] / longest["floor_ms"], 3)
        found[f"{kind}_search_speedup_over_torch"] = round(longest["torch_ms"] / longest["search_ms"], 3)
    return found


def _measured(kind: str, lengths: np.ndarray[Any, Any], own: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The same fits of measured seconds: searches alone, and all of a sequence. Left out is the shortest length: it
    is launches alone."""
    found = {}
    whole = np.array([row["read_s"] + row["build_s"] + row["searched_s"] for row in own], float)[1:]
    searches = np.array([row["searched_s"] for row in own], float)[1:]
    for name, seconds in (("searches", searches), ("sequence", whole)):
        slope = np.polyfit(np.log(lengths[1:]), np.log(np.maximum(seconds, 1e-9)), 1)[0]
        found[f"{kind}_exponent_of_measured_{name}"] = round(float(slope), 3)
    found[f"{kind}_measured_misfit_n_log_n"] = round(misfit(lengths[1:] * np.log2(lengths[1:]), whole), 3)
    found[f"{kind}_measured_misfit_n_squared"] = round(misfit(lengths[1:] ** 2, whole), 3)
    return found


def misfit(shape: np.ndarray[Any, Any], cost: np.ndarray[Any, Any]) -> float:
    """Root mean square of log(cost / (a · shape)), the best a: 0 fits perfectly, 0.69 is off by 2."""
    logs = np.log(cost) - np.log(shape)
    return float(np.sqrt(np.mean((logs - logs.mean()) ** 2)))


def _row(
    kind: str,
    length: int,
    landmarks: torch.Tensor,
    config: SubqConfig,
    per_token: float,
    rates: tuple[float, float],
) -> dict[str, Any]:
    if landmarks.is_cuda:
        # kernels are compiled for shapes; in a second life of the sequence every one has been met
        _grown(kind, landmarks, config.top_k)
    index, scored, searched, built = _grown(kind, landmarks, config.top_k)
    generator = torch.Generator(device=landmarks.device).manual_seed(1)
    gold = torch.randint(0, len(landmarks), (_QUERIES,), generator=generator, device=landmarks.device)
    noise = torch.randn(_QUERIES, landmarks.shape[1], generator=generator, device=landmarks.device)
    queries = F.normalize(landmarks[gold].float() + 0.02 * noise, dim=-1)
    limits = torch.full((_QUERIES,), len(landmarks) - 1, device=landmarks.device)
    _, found = index.search(queries, config.top_k, limits)
    times = _times_ms(lambda query: index.search(query, config.top_k, limits[:1]), queries)
    milliseconds = times[len(times) // 2]
    plain = _times_ms(
        lambda query: (query.to(landmarks.dtype) @ landmarks.T).topk(min(config.top_k, len(landmarks))),
        queries,
    )
    chunks = len(landmarks)
    numbers = index.scored_a_query() * landmarks.shape[1]
    return {
        "index": kind,
        "tokens": length,
        "landmarks": chunks,
        "recall": round(float((found == gold[:, None]).any(1).float().mean()), 4),
        "search_ms": milliseconds,
        "search_low_ms": times[len(times) // 10],
        "search_high_ms": times[-1 - len(times) // 10],
        "floor_ms": round(floor_ms(numbers * landmarks.itemsize, 2 * numbers, *rates), 7),
        "torch_ms": plain[len(plain) // 2],
        "scored_a_query": index.scored_a_query(),
        "scored_a_sequence": scored,
        "build_s": round(built, 3),
        "sequence_s": round(length * per_token + built + 1e-3 * milliseconds * chunks * scored
                            / max(chunks * index.scored_a_query(), 1), 3),
        "searched_s": round(searched, 4),
        "read_s": round(length * per_token, 4),
        "index_bytes": index.nbytes,
        "kv_bytes": chunks * config.chunk * 2 * config.kv_heads * config.head_dim * 2,
    }  # fmt: skip


def _grown(kind: str, landmarks: torch.Tensor, top_k: int) -> tuple[LandmarkIndex, float, float, float]:
    """An index as a sequence fills it, the vectors scored over its life, seconds of searching and of building."""
    began = time.perf_counter()
    index = build_index(kind, landmarks.shape[1], PROBES[kind], landmarks.dtype, landmarks.device)
    scored = searched = 0.0
    done = 0
    # the cost of a sequence is summed over its life, with the index as it stood
    for end in _milestones(len(landmarks)):
        index.add(landmarks[done:end])
        scored += (end - done) * index.scored_a_query()
        searched += _searched_s(index, landmarks[done:end], done, top_k)
        done = end
    _wait(landmarks)
    return index, scored, searched, time.perf_counter() - began - searched


def _searched_s(index: LandmarkIndex, queries: torch.Tensor, first: int, top_k: int) -> float:
    """Seconds of one search for every new chunk, each among what is older, in batches."""
    limits = torch.arange(first, first + len(queries), device=queries.device) - NEAR
    # indexes that gather what they score hold a batch of it; a flat search holds nothing
    room = _GATHERED[queries.device.type] // max(1, index.scored_a_query())
    batch = 1_024 if type(index) is FlatIndex else max(1, min(1_024, room))
    _wait(queries)
    began = time.perf_counter()
    for at in range(0, len(queries), batch):
        index.search(queries[at : at + batch].float(), top_k, limits[at : at + batch])
    _wait(queries)
    return time.perf_counter() - began


def _milestones(chunks: int) -> list[int]:
    """Sixteen steps of growth between doublings."""
    found, at = [], 64
    while at < chunks:
        found.append(at)
        at += max(64, at // 16)
    return [*found, chunks]


def _times_ms(search: Callable[[torch.Tensor], Any], queries: torch.Tensor) -> list[float]:
    """Of single queries, one after the other, in rising order."""
    times = []
    for at in range(min(23, len(queries))):
        _wait(queries)
        began = time.perf_counter()
        search(queries[at : at + 1])
        _wait(queries)
        times.append(round(1e3 * (time.perf_counter() - began), 4))
    return sorted(times[3:])


def _read_seconds(config: SubqConfig, device: torch.device) -> float:
    """Seconds a token of the lower half and the chunk encoder."""
    torch.manual_seed(0)
    on_gpu = device.type == "cuda"
    model = (
        SubqModel(config).eval().requires_grad_(False).to(device, torch.bfloat16 if on_gpu else torch.float32)
    )
    ids = torch.randint(0, config.vocabulary, (1, 65_536 if on_gpu else 2_048), device=device)
    times = []
    for _ in range(4):
        _wait(ids)
        began = time.perf_counter()
        model.encode(model.lower(ids)[0])
        _wait(ids)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:]) / ids.shape[1]


def _clustered(num: int, dim: int, device: torch.device) -> torch.Tensor:
    """Unit vectors about centres whose number grows with the square root of theirs, as topics of a text do."""
    make = torch.Generator(device=device).manual_seed(0)
    centres = torch.randn(max(8, math.isqrt(num)), dim, generator=make, device=device)
    owner = torch.randint(0, len(centres), (num,), generator=make, device=device)
    parts = []
    for piece in owner.split(65_536):  # type: ignore[no-untyped-call]
        noise = torch.randn(len(piece), dim, generator=make, device=device)
        parts.append(F.normalize(centres[piece] + 0.8 * noise, dim=-1).half())
    return torch.cat(parts)


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()
