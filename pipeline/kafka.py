"""How every part reaches Kafka: one configuration, clients made from it, and topics made to fit it.

The only module that turns settings into kafka-python clients. Each client is made, used and closed in one
thread; none is shared with an event loop.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kafka import KafkaConsumer, KafkaProducer, codec
from kafka import errors as kafka_errors
from kafka.admin import KafkaAdminClient

from pipeline.errors import DependencyUnreachable, UsageError

# Its messages are shown only where an operator configures the standard logging module.
logging.getLogger("kafka").addHandler(logging.NullHandler())

HEADER_ROOM_BYTES = 65_536
"""What a dead letter's topic allows beyond the largest record: its key, its headers and the framing."""

_TOPIC_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_CODECS = {
    "none": lambda: True,
    "gzip": codec.has_gzip,
    "lz4": codec.has_lz4,
    "snappy": codec.has_snappy,
    "zstd": codec.has_zstd,
}
_CLIENT_SETTINGS = (
    frozenset(KafkaConsumer.DEFAULT_CONFIG)
    | frozenset(KafkaProducer.DEFAULT_CONFIG)
    | frozenset(KafkaAdminClient.DEFAULT_CONFIG)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class KafkaConfig:
    """Where the brokers are, how to sign in, and which topic carries the news."""

    bootstrap_servers: str = field(
        default="127.0.0.1:9092", metadata={"help": "brokers to ask first, as host:port, comma separated"}
    )
    topic: str = field(default="news", metadata={"help": "topic of the articles"})
    partitions: int = field(default=4, metadata={"help": "partitions of a topic that we create"})
    replication: int = field(
        default=-1, metadata={"help": "replicas of a topic that we create; -1: the cluster's default"}
    )
    retention_hours: float = field(
        default=-1.0, metadata={"help": "how long a topic that we create keeps records; -1: for ever"}
    )
    group_id: str = field(default="dysra", metadata={"help": "consumer group whose lag Kafka's tools show"})
    max_record_bytes: int = field(
        default=8_000_000,
        metadata={"help": "largest record a topic that we create takes, in bytes; larger ones are refused"},
    )
    max_batch_bytes: int = field(
        default=67_108_864,
        metadata={
            "help": "what a compressed batch may unpack to, in bytes (never less than max_record_bytes); "
            "records of a larger one are dead-lettered unread"
        },
    )
    request_timeout_s: float = field(default=30.0, metadata={"help": "limit of one request, in seconds"})
    connect_timeout_s: float = field(
        default=5.0, metadata={"help": "limit of the first contact with the brokers, in seconds"}
    )
    compression: Literal["none", "gzip", "lz4", "snappy", "zstd"] = field(
        default="zstd", metadata={"help": "compression of what we publish"}
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = field(
        default="PLAINTEXT", metadata={"help": "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"}
    )
    ssl_cafile: str | None = field(default=None, metadata={"help": "file of the certificate authority, PEM"})
    ssl_certfile: str | None = field(default=None, metadata={"help": "file of the client's certificate, PEM"})
    ssl_keyfile: str | None = field(default=None, metadata={"help": "file of the client's private key, PEM"})
    ssl_key_password: str | None = field(
        default=None, metadata={"help": "password of the private key", "secret": True}
    )
    sasl_mechanism: str | None = field(
        default=None, metadata={"help": "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, GSSAPI or OAUTHBEARER"}
    )
    sasl_username: str | None = field(default=None, metadata={"help": "user of PLAIN and SCRAM"})
    sasl_password: str | None = field(
        default=None, metadata={"help": "password of PLAIN and SCRAM", "secret": True}
    )
    client_settings: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "further kafka-python settings, passed through as they are"}
    )

    def __post_init__(self) -> None:
        if not self.bootstrap_servers.strip():
            raise ValueError("bootstrap_servers is empty; give host:port, for example 127.0.0.1:9092")
        for server in self.bootstrap_servers.split(","):
            host, colon, port = server.strip().rpartition(":")
            if not colon or not host or not port.isdigit() or not 0 < int(port) < 65_536:
                raise ValueError(f"bootstrap_servers holds {server.strip()!r}; host:port is needed")
        check_topic_name(self.topic)
        if self.partitions < 1:
            raise ValueError(f"partitions is {self.partitions}; it must be at least 1")
        if self.replication < 1 and self.replication != -1:
            raise ValueError(f"replication is {self.replication}; it must be at least 1, or -1")
        if self.retention_hours <= 0 and self.retention_hours != -1:
            raise ValueError(f"retention_hours is {self.retention_hours}; it must be above 0, or -1")
        if not self.group_id.strip():
            raise ValueError("group_id is empty; give a name, for example dysra")
        if not 1_024 <= self.max_record_bytes <= 1_000_000_000:
            raise ValueError(
                f"max_record_bytes is {self.max_record_bytes}; it must be 1,024 to 1,000,000,000"
            )
        if self.max_batch_bytes < 1_024:
            raise ValueError(f"max_batch_bytes is {self.max_batch_bytes}; it must be at least 1,024")
        for name in ("request_timeout_s", "connect_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not _CODECS[self.compression]():
            raise ValueError(
                f"compression is {self.compression}, whose Python library is not installed; use zstd"
            )
        if self.security_protocol.startswith("SASL") and not self.sasl_mechanism:
            raise ValueError(
                f"security_protocol is {self.security_protocol}, which needs sasl_mechanism, "
                "for example SCRAM-SHA-512"
            )
        if self.sasl_mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512") and (
            not self.sasl_username or self.sasl_password is None
        ):
            raise ValueError(f"sasl_mechanism {self.sasl_mechanism} needs sasl_username and sasl_password")
        unknown = sorted(set(self.client_settings) - _CLIENT_SETTINGS)
        if unknown:
            raise ValueError(f"client_settings holds {unknown[0]!r}, which kafka-python does not know")

    @property
    def dead_letter_topic(self) -> str:
        """Where records that cannot be articles go."""
        return f"{self.topic}.dlq"

    def describe(self) -> str:
        """The servers and protocol, for messages; holds no secret."""
        plain = self.security_protocol == "PLAINTEXT"
        return self.bootstrap_servers if plain else f"{self.bootstrap_servers} ({self.security_protocol})"


def check_topic_name(name: str) -> None:
    """Raise ValueError unless Kafka takes `name` and `<name>.dlq` as topics."""
    if not name or len(name) > 240 or set(name) - _TOPIC_CHARS or name in (".", ".."):
        raise ValueError(f"topic is {name!r}; 1 to 240 letters, digits, '.', '_' and '-' are allowed")


def consumer(config: KafkaConfig, **settings: Any) -> KafkaConsumer:
    """A consumer without subscription: assign partitions to it. Commits nothing by itself.

    Offsets that the broker no longer has raise in poll (`auto_offset_reset="none"`): the caller decides.
    """
    room = config.max_record_bytes + HEADER_ROOM_BYTES
    given = {
        "group_id": config.group_id,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "allow_auto_create_topics": False,
        "max_partition_fetch_bytes": max(4 * 1_048_576, room),
        "fetch_max_bytes": max(16 * 1_048_576, room),
        "fetch_max_wait_ms": 100,
        **settings,
    }
    return _client(KafkaConsumer, config, given)


def producer(config: KafkaConfig, **settings: Any) -> KafkaProducer:
    """An idempotent producer that waits for all in-sync replicas and batches for throughput."""
    given = {
        "acks": "all",
        "enable_idempotence": True,
        "allow_auto_create_topics": False,
        "compression_type": None if config.compression == "none" else config.compression,
        "batch_size": 262_144,
        "linger_ms": 20,
        "max_request_size": config.max_record_bytes + HEADER_ROOM_BYTES,
        "delivery_timeout_ms": int(2_000 * config.request_timeout_s) + 1_000,
        "max_block_ms": int(1_000 * config.request_timeout_s),
        **settings,
    }
    return _client(KafkaProducer, config, given)


def admin(config: KafkaConfig, **settings: Any) -> KafkaAdminClient:
    """An administration client: topics, offsets, groups."""
    return _client(KafkaAdminClient, config, settings)


def reachable(config: KafkaConfig, timeout_s: float | None = None) -> None:
    """Return once the brokers have told their metadata; else DependencyUnreachable within the limit (5 s)."""
    limit_ms = int(1_000 * (config.connect_timeout_s if timeout_s is None else timeout_s))
    client = admin(config, bootstrap_timeout_ms=limit_ms)
    try:
        client.list_topics()
    except (kafka_errors.KafkaError, OSError) as error:
        raise unreachable(config, error) from error
    finally:
        client.close()


def unreachable(config: KafkaConfig, error: BaseException) -> DependencyUnreachable:
    """The error that names the servers, the cause and what to do."""
    return DependencyUnreachable(
        f"Kafka at {config.describe()} cannot be reached: {error}; {_probe(config)}. "
        "Start a local broker with `dysra kafka up`, or give your cluster's brokers by --bootstrap-servers "
        "(configuration field kafka.bootstrap_servers, or DYSRA_KAFKA_BOOTSTRAP_SERVERS)"
    )


def ensure_topic(
    config: KafkaConfig, name: str | None = None, partitions: int | None = None, **topic_settings: str
) -> int:
    """Create the topic unless it exists; return how many partitions it has.

    `name` defaults to the articles' topic; `topic_settings` are Kafka's own, with `_` for `.`
    (cleanup_policy="compact").
    """
    name = config.topic if name is None else name
    check_topic_name(name)
    retention = config.retention_hours
    settings = {
        "max.message.bytes": str(config.max_record_bytes + HEADER_ROOM_BYTES),
        "retention.ms": str(-1 if retention == -1 else int(retention * 3_600_000)),
        **{key.replace("_", "."): value for key, value in topic_settings.items()},
    }
    wanted = {
        "num_partitions": config.partitions if partitions is None else partitions,
        "replication_factor": config.replication,
        "configs": settings,
    }
    client = admin(config)
    try:
        found = _num_partitions(client, name)
        if found:
            return found
        with contextlib.suppress(kafka_errors.TopicAlreadyExistsError):  # another process was quicker
            client.create_topics({name: wanted}, timeout_ms=int(1_000 * config.request_timeout_s))
        deadline = time.monotonic() + config.request_timeout_s
        while time.monotonic() < deadline:
            found = _num_partitions(client, name)
            if found:
                return found
            time.sleep(0.05)
    except (kafka_errors.InvalidReplicationFactorError, kafka_errors.AuthorizationError) as error:
        raise UsageError(f"topic {name} cannot be created at {config.describe()}: {error}") from error
    except (kafka_errors.KafkaError, OSError) as error:
        raise unreachable(config, error) from error
    finally:
        client.close()
    raise DependencyUnreachable(
        f"topic {name} at {config.describe()} has no leader {config.request_timeout_s:.0f} s after creation"
    )


def topic_partitions(config: KafkaConfig, name: str) -> list[int]:
    """The partitions of an existing topic; UsageError if there is no such topic."""
    client = admin(config)
    try:
        described = [row for row in client.describe_topics([name]) if row["name"] == name]
        num_partitions = sum(len(row["partitions"]) for row in described)
        others = [] if num_partitions else sorted(t for t in client.list_topics() if not t.startswith("__"))
    except (kafka_errors.KafkaError, OSError) as error:
        raise unreachable(config, error) from error
    finally:
        client.close()
    if not num_partitions:
        raise UsageError(f"there is no topic {name} at {config.describe()}; {_topics_there(name, others)}")
    return list(range(num_partitions))


def _topics_there(name: str, others: list[str], limit: int = 20) -> str:
    """What an operator may have meant: all topics, or where there are many the ones of similar name first."""
    near = difflib.get_close_matches(name, others, n=limit, cutoff=0.4)
    shown = (near + [other for other in others if other not in near])[:limit]
    more = f" and {len(others) - len(shown)} more" if len(others) > len(shown) else ""
    return f"topics there: {', '.join(shown) or 'none'}{more}"


def _probe(config: KafkaConfig) -> str:
    """What the first server's port says to a plain connection: the client's own error never tells."""
    server = config.bootstrap_servers.split(",")[0].strip()
    host, _, port = server.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
    except socket.gaierror:
        return f"the name {host} is not known"
    except TimeoutError:
        return f"{server} does not answer"
    except OSError as error:
        return f"{server}: {error.strerror or error}"
    suspects = [f"security_protocol ({config.security_protocol})"]
    if "SSL" in config.security_protocol:
        suspects.append(f"its certificate (ssl_cafile {config.ssl_cafile or 'of the system'})")
    if config.security_protocol.startswith("SASL"):
        suspects.append(
            f"authentication ({config.sasl_mechanism}, user {config.sasl_username!r}, sasl_password)"
        )
    return f"{server} takes connections, so look at its log and at {', '.join(suspects)}"


def _num_partitions(client: KafkaAdminClient, name: str) -> int:
    """How many partitions have a leader, 0 unless the topic exists and all have one."""
    for topic in client.describe_topics([name]):
        if topic["name"] == name and topic["error_code"] == 0:
            partitions = topic["partitions"]
            if all(partition["leader_id"] >= 0 for partition in partitions):
                return len(partitions)
    return 0


def _client(kind: type[Any], config: KafkaConfig, settings: dict[str, Any]) -> Any:
    """A client of `kind`; DependencyUnreachable if the brokers cannot be reached in time."""
    given: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in config.bootstrap_servers.split(",")],
        "bootstrap_timeout_ms": int(1_000 * config.connect_timeout_s),
        "request_timeout_ms": int(1_000 * config.request_timeout_s),
        "reconnect_backoff_max_ms": 2_000,
        "client_id": "dysra",
        "security_protocol": config.security_protocol,
        "ssl_cafile": config.ssl_cafile,
        "ssl_certfile": config.ssl_certfile,
        "ssl_keyfile": config.ssl_keyfile,
        "ssl_password": config.ssl_key_password,
        "sasl_mechanism": config.sasl_mechanism,
        "sasl_plain_username": config.sasl_username,
        "sasl_plain_password": config.sasl_password,
        "metrics_enabled": False,
        **settings,
        **config.client_settings,
    }
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        if given[name] is not None and not Path(given[name]).is_file():
            raise UsageError(f"configuration field kafka.{name}: there is no file {given[name]}")
    given = {name: value for name, value in given.items() if name in kind.DEFAULT_CONFIG}
    try:
        return kind(**given)
    except (kafka_errors.KafkaConfigurationError, FileNotFoundError, ssl.SSLError) as error:
        raise UsageError(f"Kafka settings for {config.describe()} cannot be used: {error}") from error
    except (kafka_errors.KafkaError, OSError) as error:
        raise unreachable(config, error) from error
