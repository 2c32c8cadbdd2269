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


def test_rows_are_told_as_they_come_and_lengths_can_be_given() -> None:
    """Several values stand between commas; each row is a line before the page; the last line is the result."""
    settings = ["--set", "tokens=1024,2048,4096", "--set", "kinds=flat,tree", "--set", "dim=32"]
    result = CliRunner().invoke(build(), ["bench", "subq", *settings, "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.strip().splitlines()[-1])
    asked = [(kind, tokens) for kind in ("flat", "tree") for tokens in (1024, 2048, 4096)]
    assert [(row["index"], row["tokens"]) for row in figures["rows"]] == asked
    told = [line for line in result.output.splitlines() if line.startswith("  index ")]
    assert [line.split(",")[:2] for line in told] == [[f"  index {k}", f" tokens {n}"] for k, n in asked]
    assert {"flat_search_over_floor", "tree_search_speedup_over_torch"} <= set(figures["ratios"])


@pytest.mark.parametrize(
    ("setting", "wanted"), [("tokens=16k", "numbers with commas between"), ("dim=wide", "a number is needed")]
)
def test_a_value_that_is_no_number_is_named(setting: str, wanted: str) -> None:
    result = CliRunner().invoke(build(), ["bench", "subq", "--set", setting])
    assert result.exit_code == 2
    assert setting.split("=")[1] in result.output and wanted in result.output


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


def test_decode_ratios_over_gca_name_every_long_row() -> None:
    """Each length of 128k and more and each batch has a name of its own; an L2 filled by reading another."""
    rows = [
        {
            "tokens": tokens,
            "batch": batch,
            "ours_ms": 0.02 * batch,
            "ours_clean_ms": 0.01,
            "gca_ms": 0.1 if tokens < 16_777_216 else 0.04,
            "gca_clean_ms": 0.05,
            "ours_per_chunk_ms": 0.01,
            "gca_per_chunk_ms": 0.04,
            "attend_bandwidth_share": 0.5,
        }
        for tokens in (16_384, 131_072, 1_048_576, 16_777_216)
        for batch in (1, 8)
    ]
    ratios = decode.ratios(rows)
    over = {
        name.removeprefix("decode_speedup_over_gca_"): ratio
        for name, ratio in ratios.items()
        if "gca" in name
    }
    assert over["min"] == 0.25 and over["16m"] == 2.0 and over["1m_batch8"] == 0.625
    assert {name for name in over if "clean" in name} == {
        f"{length}{batch}_clean" for length in ("128k", "1m", "16m") for batch in ("", "_batch8")
    }
    assert over["1m_batch8_clean"] == 5.0


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
