"""The kept results carry the names that issues 4, 5 and 6 ask for, and each has a page beside it.

A name stands with the kind of result that brings it: the newest file of that kind must have it among its ratios, as
a number. What no result has yet is told in MISSING, with why, and must leave that list when it comes.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import infra.bench

RESULTS = Path(infra.bench.__file__).parent / "results"
SETS = ("squad", "nq", "hotpot", "rtqa", "newswire")
LENGTHS = ("16k", "64k", "256k", "1m", "4m", "16m", "64m", "100m")
COMPARED = (
    "truncation", "window_sinks", "pyramidkv", "squeeze", "kv_compress", "shared_attention", "ours_brought_back",
    "ours_latents", "ours_weighted", "ours_projection", "ours_autoencoder", "ours_ranker", "ours_question_bank",
)  # fmt: skip
LEFT = (50, 70, 90, 95)

NAMES: dict[str, tuple[str, ...]] = {
    # issue 4
    "sparse-attention_h200": (
        "sparse_over_floor_64k", "sparse_speedup_over_gather_sdpa_min", "sparse_speedup_over_flex_min",
    ),
    "decode_whole_h200": (
        *(
            f"decode_speedup_over_gca_{length}{rows}"
            for length in ("128k", "1m", "16m") for rows in ("", "_batch8", "_batch64")
        ),
        "decode_speedup_over_dense_1m", "decode_speedup_over_flashinfer_1m", "decode_16m_over_16k",
    ),
    "landmarks_h200": ("landmark_search_ms_16m",),
    "session_bytes_16m_h200": ("eviction_share_of_decode", "session_bytes_16m_over_16k"),
    "cache_methods_h200": (
        *(f"quality_drop_at_{left}_{method}" for left in LEFT for method in COMPARED),
        "quality_drop_at_50_razor",
    ),
    "backbone_cells_h200": ("bytes_share_gca", "bytes_share_mamba_2"),
    # issue 5
    r"faults_\w+": (
        "faults", "lost", "doubled", "wrong_version", "sessions_differing", "recovery_p50_s", "recovery_p99_s",
    ),
    r"ingest_(?:many|16)_cores": ("ingest_over_bare_loop",),
    "search_gpu_h200": ("search_over_bare_faiss_gpu",),
    "freshness_h200": ("published_to_searchable_p99_ms_200",),
    # issue 6
    "subq_three_seeds_h200": tuple(
        f"needle_exact_{wording}_{length}" for wording in ("known", "heldout") for length in LENGTHS
    ),
    # judged on two kinds of text, so their names end in the kind
    "subq_compare_h200": (
        "lm_loss_gain_of_retrieval_books", "lm_loss_gain_of_retrieval_lean_news", "ppl_subq_lean_news",
        "ppl_no_retrieval_news",
        *(
            f"ppl_{backbone}_books"
            for backbone in ("subq", "no_retrieval", "transformer", "linear_transformer", "mamba_2", "gca")
        ),
    ),
    "reader_h200": tuple(f"reader_f1_{form}_{name}" for form in ("base", "lora", "full") for name in SETS),
    r"policy_(?!sessions|prices|apart)\w+_h200": (
        "tokens_ratio_at_equal_f1", "rl_over_supervised_f1",
        *(
            f"{figure}_{name}"
            for figure in ("policy_f1", "policy_tokens", "best_simple_f1", "best_simple_tokens", "gap_closed")
            for name in SETS
        ),
    ),
}  # fmt: skip
"""Kind of result (its file's name without date and number, as a pattern): the names that its newest file has."""

MISSING = {
    **{
        f"quality_drop_at_{left}_razor": "one head of three stays whole, a third of all bytes"
        for left in LEFT[1:]
    },
    **{
        f"quality_drop_at_{left}_{mixer}": "after 10 million tokens none answers a needle (backbone_cells_h200)"
        for left in LEFT for mixer in ("gca", "linear_transformer", "mamba_2")
    },
}  # fmt: skip
"""Names that no kept result has."""


@cache
def _ratios(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8")).get("ratios", {})
    return found if isinstance(found, dict) else {}


def _newest(kind: str) -> Path:
    """The file of that kind with the latest date, then the highest number."""
    found = []
    for path in RESULTS.glob("*.json"):
        match = re.fullmatch(rf"(\d{{4}}-\d\d-\d\d)_(?:{kind})(?:_(\d+))?", path.stem)
        if match:
            found.append((match[1], int(match[2] or 1), path))
    assert found, f"no kept result of the kind {kind}"
    return max(found)[2]


@pytest.mark.parametrize("kind", NAMES)
def test_the_newest_result_of_a_kind_carries_every_name_that_was_asked_for(kind: str) -> None:
    """As a number, among its ratios: who looks for a name finds today's figure."""
    path = _newest(kind)
    told = _ratios(path)
    absent = [
        name
        for name in NAMES[kind]
        if isinstance(told.get(name), bool)
        or not isinstance(told.get(name), int | float)
        or not math.isfinite(told[name])
    ]
    assert not absent, f"{path.name} lacks {', '.join(absent)}"


def test_what_is_said_to_be_missing_is_missing() -> None:
    """A name that has come stands with its result, not in the list of what is missing."""
    come = {name: path.name for path in RESULTS.glob("*.json") for name in MISSING if name in _ratios(path)}
    assert not come, f"no longer missing: {come}"
    assert not set(MISSING) & {name for names in NAMES.values() for name in names}


def test_every_result_has_a_page_and_todays_name_a_command() -> None:
    """Figures come with what they mean, and those that are asked for with what made them."""
    alone = [path.name for path in sorted(RESULTS.glob("*.json")) if not path.with_suffix(".md").is_file()]
    assert not alone, f"without a page: {alone}"
    for page in (_newest(kind).with_suffix(".md") for kind in NAMES):
        told = page.read_text(encoding="utf-8")
        assert re.search(r"python3? -m|dysra |\.sh\b|make \w", told), f"{page.name} names no command"
