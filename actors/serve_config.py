"""How sessions are served: where, by how many replicas, for whom, and within which limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

LARGEST_REQUEST_BYTES = 4 * 2**20
"""What serve.max_request_bytes may be at most: the front door holds a body until it is whole."""
LEAST_SAVING_S = 10.0
"""What serve.drain_s must leave after the longest answer: Serve looks once a second whether one is under way, and
then the sessions are saved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """The HTTP service and its replicas."""

    host: str = field(default="127.0.0.1", metadata={"help": "address that HTTP listens on"})
    port: int = field(default=8000, metadata={"help": "port that HTTP listens on"})
    sessions_dir: Path = field(
        default=Path(".dysra/sessions"),
        metadata={"help": "folder of the sessions' snapshots, shared by all nodes that hold replicas"},
    )
    replicas: int = field(
        default=1, metadata={"help": "replicas that hold sessions, one a GPU; changing it redeploys them"}
    )
    slots: int = field(
        default=64, metadata={"help": "slots that sessions are dealt to; at least the number of replicas"}
    )
    ingress_replicas: int = field(
        default=1, metadata={"help": "replicas that take HTTP requests; they hold nothing"}
    )
    cpus_per_replica: float = field(
        default=1.0, metadata={"help": "CPUs that Ray reserves for one session replica"}
    )
    gpus_per_replica: float = field(
        default=0.0, metadata={"help": "GPUs that Ray reserves for one session replica"}
    )
    max_questions: int = field(
        default=16, metadata={"help": "questions that one replica works on or keeps waiting; more get 429"}
    )
    max_waiting_per_session: int = field(
        default=4, metadata={"help": "questions of one session that wait for their turn; more get 429"}
    )
    retry_after_s: int = field(
        default=2, metadata={"help": "what a 429 tells the client to wait, in seconds"}
    )
    rate_per_minute: int = field(
        default=600, metadata={"help": "requests of one tenant a minute at one ingress replica; 0: no limit"}
    )
    max_ongoing_per_tenant: int = field(
        default=64,
        metadata={
            "help": "requests of one tenant under way at one ingress replica (of 256 of all), those that follow "
            "events too; more get 429"
        },
    )
    max_request_bytes: int = field(default=262_144, metadata={"help": "largest request body; more get 413"})
    max_question_chars: int = field(default=4_000, metadata={"help": "longest question, in characters"})
    answer_timeout_s: float = field(
        default=120.0, metadata={"help": "limit of one answer, waiting included, in seconds"}
    )
    model_silent_s: float = field(
        default=600.0,
        metadata={
            "help": "how long the model may take for one article or one token; a replica whose model stands still "
            "for longer is replaced, in seconds"
        },
    )
    health_timeout_s: float = field(
        default=30.0,
        metadata={
            "help": "how long a replica may take to answer Serve's health check; after three in a row without an "
            "answer another takes its sessions over, in seconds"
        },
    )
    events_s: float = field(
        default=300.0,
        metadata={"help": "how long one connection to a session's events stays open, in seconds"},
    )
    drain_s: float = field(
        default=150.0,
        metadata={
            "help": "seconds that a replica has to finish its answers and save when it is stopped or replaced; at "
            "least answer_timeout_s and 10 s, so that no answer is cut off"
        },
    )
    keys_file: Path | None = field(
        default=None, metadata={"help": "file of API keys (made by `dysra serve --new-key TENANT`)"}
    )
    no_auth: bool = field(
        default=False, metadata={"help": "serve without API keys; only on a loopback address"}
    )

    def __post_init__(self) -> None:
        if not 0 < self.port < 65_536:
            raise ValueError(f"port is {self.port}; allowed: 1 to 65535")
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.replicas > self.slots:
            raise ValueError(f"replicas is {self.replicas}, more than the {self.slots} slots; raise slots")
        if self.max_request_bytes > LARGEST_REQUEST_BYTES:
            raise ValueError(
                f"max_request_bytes is {self.max_request_bytes}; at most {LARGEST_REQUEST_BYTES} are allowed"
            )
        for name in ("cpus_per_replica", "gpus_per_replica", "rate_per_minute"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("answer_timeout_s", "model_silent_s", "health_timeout_s", "events_s", "drain_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        least_s = self.answer_timeout_s + LEAST_SAVING_S
        if self.drain_s < least_s:
            raise ValueError(
                f"drain_s is {self.drain_s:g} and answer_timeout_s {self.answer_timeout_s:g}: a replica that is "
                f"stopped would cut answers off; raise drain_s to at least {least_s:g} (the longest answer, and "
                f"{LEAST_SAVING_S:g} s to save the sessions) or lower answer_timeout_s"
            )

    @property
    def saving_s(self) -> float:
        """What a drain leaves for saving the sessions once the longest answer has ended."""
        return self.drain_s - self.answer_timeout_s

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the service."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104 - compared, not bound
        return f"http://{host}:{self.port}"


_AT_LEAST_ONE = (
    "replicas",
    "slots",
    "ingress_replicas",
    "max_questions",
    "max_waiting_per_session",
    "retry_after_s",
    "max_ongoing_per_tenant",
    "max_request_bytes",
    "max_question_chars",
)
