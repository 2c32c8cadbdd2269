"""The cache cells in miniature: cases read, methods judged, figures in their keys, wrong use told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from infra.bench import cache_methods, cache_methods_table
from infra.bench.cache_methods_page import markdown
from infra.commands import evaluate as command
from infra.evaluation import cache_batch, cache_tasks
from infra.evaluation.cache_cases import Case, needle_cases, qa_cases
from infra.evaluation.cache_tasks import CacheCell, judge_case, run, summary
from models.cache.learned import LearnedWeights
from models.cache.ranker import LayerRanker, Ranker, base_identity
from models.compared import METHODS, method
from models.compared.keys import KeyNorm
from models.compared.trace import Trace, read_exactly
from models.hf import HfBackbone, HfConfig
from models.hf.backbone import LEARNED_TYPES
from pipeline.errors import BadData, UsageError
from tests.models import tiny

COST = {"tokens_read", "prefill_tokens", "kv_bytes", "ms_per_token", "queries_per_s", "peak_bytes", "flops"}
TEXT = "the old mill by the river turns at dawn. " * 6


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder; its tokenizer has no line end, so lines run together."""
    return tiny.save(tmp_path_factory.mktemp("model") / "tiny")


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def needles(tmp_path: Path) -> Path:
    """Two questions over one context, one over another."""
    rows = [{"context": TEXT, "question": "what turns", "answers": ["mill"]}] * 2
    return lines(
        tmp_path / "needles.jsonl", [*rows, {"context": TEXT[9:], "question": "when", "answers": ["42"]}]
    )


def test_needle_cell_has_the_keys_that_evaluate_prints(needles: Path, reader: Path) -> None:
    """Scores, costs, seed and model; bytes are those of the budget."""
    figures = run(
        CacheCell(task="needle", method="snapkv", data=needles, keep=0.5, model=str(reader), device="cpu")
    )
    assert {"task", "method", "n", "scores", "cost", "seed", "model"} <= set(figures)
    assert set(figures["cost"]) >= COST and figures["n"] == 3
    assert set(figures["scores"]) >= {"exact", "digits", "nats", "attention_error"}
    full = run(
        CacheCell(task="needle", method="full", data=needles, keep=0.1, model=str(reader), device="cpu")
    )
    assert full["scores"]["attention_error"] < 1e-4 < figures["scores"]["attention_error"]
    assert 0.4 < figures["cost"]["kv_bytes"] / full["cost"]["kv_bytes"] <= 0.5
    assert figures["cost"]["sliding_bytes"] == full["cost"]["sliding_bytes"] > 0


def test_what_a_question_brings_back_is_read_and_counted_beside(
    needles: Path, reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All chunks fetched: about the full cache's nats, at the budget's bytes and those fetched; the table too."""
    settings = {"inner": KeyNorm(), "chunk": 8, "chunks": 1000}
    monkeypatch.setitem(METHODS, "ours_brought_back", ("brought_back", "BroughtBack", settings))
    given: dict[str, Any] = {"task": "needle", "data": needles, "model": str(reader), "device": "cpu"}
    full = run(CacheCell(method="full", **given))
    found = run(CacheCell(method="ours_brought_back", keep=0.4, **given))
    assert found["scores"]["nats"] <= full["scores"]["nats"] + 0.2 < 20
    assert found["cost"]["kv_bytes"] <= 0.4 * full["cost"]["kv_bytes"]
    whole = found["cost"]["kv_bytes"] + found["cost"]["fetched_bytes"]
    assert found["cost"]["kv_bytes"] < whole <= full["cost"]["kv_bytes"]
    assert full["cost"]["fetched_bytes"] == 0
    rows = needles.with_name("rows.jsonl")
    cell = CacheCell(method="full", **given)
    backbone = HfBackbone.load(HfConfig(model=str(reader), device="cpu"))
    cache_methods.run(
        backbone, cache_methods.contexts(backbone, cell), ["full", "ours_brought_back"], [0.4], rows
    )
    table = cache_methods_table.report(cache_methods_table.read_rows(rows), "cpu", "tiny", "here")
    line = next(line for line in table["rows"] if line["method"] == "ours_brought_back")
    assert line["scores"]["nats"] == pytest.approx(found["scores"]["nats"], abs=1e-3)
    assert abs(line["fetched_bytes"] - found["cost"]["fetched_bytes"]) <= 1
    brought = next(line for line in table["together"] if line["method"] == "ours_brought_back")
    assert brought["needle"]["n"] == 3 and "qa" not in brought and 0 < brought["fetched_share"] <= 1
    assert brought["nats"] == pytest.approx(line["drop"]["nats"], abs=2e-4)
    assert f"+ {line['fetched_bytes']:,} fetched by the question" in markdown(table)


def test_judging_agrees_with_decoding_and_scoring() -> None:
    """Exact means that greedy decoding writes the answer; nats are those of the whole answer."""
    backbone = tiny.backbone()
    trace = read_exactly(backbone, [*backbone.bos, *backbone.encode(TEXT)])
    memory = method("window_sinks").memory(trace, trace.full_bytes // 2)
    said = backbone.decode(backbone.generate(backbone.encode("q"), memory.as_cache(), max_new_tokens=4))
    for answer in (said[1:], "zebra 7"):
        case = Case("1", TEXT, "q", (answer,))
        gold = backbone.encode(f" {answer}")
        written = list(backbone.generate(backbone.encode("q"), memory.as_cache(), max_new_tokens=len(gold)))
        judged = judge_case(backbone, memory, case, generate=False)
        assert judged.exact == float(written == gold)
        assert judged.nats == pytest.approx(
            -backbone.score(backbone.encode("q"), gold, memory.as_cache()), rel=1e-4
        )


def test_nats_of_lm_are_the_models_own_when_nothing_is_lost(tmp_path: Path, reader: Path) -> None:
    """The last tokens after the others, against a plain forward pass."""
    text = (TEXT * 3)[:600]
    data = lines(tmp_path / "lm.jsonl", [{"text": text}])
    figures = run(CacheCell(task="lm", method="full_cache", data=data, model=str(reader), device="cpu"))
    backbone = tiny.backbone()
    ids = [*backbone.bos, *backbone.encode(text)]
    logits = backbone.model(torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)
    nats = [-float(logits[at - 1, ids[at]]) for at in range(len(ids) - 255, len(ids))]
    assert figures["scores"]["nats"] == pytest.approx(math.fsum(nats) / 255, rel=1e-3)


def test_qa_questions_share_contexts_and_never_see_a_training_title(tmp_path: Path) -> None:
    """Gold passages of a few questions and distractors; the same seed gives the same cases."""
    (tmp_path / "qa").mkdir()
    (tmp_path / "corpus").mkdir()
    passages = [
        {"id": f"p{n}", "title": f"Town {n}", "text": f"Town {n} has a bridge of {n} arches."}
        for n in range(30)
    ]
    lines(tmp_path / "corpus" / "passages_wiki.jsonl", passages)
    questions = [
        {"id": f"q{n}", "question": f"How many arches in Town {n}?", "answers": [str(n)], "answerable": True,
         "gold_passage_ids": [f"p{n}"], "title": f"Town {n}"}
        for n in range(10)
    ]  # fmt: skip
    data = lines(tmp_path / "qa" / "squad2.jsonl", questions)
    cases = qa_cases(data, "base", passages=6, split="all", seed=1)
    assert cases == qa_cases(data, "base", passages=6, split="all", seed=1)
    assert len(cases) == 10 and len({case.context for case in cases}) == 3
    for case in cases:
        number = case.case_id[1:]
        assert f"Town {number}: Town {number} has" in case.context
        assert case.context.count("\nTown ") + case.context.startswith("Town ") == 6
        assert case.asked.endswith("Answer:") and f"Town {number}?" in case.asked
    with pytest.raises(UsageError, match="--passages: given 0"):
        qa_cases(data, "base", passages=0)


def test_broken_cases_name_their_line(tmp_path: Path) -> None:
    """What the line has, what it wants."""
    bad = lines(tmp_path / "x.jsonl", [{"context": "a", "question": "b", "answers": ["c"]}, {"context": "a"}])
    with pytest.raises(BadData, match="line 2: given the keys context; a case wants"):
        needle_cases(bad, "base")


def test_summary_counts_in_percent_and_per_token() -> None:
    """By hand."""
    from infra.evaluation.cache_tasks import Judged

    rows = [Judged(1.0, 1.0, 3.0, 2), Judged(0.0, 0.5, 5.0, 2)]
    assert summary("needle", rows)["exact"] == 50.0
    assert summary("needle", rows)["digits"] == 75.0
    assert summary("needle", rows)["nats"] == 2.0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--task", "needle", "--method", "bm25"], "allowed: full,"),
        (["--task", "needle", "--method", "snapkv", "--keep", "1.5"], "keep: given 1.5"),
        (["--task", "needle", "--method", "snapkv", "--keep", "0.001"], "pins 4"),
        (["--task", "needle", "--method", "ours_ranker"], "ranker"),
    ],
)
def test_wrong_use_ends_with_2(needles: Path, reader: Path, arguments: list[str], told: str) -> None:
    """An unknown method, an impossible share, a budget under the sinks, a ranker that does not fit the model."""
    app = typer.Typer()
    command.register(app)
    options = ["--data", str(needles), "--model", str(reader), "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 2, result.output
    assert told in " ".join(result.output.split())


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random networks for the tiny model, saved."""
    torch.manual_seed(5)
    full = [spec for spec in tiny.backbone().specs if spec.window is None]
    layers = {spec.index: LayerRanker(2, 2 * spec.head_dim + 7, hidden=8) for spec in full}
    folder = tmp_path_factory.mktemp("ranker")
    Ranker(layers, base_identity(tiny.backbone().identity), {"made": "by a test"}).save(folder)
    return folder


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Learned compressors for the tiny model, as they begin, saved."""
    torch.manual_seed(6)
    folder = tmp_path_factory.mktemp("codes")
    full = [spec for spec in tiny.backbone().specs if spec.window is None]
    for kind, learned in LEARNED_TYPES.items():
        layers = {spec.index: learned.layer_type(2, spec.head_dim, 6) for spec in full}
        for layer in layers.values():
            layer.start(torch.randn(2, 60, 16), torch.randn(2, 60, 16))  # type: ignore[operator]
        LearnedWeights(kind, layers, base_identity(tiny.backbone().identity), {}).save(folder)
    return folder


@pytest.fixture(scope="module")
def read_once() -> Callable[[HfBackbone, Sequence[int]], Trace]:
    """`read_exactly` that reads a context of the tiny model once for all methods, as the cache table does."""
    return lru_cache(lambda backbone, ids: read_exactly(backbone, ids))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_answers_files_of_ones_own(
    name: str, ranker: Path, codes: Path, read_once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name on the command line, on all three tasks: figures in their keys, within the budget's bytes."""
    monkeypatch.setattr(cache_tasks, "read_exactly", lambda backbone, ids: read_once(backbone, tuple(ids)))
    where, made, fixed = METHODS[name]
    if "ranker" in name or name == "ours_brought_back":  # the shipped one is another model's
        monkeypatch.setitem(METHODS, name, (where, made, {**fixed, "ranker": str(ranker)}))
    if fixed.get("compressor") in LEARNED_TYPES:
        monkeypatch.setitem(METHODS, name, (where, made, {**fixed, "weights": str(codes)}))
    if name == "razor":  # whose heads are told by a text that repeats
        monkeypatch.setitem(METHODS, name, (where, made, {**fixed, "copy_tokens": 20}))
    monkeypatch.setattr(HfBackbone, "load", lambda config: tiny.backbone())  # loading has tests of its own
    passages = [
        {"id": f"p{n}", "title": f"Town {n}", "text": f"Town {n} has a bridge of {n} arches. " * 3}
        for n in range(4)
    ]
    corpus = lines(tmp_path / "passages.jsonl", passages)
    question = {"id": "q", "question": "How many arches in Town 2?", "answers": ["2"], "answerable": True,
                "gold_passage_ids": ["p2"], "title": "Town 2"}  # fmt: skip
    files = {
        "needle": lines(
            tmp_path / "a.jsonl", [{"context": TEXT, "question": "what turns", "answers": ["mill"]}]
        ),
        "qa": lines(tmp_path / "squad2.jsonl", [question]),
        "lm": lines(tmp_path / "c.jsonl", [{"text": TEXT * 3}]),
    }
    app = typer.Typer()
    command.register(app)
    full_bytes = 2 * 2 * 2 * tiny.config().head_dim * 4  # a token's, in two full layers of two key heads
    for task, data in files.items():
        if (task, name) == ("qa", "full"):  # there the reader over its passages, docs/cache-methods.md
            continue
        options = [
            "--task",
            task,
            "--method",
            name,
            "--data",
            str(data),
            "--model",
            "tiny",
            "--device",
            "cpu",
        ]
        options += ["--keep", "0.6", "--corpus", str(corpus), "--passages", "3", "--split", "all", "--json"]
        result = CliRunner().invoke(app, options)
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout.splitlines()[-1])
        assert (found["task"], found["method"], found["n"]) == (task, name, 1) and set(found["cost"]) >= COST
        assert 0 < found["scores"]["nats"] < 30
        share = found["cost"]["kv_bytes"] / (full_bytes * found["cost"]["tokens_read"])
        assert share <= (1.01 if name.startswith("full") else 0.6), (task, share)


def test_bench_goes_on_where_it_stopped_and_reports_drops(
    needles: Path, reader: Path, tmp_path: Path
) -> None:
    """A row a question, method and budget, none twice; a method that cannot says so in its row."""
    rows, out = tmp_path / "rows.jsonl", tmp_path / "table"
    call = ["run", "--task", "needle", "--data", str(needles), "--rows", str(rows), "--model", str(reader)]
    call += ["--device", "cpu", "--keep", "0.5,0.001", "--methods", "full,key_norm"]
    assert cache_methods.main([*call, "--seconds", "0"]) == 5
    assert cache_methods.main(call) == 0
    once = rows.read_text()
    assert cache_methods.main(call) == 0
    assert rows.read_text() == once
    assert len(once.splitlines()) == 3 * (1 + 2)
    cache_methods.main(["report", "--rows", str(rows), "--out", str(out)])
    result = json.loads((tmp_path / "table.json").read_text())
    errors = [line for line in result["rows"] if "error" in line]
    assert [line["keep"] for line in errors] == [0.001]
    ratio = "quality_drop_at_50_key_norm"
    assert set(result["ratios"]) == {ratio, f"{ratio}_needle", f"{ratio}_nats"}
    assert "| key_norm | 0.5 | 3 |" in (tmp_path / "table.md").read_text()


def test_rows_known_from_elsewhere_are_not_made_again(needles: Path, reader: Path, tmp_path: Path) -> None:
    """Only what is missing is made; the table of both files counts a row that two hold once, the first's."""
    backbone = HfBackbone.load(HfConfig(model=str(reader), device="cpu"))
    cell = CacheCell(task="needle", method="full", data=needles, model=str(reader), device="cpu")
    earlier, later = tmp_path / "earlier.jsonl", tmp_path / "later.jsonl"
    context = cache_methods.contexts(backbone, cell)
    cache_methods.run(backbone, context[:1], ["full", "key_norm"], [0.5], earlier)
    known = cache_methods_table.read_rows(earlier)
    cache_methods.run(backbone, context, ["full", "key_norm"], [0.5], later, known=known)
    made = cache_methods_table.read_rows(later)
    cases = {row["case"] for row in known}
    assert cases and made and not cases & {row["case"] for row in made}
    other = [{**row, "nats": -1.0} for row in known]
    assert cache_methods_table.unique([*known, *other, *made]) == [*known, *made]
    out = tmp_path / "table"
    cache_methods.main(["report", "--rows", *map(str, (earlier, later, earlier)), "--out", str(out)])
    assert "| key_norm | 0.5 | 3 |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("limit", [1 << 30, 1])
def test_cells_judged_together_are_those_judged_alone(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure and every word said, in one batch or in many; the full cache's attention error is zero."""
    backbone = tiny.backbone()
    ids = [*backbone.bos, *backbone.encode(TEXT)]
    trace = read_exactly(backbone, ids)
    monkeypatch.setitem(cache_batch._MOST_BYTES, "cpu", limit)
    monkeypatch.setitem(cache_batch._LOGIT_BYTES, "cpu", 2000 if limit == 1 else 1 << 30)
    names = ("full", "window_sinks", "shared_attention", "key_norm")
    memories = [
        method(name).prepare(backbone).memory(trace, trace.full_bytes // (1 if name == "full" else 2))
        for name in names
    ]
    session = backbone.new_cache(tiny.budgets())
    backbone.read(ids, session)  # leaves ids pending
    assert session.pending
    memories.append(session)
    cases = [Case("1", TEXT, "what turns", ("mill 42",)), Case("2", TEXT, "when", ("dawn",))]
    asked = [cache_batch.asked_of(backbone, case) for case in cases]
    together = cache_batch.judge_all(backbone, memories[0], memories, asked, generate=True)
    for memory, judged in zip(memories, together, strict=True):
        for case, one in zip(cases, judged, strict=True):
            alone = judge_case(backbone, memory, case, generate=True)
            assert (one.exact, one.digits, one.said, one.f1) == (
                alone.exact,
                alone.digits,
                alone.said,
                alone.f1,
            )
            assert one.nats == pytest.approx(alone.nats, rel=1e-4)
            assert one.attention_error is not None
            assert (one.attention_error < 1e-5) == (memory is memories[0])
