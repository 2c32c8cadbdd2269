"""A pytest plugin: `broker`, one real Kafka for the session, and `topic`, a factory of topics on it."""

from __future__ import annotations

import itertools
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from infra.kafka import Broker, start, stop
from pipeline.errors import DependencyUnreachable
from pipeline.kafka import KafkaConfig, ensure_topic

TopicFactory = Callable[..., KafkaConfig]
"""`topic(partitions=4, name="news", **kafka_fields)` -> the KafkaConfig of a fresh, created topic."""


def _folder(factory: pytest.TempPathFactory) -> Path:
    """The broker's folder, one for all workers of a run."""
    base = factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kafka"


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Broker:
    """A broker on a free port, data in a temporary folder; without Java or Maven skipped, in CI failed.

    The worker that asks first starts it, and it serves the others too: each start costs seconds of a processor.
    """
    missing = [program for program in ("java", "mvn") if shutil.which(program) is None]
    if missing and os.environ.get("CI") != "true":
        pytest.skip(f"the local broker needs {' and '.join(missing)} (Java 17, Maven)")
    try:
        return start(_folder(tmp_path_factory), 0)
    except DependencyUnreachable as error:
        pytest.fail(f"the local broker did not start: {error}", pytrace=False)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the broker once all tests are done, also where a worker crashed."""
    factory: pytest.TempPathFactory | None = getattr(config, "_tmp_path_factory", None)
    if factory is None or "PYTEST_XDIST_WORKER" in os.environ or factory._basetemp is None:
        return
    folder = _folder(factory)
    if not folder.is_dir():
        return
    stop(folder)
    # Tens of megabytes of preallocated indexes: pytest would keep them for three more runs.
    shutil.rmtree(folder / "data", ignore_errors=True)


@pytest.fixture
def topic(broker: Broker) -> TopicFactory:
    """Make topics that no other test uses; each call returns a KafkaConfig with its own group id."""
    numbers = itertools.count()
    run = uuid.uuid4().hex[:8]

    def make(partitions: int = 4, name: str = "news", **fields: object) -> KafkaConfig:
        unique = f"{name}-{run}-{next(numbers)}"
        config = KafkaConfig(
            bootstrap_servers=broker.bootstrap_servers,
            topic=unique,
            group_id=f"group-{unique}",
            partitions=partitions,
        )
        config = replace(config, **fields)  # type: ignore[arg-type]
        ensure_topic(config)
        return config

    return make
