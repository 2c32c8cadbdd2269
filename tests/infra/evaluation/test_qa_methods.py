"""The staged and learned methods of `dysra evaluate --task qa`, over a tiny reader and a tiny embedder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.evaluation.attention_rag import attended_sentences
from infra.evaluation.qa import QaConfig, run
from infra.evaluation.qa_choosing import open_policy, pair_columns_of
from models.retriever import PolicyNetwork, RetrieverConfig, load_policy, save_policy
from models.retriever.pair_pins import PINS, pins_of
from models.retriever.pair_reader import BESIDE, load_pair_reader, save_pair_reader
from models.retriever.table import ALL_FEATURES
from pipeline.candidate_features import FEATURES
from pipeline.errors import UsageError
from tests.infra.evaluation.test_qa import data, reader
from tests.models.embed.tiny import TINY_DIM, make_tiny_embedder
from tests.models.retriever import decoder_case, pair_case

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


@pytest.mark.parametrize(
    ("method", "algorithm", "instead"),
    [("router", "supervised", "--method supervised"), ("router", "ppo", "--method policy"),
     ("policy", "router", "--method router"), ("supervised", "reinforce", "--method policy")],
)  # fmt: skip
def test_a_policy_is_not_judged_under_another_trainings_name(
    reader: Path, data: Path, embedder: Path, policy: Path, method: str, algorithm: str, instead: str
) -> None:
    """What its folder says of its training decides; the message names both and what to give."""
    network, about = load_policy(policy)
    save_policy(network, policy, about | {"algorithm": algorithm})
    with pytest.raises(UsageError, match=f"--method {method}.*{algorithm}.*{instead}"):
        cell(reader, data, method=method, embedder=str(embedder), policy=policy)


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


def test_a_pair_reader_reads_where_the_reader_does_and_must_be_the_policy_s_own(
    reader: Path, data: Path, embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder reads on the cell's device with the reader's embedding at hand, MiniLM's alone on the CPU; another
    pair reader than the one that the policy notes is refused with both digests."""
    network = PolicyNetwork(
        RetrieverConfig(
            dim=TINY_DIM,
            num_features=len(ALL_FEATURES),
            feature_names=ALL_FEATURES,
            width=16,
            layers=1,
            heads=2,
        )
    )
    folder = tmp_path / "policy"
    judge = decoder_case.reader(tmp_path / "base")
    judge.tuning()
    pair = save_pair_reader(judge, folder / BESIDE, {})
    save_policy(network, folder, {"unit": "sentence", "candidates": 32, PINS: pins_of(pair)})
    monkeypatch.setattr("models.retriever.decoder_pair.default_folder", lambda: tmp_path / "base")
    asked: list[tuple[str, int]] = []

    def load(place: Path, device: str = "cpu", *, words: torch.Tensor | None = None) -> Any:
        asked.append((device, 0 if words is None else len(words)))
        return load_pair_reader(place, "cpu", words=words)

    monkeypatch.setattr("infra.evaluation.qa_choosing.load_pair_reader", load)
    more = {"method": "policy", "embedder": str(embedder), "policy": folder}
    assert cell(reader, data, **more)["cost"]["tokens_read"] > 0
    assert asked == [("cpu", 258)], "the tiny reader's vocabulary"
    given = open_policy(folder)
    pair_columns_of(folder, *given, "cuda:1")
    save_pair_reader(pair_case.reader(), folder / BESIDE, {})
    with pytest.raises(UsageError, match=rf"pair-reader is not the one that {folder} was trained with \("):
        cell(reader, data, **more)
    pair_columns_of(folder, given[0], {}, "cuda:1")
    assert asked[1:] == [("cuda:1", 0), ("cpu", 0)]


def test_attention_names_the_sentences_of_the_most_attended_tokens() -> None:
    """Tokens outside any sentence are not counted; sentences come in order."""
    attention = np.array([9.0, 0.1, 0.5, 0.4, 0.9, 0.0])
    owner = np.array([-1, 0, 1, 1, 2, 0])
    assert attended_sentences(attention, owner, 2) == [1, 2]
    assert attended_sentences(attention, owner, 4) == [0, 1, 2]
