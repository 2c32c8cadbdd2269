"""The reader's fast run: rows of a cut vocabulary, the schedule, training on packs, the choice, the comparison."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from infra.training.reader_carry import dev_by_title
from infra.training.reader_compare import Judged, equal_margin, figures, groups_of, paired, table
from infra.training.reader_fast import Average, dev_scores, prefetched, train
from infra.training.reader_fast_run import FastRun, done_at, rate_at, read_runs
from infra.training.reader_gpu import row_chooser
from infra.training.reader_job import chosen_run, hand_over
from infra.training.reader_rows import Coder, Rows, first_difference
from models.reader_lowrank import LowRank
from models.reader_packs import make_pack, plan_packs
from models.reader_training import answer_loss, collate
from pipeline.prepare.near_misses import Misleading
from pipeline.prepare.triples import Triple
from pipeline.tasks.qa import Question, title_key
from tests.models.test_reader_training import tiny, toy

WORDS = [
    "<bos>",
    "\n",
    "unknown",
    " ",
    "Question:",
    "Answer:",
    "Bridge:",
    "Falk",
    "Reyn",
    "opened",
    "it.",
    "who?",
]
WORDS += [f"word{at}" for at in range(len(WORDS), 32)]


def reader_folder(folder: Path, left_out: tuple[str, ...] = ()) -> Path:
    """A folder with a tokenizer of a dozen words and a vocabulary that lacks some of them."""
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<bos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|[^\s]+"), "removed", invert=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    kept = [at for at, word in enumerate(WORDS) if word not in left_out]
    np.save(folder / "vocabulary.npy", np.array(kept, np.int32))
    return folder


def reading(answer: str | None = "Falk", text: str = "Falk opened it.", **other: Any) -> Triple:
    """One reading about a bridge."""
    settings: dict[str, Any] = {
        "question_id": "q", "dataset": "nq", "split": "train", "kind": "near", "question": "who?",
        "sentences": (("Bridge", "", text),), "answers": (answer,) if answer else (), "tells": answer is not None,
        "target": f" {answer or 'unknown'}",
    }  # fmt: skip
    return Triple(**{**settings, **other})


def test_rows_come_back_as_they_were_saved(tmp_path: Path) -> None:
    """Prompt, target, what to avoid and labels of each row survive saving, in ids of the cut vocabulary."""
    coder = Coder(reader_folder(tmp_path, ("Question:",)))
    assert coder.prompt((("Bridge", "", "Falk opened it."),), "who?") == []
    coder = Coder(reader_folder(tmp_path, ("<bos>",)))
    rows = Rows.of(coder, [Misleading(reading(), "Reyn"), Misleading(reading(None))], "training")
    dev = Rows.of(coder, [Misleading(reading())], "dev")
    Rows.merge([rows, dev]).save(tmp_path, coder)
    with np.load(tmp_path / "training.npz") as saved:
        assert saved["tells"].tolist() == [True, False]
        assert saved["avoid"].tolist() == [[0, coder.target(" Reyn")[0]], [-1, -1]]
        start, length = int(saved["answer_starts"][0]), int(saved["lengths"][0])
        assert coder.text(saved["tokens"][start:length].tolist()).split() == ["Falk"]
    names = json.loads((tmp_path / "names.json").read_text())
    assert names["training"] == ["nq/near"]
    assert names["give_up"] == coder.give_up
    assert json.loads((tmp_path / "dev.json").read_text()) == [["q", "nq", "near", True, ["Falk"], 5]]


def test_rows_that_the_vocabulary_lacks_are_counted(tmp_path: Path) -> None:
    """A reading with an unknown token, or too long, is left out and counted."""
    coder = Coder(reader_folder(tmp_path, ("Reyn",)), longest=12)
    long = reading(text="Falk opened it. " * 5)
    rows = Rows.of(
        coder, [Misleading(reading(text="Reyn")), Misleading(long), Misleading(reading())], "training"
    )
    assert (rows.dropped, len(rows.tokens)) == (2, 1)


def test_a_rare_token_is_spelled_in_shorter_ones(tmp_path: Path) -> None:
    """A token that the cut vocabulary lacks becomes the longest pieces that it has: the same text."""
    tokenizer = Tokenizer(
        models.WordLevel({"bridge": 0, "brid": 1, "ge": 2, "br": 3, "\n": 4, "unknown": 5}, "ge")
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    np.save(tmp_path / "vocabulary.npy", np.array([1, 2, 3, 4, 5], np.int32))
    coder = Coder(tmp_path)
    assert coder.cut([0]) == [0, 1]
    assert coder.cut([3, 0, 2]) == [2, 0, 1, 1]
    assert coder.text(coder.cut([0])).replace(" ", "") == "bridge"


def test_no_title_that_is_kept_back_is_a_training_title() -> None:
    """Questions are kept back by any of their titles, however spelled; test questions stay test questions."""
    made = [
        Question(
            question_id=f"q{at}", dataset="nq", text="?", answers=("x",), answerable=True, split="train",
            titles=(f"Title {at % 40}", f"title {at % 7} (film)"),
        )
        for at in range(400)
    ]  # fmt: skip
    split = [dev_by_title(question, 0.2) for question in made]
    titles = {
        name: {title_key(t) for q in split if q.split == name for t in q.titles} for name in ("dev", "train")
    }
    assert titles["dev"]
    assert titles["train"]
    kept_back = {
        key for key in titles["dev"] if dev_by_title(replace(made[0], titles=(key,)), 0.2).split == "dev"
    }
    assert not kept_back & titles["train"]
    assert dev_by_title(replace(made[0], split="test"), 1.0).split == "test"


def test_what_is_avoided_stands_where_the_answers_part() -> None:
    """The first place at which they differ; nowhere where one begins with all of the other."""
    assert first_difference([5, 6, 7], [5, 8, 7]) == (1, 8)
    assert first_difference([5, 6], [5]) == (-1, -1)
    assert first_difference([5], []) == (-1, -1)


def test_the_rate_rises_and_falls_with_the_clock() -> None:
    """A short rise to the peak, then down to a fiftieth, never above the peak."""
    run = FastRun(name="x", lr=1.0)
    assert rate_at(run, 0.0) < 0.1
    assert rate_at(run, run.warmup) == pytest.approx(1.0)
    assert rate_at(run, 1.0) == pytest.approx(0.02)
    assert rate_at(run, 1.5) == pytest.approx(0.02)
    assert all(rate_at(run, at / 50) <= 1.0 for at in range(60))


def test_a_run_ends_by_its_tokens_and_by_the_clock_where_that_is_ahead() -> None:
    """Its schedule follows whichever is further, so that a run that is cut has ended at a low rate too."""
    run = FastRun(name="x", rows=2, length=64, tokens=1280)
    assert done_at(run, 5, 1.0, 100.0) == pytest.approx(0.5)
    assert done_at(run, 5, 80.0, 100.0) == pytest.approx(0.8)
    assert done_at(replace(run, tokens=0), 5, 1.0, 100.0) == pytest.approx(0.01)
    rows = toy(24, 0)
    pack = make_pack(rows, plan_packs(rows, np.arange(24), run.shape, 0)[0], run.shape)
    model = tiny()
    record = train(model, LowRank(model, rank=2, alpha=4), repeat(pack), run, 1e6, "cpu")
    assert record["steps"] == 10 and record["ended_by"] == "tokens"
    with pytest.raises(ValueError, match="average: given 1; allowed: 0 to below 1"):
        FastRun(name="x", average=1)
    with pytest.raises(ValueError, match="tokens: given -1"):
        FastRun(name="x", tokens=-1)


def test_a_reader_that_knows_fewer_questions_reads_fewer_tokens_of_them() -> None:
    """As many passes as the run was chosen for, never more tokens than it says; without a share it is as it is."""
    folds = read_runs(Path("infra/training/runs/reader_folds.json"))
    assert {run.knowing(0.75).tokens for run in folds} == {14_000_000}
    assert {run.knowing(0.5).tokens for run in folds} == {9_333_333}
    run = FastRun(name="x", tokens=900, known=0.75)
    assert run.knowing(0.9) == run and run.knowing(0.5) == replace(run, tokens=600)
    assert replace(run, known=0.0).knowing(0.5).tokens == 900
    with pytest.raises(ValueError, match="share: given 0; allowed: above 0 to 1"):
        run.knowing(0)
    with pytest.raises(ValueError, match=r"known: given 1\.5; allowed: 0 to 1"):
        FastRun(name="x", known=1.5)


def test_the_mean_of_a_runs_end_is_that_of_its_weights_after_each_step() -> None:
    """Counted from the share that is named; exchanged for the weights, and back."""
    rows = toy(24, 0)
    run = FastRun(name="x", rows=2, length=64, tokens=1280, average=0.35, lr=0.01)
    pack = make_pack(rows, plan_packs(rows, np.arange(24), run.shape, 0)[0], run.shape)
    model, average = tiny(), Average()
    low, seen = LowRank(model, rank=2, alpha=4), list[list[torch.Tensor]]()
    whole = low.merge

    def merge() -> None:
        whole()
        seen.append([parameter.detach().clone() for parameter in low.parameters()])

    low.merge = merge  # type: ignore[method-assign]
    train(model, low, repeat(pack), run, 1e6, "cpu", average=average)
    assert average.num == 3 and len(seen) == 10
    average.exchange(low.parameters())
    for at, parameter in enumerate(low.parameters()):
        mean = torch.stack([each[at] for each in seen[7:]]).mean(0)
        torch.testing.assert_close(parameter.detach(), mean)
    average.exchange(low.parameters())
    torch.testing.assert_close(low.parameters()[0].detach(), seen[-1][0])


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    """The error names it and what is allowed; the shipped runs are readable."""
    (tmp_path / "runs.json").write_text(json.dumps([{"name": "x", "rnak": 8}]))
    with pytest.raises(ValueError, match=r"given \['rnak'\]; allowed: .*rank"):
        read_runs(tmp_path / "runs.json")
    folds = read_runs(Path("infra/training/runs/reader_folds.json"))
    assert [run.name for run in folds] == [f"fold{at}" for at in range(4)] and all(
        run.tokens for run in folds
    )
    shipped = read_runs(Path("infra/training/runs/reader_near.json"))
    assert {"near16", "plain16", "full"} <= {run.name for run in shipped}
    with pytest.raises(ValueError, match="method: given 'none'; allowed: lora, full"):
        FastRun(name="x", method="none")


def test_a_toy_is_learned_from_packs() -> None:
    """The adapter brings the loss down on packs that a thread makes; dev looks are made as asked."""
    rows = toy(240, 0)
    labels = {
        "codes": np.zeros(240, np.int64),
        "tells": np.ones(240, bool),
        "held_out": np.zeros(240, bool),
        "avoid": np.full((240, 2), -1),
    }
    run = FastRun(
        name="toy", rank=8, lr=0.02, rows=8, length=64, contrast=0.5, dev_at=(0.5, 1.0), warmup=0.002
    )
    model = tiny()
    choose = row_chooser(labels, ["toy/near"], asdict(run))
    at: list[float] = []
    every = collate(rows, np.arange(240), torch.device("cpu"))
    before = float(answer_loss(model, every)[0].detach())
    packs = prefetched(rows, labels, choose, run, "cpu")
    # the rate is at its peak for all eighty steps: the clock is far from its end
    record = train(model, LowRank(model, rank=8, alpha=16), islice(packs, 80), run, 1e6, "cpu", at.append)
    packs.close()
    assert at == [0.5, 1.0]
    # .79 to .82 by the processor; an adapter that learns nothing stays at 1
    assert float(answer_loss(model, every)[0].detach()) < 0.9 * before
    assert record["steps"] * run.rows * run.length == record["tokens"]
    assert record["curve"][-1]["step"] == record["steps"] == 80
    assert not record["compiled"]


def test_the_clock_ends_a_run() -> None:
    """Packs without end are trained on for the seconds given, not longer than a step more."""
    rows = toy(24, 0)
    run = FastRun(name="toy", rank=2, rows=2, length=64)
    pack = make_pack(rows, plan_packs(rows, np.arange(24), run.shape, 0)[0], run.shape)
    model = tiny()
    record = train(model, LowRank(model, rank=2, alpha=4), repeat(pack), run, 0.01, "cpu")
    assert 1 <= record["steps"] < 50


def test_dev_answers_are_judged_as_sessions_answer(tmp_path: Path) -> None:
    """Scores are given by kind and set over rows that tell, and giving up apart; all within 0 to 100."""
    coder = Coder(reader_folder(tmp_path))
    about = [["a", "nq", "near", True, ["Falk"]], ["b", "nq", "near", False, ["Falk"]]]
    rows = toy(2, 1)
    found = dev_scores(tiny(), rows, about, coder, "cpu")
    assert set(found) == {"score", "near", "nq", "gave_up_rightly", "gave_up_wrongly"}
    assert all(0 <= value <= 100 for value in found.values())


def test_the_best_shippable_adapter_is_handed_over_last_of_all(tmp_path: Path) -> None:
    """Full tuning, runs from the shipped adapter and higher ranks are never chosen; the mark comes last."""
    runs = [
        FastRun(name="a"), FastRun(name="b"), FastRun(name="c", init="shipped"), FastRun(name="d", rank=32),
        FastRun(name="e", method="full"), FastRun(name="missing"),
    ]  # fmt: skip
    for name, score in (("a", 40.0), ("b", 42.0), ("c", 90.0), ("d", 90.0), ("e", 90.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"dev": [{"score": 1.0}, {"score": score}]}))
    assert chosen_run(runs, tmp_path) == "b"
    (tmp_path / "b").mkdir()
    (tmp_path / "b/adapter_config.json").write_text("{}")
    hand_over(tmp_path, tmp_path / "out", "b")
    assert (tmp_path / "adapter.done").read_text() == "b"
    assert (tmp_path / "adapter/adapter_config.json").exists()
    assert (tmp_path / "out/adapter/adapter_config.json").exists()
    assert chosen_run(runs, tmp_path / "nowhere") is None


def judged(f1: list[float], margins: list[float]) -> Judged:
    """Answers with these scores."""
    return Judged(np.array(f1), np.array(f1), np.array(margins))


def test_readers_are_compared_on_the_same_readings() -> None:
    """Giving up counts 0 above the margin only; gains are paired; the figures carry run, set and kind."""
    about = [
        ["a", "nq", "oracle", True],
        ["b", "nq", "oracle", True],
        ["c", "nq", "near", True],
        ["d", "squad", "gold", False],
    ]
    readers = {
        "lora": judged([1.0, 0.0, 0.0, 0.0], [-3, -3, 2.0, 5.0]),
        "near": judged([1.0, 1.0, 1.0, 0.0], [-3, 1.0, -1, -2.0]),
    }
    answerable, tells = np.array([True, True, True, False]), np.array([True, True, True, False])
    rows = table(readers, groups_of(about, range(4)), answerable, tells, "near", "lora")
    named = figures(rows, ["lora", "near"])
    assert named["reader_f1_lora_nq"] == 50.0
    assert named["reader_f1_near_nq"] == 100.0
    assert named["reader_f1_lora_nq_near"] == 0.0
    assert named["reader_gain_nq"] == 50.0
    oracle, near, gold = rows
    assert oracle["near"]["greedy"] == 50.0  # a margin of 1 gives up where greedy decoding decides
    assert near["lora"]["gave_up_wrongly"] == 100.0
    assert (gold["lora"]["gave_up_rightly"], gold["near"]["gave_up_rightly"]) == (100.0, 0.0)
    assert gold["n"] == 0


def test_readers_are_compared_at_equal_rightful_giving_up() -> None:
    """A reader that only gives up more loses nothing at the margin of equal rightful giving up."""
    about = [[str(at), "nq", "oracle", at < 4] for at in range(8)]
    answerable, tells = np.ones(8, bool), np.arange(8) < 4
    lora = judged([1.0] * 4 + [0.0] * 4, [-3, -3, -3, 1, 0, 1, 2, 3])
    near = judged([1.0] * 4 + [0.0] * 4, [-1, -1, -1, 3, 2, 3, 4, 5])  # the same, two higher everywhere
    margin = equal_margin(near, lora, tells)
    assert (near.margins[~tells] > margin).mean() == (lora.margins[~tells] > 1.5).mean() == 0.5
    (row,) = table(
        {"lora": lora, "near": near}, groups_of(about, range(8)), answerable, tells, "near", "lora"
    )
    assert row["gain_session"][0] == -12.5
    assert row["gain_equal"] == [0.0, 0.0, 0.0]
    assert figures([row], ["lora", "near"])["reader_gain_nq_equal"] == 0.0
    assert equal_margin(near, lora, np.ones(8, bool)) == 1.5  # no silent context: as sessions answer


def test_a_paired_interval_holds_the_mean_and_narrows() -> None:
    """Equal differences have no width; the interval of noise holds its mean."""
    assert paired(np.ones(50), np.zeros(50)) == (100.0, 100.0, 100.0)
    noise = np.random.default_rng(0).normal(0.1, 1, 400)
    mean, low, high = paired(noise, np.zeros(400))
    assert low < mean < high
    few = paired(noise[:40], np.zeros(40))
    assert high - low < few[2] - few[1]
