"""`dysra dlq list | replay` as an operator runs them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.dead_letters import DeadLetterWriter
from pipeline.kafka import KafkaConfig
from pipeline.source import Record
from tests.broker import TopicFactory
from tests.pipeline.test_publisher import read_all
from tests.verbs import dysra

pytestmark = pytest.mark.broker


def dlq(kafka: KafkaConfig, verb: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, figures and messages of one command."""
    servers = ("--bootstrap-servers", kafka.bootstrap_servers)
    ran = dysra("dlq", verb, "--topic", kafka.topic, "--json", *servers, *arguments)
    return ran.exit_code, json.loads(ran.stdout.splitlines()[-1]), ran.stderr


def test_dead_letters_are_listed_chosen_and_replayed(topic: TopicFactory) -> None:
    """A list by reason, a dry run that publishes nothing, a replay of one reason, and the rest is still there."""
    kafka = topic(partitions=1)
    with DeadLetterWriter(kafka) as writer:
        for offset, reason in enumerate(("not_json", "bad_time", "not_json")):
            record = Record(kafka.topic, 0, offset, 1, b"k-%d" % offset, b"[red]v[/red] %d" % offset, ())
            writer.send(record, reason, "[bold] is no markup")

    code, listed, said = dlq(kafka, "list", "--limit", "2")
    assert (code, listed["dead_letters"], len(listed["rows"])) == (0, 3, 2)
    assert listed["by_reason"] == {"not_json": 2, "bad_time": 1}
    assert "[bold] is no markup" in said

    _, dry, _ = dlq(kafka, "replay", "--all", "--dry-run")
    assert (dry["matched"], dry["replayed"], read_all(kafka)) == (3, 0, [])

    _, done, _ = dlq(kafka, "replay", "--reason", "not_json")
    assert (done["replayed"], [record.key for record in read_all(kafka)]) == (2, [b"k-0", b"k-2"])
    _, by_id, _ = dlq(kafka, "replay", "--ids", f"{listed['rows'][1]['id']},{kafka.topic}:0:77")
    assert (by_id["replayed"], dlq(kafka, "list")[1]["dead_letters"]) == (1, 0)


def test_wrong_use_of_dlq_exits_with_2(topic: TopicFactory) -> None:
    """No choice, two choices and no topic: each says what to give."""
    kafka = topic(partitions=1)
    for arguments in ((), ("--all", "--reason", "x")):
        code, _, said = dlq(kafka, "replay", *arguments)
        assert (code, "give one of --all, --reason and --ids" in said) == (2, True)
    nowhere = KafkaConfig(bootstrap_servers=kafka.bootstrap_servers, topic="nowhere")
    code, _, said = dlq(nowhere, "list")
    assert (code, "there is no topic nowhere" in said) == (2, True)
