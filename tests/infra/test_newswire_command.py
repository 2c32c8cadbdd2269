"""`dysra newswire`: files, questions, the data set, and what wrong use says."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import orjson
import pytest
import typer
import zstandard
from typer.testing import CliRunner

from infra.commands import newswire
from pipeline.news_file import survey
from pipeline.newswire import KINDS, generate
from tests.broker import TopicFactory
from tests.pipeline.test_publisher import read_all

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    made = typer.Typer()
    made.callback()(lambda: None)
    newswire.register(made)
    return made


def run(app: typer.Typer, *arguments: str | Path) -> tuple[int, dict[str, Any], str]:
    result = RUNNER.invoke(app, ["newswire", *map(str, arguments), "--json"])
    last = (result.stdout.strip().splitlines() or ["{}"])[-1]
    return result.exit_code, orjson.loads(last) if last.startswith("{") else {}, result.output


def lines(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(data).read()
    return [orjson.loads(line) for line in data.splitlines()]


@pytest.mark.parametrize("name", ["news.jsonl", "news.jsonl.zst"])
def test_a_file_holds_the_generated_records(app: typer.Typer, tmp_path: Path, name: str) -> None:
    """Plain and compressed files hold the same lines, and the figures count and checksum them."""
    code, figures, _ = run(app, "--out", tmp_path / name, "--articles", "150", "--seed", "4")
    assert code == 0
    events = list(generate(4, 150))
    written = lines(tmp_path / name)
    assert written == [event.record for event in events]
    content = b"".join(orjson.dumps(record) + b"\n" for record in written)
    assert figures["sha256"] == hashlib.sha256(content).hexdigest()
    assert figures["articles"] == 150
    assert len(written) == 150 + figures["updates"] + figures["corrections"] + figures["deletions"]
    assert figures["copies"] == sum(event.kind == "copy" for event in events)
    assert figures["words"] == sum(len(record["text"].split()) for record in written if "text" in record)
    assert {"tokens_estimate", "first_published", "last_published", "seconds"} <= set(figures)
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_the_file_is_in_time_order_for_replay(app: typer.Typer, tmp_path: Path) -> None:
    """`dysra replay` finds every line dated and in order."""
    run(app, "--out", tmp_path / "n.jsonl.zst", "--articles", "400")
    found = survey(tmp_path / "n.jsonl.zst")
    assert found.in_order and found.num_undated == 0


def test_questions_of_every_kind_come_with_their_answers(app: typer.Typer, tmp_path: Path) -> None:
    """--questions writes them and the figures count them by kind."""
    code, figures, _ = run(
        app, "--questions", tmp_path / "q.jsonl", "--articles", "600", "--num-questions", "40"
    )
    assert code == 0
    found = lines(tmp_path / "q.jsonl")
    assert figures["questions"] == dict.fromkeys(KINDS, 5)
    assert all(bool(q["answers"]) == q["answerable"] == bool(q["gold_article_ids"]) for q in found)


def test_a_data_set_is_complete_and_checks_out(app: typer.Typer, tmp_path: Path) -> None:
    """Shards, splits, truth, card and checksums; the same seed writes the same lines again."""
    first, second = tmp_path / "a", tmp_path / "b"
    given = ("--articles", "900", "--num-questions", "200", "--seed", "6")
    code, figures, _ = run(app, "--news-streams", first, *given)
    assert code == 0
    _, again, _ = run(app, "--news-streams", second, *given)
    assert figures["contents_sha256"] == again["contents_sha256"]
    sums = dict(reversed(line.split("  ")) for line in (first / "SHA256SUMS").read_text().splitlines())
    files = {str(p.relative_to(first)) for p in first.rglob("*") if p.is_file()}
    assert files == {*sums, "SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((first / name).read_bytes()).hexdigest() == digest
    contents = dict(
        reversed(line.split("  ")) for line in (first / "CONTENTS.sha256").read_text().splitlines()
    )
    for name, digest in contents.items():
        data = zstandard.ZstdDecompressor().stream_reader((first / f"{name}.zst").read_bytes()).read()
        assert hashlib.sha256(data).hexdigest() == digest
    records = [r for part in sorted((first / "articles").iterdir()) for r in lines(part)]
    truth = lines(first / "truth.jsonl.zst")
    assert [r["id"] for r in records] == [t["id"] for t in truth]
    assert len(records) == figures["records"]
    by_id = {r["id"]: r for r in records if r.get("text") and "updated" not in r}
    for told in truth:
        if told["kind"] in ("article", "copy"):
            assert all(t["sentence"] in by_id[told["id"]]["text"] for t in told.get("tells", ()))
    splits = {name: lines(first / f"questions/{name}.jsonl.zst") for name in ("train", "validation", "test")}
    assert [len(found) for found in splits.values()] == [120, 40, 40]
    assert "900" in (first / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--out FILE"),
        (("--articles", "0", "--out", "x"), "--articles is 0"),
        (("--out", "missing-folder/x.jsonl"), "missing-folder"),
        (("--out", "x", "--asked", "never"), "--asked is 'never'"),
        (("--out", "x", "--start", "yesterday"), "YYYY-MM-DD"),
        (("--out", "x", "--rate", "5"), "--rate goes with --topic"),
        (("--topic", "t", "--rate", "0"), "--rate is 0"),
        (("--news-streams", "d", "--topic", "t"), "leave out"),
    ],
)
def test_wrong_use_is_told_and_ends_with_2(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    """The message names what was given and what to change; nothing is written."""
    monkeypatch.chdir(tmp_path)
    code, figures, output = run(app, *arguments)
    assert code == 2
    assert said in output
    assert figures["exit_code"] == 2
    assert not list(tmp_path.iterdir())


def test_a_full_folder_is_not_overwritten(app: typer.Typer, tmp_path: Path) -> None:
    """--news-streams refuses a folder that holds files."""
    (tmp_path / "kept").write_text("mine")
    code, _, output = run(app, "--news-streams", tmp_path, "--articles", "10")
    assert code == 2 and "not empty" in output
    assert (tmp_path / "kept").read_text() == "mine"


def test_a_silent_broker_ends_with_3(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishing where nothing listens says so within the limit that is set."""
    monkeypatch.setenv("DYSRA_KAFKA_CONNECT_TIMEOUT_S", "1")
    code, _, output = run(app, "--topic", "t", "--bootstrap-servers", "127.0.0.1:1", "--articles", "10")
    assert code == 3 and "127.0.0.1:1" in output


@pytest.mark.broker
def test_a_topic_gets_every_record_once_and_in_order(
    app: typer.Typer, topic: TopicFactory, tmp_path: Path
) -> None:
    """Published records are the generated ones, a stream in order on one partition, withdrawals as null values."""
    config = topic(partitions=3)
    code, figures, output = run(
        app, "--topic", config.topic, "--bootstrap-servers", config.bootstrap_servers, "--articles", "300",
        "--seed", "4", "--rate", "2000", "--out", tmp_path / "copy.jsonl",
    )  # fmt: skip
    assert code == 0, output
    events = list(generate(4, 300))
    records = read_all(config)  # up to the topic's end, so that a record too many is seen too
    assert (
        len(records)
        == len(events)
        == sum(figures[k] for k in ("articles", "updates", "corrections", "deletions"))
    )
    by_stream: dict[str, list[str]] = {}
    homes: dict[str, str] = {}
    partitions: dict[str, set[int]] = {}
    for record in sorted(records, key=lambda r: (r.partition, r.offset)):
        article = record.key.decode()
        if record.value is not None:
            homes[article] = orjson.loads(record.value)["stream"]
        by_stream.setdefault(homes[article], []).append(article)
        partitions.setdefault(homes[article], set()).add(record.partition)
    expected: dict[str, list[str]] = {}
    for event in events:
        expected.setdefault(event.record["stream"], []).append(event.record["id"])
    assert by_stream == expected
    assert all(len(found) == 1 for found in partitions.values())
    assert sum(record.value is None for record in records) == figures["deletions"]
    assert lines(tmp_path / "copy.jsonl") == [event.record for event in events]
