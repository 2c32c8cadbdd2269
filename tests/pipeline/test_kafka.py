"""The Kafka configuration, its clients and its topics."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from infra.config import load_config
from pipeline.errors import DependencyUnreachable, UsageError
from pipeline.kafka import KafkaConfig, consumer, ensure_topic, producer, reachable, topic_partitions
from pipeline.topics import topic_sizes
from tests.broker import TopicFactory


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bootstrap_servers": "localhost"}, "host:port"),
        ({"bootstrap_servers": "h:1,h:99999"}, "'h:99999'"),
        ({"bootstrap_servers": " "}, "is empty"),
        ({"topic": "a b"}, "topic is 'a b'"),
        ({"topic": ""}, "topic is ''"),
        ({"partitions": 0}, "partitions is 0"),
        ({"replication": 0}, "replication is 0"),
        ({"retention_hours": 0}, "retention_hours is 0"),
        ({"max_record_bytes": 10}, "max_record_bytes is 10"),
        ({"request_timeout_s": 0}, "request_timeout_s is 0"),
        ({"security_protocol": "SASL_SSL"}, "needs sasl_mechanism"),
        ({"sasl_mechanism": "PLAIN", "sasl_username": "u"}, "needs sasl_username and sasl_password"),
        ({"client_settings": {"fetch_max_byte": 1}}, "'fetch_max_byte'"),
    ],
)
def test_wrong_field_is_named_with_its_value(fields: dict[str, object], said: str) -> None:
    """Each limit of the configuration is checked, and the message says what was given."""
    with pytest.raises(ValueError, match=said):
        KafkaConfig(**fields)  # type: ignore[arg-type]


def test_settings_of_an_operators_own_cluster_reach_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS, SASL and further settings are handed to each client that knows them."""
    given: dict[str, dict[str, object]] = {}

    class Seen:
        """Stands for a client of the library, to see its settings."""

        def __init__(self, **settings: object) -> None:
            given[type(self).__name__] = settings

    for name, real in (("KafkaConsumer", consumer), ("KafkaProducer", producer)):
        kind = type(name, (Seen,), {"DEFAULT_CONFIG": __import__("kafka").__dict__[name].DEFAULT_CONFIG})
        monkeypatch.setattr(f"pipeline.kafka.{name}", kind)
        real(
            KafkaConfig(
                bootstrap_servers="a:1, b:2",
                security_protocol="SASL_SSL",
                ssl_cafile=__file__,
                sasl_mechanism="SCRAM-SHA-512",
                sasl_username="reader",
                sasl_password="word",
                client_settings={"socks5_proxy": "socks5://p:1", "fetch_max_wait_ms": 7, "linger_ms": 3},
            )
        )

    for settings in given.values():
        assert settings["bootstrap_servers"] == ["a:1", "b:2"]
        assert (settings["ssl_cafile"], settings["sasl_plain_password"]) == (__file__, "word")
        assert (settings["sasl_mechanism"], settings["security_protocol"]) == ("SCRAM-SHA-512", "SASL_SSL")
        assert settings["socks5_proxy"] == "socks5://p:1"
    assert given["KafkaConsumer"]["fetch_max_wait_ms"] == 7
    assert "linger_ms" not in given["KafkaConsumer"]
    assert given["KafkaProducer"]["linger_ms"] == 3
    assert (given["KafkaConsumer"]["enable_auto_commit"], given["KafkaConsumer"]["auto_offset_reset"]) == (
        False,
        "none",
    )
    assert (given["KafkaProducer"]["acks"], given["KafkaProducer"]["enable_idempotence"]) == ("all", True)


def test_passwords_are_never_shown(tmp_path: Path) -> None:
    """`dysra config` stars them out, and messages about the servers hold none."""
    file = tmp_path / "c.yaml"
    file.write_text(
        "kafka: {sasl_mechanism: PLAIN, sasl_username: u, sasl_password: word1, ssl_key_password: word2, "
        "security_protocol: SASL_PLAINTEXT}"
    )
    config = load_config(file, environ={})

    shown = str(config.rows()) + config.kafka.describe()
    assert "word1" not in shown
    assert "word2" not in shown


def test_environment_sets_the_servers() -> None:
    """DYSRA_KAFKA_BOOTSTRAP_SERVERS is the way that the error message names."""
    config = load_config(
        None, environ={"DYSRA_KAFKA_BOOTSTRAP_SERVERS": "h:1", "DYSRA_KAFKA_PARTITIONS": "2"}
    )

    assert (config.kafka.bootstrap_servers, config.kafka.partitions) == ("h:1", 2)


def test_unreachable_servers_are_named_in_time() -> None:
    """Nothing listens: an error within the limit that says what to do."""
    started = time.monotonic()
    with pytest.raises(
        DependencyUnreachable, match=r"127\.0\.0\.1:1 cannot be reached.*Connection refused.*dysra kafka up"
    ):
        reachable(KafkaConfig(bootstrap_servers="127.0.0.1:1"), timeout_s=0.3)

    assert time.monotonic() - started < 10.0


def test_absent_certificate_is_wrong_use() -> None:
    """A file of the TLS settings that is not there is told as such."""
    with pytest.raises(UsageError, match=r"kafka\.ssl_cafile: there is no file /nonexistent/ca\.pem"):
        consumer(
            KafkaConfig(security_protocol="SSL", ssl_cafile="/nonexistent/ca.pem", connect_timeout_s=1.0)
        )


@pytest.mark.broker
def test_plain_broker_asked_over_tls_is_unreachable_in_time(topic: TopicFactory) -> None:
    """A wrong security protocol ends within the limit."""
    servers = topic(partitions=1).bootstrap_servers

    with pytest.raises(
        DependencyUnreachable, match=r"\(SSL\) cannot be reached.*takes connections.*security_protocol"
    ):
        reachable(KafkaConfig(bootstrap_servers=servers, security_protocol="SSL"), timeout_s=0.7)


@pytest.mark.broker
def test_topic_is_created_once_as_configured(topic: TopicFactory) -> None:
    """An existing topic keeps its partitions; its limits are those of the configuration."""
    from kafka.admin import ConfigResource, ConfigResourceType

    from pipeline.kafka import admin

    kafka = topic(partitions=3, max_record_bytes=50_000)

    assert ensure_topic(kafka, partitions=7) == 3
    assert topic_partitions(kafka, kafka.topic) == [0, 1, 2]
    client = admin(kafka)
    described = str(client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, kafka.topic)]))
    client.close()
    assert str(50_000 + 65_536) in described
    assert {"topic": kafka.topic, "partitions": 3, "records": 0, "bytes": 0} in topic_sizes(kafka)


@pytest.mark.broker
def test_replication_that_the_cluster_cannot_give_is_wrong_use(topic: TopicFactory) -> None:
    """Three replicas on one broker: the error names the topic."""
    kafka = topic(partitions=1)

    with pytest.raises(UsageError, match="topic wide cannot be created"):
        ensure_topic(KafkaConfig(bootstrap_servers=kafka.bootstrap_servers, replication=3), "wide")
