"""infra/bench/peers/flashinfer_decode.py: asked what SDPA is asked, and told from it."""

from __future__ import annotations

import importlib.machinery
import itertools
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from infra.bench import measure
from infra.bench.peers import flashinfer_decode as peer

SHAPES = {"heads": 4, "kv_heads": 2, "dim": 16, "page": 8, "pages": 5}


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of q [B, heads, D] to k, v [T, key heads, D]."""
    key, value = (x.transpose(0, 1).expand(q.shape[0], -1, -1, -1) for x in (k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q[:, :, None], key, value, enable_gqa=True)
    return out[:, :, 0]


class Paged:
    """A stand-in of FlashInfer's wrapper that reads exactly the pages that it was planned for."""

    def __init__(self, space: torch.Tensor, layout: str, **buffers: Any) -> None:
        assert layout == "NHD" and buffers["use_tensor_cores"] and buffers["use_cuda_graph"]

    def plan(
        self, starts: torch.Tensor, index: torch.Tensor, last: torch.Tensor, *shape: int, **types: Any
    ) -> None:
        assert shape == (4, 2, 16, 8) and set(types) == {"q_data_type", "kv_data_type"}
        self.rows = [index[a:b].tolist() for a, b in itertools.pairwise(starts)]
        assert last.tolist() == [8] * len(self.rows)

    def run(self, q: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        read = [[x[pages].flatten(0, 1) for x in pair] for pages in self.rows]
        return torch.cat([dense(q[i : i + 1], k, v) for i, (k, v) in enumerate(read)])


@pytest.fixture
def flashinfer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """FlashInfer as a plain module; timing is replaced by the name of the first way."""
    module = ModuleType("flashinfer")
    module.__spec__ = importlib.machinery.ModuleSpec("flashinfer", None)

    def single(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, use_tensor_cores: bool) -> torch.Tensor:
        if not use_tensor_cores:
            raise RuntimeError("no module for this card")
        return dense(q[None], k, v)[0]

    module.single_decode_with_kv_cache = single  # type: ignore[attr-defined]
    module.BatchDecodeWithPagedKVCacheWrapper = Paged  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    monkeypatch.setattr(peer, "SPACE_BYTES", 64)

    def fastest(found: dict[str, Any], **_: Any) -> Any:
        return (next(iter(found)), measure.Timing(1.0, 0.9, 1.1, 20)) if found else (None, None)

    monkeypatch.setattr(peer, "fastest", fastest)
    return module


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    q = torch.randn(batch, SHAPES["heads"], SHAPES["dim"])
    key, value = (
        torch.randn(SHAPES["pages"], SHAPES["page"], SHAPES["kv_heads"], SHAPES["dim"]) for _ in range(2)
    )
    return q, key, value, dense(q, key.flatten(0, 1), value.flatten(0, 1))


@pytest.mark.parametrize(("batch", "way"), [(1, "single-tensor-cores"), (3, "paged-tensor-cores")])
def test_a_way_that_runs_and_agrees_is_timed(flashinfer: ModuleType, batch: int, way: str) -> None:
    """A way that raises (here `single`) costs only itself; the `single` ways are for one row."""
    row = peer.timed(*inputs(batch), runs=20)
    assert row["flashinfer_backend"] == way and row["flashinfer_ms"] == 1.0


def test_ways_that_differ_or_raise_are_named(flashinfer: ModuleType) -> None:
    q, key, value, expected = inputs(1)
    row = peer.timed(q, key, value, expected * 1.1, runs=20)
    assert "flashinfer_ms" not in row
    told = row["flashinfer_backend"]
    assert told.startswith(
        "does not run: single: no module for this card; single-tensor-cores differs by 0.09"
    )
    assert "paged-tensor-cores differs" in told


def test_where_it_is_not_installed_the_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "flashinfer", raising=False)
    monkeypatch.setattr(peer.importlib.util, "find_spec", lambda name: None)
    assert peer.timed(*inputs(1), runs=20) == {"flashinfer_backend": "not installed"}


def test_one_way_run_by_itself_ends_with_what_it_found(
    flashinfer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 where it agrees with SDPA at the benchmark's shapes, 1 where not: what flashinfer.sh goes by."""
    assert peer.main(["single-tensor-cores", "--device", "cpu"]) == 0
    assert "single-tensor-cores: differs from SDPA by" in capsys.readouterr().out
    flashinfer.single_decode_with_kv_cache = lambda q, k, v, use_tensor_cores: q  # type: ignore[attr-defined]
    assert peer.main(["single-tensor-cores", "--device", "cpu"]) == 1
