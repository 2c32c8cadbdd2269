"""What an operator sets about sessions: what they read, how they answer, how often they are saved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionConfig:
    """One session a stream: where it starts, what it reads of an article, and how it answers."""

    start: Literal["window", "earliest", "latest"] = field(
        default="window",
        metadata={"help": "where a new session starts: window (the last articles), earliest or latest"},
    )
    window_articles: int = field(
        default=64, metadata={"help": "articles that a new session reads back to, with start = window"}
    )
    max_scan_records: int = field(
        default=20_000, metadata={"help": "records looked through, at most, to find that window"}
    )
    partition_by: Literal["stream", "any"] = field(
        default="stream",
        metadata={"help": "stream: a stream lies in one partition (as our publishers write); any: in all"},
    )
    max_article_tokens: int = field(
        default=384, metadata={"help": "tokens read of one article, its header line included"}
    )
    max_read_ids: int = field(
        default=20_000, metadata={"help": "articles whose id and version a session remembers having read"}
    )
    attend: Literal["chosen", "cache", "both"] = field(
        default="chosen",
        metadata={"help": "what the reader sees: the chosen sentences, the session's cache, or both"},
    )
    prompt_form: Literal["auto", "base", "adapted"] = field(
        default="auto",
        metadata={"help": "base (one worked example), adapted, or auto: adapted with an adapter"},
    )
    passages: int = field(default=20, metadata={"help": "passages taken from the store for a question"})
    cache_candidates: int = field(
        default=0,
        metadata={
            "help": "newest articles of the session's own cache whose sentences stand in one list with what the "
            "store finds, for the chooser to choose from; 0: the store's alone"
        },
    )
    token_budget: int = field(
        default=128, metadata={"help": "tokens of sentences that the reader is given for a question"}
    )
    max_token_budget: int = field(
        default=2_048, metadata={"help": "largest budget that a request may ask for"}
    )
    hops: int = field(
        default=1,
        metadata={
            "help": "searches in a row for a question that leads over other articles (the mayor of the town where "
            "the company that … is based), each for the name that the last one brought; 1: one search"
        },
    )
    guard: bool = field(
        default=True,
        metadata={
            "help": "whether sentences of articles that order a reading model about are left out, and the marks of "
            "a prompt in others lose their form"
        },
    )
    policy: str | None = field(
        default="shipped",
        metadata={
            "help": "the learned policy that chooses what is read: shipped (for the embedder minilm; with others "
            "hybrid ranking), decoder (better by its judge; its pair readers want a GPU, 36 s of processor time a "
            "question without; over gemma-3-270m alone), none (hybrid ranking), its folder, or the champion.json "
            "that `dysra models promote` writes (sessions follow it by themselves)"
        },
    )
    pair_reader: bool = field(
        default=True,
        metadata={
            "help": "whether a policy that knows a pair reader's features may serve, as the shipped one does: the "
            "pair reader looks at each question with 48 candidates, 1.5 s on two cores; off: it is refused"
        },
    )
    reading: Literal["policy", "together", "apart"] = field(
        default="policy",
        metadata={
            "help": "how chosen sentences are read: together in one prompt, or apart: each alone, the answer of "
            "the most trusted readings is given (trust.json in the policy's folder, else the reader's own "
            "probability); a prompt for each sentence counts in the budget, and the answer comes all at once; "
            "policy: as the serving policy was paid for and promoted (the shipped one: together)"
        },
    )
    apart_readings: int = field(
        default=8, metadata={"help": "sentences read for a question with reading = apart, at most"}
    )
    max_new_tokens: int = field(default=32, metadata={"help": "tokens of an answer, at most, by default"})
    max_new_tokens_limit: int = field(
        default=256, metadata={"help": "largest number of new tokens that a request may ask for"}
    )
    give_up_margin: float = field(
        default=1.5,
        metadata={
            "help": "an adapted reader gives up only where that is this much likelier (nats) than its best answer; "
            "0 takes its word"
        },
    )
    dense_sentences: int = field(
        default=48, metadata={"help": "sentences compared with the question by embedding; 0: words only"}
    )
    search_deadline_s: float = field(
        default=5.0, metadata={"help": "limit of one search of the store, in seconds"}
    )
    summary_articles: int = field(
        default=60, metadata={"help": "recent articles of a stream that a summary is chosen from"}
    )
    summary_sentences: int = field(default=6, metadata={"help": "sentences of a summary, by default"})
    snapshot_every_s: float = field(
        default=10.0, metadata={"help": "a session that has read is saved after this many seconds"}
    )
    keep_snapshots: int = field(default=3, metadata={"help": "snapshots kept of each session"})
    max_resident: int = field(
        default=32,
        metadata={"help": "sessions held in memory by one replica; others rest in their snapshots"},
    )
    max_per_tenant: int = field(
        default=1_000,
        metadata={
            "help": "sessions of one tenant, in memory or at rest; a further one is refused; 0: no limit"
        },
    )
    retractions: Literal["rebuild", "drop"] = field(
        default="rebuild",
        metadata={
            "help": "after a correction or withdrawal: rebuild (drop the old form's tokens at once, then read the "
            "cache anew from the articles' text), or drop alone (its traces in other tokens stay)"
        },
    )
    rebuild_within_s: float = field(
        default=60.0,
        metadata={
            "help": "how long after a retraction its rebuild may take, in seconds; from half of it on the session "
            "reads nothing else, and after it articles that the store lacks are left out"
        },
    )
    rebuild_tokens_per_s: int = field(
        default=512, metadata={"help": "tokens that a rebuild reads a second, until half of its time is over"}
    )
    elsewhere_every_s: float = field(
        default=5.0,
        metadata={
            "help": "how often the store is asked for articles that changed where a session does not read (a later "
            "version in another stream, a withdrawal on another partition), in seconds"
        },
    )
    other_cache: Literal["rebuild", "refuse", "start_over"] = field(
        default="rebuild",
        metadata={
            "help": "what becomes of a session saved by another model or shape of cache: rebuild its cache from "
            "the articles' text, refuse to open it, or start_over as a new session"
        },
    )
    seed: int = field(default=0, metadata={"help": "seed of a session's generator"})

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_article_tokens < 16:
            raise ValueError(f"max_article_tokens is {self.max_article_tokens}; it must be at least 16")
        if self.give_up_margin < 0:
            raise ValueError(f"give_up_margin is {self.give_up_margin}; it must be at least 0")
        for name in ("dense_sentences", "max_per_tenant", "cache_candidates"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.token_budget > self.max_token_budget:
            raise ValueError(
                f"token_budget is {self.token_budget}, above max_token_budget {self.max_token_budget}"
            )
        if self.max_new_tokens > self.max_new_tokens_limit:
            raise ValueError(
                f"max_new_tokens is {self.max_new_tokens}, above max_new_tokens_limit "
                f"{self.max_new_tokens_limit}"
            )
        for name in ("search_deadline_s", "snapshot_every_s", "rebuild_within_s", "elsewhere_every_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")


_CHOICES = {
    "start": ("window", "earliest", "latest"),
    "partition_by": ("stream", "any"),
    "attend": ("chosen", "cache", "both"),
    "prompt_form": ("auto", "base", "adapted"),
    "reading": ("policy", "together", "apart"),
    "retractions": ("rebuild", "drop"),
    "other_cache": ("rebuild", "refuse", "start_over"),
}
_AT_LEAST_ONE = (
    "window_articles",
    "max_scan_records",
    "max_read_ids",
    "passages",
    "token_budget",
    "max_new_tokens",
    "summary_articles",
    "summary_sentences",
    "keep_snapshots",
    "max_resident",
    "rebuild_tokens_per_s",
    "hops",
    "apart_readings",
)
