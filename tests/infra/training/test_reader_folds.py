"""infra/training/reader_folds.py: no question or title of a fold is in the rows of its reader; both are trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.training import policy_material, reader_folds, reader_folds_train
from infra.training.policy_readers import SHIPPED, fold_names, reader_names
from infra.training.policy_voice import open_voice
from infra.training.reader_folds import make, pack
from infra.training.reader_held import SHIPPED_WORLDS, keys_of
from models.hf.cut import VOCABULARY
from pipeline.prepare.newswire import NewswireConfig
from pipeline.tasks.material import Material
from pipeline.tasks.qa import Question, read_questions, title_key
from tests.infra.training.in_process import processes_here
from tests.infra.training.test_policy_gpu import carried, questions_with_features, texts

__all__ = ["carried", "texts"]


def material_of(texts: Path, folder: Path) -> Path:
    """A material that has the first eight NQ questions, and two of RealTimeQA in dev."""
    made = questions_with_features()
    asked = read_questions(texts / "qa" / "nq_open.jsonl.zst")
    named = [
        replace(q, question_id=asked[at].question_id, dataset="nq", text=asked[at].text)
        if at < 8
        else replace(q, question_id=f"rtqa-{at}", dataset="rtqa", split="dev")
        if at in (8, 9)
        else q
        for at, q in enumerate(made.questions)
    ]
    Material(tuple(named), made.tables).save(folder, {})
    return folder


def extra_of(carried: Path, folder: Path) -> Path:
    """What travels beside the policy's parts: here only the vocabulary."""
    folder.mkdir()
    np.save(folder / VOCABULARY, np.load(carried / VOCABULARY))
    return folder


@pytest.mark.parametrize("num", [2, 3])
def test_no_question_and_no_title_of_a_fold_is_in_the_rows_of_its_reader(
    num: int, texts: Path, tmp_path: Path
) -> None:
    """Nor any that is kept back: not the questions, no text under their titles, none under a test title."""
    out, folder = tmp_path / "rows", material_of(texts, tmp_path / "material")
    world = NewswireConfig(seed=1011, num_articles=40, num_questions=8, split="train")
    make(
        texts, extra_of(texts, tmp_path / "extra"), out, processes=2, cloze=8, worlds=[world], material=folder,
        folds=num,
    )  # fmt: skip
    shared = reader_folds._Shared
    known = json.loads((out / "folds.json").read_text())
    names = fold_names(known)
    assert set(known.values()) == set(range(num)) and len(names) == num
    read = long = 0
    for fold in range(num):
        held = shared.held[fold]
        assert all(known[name] != fold for name in held)
        own = [
            each for each in shared.every if known.get(each.question_id) == fold or each.question_id in held
        ]
        closed = {key for each in own for key in keys_of(each) if key.startswith("title:")}
        for each in shared.questions:
            among = [one.triple for one in reader_folds.among_of(fold, each)]
            found = [*reader_folds.triples_of(fold, each), *among]
            read += len(found)
            long += sum(len(triple.sentences) > 2 for triple in among)
            assert not found or (known[each.question_id] != fold and each.question_id not in held)
            titles = {f"title:{title_key(title)}" for triple in found for title, _, _ in triple.sentences}
            assert not titles & closed
            assert not {title.removeprefix("title:") for title in titles} & shared.closed[fold]
    assert any(shared.held)
    assert read > 50 and long > 20
    tests = {each.question_id for each in shared.questions if each.split == "test"}
    assert not tests
    for fold, name in enumerate(names):
        told = json.loads((out / name / "names.json").read_text())
        assert {each.split("/")[0] for each in told["training"]} >= {"nq", "newswire"}
        assert any("/among:" in each for each in told["training"])
        assert len(np.load(out / name / "training.npz")["lengths"]) > 20
        dev = {each[0] for each in json.loads((out / name / "dev.json").read_text())}
        assert dev - {"rtqa-8", "rtqa-9"} <= shared.held[fold] and {"rtqa-8", "rtqa-9"} <= dev
    made = Material.load(folder)
    for name in ("folds.json", "shipped_reads.json"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    assert json.loads((tmp_path / "shipped_reads.json").read_text()) == ["rtqa-8", "rtqa-9"]
    rows = [at for at, q in enumerate(made.questions) if q.dataset == "rtqa"]
    some = Material(tuple(made.questions[at] for at in rows), made.tables.take(np.array(rows)))
    assert reader_names(some, tmp_path) == [SHIPPED, SHIPPED]


def test_no_world_of_the_policy_is_one_that_a_reader_was_trained_on() -> None:
    """The shipped reader reads the policy's newswire questions: of its own worlds it knows answers by heart."""
    policy = {world["seed"] for world in policy_material.WORLDS}
    assert not policy & set(SHIPPED_WORLDS)
    assert not policy & {world.seed for world in reader_folds.WORLDS}
    assert not set(SHIPPED_WORLDS) & {world.seed for world in reader_folds.WORLDS}


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


def test_both_readers_are_trained_side_by_side_and_open_as_voices(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All begin before one is waited for; the policy's voice opens each adapter; done ones are passed over."""
    events: list[tuple[str, str]] = []
    monkeypatch.setattr(reader_folds_train, "subprocess", processes_here(events))
    world = NewswireConfig(seed=1011, num_articles=40, num_questions=8, split="train")
    rows, out = tmp_path / "rows", tmp_path / "folds"
    folder = material_of(texts, tmp_path / "material")
    make(
        texts,
        extra_of(texts, tmp_path / "extra"),
        rows,
        processes=1,
        cloze=8,
        worlds=[world],
        material=folder,
    )
    (texts / "tokenizer.json").write_bytes((rows / "coder" / "tokenizer.json").read_bytes())
    # three steps (of four and a half: each knows half of the questions, the run is one for three quarters), then
    # the mean of two: which of the three moments is kept the questions held back decide
    small: dict[str, Any] = {"rank": 4, "alpha": 8, "rows": 2, "length": 1024, "tokens": 9216, "known": 0.75}
    small |= {"average": 0.9, "forced": True, "dev_at": [0.4, 1.0]}
    names = ["fold0", "fold1"]
    (tmp_path / "runs.json").write_text(json.dumps([{"name": name, **small} for name in names]))
    given = [
        "train", "--reader", str(texts), "--rows", str(rows), "--work", str(tmp_path / "work"), "--out", str(out),
        "--runs", str(tmp_path / "runs.json"), "--seconds", "200", "--grace", "200", "--device", "cpu",
    ]  # fmt: skip
    assert reader_folds.main(given) == 0
    assert events == [(what, name) for what in ("began", "waited for") for name in names]
    assert (out / "folds.json").read_bytes() == (rows / "folds.json").read_bytes()
    assert (out / "shipped_reads.json").read_bytes() == (rows / "shipped_reads.json").read_bytes()
    for name in names:
        record = json.loads((out / f"{name}.json").read_text())
        assert record["ended_by"] == "tokens" and record["steps"] == 3
        assert [(each["done"], each["averaged"]) for each in record["dev"]] == [
            (0.4, 0.0),
            (1.0, 0.0),
            (1.0, 1.0),
        ]
        assert record["kept"] in [{k: each[k] for k in ("done", "averaged")} for each in record["dev"]]
    losses = [open_voice(texts, "cpu", out / name) for name in names]
    states = [torch.cat([p.flatten() for p in each.model.parameters()]) for each in losses]
    assert not torch.equal(*states)
    before = (out / "fold0" / "adapter_config.json").stat().st_mtime
    events.clear()
    assert reader_folds.main(given) == 0
    assert events == []
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
