"""Replay of a news file to a real broker: order, rate, resumption, bad lines, stops."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BadData, StoppedEarly, UsageError
from pipeline.kafka import KafkaConfig
from pipeline.publisher import Publisher
from pipeline.replay import Replay, ReplayConfig
from tests.broker import TopicFactory
from tests.pipeline.test_news_file import news, write
from tests.pipeline.test_publisher import read_all
from tests.verbs import dysra


def run(
    path: Path, kafka: KafkaConfig, config: ReplayConfig, stop: threading.Event | None = None
) -> dict[str, Any]:
    """One replay with a publisher of its own."""
    publisher = Publisher(kafka)
    try:
        return Replay(path, publisher, config, stop=stop).run()
    finally:
        publisher.close()


def ids(kafka: KafkaConfig) -> list[str]:
    """Keys on a topic of one partition, in order."""
    return [(record.key or b"").decode() for record in read_all(kafka)]


@pytest.mark.broker
def test_file_is_published_in_time_order_with_its_figures(topic: TopicFactory, tmp_path: Path) -> None:
    """An unsorted file arrives sorted, undated and bad lines are counted, a withdrawal is a null value."""
    kafka = topic(partitions=1)
    rows = [news(2, day=2), news(1, day=1), {"id": "a-2", "deleted": True, "stream": "the-wire"}]
    rows += [news(5, published=None), {"id": "broken"}, news(4, day=4, extra={"is": "ignored"})]
    figures = run(write(tmp_path / "n.jsonl", rows), kafka, ReplayConfig(state=tmp_path / "s"))

    assert ids(kafka) == ["a-1", "a-2", "a-2", "a-4"]
    assert [record.value is None for record in read_all(kafka)] == [False, False, True, False]
    assert {
        name: figures[name] for name in ("published", "articles", "deletions", "undated", "bad_lines")
    } == {
        "published": 4,
        "articles": 3,
        "deletions": 1,
        "undated": 1,
        "bad_lines": 1,
    }
    assert (figures["first_published"], figures["last_published"]) == (
        "2025-01-01T00:00:00Z",
        "2025-01-04T00:00:00Z",
    )
    assert (figures["sorted_in_memory"], figures["skipped"], figures["resumed_from"]) == (True, 2, None)
    assert figures["bytes"] > 0


@pytest.mark.broker
def test_resumed_replay_publishes_each_article_once(topic: TopicFactory, tmp_path: Path) -> None:
    """Pieces of 7 records with --resume put the whole file on the topic, in order, without repeats."""
    kafka = topic(partitions=1)
    rows = [news(number, day=1 + number // 2) for number in range(20)]
    rows.insert(3, {"id": "broken"})
    path = write(tmp_path / "n.jsonl", rows)
    config = ReplayConfig(state=tmp_path / "s", limit=7)

    pieces = [run(path, kafka, config)] + [run(path, kafka, replace(config, resume=True)) for _ in range(3)]

    assert ids(kafka) == [f"a-{number}" for number in range(20)]
    assert [piece["published"] for piece in pieces] == [7, 7, 6, 0]
    assert [piece["resumed_from"] for piece in pieces] == [None, 8, 15, 21]


@pytest.mark.broker
def test_stop_keeps_what_was_acknowledged_and_resume_goes_on(topic: TopicFactory, tmp_path: Path) -> None:
    """A stop in the middle ends with code 5 and the figures; resuming completes the topic without repeats."""
    kafka = topic(partitions=4)
    path = write(tmp_path / "n.jsonl", [news(number, stream=f"s-{number % 9}") for number in range(300)])
    config = ReplayConfig(state=tmp_path / "s", rate=200.0)
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()

    with pytest.raises(StoppedEarly) as stopped:
        run(path, kafka, config, stop)
    figures: dict[str, Any] = stopped.value.figures  # type: ignore[attr-defined]
    rest = run(path, kafka, ReplayConfig(state=tmp_path / "s", resume=True))

    assert 0 < figures["published"] < 300
    assert figures["published"] + rest["published"] == 300
    assert len(ids(kafka)) == len(set(ids(kafka))) == 300


@pytest.mark.broker
def test_sigterm_of_the_command_saves_progress_and_exits_with_5(topic: TopicFactory, tmp_path: Path) -> None:
    """`dysra replay` that is told to stop flushes, saves, prints its figures and ends with code 5."""
    kafka = topic(partitions=1)
    path = write(tmp_path / "n.jsonl", [news(number) for number in range(10_000)])
    state = tmp_path / "s"
    command = ["replay", str(path), "--topic", kafka.topic, "--bootstrap-servers", kafka.bootstrap_servers]
    command += ["--state", str(state), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.cli", *command, "--rate", "100"], stdout=subprocess.PIPE, text=True
    )
    try:
        saved = state / f"{kafka.topic}--n.jsonl.json"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (
            saved.exists() and json.loads(saved.read_text())["position"]
        ):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    figures = json.loads(output.splitlines()[-1])

    assert (process.returncode, figures["exit_code"]) == (5, 5)
    assert ids(kafka) == [f"a-{number}" for number in range(figures["published"])]
    again = dysra(*command, "--resume", "--limit", "5")
    assert again.exit_code == 0, again.stderr
    assert len(ids(kafka)) == figures["published"] + 5 == len(set(ids(kafka)))


@pytest.mark.broker
def test_start_begins_with_the_named_article(topic: TopicFactory, tmp_path: Path) -> None:
    """--start is inclusive; an id that the file lacks is wrong use and leaves no progress."""
    kafka = topic(partitions=1)
    path = write(tmp_path / "n.jsonl", [news(number) for number in range(5)])

    run(path, kafka, ReplayConfig(state=tmp_path / "s", start="a-3"))
    assert ids(kafka) == ["a-3", "a-4"]
    with pytest.raises(UsageError, match="no article with the id 'a-9'"):
        run(path, kafka, ReplayConfig(state=tmp_path / "t", start="a-9"))
    assert list((tmp_path / "t").iterdir()) == []


@pytest.mark.broker
def test_raw_lines_reach_the_topic_as_they_are(topic: TopicFactory, tmp_path: Path) -> None:
    """With --raw a bad line is published byte for byte, for ingest to dead-letter."""
    kafka = topic(partitions=1)
    path = tmp_path / "n.jsonl"
    path.write_bytes(b"{not json\n" + json.dumps(news(1)).encode() + b"\n")

    figures = run(path, kafka, ReplayConfig(state=tmp_path / "s", raw=True))

    assert read_all(kafka)[0].value == b"{not json"
    assert (figures["published"], figures["raw"], figures["bad_lines"]) == (2, 1, 0)


@pytest.mark.broker
def test_article_too_large_for_the_topic_is_left_out_by_number(topic: TopicFactory, tmp_path: Path) -> None:
    """One record that the topic does not take is reported; the others are published and resumable."""
    kafka = topic(partitions=1, max_record_bytes=10_000)
    path = write(tmp_path / "n.jsonl", [news(1), news(2, text="x" * 200_000), news(3)])

    figures = run(path, kafka, ReplayConfig(state=tmp_path / "s"))

    assert ids(kafka) == ["a-1", "a-3"]
    assert (figures["published"], figures["bad_lines"], figures["position"]) == (2, 1, 3)
    assert figures["bad"][0].startswith("line 2: a record of")


@pytest.mark.broker
def test_changed_file_is_not_resumed(topic: TopicFactory, tmp_path: Path) -> None:
    """Positions of another content mean nothing: the error says so and what to do."""
    kafka = topic(partitions=1)
    path = write(tmp_path / "n.jsonl", [news(1)])
    run(path, kafka, ReplayConfig(state=tmp_path / "s"))
    write(path, [news(1), news(2)])

    with pytest.raises(UsageError, match=r"has changed since .*--start"):
        run(path, kafka, ReplayConfig(state=tmp_path / "s", resume=True))
    with pytest.raises(UsageError, match="leave out --resume"):
        run(path, kafka, ReplayConfig(state=tmp_path / "other", resume=True))


@pytest.mark.broker
def test_event_time_is_followed_at_the_given_speed(topic: TopicFactory, tmp_path: Path) -> None:
    """One day at 100,000 times its speed takes 0.864 s between two articles."""
    kafka = topic(partitions=1)
    path = write(tmp_path / "n.jsonl", [news(1, day=1), news(2, day=2)])

    run(path, kafka, ReplayConfig(state=tmp_path / "s", speed=100_000.0))

    first, second = read_all(kafka)
    assert second.timestamp_ms - first.timestamp_ms >= 800


@pytest.mark.broker
def test_file_without_dates_says_how_to_publish_it(topic: TopicFactory, tmp_path: Path) -> None:
    """Nothing but undated articles is bad data with the flag that helps; with the flag they are published."""
    kafka = topic(partitions=1)
    path = write(tmp_path / "n.jsonl", [news(1, published=None)])

    with pytest.raises(BadData, match="--undated now"):
        run(path, kafka, ReplayConfig(state=tmp_path / "s"))
    assert run(path, kafka, ReplayConfig(state=tmp_path / "s", undated="now"))["published"] == 1


@pytest.mark.broker
def test_wrong_use_of_replay_exits_as_documented(topic: TopicFactory, tmp_path: Path) -> None:
    """Bad data 4; a missing file and wrong settings 2; each names its cause."""
    kafka = topic(partitions=1)
    servers = ("--bootstrap-servers", kafka.bootstrap_servers, "--topic", kafka.topic)
    binary = tmp_path / "x.jsonl"
    binary.write_bytes(bytes(range(256)))
    good = str(write(tmp_path / "n.jsonl", [news(1)]))
    state = ("--state", str(tmp_path / "s"))
    for arguments, code, said in (
        ((str(binary), *servers, *state), 4, "holds no article"),
        ((str(tmp_path / "none.jsonl"), *servers, *state), 2, "there is no news file"),
        ((good, *servers, *state, "--rate", "0"), 2, "rate is 0"),
        ((good, *servers, *state, "--rate", "1", "--speed", "2"), 2, "give one of them"),
        ((good, "--bootstrap-servers", "127.0.0.1", *state), 2, "host:port is needed"),
    ):
        ran = dysra("replay", *arguments)
        assert (ran.exit_code, said in ran.stderr) == (code, True), ran.stderr


def test_unreachable_broker_exits_with_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker: code 3, within the limit, naming the address."""
    monkeypatch.setenv("DYSRA_KAFKA_CONNECT_TIMEOUT_S", "1")
    path = write(tmp_path / "n.jsonl", [news(1)])

    ran = dysra("replay", str(path), "--bootstrap-servers", "127.0.0.1:1", "--state", str(tmp_path))

    assert ran.exit_code == 3
    assert "127.0.0.1:1" in ran.stderr
