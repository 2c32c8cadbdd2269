"""The local broker: started, found again, refused a taken port, stopped."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from infra.kafka import Broker, find, start, stop
from infra.kafka import broker as broker_module
from infra.kafka.jars import KAFKA_VERSION, ensure_jars, java
from models.formats import KEY
from pipeline.errors import DependencyUnreachable, UsageError
from pipeline.kafka import KafkaConfig, reachable
from pipeline.publisher import Publisher, PublishFailed
from tests.broker import TopicFactory
from tests.pipeline.test_publisher import article
from tests.verbs import dysra


def shell(*arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run the command line as an operator would, in a process that ends."""
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.mark.broker
def test_running_broker_is_found_again(broker: Broker) -> None:
    """A second start of the same folder returns the running process and starts none."""
    again = start(Path(broker.directory))

    assert (broker.pid, broker.port, False) == (again.pid, again.port, again.started)


@pytest.mark.broker
def test_another_port_for_a_running_broker_is_refused(broker: Broker) -> None:
    """A running broker is not moved: the error names its port and what to do."""
    with pytest.raises(UsageError, match=f"on port {broker.port}; stop it first"):
        start(Path(broker.directory), broker.port + 1)


@pytest.mark.broker
def test_taken_port_names_the_broker_that_answers_there(broker: Broker, tmp_path: Path) -> None:
    """A port where Kafka answers is refused with the way to use that Kafka."""
    with pytest.raises(
        UsageError, match=rf"port {broker.port} .*--bootstrap-servers 127.0.0.1:{broker.port}"
    ):
        start(tmp_path, broker.port)


def test_taken_port_of_another_program_is_named(tmp_path: Path) -> None:
    """A port held by something that is no broker exits with code 2 and names the port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = dysra("kafka", "up", "--dir", str(tmp_path), "--port", str(port), "--json")

    assert ran.exit_code == 2
    assert f"port {port} cannot be used" in ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["exit_code"] == 2


@pytest.mark.broker
def test_status_shows_topics_and_sizes(broker: Broker, topic: TopicFactory) -> None:
    """`dysra kafka status --json` lists a topic with its partitions and records."""
    config = topic(partitions=3)

    ran = dysra("kafka", "status", "--dir", broker.directory, "--json")

    figures = json.loads(ran.stdout.splitlines()[-1])
    rows = {row["topic"]: row for row in figures["topics"]}
    assert (0, broker.pid) == (ran.exit_code, figures["pid"])
    assert (rows[config.topic]["partitions"], rows[config.topic]["records"]) == (3, 0)


def test_status_without_a_broker_exits_with_code_3(tmp_path: Path) -> None:
    """A folder without a broker is a dependency that cannot be reached."""
    ran = dysra("kafka", "status", "--dir", str(tmp_path))

    assert ran.exit_code == 3
    assert "dysra kafka up" in ran.stderr


@pytest.mark.broker
def test_broker_outlives_its_starter_and_keeps_records_over_a_restart(broker: Broker, tmp_path: Path) -> None:
    """Up, down and up again by the command line: a killed broker is noticed, and topics are still there.

    What a publisher has no acknowledgement for when it is killed is counted in the publisher's error.
    """
    from pipeline.kafka import ensure_topic, topic_partitions

    up = shell("kafka", "up", "--dir", str(tmp_path), "--port", "0", "--json", timeout_s=120)
    first = json.loads(up.stdout.splitlines()[-1])
    try:
        assert (first["started"], first["already_running"]) == (True, False)
        ensure_topic(KafkaConfig(bootstrap_servers=first["bootstrap_servers"]), "kept", 2)
        down = json.loads(dysra("kafka", "down", "--dir", str(tmp_path), "--json").stdout.splitlines()[-1])
        assert (True, first["pid"]) == (down["stopped"], down["pid"])
        assert find(tmp_path) is None
        with pytest.raises(DependencyUnreachable):
            reachable(KafkaConfig(bootstrap_servers=first["bootstrap_servers"]), timeout_s=0.3)

        second = start(tmp_path, 0)
        config = KafkaConfig(
            bootstrap_servers=second.bootstrap_servers, topic="kept", partitions=2, request_timeout_s=2.0,
            connect_timeout_s=2.0,
        )  # fmt: skip
        assert topic_partitions(config, "kept") == [0, 1]
        publisher = Publisher(config)
        publisher.publish(article(1))
        publisher.flush()
        os.kill(second.pid, 9)
        broker_module._children[second.pid].wait(10)
        assert find(tmp_path) is None
        for number in range(2, 5):
            publisher.publish(article(number))
        with pytest.raises(PublishFailed, match=r"3 of 4 records .* were not acknowledged"):
            publisher.flush(1.0)
        publisher.close(1.0)
    finally:
        stop(tmp_path)


@pytest.mark.broker
def test_broker_that_ends_at_once_shows_its_log(broker: Broker, tmp_path: Path) -> None:
    """A broker that cannot start fails at once, with the last lines of its log and where it is."""
    # Storage of another node cannot be used: the broker refuses it and ends.
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.properties").write_text(
        "version=1\ncluster.id=AAAAAAAAAAAAAAAAAAAAAA\nnode.id=99\n"
    )

    with pytest.raises(DependencyUnreachable, match=r"(?s)ended while starting.*broker\.log.*99"):
        start(tmp_path, 0)

    assert find(tmp_path) is None


def test_process_of_someone_else_is_never_ours(tmp_path: Path) -> None:
    """A state file with the process id of another program finds no broker, so nothing is killed."""
    state = {
        "pid": os.getpid(),
        "port": 1,
        "bootstrap_servers": "127.0.0.1:1",
        "directory": str(tmp_path),
        "log": "x",
    }
    (tmp_path / "broker.json").write_text(json.dumps(state))

    assert find(tmp_path) is None
    assert stop(tmp_path) is None


def test_a_state_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    """Its broker is not taken for none, and not ended; a file that states no version is read (above)."""
    (tmp_path / "broker.json").write_text(json.dumps({KEY: 2, "process": 1}))
    for call in (lambda: find(tmp_path), lambda: stop(tmp_path), lambda: start(tmp_path, 0)):
        with pytest.raises(UsageError, match=r"broker\.json has format 2; this DySRA reads up to 1.*--dir"):
            call()
    (tmp_path / "broker.json").write_text("[]")
    assert find(tmp_path) is None


def test_absent_java_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Java the error names the version and a package."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("JAVA_HOME", raising=False)

    with pytest.raises(DependencyUnreachable, match=r"Java 17 or newer.*openjdk-17"):
        java()


def test_old_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Java 8 (version "1.8.0") is named as version 8."""
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_412\"' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))

    with pytest.raises(DependencyUnreachable, match="is version 8"):
        java()


def test_absent_maven_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an empty cache and no Maven the error names the package and the way around."""
    monkeypatch.setenv("DYSRA_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "/nonexistent")

    with pytest.raises(DependencyUnreachable, match=r"apt install maven.*--bootstrap-servers"):
        ensure_jars()


def test_jars_that_were_carried_along_are_used_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host without Maven the folder that DYSRA_KAFKA_LIBS names is the one; a wrong one is told."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("DYSRA_KAFKA_LIBS", str(tmp_path))

    with pytest.raises(DependencyUnreachable, match=r"no kafka_2\.13-.*\.jar in it; name a folder"):
        ensure_jars()
    (tmp_path / f"kafka_2.13-{KAFKA_VERSION}.jar").touch()

    assert ensure_jars() == tmp_path


def test_failing_maven_leaves_no_half_made_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jars are whole or absent: after Maven fails nothing but the lock is left."""
    program = tmp_path / "bin" / "mvn"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Could not transfer artifact'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("DYSRA_CACHE", str(tmp_path / "cache"))

    with pytest.raises(DependencyUnreachable, match=r"(?s)exit code 1.*Could not transfer"):
        ensure_jars()

    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
