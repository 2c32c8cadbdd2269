"""A sub-quadratic checkpoint answers the cells: it is known by its folder, reads as a stream, and says its cost."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.evaluation import subq_tasks
from infra.evaluation.cell import Cell
from infra.evaluation.readers import kind_of
from infra.evaluation.tasks import TASKS
from models.subq import SubqBackbone, SubqModel
from models.subq.backbone import SubqCache
from models.subq.baselines import baseline
from models.subq.checkpoint import save_checkpoint
from pipeline.errors import UsageError
from tests.infra.training.subq_case import MODEL, small_data

COST = {"tokens_read", "prefill_tokens", "kv_bytes", "ms_per_token", "queries_per_s", "peak_bytes", "flops"}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "copies"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained model with its tokenizer, without and with a head that copies."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("subq")
    model = SubqModel(replace(MODEL, copies=request.param)).eval()
    if model.copier is not None:
        torch.nn.init.constant_(model.copier.gate.bias, 2.0)
    save_checkpoint(model, folder, tokenizer=small_data().tokenizer, storage="float32")
    return folder


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def text(words: int, seed: int = 3) -> str:
    """Made-up words of the tokenizer."""
    return small_data().tokenizer.decode(small_data(seed=0).tokens[seed : seed + words].tolist())


def test_the_folder_says_who_answers(checkpoint: Path, tmp_path: Path) -> None:
    """A subq checkpoint by its config.json; names and other folders are transformers'."""
    assert kind_of(str(checkpoint)) == kind_of("subq") == "subq"
    (tmp_path / "config.json").write_text('{"model_type": "gemma3_text"}')
    assert {kind_of(str(tmp_path)), kind_of("hf"), kind_of("gemma-3-270m")} == {"hf"}


def test_a_needle_cell_streams_the_context_and_asks(checkpoint: Path, tmp_path: Path) -> None:
    """Nats are those of the backbone's own score; the cache's bytes and tokens are counted."""
    told, question = text(300), "what is the code of bado"
    data = lines(tmp_path / "n.jsonl", [{"context": told, "question": question, "answers": ["4417"]}])
    figures = TASKS["needle"](
        Cell(task="needle", method="subq", data=data, model=str(checkpoint), device="cpu")
    )
    assert figures["n"] == 1 and set(figures["cost"]) >= COST
    backbone = SubqBackbone.load(checkpoint)
    cache = backbone.new_cache()
    backbone.read([*backbone.bos, *backbone.encode(told.rstrip() + "\n")], cache)
    assert figures["cost"]["kv_bytes"] == cache.nbytes and figures["cost"]["tokens_read"] == cache.tokens_seen
    asked, gold = backbone.encode(f"\n{question} "), backbone.encode("4417")
    assert backbone.encode(f"\n{question} 4417") == asked + gold
    assert figures["scores"]["nats"] == pytest.approx(-backbone.score(asked, gold, cache) / 4, rel=1e-3)


def test_lm_nats_are_those_of_one_pass(checkpoint: Path, tmp_path: Path) -> None:
    """The last 256 tokens after the others."""
    told = text(700)
    data = lines(tmp_path / "t.jsonl", [{"text": told}])
    figures = TASKS["lm"](Cell(task="lm", method="subq", data=data, model=str(checkpoint), device="cpu"))
    backbone = SubqBackbone.load(checkpoint)
    ids = [*backbone.bos, *backbone.encode(told)]
    cache = backbone.new_cache()
    logits = cache.stream.logits(torch.tensor(ids)).float().log_softmax(-1)
    nats = math.fsum(-float(logits[at - 1, ids[at]]) for at in range(len(ids) - 255, len(ids))) / 255
    assert figures["scores"]["nats"] == pytest.approx(nats, rel=1e-3)


@pytest.mark.parametrize("method", ["gca", "linear-transformer", "mamba-2", "transformer"])
def test_compared_backbones_answer_the_same_file_and_count_the_same_bytes(
    method: str, tmp_path: Path
) -> None:
    """State and memory after 300 words and twice as many; a cache that travelled as bytes goes on the same."""
    torch.manual_seed(0)
    model = SubqModel(baseline(method, MODEL)).eval()
    save_checkpoint(model, tmp_path / "model", tokenizer=small_data().tokenizer, storage="float32")
    case = {"question": "what is the code of bado", "answers": ["4417"]}
    costs = []
    for words in (300, 600):
        data = lines(tmp_path / f"{words}.jsonl", [{"context": text(words), **case}])
        figures = TASKS["needle"](
            Cell(task="needle", method=method, data=data, model=str(tmp_path / "model"), device="cpu")
        )
        assert figures["method"] == method and math.isfinite(figures["scores"]["nats"])
        costs.append(figures["cost"])
    for cost in costs:
        assert cost["kv_bytes"] == cost["state_bytes"] + cost["memory_bytes"] > 0
    state, memory = ([cost[name] for cost in costs] for name in ("state_bytes", "memory_bytes"))
    tokens = [cost["tokens_read"] for cost in costs]
    if method == "transformer":
        # keys and values of a token in float32, every block's, and nothing else that grows
        pairs = 2 * model.config.width * 4 * model.config.lower_blocks
        assert state[1] - state[0] == pairs * (tokens[1] - tokens[0]) and memory == [0, 0]
    elif method in ("linear-transformer", "mamba-2"):
        assert state[0] == state[1] and memory == [0, 0]
    else:
        assert memory[1] / memory[0] == pytest.approx(tokens[1] / tokens[0], rel=0.1)

    backbone = SubqBackbone.load(tmp_path / "model")
    cache = backbone.new_cache()
    backbone.read(backbone.encode(text(300)), cache)
    twin = SubqCache.from_bytes(cache.to_bytes(), backbone)
    assert (twin.nbytes, twin.tokens_seen) == (cache.nbytes, cache.tokens_seen)
    later = torch.tensor(backbone.encode(text(90, seed=400)))
    assert torch.equal(twin.stream.logits(later), cache.stream.logits(later))
    assert twin.nbytes == cache.nbytes


def test_a_model_without_retrieval_is_given_cases(tmp_path: Path) -> None:
    """Keys in a haystack of texts are looked up by their landmarks."""
    save_checkpoint(
        SubqModel(baseline("mamba-2", MODEL)), tmp_path, tokenizer=small_data().tokenizer, storage="float32"
    )
    data = lines(tmp_path / "h.jsonl", [{"text": text(900)}])
    with pytest.raises(UsageError, match=r"model's retrieval.*has none: give cases"):
        TASKS["needle"](Cell(task="needle", method="mamba-2", data=data, model=str(tmp_path), device="cpu"))


def test_texts_become_a_haystack_of_keys(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the passkey test at every length that the text has; too little text is told."""
    monkeypatch.setattr(subq_tasks, "SHORTEST", 3_200)
    data = lines(tmp_path / "h.jsonl", [{"text": text(2_000)}, {"text": text(1_900, seed=2_500)}])
    cell = Cell(task="needle", method="subq", data=data, model=str(checkpoint), device="cpu", limit=2)
    figures = TASKS["needle"](cell)
    assert {row["length"] for row in figures["rows"]} == {3_200}
    assert {row["cell"] for row in figures["rows"]} >= {"known-5", "heldout-16"}
    assert 0 <= figures["scores"]["exact_at_3200"] <= 100 and figures["n"] == 2 * len(figures["rows"])
    short = lines(tmp_path / "s.jsonl", [{"text": "bado"}])
    with pytest.raises(UsageError, match="keys are hidden in 3200 or more"):
        TASKS["needle"](Cell(task="needle", method="subq", data=short, model=str(checkpoint), device="cpu"))


def test_questions_are_answered_over_what_a_method_chooses(checkpoint: Path, tmp_path: Path) -> None:
    """bm25 chooses, the subq model reads; with method subq it streams the passages itself."""
    (tmp_path / "qa").mkdir()
    (tmp_path / "corpus").mkdir()
    lines(
        tmp_path / "corpus" / "passages_wiki.jsonl",
        [
            {"id": f"p{n}", "title": f"Town {n}", "text": f"Town {n} has a bridge of {n} arches."}
            for n in range(12)
        ],
    )
    data = lines(
        tmp_path / "qa" / "squad2.jsonl",
        [
            {"id": f"q{n}", "question": f"How many arches in Town {n}?", "answers": [str(n)], "answerable": True,
             "gold_passage_ids": [f"p{n}"], "title": f"Town {n}"}
            for n in range(3)
        ],
    )  # fmt: skip
    for method in ("bm25", "subq"):
        cell = Cell(
            task="qa", method=method, data=data, model=str(checkpoint), device="cpu", split="all", passages=4
        )
        figures = TASKS["qa"](cell)
        assert figures["n"] == 3 and set(figures["cost"]) >= COST and figures["model"].startswith("subq-")
        assert 0 <= figures["scores"]["f1"] <= 100


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "snapkv"}, "a subq model reads by its own retrieval; allowed: subq, gca"),
        ({"method": "mamba-2"}, "shape is that of subq; give --method subq, or a checkpoint of mamba-2"),
        ({"method": "gca", "model": "hf"}, "gca is a backbone trained as such.*give the folder"),
        ({"method": "gca", "model": "hf", "task": "qa"}, "gca is a backbone trained as such"),
        ({"model": "subq", "method": "subq"}, "no checkpoint at"),
        ({"adapter": "shipped", "task": "qa", "method": "bm25"}, "adapters belong to transformers models"),
    ],
)
def test_wrong_use_is_told(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    """Methods of another kind of cache; no shipped checkpoint; adapters."""
    monkeypatch.setattr("infra.evaluation.readers.SUBQ", tmp_path / "none")
    monkeypatch.setenv("DYSRA_CACHE", str(tmp_path))
    data = lines(tmp_path / "n.jsonl", [{"context": "a", "question": "b", "answers": ["c"]}])
    given = {"task": "needle", "data": data, "model": str(checkpoint), "device": "cpu", **changes}
    with pytest.raises(UsageError, match=told):
        TASKS[given["task"]](Cell(**given))
