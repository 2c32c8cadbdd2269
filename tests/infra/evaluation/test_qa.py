"""infra/evaluation/qa.py and the verb: what each method reads, and the figures of a cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from typer.testing import CliRunner

from infra.commands import evaluate as command
from infra.evaluation.qa import QaConfig, run
from pipeline.errors import UsageError
from tests.models import tiny

KEYS = {"tokens_read", "prefill_tokens", "kv_bytes", "ms_per_token", "queries_per_s", "peak_bytes", "flops"}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder over bytes, in a folder."""
    folder = tmp_path_factory.mktemp("reader")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: at for at, text in enumerate(["<eos>", "<bos>", *alphabet])}
    tiny.save(folder, model_config=tiny.config(vocab_size=len(vocabulary), max_position_embeddings=8192))
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<eos>", "<bos>"])
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight towers, with a question each, laid out as the data folder is."""
    root = tmp_path_factory.mktemp("data")
    (root / "qa").mkdir()
    (root / "corpus").mkdir()
    passages = [
        {
            "id": f"p{at}",
            "title": f"Tower {at}",
            "text": f"Tower {at} stands in Town{at}. It was built in {1900 + at}. Many people visit it every day.",
        }
        for at in range(8)
    ]
    questions = [
        {
            "id": f"q{at}",
            "question": f"In which year was tower {at} of Town{at} built?",
            "answers": [str(1900 + at)],
            "answerable": True,
            "gold_passage_ids": [f"p{at}"],
            "title": f"Tower {at}",
        }
        for at in range(8)
    ]
    for path, rows in (
        (root / "corpus/passages_wiki.jsonl", passages),
        (root / "qa/squad2.jsonl", questions),
    ):
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return root / "qa/squad2.jsonl"


def cell(reader: Path, data: Path, **more: Any) -> dict[str, Any]:
    """The figures of one cell."""
    fields = {"data": data, "model": str(reader), "split": "all", "device": "cpu"} | more
    return run(QaConfig(**fields))


def test_a_cell_has_all_figures_of_the_design(reader: Path, data: Path) -> None:
    """Task, method, number, scores, cost, seed and model are there, and costs are of real work."""
    figures = cell(reader, data, method="bm25", budget=200, limit=3)
    assert {"task", "method", "n", "scores", "cost", "seed", "model"} <= set(figures)
    assert (figures["task"], figures["method"], figures["n"]) == ("qa", "bm25", 3)
    assert set(figures["cost"]) == KEYS
    assert all(value > 0 for value in figures["cost"].values())
    assert 0 <= figures["scores"]["f1"] <= 100


def test_methods_read_what_they_promise(reader: Path, data: Path) -> None:
    """Nothing, the telling sentence, the passage, all passages: ever more tokens; the gold ones always tell."""
    found = {m: cell(reader, data, method=m, limit=2) for m in ("none", "oracle", "gold", "full")}
    tokens = [figures["cost"]["tokens_read"] for figures in found.values()]
    assert tokens[0] == 0
    assert tokens == sorted(set(tokens))
    assert found["none"]["scores"]["holds"] == 0
    assert all(found[m]["scores"]["holds"] == 100 for m in ("oracle", "gold", "full"))


def test_read_apart_each_sentence_has_a_prompt_of_its_own_and_all_of_them_count(
    reader: Path, data: Path
) -> None:
    """With one sentence both readings are one; with several, reading apart pays question and heads again."""
    for method, budget in (("oracle", 128), ("bm25", 200)):
        together, apart = (
            cell(reader, data, method=method, budget=budget, limit=2, reading=reading)
            for reading in ("together", "apart")
        )
        read, again = (figures["cost"]["tokens_read"] for figures in (together, apart))
        assert again == read if method == "oracle" else again > read + 10
        if method == "oracle":
            assert apart["scores"]["forced_f1"] == together["scores"]["forced_f1"]


def test_weights_that_need_more_than_a_reading_are_refused(reader: Path, data: Path, tmp_path: Path) -> None:
    """What a policy run fitted over features of candidates is told from what it fitted over readings alone."""
    for names, wrong in ((["sure"], ""), (["dense"], "needs dense"), (["sure", "sure"], "1 weights for 2")):
        path = tmp_path / "trust.json"
        path.write_text(json.dumps({"names": names, "weights": [1.0], "constant": 0.0}))
        if not wrong:
            assert cell(reader, data, method="bm25", limit=1, reading="apart", trust=path)["n"] == 1
            continue
        with pytest.raises(UsageError, match=wrong):
            cell(reader, data, method="bm25", limit=1, reading="apart", trust=path)
    with pytest.raises(UsageError, match="give a file"):
        cell(reader, data, method="bm25", limit=1, reading="apart", trust=tmp_path / "none.json")


@pytest.mark.parametrize("unit", ["sentence", "passage"])
def test_the_budget_is_kept(reader: Path, data: Path, unit: str) -> None:
    """More budget reads more, never beyond it but for line ends."""
    small, large = (
        cell(reader, data, method="random", unit=unit, budget=b, limit=2)["cost"]["tokens_read"]
        for b in (120, 300)
    )
    assert small < large <= 300 + 8


def test_the_same_seed_repeats_a_cell(reader: Path, data: Path) -> None:
    """Same seed, same questions, same answers."""
    one, same = (cell(reader, data, method="bm25", limit=2, seed=5)["scores"] for _ in range(2))
    assert one == same


@pytest.mark.parametrize(
    ("name", "value"), [("method", "magic"), ("unit", "word"), ("split", "dev"), ("budget", 1)]
)
def test_a_wrong_setting_is_named(data: Path, name: str, value: object) -> None:
    """The error says what was given and what is allowed."""
    with pytest.raises(ValueError, match=rf"{name}: given .*allowed"):
        QaConfig(data=data, **{name: value})  # type: ignore[arg-type]


def test_a_file_without_its_texts_says_how_to_name_them(tmp_path: Path, data: Path, reader: Path) -> None:
    """Where no corpus lies beside the questions, the message asks for --corpus."""
    (tmp_path / "qa").mkdir()
    alone = tmp_path / "qa" / "squad2.jsonl"
    alone.write_text(data.read_text())
    with pytest.raises(UsageError, match="--corpus"):
        cell(reader, alone)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--task", "magic", "--method", "bm25", "--data", "pyproject.toml"],
        ["--task", "qa", "--method", "bm25", "--data", "absent.jsonl"],
        ["--task", "qa", "--method", "magic", "--data", "pyproject.toml"],
        ["--task", "qa", "--method", "bm25", "--data", "pyproject.toml", "--adapter", "absent"],
    ],
)
def test_wrong_use_of_the_verb_ends_with_2(arguments: list[str]) -> None:
    """Bad usage is told on standard error with exit code 2."""
    app = typer.Typer()
    command.register(app)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "dysra:" in result.output


def test_the_verb_prints_the_figures_as_one_json_line(reader: Path, data: Path) -> None:
    """With --json the last line of standard output is the cell."""
    app = typer.Typer()
    command.register(app)
    arguments = [
        "--task",
        "qa",
        "--method",
        "oracle",
        "--data",
        str(data),
        "--model",
        str(reader),
        "--split",
        "all",
    ]
    result = CliRunner().invoke(app, [*arguments, "--limit", "2", "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["n"] == 2
    assert set(figures["cost"]) == KEYS
