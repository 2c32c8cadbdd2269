"""infra/training/reader_folds.py: no question or title of a fold is in the rows of its reader; both are trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.training import reader_folds
from infra.training.policy_readers import FOLDS
from infra.training.policy_voice import open_voice
from infra.training.reader_folds import folds_of, keys_of, make, pack
from models.hf.cut import VOCABULARY
from pipeline.prepare.newswire import NewswireConfig
from pipeline.tasks.qa import Question, title_key
from tests.infra.training.test_policy_gpu import carried, texts

__all__ = ["carried", "texts"]


def question(at: int, *titles: str, text: str = "") -> Question:
    """A question with its gold titles."""
    return Question(
        question_id=f"q{at}", dataset="nq", text=text or f"who built house {at}?", answers=("x",), answerable=True,
        titles=titles,
    )  # fmt: skip


def test_what_shares_a_title_or_its_words_is_of_one_fold_and_each_set_is_halved() -> None:
    """Through chains of titles, however spelled, and through the same words under two titles."""
    chained = [question(at, f"Town {at}", f"town_{at + 1} (city)") for at in range(20)]
    twins = [question(30, "Alpha", text="Who came?"), question(31, "Beta", text="who came")]
    alone = [question(40 + at, f"Lake {at}") for at in range(60)]
    found = folds_of([*chained, *twins, *alone])
    assert len({found[each.question_id] for each in chained}) == 1
    assert found["q30"] == found["q31"]
    counts = [sum(fold == at for fold in found.values()) for at in (0, 1)]
    assert abs(counts[0] - counts[1]) <= 2
    assert found == folds_of([*alone, *twins, *chained][::-1])


def extra_of(carried: Path, folder: Path) -> Path:
    """What travels beside the policy's parts: here only the vocabulary."""
    folder.mkdir()
    np.save(folder / VOCABULARY, np.load(carried / VOCABULARY))
    return folder


def test_no_question_and_no_title_of_a_fold_is_in_the_rows_of_its_reader(texts: Path, tmp_path: Path) -> None:
    """Neither the questions themselves nor any text under their titles, nor one under a test title."""
    out = tmp_path / "rows"
    world = NewswireConfig(seed=1011, num_articles=40, num_questions=8, split="train")
    make(texts, extra_of(texts, tmp_path / "extra"), out, processes=2, cloze=8, worlds=[world])
    shared = reader_folds._Shared
    known = json.loads((out / "folds.json").read_text())
    assert set(known.values()) == {0, 1}
    read = long = 0
    for fold in range(len(FOLDS)):
        own = [each for each in shared.questions if known[each.question_id] == fold]
        closed = {key for each in own for key in keys_of(each) if key.startswith("title:")}
        for each in shared.questions:
            among = [one.triple for one in reader_folds.among_of(fold, each)]
            found = [*reader_folds.triples_of(fold, each), *among]
            read += len(found)
            long += sum(len(triple.sentences) > 2 for triple in among)
            assert not found or known[each.question_id] != fold
            titles = {f"title:{title_key(title)}" for triple in found for title, _, _ in triple.sentences}
            assert not titles & closed
            assert not {title.removeprefix("title:") for title in titles} & shared.closed[fold]
    assert read > 50 and long > 20
    tests = {each.question_id for each in shared.questions if each.split == "test"}
    assert not tests
    for name in FOLDS:
        names = json.loads((out / name / "names.json").read_text())
        assert {each.split("/")[0] for each in names["training"]} >= {"nq", "newswire"}
        assert any("/among:" in each for each in names["training"])
        assert len(np.load(out / name / "training.npz")["lengths"]) > 20


def test_rows_with_a_question_of_their_own_fold_are_refused(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in dealing must not come out as a good figure."""
    whole = reader_folds.triples_of

    def leaking(fold: int, asked: Question) -> list[object]:
        return list(whole(1 - fold, asked)) or list(whole(fold, asked))

    monkeypatch.setattr(reader_folds, "triples_of", leaking)
    with pytest.raises(ValueError, match="of its own fold"):
        make(texts, extra_of(texts, tmp_path / "extra"), tmp_path / "rows", processes=1, cloze=2, worlds=[])


def test_a_gold_text_under_a_closed_title_is_not_read(texts: Path, tmp_path: Path) -> None:
    """A question may name a gold passage that stands under a title of the other fold."""
    make(texts, extra_of(texts, tmp_path / "extra"), tmp_path / "rows", processes=1, cloze=2, worlds=[])
    shared = reader_folds._Shared
    asked = next(each for each in shared.questions if shared.folds[each.question_id] == 1)
    closed = next(name for name in shared.passages if not reader_folds._open(0, name))
    found = reader_folds.triples_of(0, replace(asked, gold_ids=(*asked.gold_ids, closed)))
    titles = {title for triple in found for title, _, _ in triple.sentences}
    assert titles
    assert shared.passages[closed].title not in titles


def test_both_readers_are_trained_side_by_side_and_open_as_voices(texts: Path, tmp_path: Path) -> None:
    """In processes; each an adapter of its own that the policy's voice opens; a done one is passed over."""
    world = NewswireConfig(seed=1011, num_articles=40, num_questions=8, split="train")
    rows, out = tmp_path / "rows", tmp_path / "folds"
    make(texts, extra_of(texts, tmp_path / "extra"), rows, processes=1, cloze=8, worlds=[world])
    (texts / "tokenizer.json").write_bytes((rows / "coder" / "tokenizer.json").read_bytes())
    small = {"rank": 4, "alpha": 8, "rows": 2, "length": 1024, "dev_at": []}
    (tmp_path / "runs.json").write_text(json.dumps([{"name": name, **small} for name in FOLDS]))
    given = [
        "train", "--reader", str(texts), "--rows", str(rows), "--work", str(tmp_path / "work"), "--out", str(out),
        "--runs", str(tmp_path / "runs.json"), "--seconds", "2", "--grace", "200", "--device", "cpu",
    ]  # fmt: skip
    assert reader_folds.main(given) == 0
    assert (out / "folds.json").read_bytes() == (rows / "folds.json").read_bytes()
    losses = [open_voice(texts, "cpu", out / name) for name in FOLDS]
    states = [torch.cat([p.flatten() for p in each.model.parameters()]) for each in losses]
    assert not torch.equal(*states)
    before = (out / "fold0" / "adapter_config.json").stat().st_mtime
    assert reader_folds.main(given) == 0
    assert (out / "fold0" / "adapter_config.json").stat().st_mtime == before
    np.save(texts / VOCABULARY, np.arange(7))
    with pytest.raises(ValueError, match="another vocabulary"):
        reader_folds.main(given)


def test_what_travels_is_small_and_whole(tmp_path: Path) -> None:
    """TimeQA, the vocabulary and the shipped policy."""
    data, reader = tmp_path / "data" / "qa", tmp_path / "reader"
    data.mkdir(parents=True)
    reader.mkdir()
    for name in reader_folds.EXTRA:
        (data / name).write_bytes(b"x")
    np.save(reader / VOCABULARY, np.arange(4))
    pack(tmp_path / "data", reader, tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    assert {*reader_folds.EXTRA, VOCABULARY, "retriever/policy.safetensors"} <= found
