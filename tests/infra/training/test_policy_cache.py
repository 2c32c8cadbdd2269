"""infra/training/policy_worlds.py: newswire questions asked in their time, with what a session had read last."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from infra.training import policy_material
from infra.training.policy_pools import Cached, Pooled, both_ways, join
from infra.training.policy_worlds import newswire_pool
from pipeline.newswire import generate
from pipeline.newswire.values import iso
from pipeline.tasks.cached import article_of
from pipeline.tasks.material import Material
from tests.infra.training.test_policy_gpu import carried, run, texts

__all__ = ["carried", "texts"]


@pytest.fixture(scope="module")
def world() -> Pooled:
    """A small world's test questions, each with the six newest articles of its stream."""
    return newswire_pool(1001, num_articles=500, num_questions=40, split="test", cache=6)


def test_a_question_brings_what_its_stream_had_read_last_when_it_was_asked(world: Pooled) -> None:
    """Nothing is of later; texts are in the form that stood; newest first, without copies, six at most."""
    events = list(generate(1001, 500))
    assert len({question.asked for question in world.questions}) > 10
    assert len(world.caches) == len(world.questions) and any(len(c.articles) == 6 for c in world.caches)
    for question, pool, cached in zip(world.questions, world.pools, world.caches, strict=True):
        before = [event for event in events if iso(event.time) <= question.asked]
        last = {event.record["id"]: event for event in before}
        for name in (*pool, *cached.articles):
            event = last[article_of(name)]
            assert event.kind != "withdrawal" and world.texts[name].title == event.record["title"]
        own = [last[article_of(name)] for name in cached.articles]
        assert all(event.kind != "copy" for event in own) and len({e.record["stream"] for e in own}) == 1
        assert [event.time for event in own] == sorted((event.time for event in own), reverse=True)
        stream = own[0].record["stream"]
        newest = sorted(
            (e for e in last.values() if e.kind != "withdrawal" and e.record["stream"] == stream),
            key=lambda e: -e.time,
        )[:6]
        assert {e.record["id"] for e in own} <= {e.record["id"] for e in newest}
        assert len(own) == sum(e.kind != "copy" for e in newest)


def test_a_world_without_caches_is_the_one_that_it_was(world: Pooled, tmp_path: Path) -> None:
    """Asked at its end, of the newest forms alone, with ids of its own; caches come back from a file, and join."""
    plain = newswire_pool(1001, num_articles=500, num_questions=20, split="test")
    assert plain.caches == () and len({question.asked for question in plain.questions}) == 1
    assert not {q.question_id for q in plain.questions} & {q.question_id for q in world.questions}
    assert not any("@v" in name for name in plain.texts)
    assert both_ways(plain, 0.5, 0) is plain
    world.save(tmp_path / "w.json.xz")
    assert Pooled.load(tmp_path / "w.json.xz") == world
    both = join([plain, world])
    assert both.caches[0] == Cached((), ()) and all(name in both.texts for name in both.caches[-1].articles)
    with pytest.raises(ValueError, match="caches: given 1"):
        Pooled(world.questions, world.pools, world.texts, world.also, world.caches[:1])


def test_half_of_training_has_a_cache_and_other_questions_stand_both_ways() -> None:
    """By the seed, but where the cache alone tells a hop; a test question follows itself in another set."""
    trained = newswire_pool(1002, num_articles=500, num_questions=60, split="train", cache=6)
    half, other = both_ways(trained, 0.5, 0), both_ways(trained, 0.5, 1)
    assert half.questions == trained.questions
    drawn = [bool(each.articles) for each in half.caches]
    assert 0.2 < np.mean(drawn) < 0.8 and drawn != [bool(each.articles) for each in other.caches]
    none = both_ways(trained, 0.0, 0)
    kept = [at for at, each in enumerate(none.caches) if each.articles]
    for at, (pool, cached) in enumerate(zip(none.pools, trained.caches, strict=True)):
        told = all(
            any(
                s in trained.texts[name].text and t == trained.texts[name].title
                for name in pool
                for t, s in hop
            )
            for hop in cached.tellings
        )
        assert told == (at not in kept)
    judged = newswire_pool(1001, num_articles=500, num_questions=10, split="test", cache=6)
    both = both_ways(judged, 0.5, 0)
    assert [q.dataset for q in both.questions] == ["newswire", "newswire_cached"] * len(judged.questions)
    assert not any(each.articles for each in both.caches[::2]) and both.caches[1::2] == judged.caches


def test_material_holds_both_kinds_of_candidates_and_counts_them(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage in miniature: half of training with a cache's candidates behind the search's, test both ways."""
    worlds = tuple(
        {"seed": seed, "split": split, "num_articles": 200, "num_questions": 24}
        for seed, split in ((1001, "train"), (1002, "validation"), (1003, "test"))
    )
    monkeypatch.setattr(policy_material, "WORLDS", worlds)
    monkeypatch.setattr(policy_material, "LEAST_TOLD", 0.0)
    out = tmp_path / "state"
    run(
        monkeypatch, "--carried", str(texts), "--out", str(out), "--stage", "material", "--cache", "6",
        "--seconds", "600", "--most", "12",
    )  # fmt: skip
    made = Material.load(out / "material")
    told = json.loads((out / "material" / "manifest.json").read_text())["cache"]
    assert {(split, name) for split, sets in told.items() for name in sets} == {
        ("train", "newswire"), ("dev", "newswire"), ("dev", "newswire_cached"), ("test", "newswire"),
        ("test", "newswire_cached"),
    }  # fmt: skip
    assert 0 < told["train"]["newswire"]["with_cache"] < told["train"]["newswire"]["questions"]
    assert told["test"]["newswire"]["with_cache"] == 0
    assert told["test"]["newswire_cached"]["candidates_of_cache"] > 0
    plain, cached = (made.rows("test", name) for name in ("newswire", "newswire_cached"))
    assert [made.questions[at].question_id for at in plain] == [
        made.questions[at].question_id for at in cached
    ]
    assert made.tables.num_features == 15
    for at in cached:
        question = made.questions[at]
        assert len({sentence[2].casefold() for sentence in question.sentences}) == len(question.sentences)
