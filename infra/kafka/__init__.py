"""A local Apache Kafka broker (KRaft, one node) for demos, tests and development, without containers."""

from infra.kafka.broker import Broker, find, start, stop

__all__ = ["Broker", "find", "start", "stop"]
