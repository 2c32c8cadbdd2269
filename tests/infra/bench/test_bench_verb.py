"""The verb `bench`: what it lists, what it refuses, and how rows become named ratios and a page."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from infra import bench
from infra.bench import decode, sparse_attention
from infra.cli import build

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")


def test_without_a_name_the_benchmarks_are_listed() -> None:
    """`dysra bench --json` names every benchmark that is installed."""
    result = CliRunner().invoke(build(), ["bench", "--json"])
    assert result.exit_code == 0
    names = json.loads(result.stdout.strip().splitlines()[-1])["benches"]
    assert {"sparse-attention", "decode", "landmarks"} <= set(names)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """A typo ends with code 2 and the list of names."""
    result = CliRunner().invoke(build(), ["bench", "sparse"])
    assert result.exit_code == 2
    assert "sparse-attention" in result.output


@WITHOUT_GPU
def test_a_gpu_benchmark_says_what_to_do_without_a_gpu() -> None:
    """Without a CUDA device the verb ends with code 3 and names the way out."""
    result = CliRunner().invoke(build(), ["bench", "decode"])
    assert result.exit_code == 3
    assert "ray job submit" in result.output


def test_sparse_ratios_take_the_worst_row() -> None:
    """Over the floor the largest counts, of long contexts only; over peers the smallest speed-up of all rows."""
    rows = [
        {
            "context": context,
            **{f"{form}_{name}_ms": time for form in ("forward", "both") for name, time in times.items()},
        }
        for context, times in (
            (4_096, {"ours": 9.0, "floor": 1.0, "gather": 18.0, "flex": 9.9}),
            (65_536, {"ours": 3.0, "floor": 2.0, "gather": 9.0, "flex": 6.0}),
            (262_144, {"ours": 4.0, "floor": 2.0, "gather": 10.0, "flex": 6.0}),
        )
    ]
    ratios = sparse_attention.ratios(rows)
    assert ratios["sparse_over_floor_64k"] == 2.0
    assert ratios["sparse_speedup_over_gather_sdpa_min"] == 2.0
    assert ratios["sparse_speedup_over_flex_min"] == 1.1


def test_decode_ratios_name_what_the_goal_names() -> None:
    """Speed-ups at 128k and 1M, and 16M over 16k with one retrieval per chunk."""
    rows = [
        {
            "tokens": tokens,
            "batch": 1,
            "ours_ms": 0.02,
            "gca_ms": 0.1,
            "dense_ms": 0.3,
            "ours_per_chunk_ms": 0.01,
            "gca_per_chunk_ms": 0.04,
            "attend_bandwidth_share": 0.5,
        }
        for tokens in (16_384, 131_072, 1_048_576, 16_777_216)
    ]
    ratios = decode.ratios(rows)
    assert ratios["decode_speedup_over_gca_128k"] == 5.0
    assert ratios["decode_speedup_over_dense_1m"] == 15.0
    assert ratios["decode_16m_over_16k"] == 1.0


def test_a_page_shows_medians_with_their_spread() -> None:
    """One column for each figure; the percentiles stand in brackets beside their median."""
    result = {
        "bench": "decode",
        "device": "card",
        "commit": "abc",
        "ratios": {"gain": 2.0},
        "rows": [{"tokens": 16, "ours_ms": 1.5, "ours_low_ms": 1.0, "ours_high_ms": 2.0}],
    }
    page = bench.page(result)
    assert "| gain | 2.0 |" in page
    assert "| 16 | 1.5 (1-2) |" in page
