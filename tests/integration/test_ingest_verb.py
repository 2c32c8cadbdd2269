"""Wrong use of `dysra ingest`: the exit code and a message that says what to change, before Ray is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.cli import build
from pipeline.publisher import Publisher
from tests.broker import TopicFactory

RUNNER = CliRunner()


def _ingest(*arguments: str) -> tuple[int, str]:
    result = RUNNER.invoke(build(), ["ingest", *arguments])
    return result.exit_code, result.output + (result.stderr or "")


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("--until-idle", "0"), 2, "--until-idle is 0"),
        (("--limit", "-5"), 2, "--limit is -5"),
        (("--shards", "0"), 2, "num_shards is 0"),
        (("--config", "absent.yaml"), 2, "absent.yaml"),
        (("--bootstrap-servers", "nowhere"), 2, "host:port"),
        (("--bootstrap-servers", "127.0.0.1:1"), 3, "dysra kafka up"),
    ],
)
def test_wrong_use_is_named(
    arguments: tuple[str, ...], code: int, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mistake has its exit code, and the message names what was given or what to do."""
    monkeypatch.setenv("DYSRA_KAFKA_CONNECT_TIMEOUT_S", "1")
    exit_code, output = _ingest(*arguments)
    assert (exit_code, named in output) == (code, True), output


@pytest.mark.broker
def test_missing_topic_and_embedder_are_named(topic: TopicFactory, tmp_path: Path) -> None:
    """A topic that is not there and an embedder that is not one end with 2 and the names that would do."""
    kafka = topic(partitions=1)
    with Publisher(kafka):
        pass
    servers = ("--bootstrap-servers", kafka.bootstrap_servers)
    mistyped = kafka.topic.replace("news", "nwes")  # of many topics those of similar name are shown
    exit_code, output = _ingest(*servers, "--topic", mistyped)
    assert (exit_code, kafka.topic in output) == (2, True), output
    exit_code, output = _ingest(*servers, "--topic", kafka.topic, "--embedder", str(tmp_path / "absent"))
    assert (exit_code, "minilm" in output) == (2, True), output
