"""infra/training/policy_pools.py: questions that bring their texts, from a file or from a simulated world."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.training.policy_material import labelled
from infra.training.policy_pools import HOPS, Pooled, join, newswire_pool
from models.retriever.table import GOLD, HOLDS
from pipeline.tasks.choices import needs_all
from pipeline.tasks.contexts import candidates


@pytest.fixture(scope="module")
def world() -> Pooled:
    """A small world's questions of two and three hops."""
    return newswire_pool(1001, num_articles=400, num_questions=24, kinds=HOPS, split="train")


def test_every_hop_of_a_training_question_is_told_by_a_sentence_of_its_pool(world: Pooled) -> None:
    """One sentence a hop is gold and all are needed; what tells the same elsewhere is never called wrong."""
    assert world.questions
    for question, pool, also in zip(world.questions, world.pools, world.also, strict=True):
        assert 1 < len(question.support) <= 3
        assert needs_all(question)
        choices = candidates([world.texts[name] for name in pool])
        labels = [(choice.text, labelled(question, choice, also)) for choice in choices]
        assert sum(label == GOLD for _, label in labels) >= len({s for _, s in question.support})
        assert all(label in (GOLD, HOLDS) for text, label in labels if any(s in text for s in also))
        assert question.split == "train"


def test_a_file_of_pools_comes_back_and_worlds_do_not_mix(world: Pooled, tmp_path: Path) -> None:
    """What was saved is what is loaded; texts of like names stay apart when joined."""
    world.save(tmp_path / "w.json.xz")
    assert Pooled.load(tmp_path / "w.json.xz") == world
    both = join([world, world])
    assert len(both.texts) == 2 * len(world.texts)
    assert set(both.pools[0]).isdisjoint(both.pools[len(world.questions)])
    with pytest.raises(ValueError, match="one each"):
        Pooled(world.questions, (), world.texts, world.also)
