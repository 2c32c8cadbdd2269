"""`dysra prepare` in miniature: the same seed gives the same bytes, however often it was ended and by whom made."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infra.training.learners.reader import triples_in
from infra.training.prepare import PrepareConfig, prepare
from infra.training.subq_data import SubqData
from pipeline.errors import UsageError
from pipeline.prepare import newswire
from pipeline.tasks.qa import title_key

ROOT = Path(__file__).parents[3]
PLACES = ("Aster", "Birch", "Cedar", "Dover", "Elm", "Fern", "Grove", "Hazel", "Iris", "Juniper")
PEOPLE = (
    "Ines Falk",
    "Omar Reed",
    "Lena Moss",
    "Ivo Hart",
    "Nora Pike",
    "Theo Lund",
    "Mara Voss",
    "Karl Byrne",
)


def files(folder: Path, count: int = 60) -> dict[str, Any]:
    """Made-up news, passages and questions about them."""
    chance = random.Random(0)
    news, passages, questions = [], [], []
    for at in range(count):
        place, who = f"{chance.choice(PLACES)} {at}", chance.choice(PEOPLE)
        told = f"The bridge of {place} was opened by {who} in spring. Many people came to see it. It is long."
        news.append(
            {
                "id": f"n{at}",
                "title": place,
                "text": told,
                "source": "Daily",
                "published": f"2024-01-{1 + at % 28:02d}",
            }
        )
        passages.append({"id": f"p{at}", "title": place, "text": told})
        questions.append(
            {"id": f"q{at}", "question": f"Who opened the bridge of {place}?", "answers": [who],
             "gold_passage_ids": [f"p{at}"], "gold_title": place}
        )  # fmt: skip
    for name, rows in (("news", news), ("passages_wiki", passages), ("nq_open", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "texts": (folder / "news.jsonl",), "questions": (folder / "nq_open.jsonl",),
        "corpus": folder / "passages_wiki.jsonl",
    }  # fmt: skip


def config_of(folder: Path, out: Path) -> PrepareConfig:
    """Small shards of them."""
    return PrepareConfig(
        out=out, **files(folder), vocabulary=400, chunk_tokens=64, test_share=0.1, needles=20, texts_per_shard=25,
        questions_per_shard=20, hard=3,
    )  # fmt: skip


@pytest.mark.model
def test_newswire_worlds_make_triples_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained world and a held-out one, whose questions are not asked in the other; no file is needed."""
    monkeypatch.setattr(newswire, "NewswireConfig", partial(newswire.NewswireConfig, num_questions=60))
    config = PrepareConfig(out=tmp_path, worlds=1, world_articles=120, needles=0)
    figures = prepare(config)
    assert figures["triples"]["shards"] == 2
    triples = triples_in(tmp_path / "triples")
    assert {triple.dataset for triple in triples} == {"newswire"}
    by_split = {split: [t for t in triples if t.split == split] for split in {t.split for t in triples}}
    assert set(by_split) == {"train", "test"}
    assert {"now:oracle", "now:silent"} <= {triple.kind for triple in by_split["train"]}
    asked = {split: {triple.question for triple in some} for split, some in by_split.items()}
    assert asked["train"] and asked["test"] and not asked["train"] & asked["test"]
    assert prepare(config)["made_now"] == 0


def digests(folder: Path) -> dict[str, str]:
    """The checksum of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[PrepareConfig, dict[str, Any]]:
    """Everything, made once."""
    folder = tmp_path_factory.mktemp("prepare")
    config = config_of(folder, folder / "out")
    return config, prepare(config)


@pytest.mark.model
def test_everything_that_is_trained_on_is_there(made: tuple[PrepareConfig, dict[str, Any]]) -> None:
    """Streams in time order, labels, triples that the reader's training takes, needles, subq files."""
    config, figures = made
    assert (figures["tokens"]["shards"], figures["labels"]["shards"], figures["triples"]["shards"]) == (
        3,
        3,
        3,
    )
    rows = [
        row
        for at in range(3)
        for row in pq.read_table(config.out / f"tokens/tokens-{at:05d}.parquet").to_pylist()
    ]
    times = [row["first"] for row in rows]
    assert times == sorted(times)
    data = SubqData.load(config.out / "subq", "train")
    trained = [i for row in rows if row["split"] == "train" for i in row["ids"]]
    assert data.tokens.tolist() == trained
    assert "bridge of" in data.tokenizer.decode(trained)
    labels = [
        row
        for at in range(3)
        for row in pq.read_table(config.out / f"labels/labels-{at:05d}.parquet").to_pylist()
    ]
    assert {row["label"] for row in labels} == {0, 1, 2}
    triples = triples_in(config.out / "triples")
    assert {"oracle", "silent", "gold"} <= {triple.kind for triple in triples}
    tested = {title_key(row["title"]) for row in labels if row["split"] == "test" and row["label"] == 2}
    read = {title_key(title) for t in triples if t.split == "train" for title, _, _ in t.sentences}
    assert tested and not tested & read
    real = pq.read_table(config.out / "needles/needles-real-00.parquet").to_pylist()
    assert real and all(row["answer"] in row["sentence"] for row in real)
    needles = {part: SubqData.load(config.out / "subq", part).real for part in ("train", "test")}
    assert {part: len(found) for part, found in needles.items()} == figures["subq"]["real"]
    titles = {part: {each.sentence.split(":")[0] for each in found} for part, found in needles.items()}
    assert titles["train"] and titles["test"] and not titles["train"] & titles["test"]
    assert titles["train"] | titles["test"] <= {row["sentence"].split(":")[0] for row in real}


@pytest.mark.model
def test_run_that_was_ended_makes_only_what_is_missing_and_the_same_bytes(
    made: tuple[PrepareConfig, dict[str, Any]], tmp_path: Path
) -> None:
    """Missing, damaged and cut files are made again; other settings are refused; another folder is the same."""
    config, _ = made
    before = digests(config.out)
    (config.out / "tokens/tokens-00001.parquet").unlink()
    (config.out / "labels/labels-00000.parquet").write_bytes(b"cut")
    (config.out / "subq/manifest.json").write_bytes(b'{"train": ')
    assert prepare(config)["made_now"] == 2
    assert digests(config.out) == before
    with pytest.raises(UsageError, match="other settings"):
        prepare(replace(config, seed=1))
    prepare(replace(config, out=tmp_path / "again"))
    assert digests(tmp_path / "again") == before


@pytest.mark.slow
@pytest.mark.ray
def test_workers_that_were_killed_leave_the_same_bytes(
    made: tuple[PrepareConfig, dict[str, Any]], tmp_path: Path
) -> None:
    """Ray Data, two actors; kill -9 of the whole run in its middle, then the same command again."""
    config, _ = made
    out = tmp_path / "ray"
    command = [
        sys.executable, "-m", "infra.cli", "prepare", "--texts", str(config.texts[0]), "--questions",
        str(config.questions[0]), "--corpus", str(config.corpus), "--out", str(out), "--vocabulary", "400",
        "--chunk-tokens", "64", "--test-share", "0.1", "--needles", "20", "--hard", "3", "--workers", "2",
    ]  # fmt: skip
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    killed = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    deadline = time.monotonic() + 240
    while not list(out.glob("*/*.parquet")) and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(30)
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=400, check=False)
    assert done.returncode == 0
    alone = tmp_path / "alone"
    prepare(replace(config, out=alone, texts_per_shard=2_000, questions_per_shard=500))
    assert digests(out) == digests(alone)
