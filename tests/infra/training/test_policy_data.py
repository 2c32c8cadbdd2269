"""infra/training/policy_data.py, policy_train.py and the pool: questions to material to a policy, in miniature."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.evaluation.choice_recall import recall, simple_choices
from infra.evaluation.hybrid_pool import HybridPool, passage_text
from infra.evaluation.policy_judge import gap_closed, paired
from infra.evaluation.qa_sources import QaSource, open_source
from infra.training.policy_data import PolicyDataConfig, make
from infra.training.policy_train import PolicyTrainConfig, train
from models.hf.config import HfConfig
from models.retriever import GOLD
from pipeline.tasks.qa import title_key
from tests.infra.evaluation.test_qa import data, reader

__all__ = ["data", "reader"]


def encode(texts: Any) -> np.ndarray:
    """Unit vectors by the words of a text: texts that share words are near."""
    out = np.zeros((len(texts), 64), np.float32)
    for row, text in zip(out, texts, strict=True):
        for word in text.lower().replace(":", " ").replace("?", " ").replace(".", " ").split():
            row[sum(map(ord, word)) * 31 % 64] += 1.0
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def count(text: str) -> int:
    """A token a word."""
    return len(text.split())


@pytest.fixture(scope="module")
def source(data: Path) -> QaSource:
    """The eight towers."""
    return open_source(data)


@pytest.mark.parametrize("reach", [0, 5])
def test_the_pool_fuses_words_and_meaning(source: QaSource, reach: int) -> None:
    """The gold passage comes first, whether the embedder ranks the whole corpus or BM25's best; no text twice."""
    pool = HybridPool(source, encode, reach)
    for question in source.questions:
        found = pool(question, 4)
        assert found[0].text_id == question.gold_ids[0]
        assert len({text.text_id for text in found}) == len(found) <= 4
    assert passage_text(found[0]).startswith(f"{found[0].title}\n")


def test_training_material_holds_nothing_under_a_test_title(source: QaSource) -> None:
    """Titles of test questions are left out of every training question's candidates; splits are kept."""
    keys = frozenset({title_key("Tower 3"), title_key("Tower 5")})
    config = PolicyDataConfig(train=8, test=8, passages=6, candidates=12, reach=0)
    material, whole = make(source, config, encode, count, held_back=keys)
    assert whole and material is not None
    for at in material.rows("train"):
        titles = {title_key(title) for title, _, _ in material.questions[at].sentences}
        assert not titles & keys
    assert {q.split for q in material.questions} <= {"train", "test"}
    assert (material.tables.labels == GOLD).any(1).mean() > 0.5
    assert make(source, config, encode, count, until=time.monotonic() - 1) == (None, False)


def test_recall_knows_the_oracle_from_chance(source: QaSource) -> None:
    """The oracle tells always with one sentence; random seldom; both within the budget."""
    material, _ = make(source, PolicyDataConfig(reach=0, candidates=16), encode, count, held_back=frozenset())
    assert material is not None
    best = recall(material.tables, simple_choices(material.tables, "oracle", 40))
    chance = recall(material.tables, simple_choices(material.tables, "random", 15))
    assert best["gold"] == 100.0
    assert best["sentences"] == 1.0
    assert chance["gold"] < 60.0
    assert chance["tokens"] <= 15
    with pytest.raises(ValueError, match="method: given 'magic'"):
        simple_choices(material.tables, "magic", 10)


def test_paired_differences_and_the_gap() -> None:
    """The interval holds the mean; equal scores differ by nothing; no gap is no share."""
    ours, theirs = np.array([1.0, 0.0, 1.0, 1.0] * 20), np.array([0.0, 0.0, 1.0, 1.0] * 20)
    found = paired(ours, theirs)
    assert found["low"] <= found["gain"] == 25.0 <= found["high"]
    assert paired(ours, ours) == {"gain": 0.0, "low": 0.0, "high": 0.0}
    assert (gap_closed(60.0, 50.0, 80.0), gap_closed(60.0, 50.0, 50.0)) == (0.3333, None)


@pytest.mark.parametrize(("algorithm", "warm"), [("plain_ppo", "minimal"), ("reinforce", "labels")])
def test_the_whole_run_with_a_reader(
    source: QaSource, reader: Path, tmp_path: Path, algorithm: str, warm: str
) -> None:
    """Warm start, learning by reward, judging by the reader's answers; what was read is kept beside the policy."""
    config = PolicyDataConfig(reach=0, candidates=6, passages=3)
    material, _ = make(source, config, encode, count, held_back=frozenset())
    assert material is not None
    from dataclasses import replace

    from pipeline.tasks.material import Material

    split = tuple(replace(q, split="test" if at < 2 else "train") for at, q in enumerate(material.questions))
    Material(split, material.tables).save(tmp_path / "material", {})
    job = PolicyTrainConfig(
        data=(tmp_path / "material",), out=tmp_path / "out", algorithm=algorithm, warm_start=warm, steps=2,
        warm_steps=4, width=16, questions=4, judge=2, backbone=HfConfig(model=str(reader), device="cpu"),
        command="dysra train-retriever --seed 0",
    )  # fmt: skip
    figures = train(job)
    assert figures["learning"]["iterations"] == 2
    assert ("sets_found" in figures["warm_start"]) is (warm == "minimal")
    assert 0 <= figures["judged"]["squad"]["policy"]["64"]["f1"] <= 100
    assert json.loads((tmp_path / "out" / "config.json").read_text())["about"]["algorithm"] == algorithm
    assert (tmp_path / "out" / "readings.npz").exists()
    # the card tells how it was made and how it learned, both parts with their last step
    card = (tmp_path / "out" / "README.md").read_text().splitlines()
    assert "    dysra train-retriever --seed 0" in card and f"| algorithm | {algorithm} |" in card
    parts = [at for at, line in enumerate(card) if line.endswith("(means over equal parts of the run):")]
    assert [card[at].split(" (")[0] for at in parts] == ["Warm start", "Learning by reward"]
    warm_up, learned = card[parts[0] : parts[1]], card[parts[1] :]
    assert "| step | loss | right |" in warm_up and warm_up[-2].startswith("| 4 | ")
    assert "episode_return" in learned[2] and "entropy" in learned[2] and learned[-1].startswith("| 2 | ")


@pytest.mark.parametrize(
    ("name", "value"), [("unit", "word"), ("candidates", 65), ("train", -1), ("passages", 0)]
)
def test_a_wrong_setting_is_named(name: str, value: object) -> None:
    """The error says what was given and what is allowed."""
    with pytest.raises(ValueError, match=rf"{name}: given .*allowed"):
        PolicyDataConfig(**{name: value})  # type: ignore[arg-type]
