"""infra/training/made_questions.py: made, judged and given candidates in miniature; no gold title is a source."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.training import made_questions, made_shards
from infra.training.made_filters import Made
from infra.training.made_generator import MakerConfig, sampler
from infra.training.made_questions import MadeConfig, read_kept, read_made
from infra.training.made_sources import Source, draw_sources, pair_of, read_carried, training_pairs
from infra.training.policy_pairs import texts_of
from models.retriever.pair_reader import from_minilm
from models.retriever.pair_training import PairTrainConfig, train_pairs
from models.retriever.table import GOLD
from pipeline.errors import UsageError
from pipeline.tasks.qa import Question, SourceText, read_lines, title_key
from pipeline.tasks.scores import holds_answer
from tests.infra.training.test_policy_gpu import NAMES, carried, texts, write_rows

__all__ = ["carried", "texts"]

SMALL = [
    "--sentences",
    "24",
    "--two-hop",
    "16",
    "--shard",
    "8",
    "--new-tokens",
    "8",
    "--epochs",
    "1",
    "--rank",
    "2",
    "--rows",
    "1",
    "--length",
    "512",
]


@pytest.fixture
def host(texts: Path) -> Path:
    """The carried texts with forty passages more that no question is about."""
    path = texts / "corpus" / "passages_wiki.jsonl.zst"
    passages = list(read_lines(path))
    for at in range(40):
        who, other = NAMES[at % 8], NAMES[(at + 5) % 8]
        text = (
            f"{who} took the great boat{at} over lake{at} in the cold winter. "
            f"In the end {other} sold the small shop{at} to a man from the town. "
            f"{who} hid it in Barn {(at + 3) % 40}."
        )
        passages.append({"id": f"b{at}", "title": f"Barn {at}", "text": text})
    write_rows(path, passages)
    (texts / "tokenizer.json").write_bytes(lzma.decompress((texts / "tokenizer.json.xz").read_bytes()))
    return texts


def echo(
    model: object, coder: object, sources: list[Source], *, answers: tuple[str, ...] = (), **_: object
) -> list[str]:
    """A maker that knows its trade: asks who of the boat, or what was sold, by way of another barn."""
    said = []
    for at, source in enumerate(sources):
        words = source.sentence.split()
        if answers:
            said.append(f"{answers[at]} | which barn is where {words[0]} hid it")
            continue
        took = words[1] == "took"
        who, what = (
            (words[0], "took the great " + words[4]) if took else (words[3], "sold the small " + words[7])
        )
        of = f"out of the barn where {source.via[0].sentence.split()[0]} hid it" if source.via else ""
        said.append(f"{who} | who {what} {of or 'at ' + source.title}")
    return said


def agreeing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A maker of sense and a reader that answers all of it back: what two random networks never do."""

    def back(voice: object, made: list[Made], *_: float) -> tuple[list[bool], dict[str, int]]:
        return [True] * len(made), {"gave_up": 0, "other_answer": 0}

    monkeypatch.setattr(made_shards, "made_of", echo)
    monkeypatch.setattr(made_shards, "answered_back", back)


def questions(host: Path, out: Path, *more: str) -> int:
    """The verb `questions` on a CPU."""
    given = ["questions", "--carried", str(host), "--reader", str(host), "--out", str(out), "--device", "cpu"]
    return made_questions.main([*given, *SMALL, *more])


def candidates(host: Path, out: Path) -> int:
    """The verb `candidates` on a CPU, two processes."""
    given = ["candidates", "--carried", str(host), "--out", str(out), "--device", "cpu", "--processes", "2"]
    return made_questions.main([*given, "--candidates", "16", "--passages", "6"])


def test_no_gold_title_is_a_source_and_no_dev_or_test_question_is_learned_from(host: Path) -> None:
    """Sources stand under titles of no question; pairs are of training questions and hold their answer."""
    brought = read_carried(host)
    golds = {title_key(title) for question in brought.every for title in question.titles}
    sources = draw_sources(brought.open_texts(), 1000, 0)
    assert len(sources) == 80
    assert not {title_key(source.title) for source in sources} & golds
    assert sources == draw_sources(brought.open_texts(), 1000, 0)
    assert sources != draw_sources(brought.open_texts(), 1000, 1)
    assert {question.split for question in brought.training} == {"train"}
    asked = {question.text for question in brought.training}
    others = {question.text for question in brought.every} - asked
    pairs = training_pairs(brought)
    assert pairs and others
    assert {pair.question for pair in pairs} <= asked
    assert all(holds_answer(pair.source.sentence, [pair.answer]) for pair in pairs)


def test_a_pair_takes_the_gold_sentence_that_shares_most_words() -> None:
    """Of two that hold the answer; one hop of several counts only if it is what the question is about."""
    text = SourceText(
        text_id="p", title="Rivers", text="Bonn has much rain. The Rhine flows past the city of Bonn."
    )
    asked = Question(
        question_id="q", dataset="nq", text="which city does the rhine flow past", answers=("bonn",),
        answerable=True, gold_ids=("p",),
    )  # fmt: skip
    pair = pair_of(asked, {"p": text})
    assert pair is not None
    assert pair.source.sentence == "The Rhine flows past the city of Bonn."
    assert pair.answer == "Bonn"
    hop = Question(
        question_id="h", dataset="hotpot", text="which poet died near the tower of the duke", answers=("Bonn",),
        answerable=True, support=(("Rivers", "Bonn has much rain."), ("Rivers", "It rained.")),
    )  # fmt: skip
    assert pair_of(hop, {"p": text}) is None


def test_the_whole_in_miniature_trains_a_pair_reader(
    host: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Tuned, made, filtered, given candidates; one candidate tells, none else holds the answer; it trains."""
    agreeing(monkeypatch)
    out = tmp_path / "made"
    assert questions(host, out) == 0
    with pytest.raises(UsageError, match="not whole"):
        read_made(out)
    assert candidates(host, out) == 0
    material = read_made(out)
    told = json.loads((out / "manifest.json").read_text())
    assert len(material) == told["questions_with_candidates"] >= 12
    assert told["written"] == 24 + 2 * 16
    assert sum(told["filters"].values()) + told["judged"] == told["written"]
    assert told["judged"] == told["kept"] + told["repeated_elsewhere"]
    assert told["kept"] == len(read_kept(out))
    assert {"two", "joined"} <= set(told["kept_by_style"])
    hops = material.tables.needs_all
    assert 0 < hops.sum() < len(material)
    assert [question.kind in ("two", "joined") for question in material.questions] == hops.tolist()
    golds = {title_key(title) for question in read_carried(host).every for title in question.titles}
    for row, question in enumerate(material.questions):
        gold = np.flatnonzero(material.tables.labels[row] == GOLD)
        assert len(gold) == (2 if hops[row] else 1)
        assert len({question.sentences[at][0] for at in gold}) == len(gold)
        holding = [
            at for at, (_, _, text) in enumerate(question.sentences) if holds_answer(text, question.answers)
        ]
        assert set(holding) <= set(gold.tolist())
        assert len(holding) >= 1
        assert not {title_key(title) for title, _, _ in question.sentences} & golds
        assert int(material.tables.present[row].sum()) == len(question.sentences) >= 4
    reader = from_minilm(host / "minilm", "cpu")
    records = train_pairs(
        reader,
        material.tables,
        texts_of(reader, material),
        material.rows(),
        PairTrainConfig(questions=4, epochs=1.0),
    )
    assert np.isfinite(records[-1]["loss"])


def test_the_same_seed_gives_the_same_bytes_also_after_an_end(
    host: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Random networks write the same again; a run ended after a shard goes on and passes over what is done."""
    whole, ended = tmp_path / "whole", tmp_path / "ended"

    def none_kept(folder: Path, *more: str) -> None:
        with pytest.raises(ValueError, match="no question was kept"):
            questions(host, folder, *more)

    none_kept(whole)
    shards = sorted(path.name for path in (whole / "shards").iterdir())
    assert shards == [f"000{at}.json" for at in range(7)]
    none_kept(ended, "--seconds", "0.001")
    assert sorted(path.name for path in (ended / "shards").iterdir()) == ["0000.json"]
    # tuning itself was cut by that clock: take the other's maker, as a run that was ended later has
    for path in (whole / "maker").iterdir():
        (ended / "maker" / path.name).write_bytes(path.read_bytes())
    (ended / "shards" / "0000.json").write_bytes((whole / "shards" / "0000.json").read_bytes())
    before = (ended / "shards" / "0000.json").stat().st_mtime_ns
    none_kept(ended)
    assert (ended / "shards" / "0000.json").stat().st_mtime_ns == before
    for name in shards:
        assert (ended / "shards" / name).read_bytes() == (whole / "shards" / name).read_bytes()
    with pytest.raises(UsageError, match=r"maker\.seed"):
        questions(host, ended, "--seed", "1")


def test_what_is_done_is_passed_over(host: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Called again, neither verb opens a model."""
    agreeing(monkeypatch)
    out = tmp_path / "made"
    questions(host, out)
    candidates(host, out)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    for home, name in (
        (made_shards, "open_maker"), (made_shards, "open_voice"), (made_questions, "tune"),
        (made_questions, "material_of_made"),
    ):  # fmt: skip
        monkeypatch.setattr(home, name, never)
    began = time.monotonic()
    assert questions(host, out) == 0
    assert candidates(host, out) == 0
    assert time.monotonic() - began < 5


def test_parts_make_what_one_process_makes(
    host: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two parts, one after the other, then gather: the rows of an undivided run; a part alone gathers nothing."""
    agreeing(monkeypatch)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    questions(host, whole)
    questions(host, parted, "--part", "0/2")
    assert not (parted / "kept.json").exists()
    questions(host, parted, "--part", "1/2")
    assert made_questions.main(["gather", "--out", str(parted)]) == 0
    assert read_kept(parted) == read_kept(whole)
    with pytest.raises(SystemExit):
        questions(host, parted, "--part", "2/2")
    with pytest.raises(TimeoutError, match="part 0 tunes"):
        questions(host, tmp_path / "none", "--part", "1/2", "--seconds", "0.5")


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    """At temperature 1 a token of probability .8 comes four times of five; at 0 the best always."""
    logits = torch.log(torch.tensor([[0.8, 0.2]])).repeat(4000, 1)
    drawn = sampler(1.0, 3, "cpu")(logits)
    assert 0.76 < float((drawn == 0).float().mean()) < 0.84
    assert torch.equal(drawn, sampler(1.0, 3, "cpu")(logits))
    assert not torch.equal(drawn, sampler(1.0, 4, "cpu")(logits))
    assert not sampler(0.0, 3, "cpu")(logits).any()
    with pytest.raises(ValueError, match="temperature"):
        sampler(-1.0, 0, "cpu")


def test_settings_nobody_can_mean_are_refused() -> None:
    """By the field's name, with what is allowed."""
    for config, bad in (
        (MadeConfig, {"f1": 0.0}),
        (MadeConfig, {"most_words": 3}),
        (MakerConfig, {"lr": 0.0}),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}: given"):
            config(**bad)


def test_the_job_is_done_once_and_names_what_it_waits_for(tmp_path: Path) -> None:
    """Nothing is made again where `ready` stands; without what it wants it ends with 2 and says where to look."""
    script = Path(__file__).resolve().parents[3] / "infra" / "gpu_host" / "jobs" / "made_questions.sh"
    (tmp_path / "tree").mkdir()
    environment = {
        **os.environ, "LEASE_ROOT": str(tmp_path), "OUT": str(tmp_path / "out"), "SECONDS_LIMIT": "9", "WAIT": "1",
    }  # fmt: skip
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "carried/joined is not there after 1 s" in done.stderr
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "ready").touch()
    assert subprocess.run(["bash", str(script)], env=environment, timeout=60).returncode == 0
