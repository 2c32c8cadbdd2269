"""The staged and learned methods of `dysra evaluate --task qa`, over a tiny reader and a tiny embedder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.evaluation.attention_rag import attended_sentences
from infra.evaluation.qa import QaConfig, run
from models.retriever import PolicyNetwork, RetrieverConfig, save_policy
from pipeline.candidate_features import FEATURES
from pipeline.errors import UsageError
from tests.infra.evaluation.test_qa import data, reader
from tests.models.embed.tiny import TINY_DIM, make_tiny_embedder

__all__ = ["data", "reader"]


@pytest.fixture
def embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A static embedder of random vectors, and a cache folder of its own."""
    monkeypatch.setenv("DYSRA_CACHE", str(tmp_path / "cache"))
    return make_tiny_embedder(tmp_path / "static")


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A policy of random weights that never wants to stop first."""
    torch.manual_seed(0)
    network = PolicyNetwork(
        RetrieverConfig(
            dim=TINY_DIM, num_features=len(FEATURES), feature_names=FEATURES, width=16, layers=1, heads=2
        )
    )
    return save_policy(network, tmp_path / "policy", {"unit": "sentence", "candidates": 32})


def cell(reader: Path, data: Path, **more: Any) -> dict[str, Any]:
    """The figures of one cell over three questions."""
    fields = {"data": data, "model": str(reader), "split": "all", "device": "cpu", "limit": 3, "budget": 200}
    return run(QaConfig(**(fields | more)))


@pytest.mark.parametrize("method", ["policy", "supervised", "router", "cascade", "longrag", "attention_rag"])
def test_the_method_reads_within_its_budget(
    reader: Path, data: Path, embedder: Path, policy: Path, method: str
) -> None:
    """Every method reads something, no more than the budget but for line ends, and counts what choosing read."""
    more: dict[str, Any] = {"policy": policy} if method in ("policy", "supervised", "router") else {}
    figures = cell(reader, data, method=method, embedder=str(embedder), **more)
    assert figures["n"] == 3
    assert figures["cost"]["tokens_read"] <= 200 + 8
    assert figures["cost"]["tokens_read"] > 0 or method == "attention_rag"
    assert ("compressor_tokens" in figures["cost"]) is (method == "attention_rag")


@pytest.mark.parametrize(("unit", "span"), [("span", 24), ("passage", 32)])
def test_the_unit_of_choosing_is_configurable(
    reader: Path, data: Path, embedder: Path, unit: str, span: int
) -> None:
    """Spans of tokens and whole passages are chosen as sentences are."""
    figures = cell(reader, data, method="cascade", embedder=str(embedder), unit=unit, span=span, budget=300)
    assert figures["unit"] == unit
    assert 0 < figures["cost"]["tokens_read"] <= 308


def test_stopping_earlier_reads_less(reader: Path, data: Path, embedder: Path, policy: Path) -> None:
    """STOP's bias moves along the curve of tokens; at least one sentence is read where one fits."""
    little, much = (
        cell(reader, data, method="policy", embedder=str(embedder), policy=policy, stop_bias=bias, budget=400)
        for bias in (1e3, -1e3)
    )
    assert 0 < little["cost"]["tokens_read"] < much["cost"]["tokens_read"]


def test_a_policy_of_another_unit_or_none_is_refused(
    reader: Path, data: Path, embedder: Path, policy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The message says what the policy was trained for, or how to get one."""
    with pytest.raises(UsageError, match="chooses by sentence; give --unit sentence"):
        cell(reader, data, method="policy", embedder=str(embedder), policy=policy, unit="passage")
    monkeypatch.setattr("infra.evaluation.qa_choosing.SHIPPED", tmp_path / "absent")
    with pytest.raises(UsageError, match="dysra train-retriever"):
        cell(reader, data, method="policy", embedder=str(embedder))
    with pytest.raises(UsageError, match=r"allowed: a folder with config.json"):
        cell(reader, data, method="policy", embedder=str(embedder), policy=tmp_path)


def test_attention_names_the_sentences_of_the_most_attended_tokens() -> None:
    """Tokens outside any sentence are not counted; sentences come in order."""
    attention = np.array([9.0, 0.1, 0.5, 0.4, 0.9, 0.0])
    owner = np.array([-1, 0, 1, 1, 2, 0])
    assert attended_sentences(attention, owner, 2) == [1, 2]
    assert attended_sentences(attention, owner, 4) == [0, 1, 2]
