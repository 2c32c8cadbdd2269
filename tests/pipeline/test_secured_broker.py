"""TLS and passwords: a broker that wants both, and what happens with wrong ones."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.kafka.broker import HOST, JAVA_OPTIONS, free_port
from infra.kafka.jars import HERE, ensure_jars, java
from pipeline.errors import DependencyUnreachable, UsageError
from pipeline.kafka import KafkaConfig, ensure_topic, reachable, topic_partitions
from pipeline.publisher import Publisher
from pipeline.source import RecordSource
from tests.broker import TopicFactory
from tests.pipeline.test_source import numbers, take

pytestmark = pytest.mark.broker

PASSWORD = "a pass word"
SECURITY = """
listeners=PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_desk="{password}";
ssl.keystore.type=PKCS12
ssl.keystore.location={folder}/keys.p12
ssl.keystore.password=changeit
ssl.key.password=changeit
"""


def _make_keys(folder: Path) -> Path:
    """A key of the broker's own, and its certificate for the clients."""
    store = ("-keystore", str(folder / "keys.p12"), "-storetype", "PKCS12", "-storepass", "changeit")
    certificate = folder / "authority.pem"
    name = ("-dname", "CN=127.0.0.1", "-ext", "san=ip:127.0.0.1")
    for command in (
        ("-genkeypair", "-alias", "broker", "-keyalg", "RSA", "-validity", "2", *store, *name),
        ("-exportcert", "-rfc", "-alias", "broker", "-file", str(certificate), *store),
    ):
        subprocess.run(["keytool", *command], check=True, capture_output=True, timeout=60)
    return certificate


@pytest.fixture(scope="module")
def secured(broker: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaConfig]:
    """A broker with TLS and SASL/PLAIN. `broker` comes first, because it skips or fails where Java is absent."""
    folder = tmp_path_factory.mktemp("secured")
    certificate = _make_keys(folder)
    ports = {"plain": free_port(), "port": free_port(), "controller": free_port()}
    text = (HERE / "server.properties").read_text(encoding="utf-8")
    text = text.format(port=ports["plain"], controller_port=ports["controller"], data=folder / "data")
    own = SECURITY.format(**ports, folder=folder, password=PASSWORD)
    replaced = {line.partition("=")[0] for line in own.splitlines() if line}
    kept = [line for line in text.splitlines() if line.partition("=")[0] not in replaced]
    properties = folder / "server.properties"
    properties.write_text("\n".join(kept) + own, encoding="utf-8")
    base = [java(), *JAVA_OPTIONS, "-cp", f"{ensure_jars()}/*"]
    wanted = ("-t", "AAAAAAAAAAAAAAAAAAAAAA", "-c", str(properties))
    subprocess.run(
        [*base, "kafka.tools.StorageTool", "format", *wanted], check=True, capture_output=True, timeout=60
    )
    with (folder / "console.log").open("wb") as log:
        process = subprocess.Popen([*base, "kafka.Kafka", str(properties)], stdout=log, stderr=log)
    config = KafkaConfig(
        bootstrap_servers=f"{HOST}:{ports['port']}",
        topic="secured",
        group_id="secured",
        partitions=2,
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_username="desk",
        sasl_password=PASSWORD,
        ssl_cafile=str(certificate),
        connect_timeout_s=5.0,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                reachable(replace(config, connect_timeout_s=2.0))
                break
            except DependencyUnreachable as error:
                assert process.poll() is None and time.monotonic() < deadline, error
                time.sleep(0.3)
        yield config
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_records_pass_over_tls_with_a_password(secured: KafkaConfig) -> None:
    """The topic is made, published to and read like any other."""
    ensure_topic(secured)
    with Publisher(secured) as publisher:
        for number in range(50):
            publisher.publish_raw(b"%d" % number, b"v", partition=number % 2)
    with RecordSource(secured, {0: 0, 1: 0}) as source:
        assert numbers(take(source, 50)) == list(range(50))
        assert source.commit({0: 25, 1: 25})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"sasl_password": "guessed"}, "authenticat"),
        ({"ssl_cafile": None}, "certificate|security_protocol"),
        ({"security_protocol": "PLAINTEXT", "sasl_mechanism": None, "ssl_cafile": None}, "security_protocol"),
    ],
    ids=["password", "authority", "protocol"],
)
def test_wrong_security_is_told_in_time(
    secured: KafkaConfig, wrong: dict[str, str | None], words: str
) -> None:
    """Within the limit, with the broker's name and a word on what to look at; the password is never shown."""
    config = replace(secured, connect_timeout_s=2.0, **wrong)  # type: ignore[arg-type]
    began = time.monotonic()
    with pytest.raises((DependencyUnreachable, UsageError), match=f"(?i){words}") as told:
        topic_partitions(config, "secured")
    assert time.monotonic() - began < 15
    assert PASSWORD not in str(told.value) and "guessed" not in str(told.value)


def test_missing_authority_file_is_named(topic: TopicFactory) -> None:
    """Before any connection is tried."""
    with pytest.raises(UsageError, match=r"kafka\.ssl_cafile: there is no file /no/such\.pem"):
        reachable(replace(topic(), security_protocol="SSL", ssl_cafile="/no/such.pem"))
