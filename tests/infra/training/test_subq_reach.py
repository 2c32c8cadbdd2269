"""What far text could tell: repetitions by distance, caches of n-grams, what chosen chunks hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.training import subq_reach_page
from infra.training.subq_reach import BUCKETS, ORDERS, Measured, cache_gains, cached, held, main, repeated
from models.subq.checkpoint import save_checkpoint
from models.subq.hindsight import overlap
from models.subq.model import SubqModel
from tests.infra.training.subq_case import MODEL, small_data
from tests.infra.training.token_files import packed


def test_a_token_is_put_by_the_last_place_behind_the_same_two() -> None:
    """Nearest repetition counts, up to 512 and 3,072 tokens; a token behind other two is none."""
    ids = np.arange(10, 6_010)
    for at in (100, 500, 2_000, 5_900):
        ids[at : at + 3] = (1, 2, 3)
    ids[5_950:5_953] = (2, 1, 3)
    found = repeated(ids)
    assert [BUCKETS[found[at + 1]] for at in (100, 500, 2_000, 5_900)] == ["never", "near", "middle", "far"]
    assert (np.delete(found, [501, 2_001, 5_901]) == BUCKETS.index("never")).all()


def test_caches_tell_what_followed_the_longest_context() -> None:
    """Near and far are the tokens within and beyond the reach, against counting anew at every place."""
    ids = np.random.default_rng(0).integers(0, 5, 120)
    reach = 30
    for place, (shares, orders) in enumerate(cached(ids, reach)):
        for at in range(1, len(ids)):
            share, matched = 0.0, 0
            for order in ORDERS:
                ends = [
                    end
                    for end in range(order, at)
                    if (end >= at - reach if place == 0 else end < at - reach)
                    and at >= order
                    and (ids[end - order : end] == ids[at - order : at]).all()
                ]
                if ends:
                    share, matched = float(np.mean(ids[ends] == ids[at])), order
                    break
            assert (shares[at - 1], orders[at - 1]) == (pytest.approx(share), matched), (place, at)


def test_a_far_cache_gains_what_only_it_knows() -> None:
    """A model that is at a loss, a far cache that is always right where it matches: its nats are gained."""

    def row() -> Measured:
        unread, zero = np.full(400, 4.0), np.zeros(400)
        matched = np.arange(400) % 2
        far = (matched.astype(float), 3 * matched)
        return Measured(unread, unread, zero.astype(int), (zero, zero.astype(int)), far, {})

    gains = cache_gains([row(), row()])
    assert gains["near"] == pytest.approx(0.0, abs=1e-3)
    assert gains["far_beside_near"] == pytest.approx(2.0, abs=0.02)


def test_chosen_chunks_are_set_against_the_best_and_against_chance() -> None:
    """Of a model that may read nearly all, the chosen hold nearly the best; chance lies below the best."""
    torch.manual_seed(0)
    model = SubqModel(MODEL).eval()
    ids = torch.from_numpy(small_data().tokens[:513].astype(np.int64))
    rare = torch.ones(MODEL.vocabulary)
    found = held(model, ids, rare)
    assert 0 < found["by_chance"] < found["best"] and 0 < found["chosen"] <= found["best"]
    # with everything chosen, by hand
    routing = model(ids[None, :-1]).routing
    assert routing is not None
    wanted = overlap(ids[None, :-1], rare, MODEL.chunk, MODEL.near)[0]
    rows = [
        max(float(wanted[chunk, at]) for at in routing.indices[0, chunk].tolist())
        for chunk in range(MODEL.near + MODEL.top_k, 16)
        if wanted[chunk].max() > 0
    ]
    assert found["chosen"] == pytest.approx(np.mean(rows)) and found["chunks"] == len(rows)


def test_a_text_is_measured_from_files(tmp_path: Path) -> None:
    """Shares of the buckets sum to one, and so do their parts of the loss."""
    torch.manual_seed(0)
    save_checkpoint(SubqModel(MODEL), tmp_path / "model", tokenizer=small_data().tokenizer)
    data = packed(tmp_path / "data")
    out = tmp_path / "reach.json"
    main([
        "--model", str(tmp_path / "model"), "--data", str(data), "--out", str(out), "--sequences", "2",
        "--length", "1024",
    ])  # fmt: skip
    found = json.loads(out.read_text())
    buckets = found["by_last_repetition"].values()
    assert sum(row["share"] for row in buckets) == pytest.approx(1.0, abs=1e-3)
    assert sum(row["part_of_all_nats"] for row in buckets) == pytest.approx(1.0, abs=1e-3)
    assert set(found["cache"]) == {"near", "far_beside_near"}
    assert found["rare_words_held"] == {}  # of 600 words none is rare
    told = out.with_name("told.json")
    told.write_text(json.dumps(found | {"rare_words_held": {"chosen": 3.0, "by_chance": 1.5, "best": 4.0}}))
    page = ["--found", str(out), str(told), "--bench", str(tmp_path / "page"), "--note", "Why."]
    subq_reach_page.main(page)
    text = (tmp_path / "page.md").read_text()
    assert (
        "| last place | model on data, 2 sequences | model on data, 2 sequences |" in text
        and text.endswith("\nWhy.\n")
    )
    assert "the best on offer |  | 3.00 / 1.50 / 4.00 |" in text
    kept = json.loads((tmp_path / "page.json").read_text())["ratios"]
    assert kept["rare_words_chosen_over_chance_model_data"] == 2.0
