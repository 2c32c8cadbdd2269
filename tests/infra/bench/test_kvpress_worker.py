"""The worker that runs kvpress: rows of unequal questions in one batch say what our backbone says one by one."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from infra.bench.peers import kvpress_rows
from infra.evaluation.cache_cases import Case
from infra.evaluation.cache_tasks import judge_case
from models.compared import method
from models.compared.trace import read_exactly
from tests.models import tiny

TEXT = "the old mill turns in spring and 42 sacks of grain go down the river "


def _worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The worker's module; its presses are not here, and none is asked for."""
    names = (
        "ExpectedAttentionPress", "KeyDiffPress", "KnormPress", "SnapKVPress", "StreamingLLMPress", "TOVAPress",
    )  # fmt: skip
    peer = ModuleType("kvpress")
    peer.__dict__.update(dict.fromkeys(names, SimpleNamespace))
    monkeypatch.setitem(sys.modules, "kvpress", peer)
    spec = importlib.util.spec_from_file_location("kvpress_worker_of_a_test", kvpress_rows.WORKER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_questions_of_unequal_length_in_one_batch_are_answered_as_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact, nats, EM, F1 and the words, past the window, by no fused kernel; needles have no F1."""
    tiny.save(tmp_path / "tiny", seed=1)
    backbone = tiny.backbone(seed=1)
    asked = [
        ("what turns", "mill"),
        ("who goes down the long river", "42 sacks"),
        ("a", "b c d e f g h i j k"),
    ]
    cases = [{"context": TEXT * 2, "question": q, "answers": [a, "grain"]} for q, a in asked]
    (tmp_path / "cases").mkdir()
    for name in ("needle4k.jsonl", "qa_set.jsonl"):
        (tmp_path / "cases" / name).write_text("".join(json.dumps(each) + "\n" for each in cases))
    coded = kvpress_rows.coder(tmp_path / "tiny")
    given = kvpress_rows.contexts(sorted((tmp_path / "cases").glob("*.jsonl")), coded)
    assert [len(each["cases"]) for each in given] == [3, 3]
    source, target = tmp_path / "cases.json", tmp_path / "rows.jsonl"
    source.write_text(
        json.dumps(
            {"model": str(tmp_path / "tiny"), "device": "cpu", "threads": 1, "seconds": 60,
             "methods": [kvpress_rows.FULL], "keeps": [0.5], "stop": coded.stop, "contexts": given}
        )
    )  # fmt: skip
    worker = _worker(monkeypatch)

    def fused(*given: Any, **named: Any) -> None:
        raise AssertionError("fused attention is not right everywhere: the worker has its own")

    with monkeypatch.context() as no_kernel:
        no_kernel.setattr(worker.torch.nn.functional, "scaled_dot_product_attention", fused)
        worker.main(source, target)
    rows = kvpress_rows.rows_of(kvpress_rows.read_lines([target]), given, coded)
    assert len(rows) == 6 and all("f1" not in row for row in rows if row["task"] == "needle")

    trace = read_exactly(backbone, given[0]["ids"])
    full = method("full").memory(trace, trace.full_bytes)
    for row in (row for row in rows if row["task"] == "qa"):
        case = next(each for context in given for each in context["cases"] if each["id"] == row["case"])
        one = Case(row["case"], "", coded.decode(case["asked"]), tuple(case["answers"]))
        expected = judge_case(backbone, full, one, generate=True)
        assert row["nats"] == pytest.approx(expected.nats, abs=1e-3) and row["exact"] == expected.exact
        assert (row["said"], row["f1"], row["em"]) == (expected.said, expected.f1, expected.em)
    assert any(row.get("said") for row in rows)


def test_an_answer_stops_at_the_tokens_that_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row by itself: what comes before the first of them, and no more tokens than allowed."""
    worker = _worker(monkeypatch)
    model = tiny.backbone(seed=1).model
    cache = worker.DynamicCache(config=model.config)
    model.model(input_ids=worker.torch.tensor([tiny.ids(40)]), past_key_values=cache)
    cases = [{"id": str(n), "asked": tiny.ids(3 + n, seed=n), "gold": [5]} for n in range(6)]
    free = [each["said"] for each in worker.ask(model, [cache], 40, cases, 6, set())[0]]
    assert {len(each) for each in free} == {6}
    stop = free[0][2]
    ended = [each["said"] for each in worker.ask(model, [cache], 40, cases, 6, {stop})[0]]
    assert ended == [each[: each.index(stop)] if stop in each else each for each in free]
    assert len(ended[0]) < 6 and worker.ends(model) == {0}
    assert all("said" not in each for each in worker.ask(model, [cache], 40, cases, 0, set())[0])


def test_an_answer_ends_at_the_end_of_a_line(tmp_path: Path) -> None:
    """Every token that holds one stops it, wherever it stands in the vocabulary."""
    file = tiny.save(tmp_path / "tiny") / "tokenizer.json"
    assert kvpress_rows.coder(tmp_path / "tiny").stop == []
    told = json.loads(file.read_text())
    vocabulary = told["model"]["vocab"]
    vocabulary["\n"] = wanted = vocabulary.pop("9")
    file.write_text(json.dumps(told))
    assert kvpress_rows.coder(tmp_path / "tiny").stop == [wanted]


def test_caches_of_unequal_length_in_one_batch_answer_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fills a shorter cache up is not looked at, by no question and in no step of an answer."""
    worker = _worker(monkeypatch)
    model = tiny.backbone(seed=1).model
    whole = worker.DynamicCache(config=model.config)
    model.model(input_ids=worker.torch.tensor([tiny.ids(40)]), past_key_values=whole)
    full = [at for at, kind in enumerate(model.config.layer_types) if kind == "full_attention"]

    def newest(count: int) -> Any:
        left = {
            at: (whole.layers[at].keys[:, :, -count:], whole.layers[at].values[:, :, -count:]) for at in full
        }
        return worker.copied(whole, left)

    caches = [newest(count) for count in (40, 5, 17)]
    cases = [
        {"id": str(n), "asked": tiny.ids(2 + 3 * n, seed=n), "gold": tiny.ids(1 + n, seed=9)}
        for n in range(3)
    ]
    together = worker.ask(model, caches, 40, cases, 5, set())
    assert len({each[0]["nats"] for each in together}) == 3
    for cache, found in zip(caches, together, strict=True):
        for case, one in zip(cases, found, strict=True):
            (alone,) = worker.ask(model, [cache], 40, [case], 5, set())[0]
            assert one.pop("nats") == pytest.approx(alone.pop("nats"), abs=1e-3) and one == alone


def test_plain_attention_is_softmax_over_what_the_mask_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Causal, with a window and without, and by masks of unequal rows; blocks that do not divide; grouped heads."""
    worker = _worker(monkeypatch)
    torch = worker.torch
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 33, 8), torch.randn(2, 2, 33, 8), torch.randn(2, 2, 33, 8)
    keys, values = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    at = torch.arange(33)
    for window in (None, 5):
        mask = at <= at[:, None]
        if window:
            mask &= at > at[:, None] - window
        rows = torch.stack((mask, mask & (at != 3) | (at == 32)))[:, None]
        scores = 0.3 * query @ keys.transpose(-1, -2)
        causal, by_row = (
            (scores.masked_fill(~each, float("-inf")).softmax(-1) @ values).transpose(1, 2)
            for each in (mask, rows)
        )
        for block in (8, 64):
            found, _ = worker.plain(None, query, key, value, None, 0.3, sliding_window=window, block=block)
            assert found.shape == (2, 33, 4, 8) and torch.allclose(found, causal, atol=1e-5)
            # a mask says it all: the window of the layer is in it
            found, _ = worker.plain(None, query, key, value, rows, 0.3, sliding_window=2, block=block)
            assert torch.allclose(found, by_row, atol=1e-5)
    with pytest.raises(ValueError, match="1 queries on 33 keys"):
        worker.plain(None, query[:, :, :1], key, value, None)


def test_batches_hold_their_bytes_and_a_full_device_halves_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of one length stand together, the full cache alone; the same lines come of smaller batches."""
    worker = _worker(monkeypatch)
    model = tiny.backbone(seed=1).model
    cells = [("kvpress_full", 1.0), ("a", 0.5), ("b", 0.5), ("a", 0.1), ("b", 0.1)]
    sizes = dict(zip(cells, (100, 50, 48, 10, 9), strict=True))
    monkeypatch.setattr(worker, "held_bytes", lambda model, cache, kind: cache / 2)
    assert worker.batches(model, sizes, 2, 200) == [cells[:1], cells[1:3], cells[3:]]
    assert worker.batches(model, sizes, 2, 10**6) == [cells[:1], cells[1:]]
    assert worker.batches(model, sizes, 2, 1) == [[cell] for cell in cells]

    tiny.save(tmp_path / "tiny", seed=1)
    source, target = tmp_path / "cases.json", tmp_path / "rows.jsonl"
    source.write_text(
        json.dumps(
            {"model": str(tmp_path / "tiny"), "device": "cpu", "threads": 1, "seconds": 60, "methods": [],
             "keeps": [], "contexts": [{"name": "x", "ids": tiny.ids(9), "cases": []}]}
        )
    )  # fmt: skip
    asked = []

    def judged(*given: Any) -> list[dict[str, Any]]:
        asked.append(given[-1])
        if len(asked) < 3:
            raise worker.torch.OutOfMemoryError
        return [{"line": 1}]

    monkeypatch.setattr(worker, "judged", judged)
    worker.main(source, target)
    assert asked == [worker.BATCH_BYTES >> n for n in range(3)] and target.read_text() == '{"line": 1}\n'


@pytest.mark.parametrize(("device", "index"), [("cuda", 3), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_worker_bounds_the_gpu_that_it_is_given(
    monkeypatch: pytest.MonkeyPatch, device: str, index: int
) -> None:
    """ "cuda" too, which torch bounds only by its number: the current one's."""
    worker = _worker(monkeypatch)
    cuda = worker.torch.cuda
    bounds: list[tuple[float, int]] = []
    monkeypatch.setattr(cuda, "current_device", lambda: 3)
    monkeypatch.setattr(cuda, "get_device_properties", lambda of: SimpleNamespace(total_memory=36 << 30))
    monkeypatch.setattr(cuda, "set_per_process_memory_fraction", lambda part, of: bounds.append((part, of)))
    worker.bound(device, 9.0)
    worker.bound(device, 99.0)
    assert bounds == [(0.25, index), (1.0, index)]
