"""infra/training/policy_pools.py: questions that bring their texts, from a file or from a simulated world."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.training import policy_material
from infra.training.policy_material import labelled
from infra.training.policy_pools import HOPS, Pooled, join, pack_news
from infra.training.policy_worlds import newswire_pool
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


def news(folder: Path, count: int = 30) -> Path:
    """A data folder with questions about dated news."""
    for name in ("qa", "news"):
        (folder / name).mkdir(parents=True)
    asked, told = [], []
    for at in range(count):
        day = f"2022-01-{1 + at % 28:02d}"
        told.append(
            {"id": f"a{at}", "title": f"Bridge {at}", "text": f"The bridge {at} was opened by Ann{at}.",
             "source": "n", "published": f"{day}T00:00:00Z"}
        )  # fmt: skip
        asked.append(
            {"id": f"q{at}", "asked": f"{day}T12:00:00Z", "question": f"Who opened bridge {at}?",
             "answers": [f"Ann{at}"], "choices": [], "answer_index": 0, "evidence": "",
             "answer_string_in": [f"a{at}"], "source": "n"}
        )  # fmt: skip
    for path, rows in (
        (folder / "qa/realtimeqa.jsonl", asked),
        (folder / "news/rtqa_news_2011_2026.jsonl", told),
    ):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_dev_questions_of_real_news_are_others_than_test_ones_which_stay_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of real news is for training; asking for dev questions changes no test question."""
    from infra.evaluation import qa_sources

    opened = qa_sources.open_source
    monkeypatch.setattr(qa_sources, "open_source", lambda data: opened(data.with_suffix("")))
    folder = news(tmp_path)
    alone, none = pack_news(folder, 12)
    test, dev = pack_news(folder, 12, 8)
    assert test == alone and not none.questions
    assert {question.split for question in test.questions} == {"test"}
    assert {question.split for question in dev.questions} == {"dev"}
    assert (len(test.questions), len(dev.questions)) == (12, 8)
    assert not {q.question_id for q in test.questions} & {q.question_id for q in dev.questions}


def test_real_news_may_be_told_less_often_than_other_dev_questions() -> None:
    """What half of its dev questions' candidates tell is taken; of another set it is refused."""
    from tests.infra.training.test_policy_gpu import questions_with_features

    made = questions_with_features()
    labels = made.tables.labels.copy()
    labels[: len(labels) // 2] = 0
    tables = replace(made.tables, labels=labels)
    for dataset, fine in (("rtqa", True), ("nq", False)):
        asked = tuple(replace(q, split="dev", dataset=dataset) for q in made.questions)
        part = policy_material.Material(asked, tables)
        if fine:
            assert policy_material.checked(part)["dev"]["rtqa"] == (len(labels), 0.5)
        else:
            with pytest.raises(ValueError, match="dev questions"):
                policy_material.checked(part)
    assert np.mean(labels.max(1) > 0) == 0.5


def test_dev_questions_of_real_news_are_read_by_a_fold_reader_though_none_has_a_fold(tmp_path: Path) -> None:
    """No fold reader was trained on any of them; of another set such a question is refused."""
    from infra.training.policy_readers import reader_names
    from tests.rl.toy import material, tables

    (tmp_path / "folds.json").write_text("{}")
    made = material(tables(6))
    asked = tuple(replace(q, split="dev", dataset="rtqa") for q in made.questions)
    assert set(reader_names(policy_material.Material(asked, made.tables), tmp_path)) <= {"fold0", "fold1"}
    others = tuple(replace(q, dataset="nq") for q in asked)
    with pytest.raises(ValueError, match="has no fold"):
        reader_names(policy_material.Material(others, made.tables), tmp_path)
