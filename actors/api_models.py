"""What clients send, checked before anything is done with it."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pipeline.article import to_ms
from pipeline.session.answer import Question
from pipeline.session.summary import SummaryRequest

MAX_MESSAGES = 200


def _first_moment(value: Any) -> Any:
    return _moment(value, time.min)


def _last_moment(value: Any) -> Any:
    return _moment(value, time.max)


def _moment(value: Any, of_day: time) -> Any:
    """A day alone means its first or its last moment; a time without a zone is UTC."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("an ISO 8601 date or time is needed, for example 2024-05-31 or 2024-05-31T12:00:00Z")
    try:
        if len(value) == 10:
            return datetime.combine(date.fromisoformat(value), of_day, UTC)
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{value[:40]!r} is no ISO 8601 date or time; write 2024-05-31 or 2024-05-31T12:00:00Z"
        ) from None


Since = Annotated[datetime | None, BeforeValidator(_first_moment)]
Until = Annotated[datetime | None, BeforeValidator(_last_moment)]


class AskBody(BaseModel):
    """One question to a stream."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    question: str = Field(min_length=1, description="what you want to know")
    k: int | None = Field(default=None, ge=1, le=200, description="passages taken from the store")
    as_of: Until = Field(default=None, description="answer as of this day or moment")
    since: Since = Field(default=None, description="only articles published since")
    sources: list[str] | None = Field(default=None, min_length=1, description="only these sources")
    cross_stream: bool = Field(default=False, description="search all streams, not this one alone")
    max_new_tokens: int | None = Field(default=None, ge=1, le=4_096)
    token_budget: int | None = Field(default=None, ge=1, le=100_000, description="tokens of sentences read")
    stream: bool = Field(default=False, description="send the answer as server-sent events while it is made")

    def to_question(self) -> Question:
        """As the session takes it."""
        return Question(
            text=self.question,
            passages=self.k,
            as_of_ms=None if self.as_of is None else to_ms(self.as_of),
            since_ms=None if self.since is None else to_ms(self.since),
            sources=None if self.sources is None else frozenset(self.sources),
            cross_stream=self.cross_stream,
            max_new_tokens=self.max_new_tokens,
            token_budget=self.token_budget,
        )


class SummaryBody(BaseModel):
    """The period and length of a summary."""

    model_config = ConfigDict(extra="forbid")

    since: Since = Field(default=None, description="first day or moment")
    until: Until = Field(default=None, description="last day or moment")
    sentences: int | None = Field(default=None, ge=1, le=50)

    def to_request(self) -> SummaryRequest:
        """As the session takes it."""
        return SummaryRequest(
            since_ms=None if self.since is None else to_ms(self.since),
            until_ms=None if self.until is None else to_ms(self.until),
            sentences=self.sentences,
        )


class TextPart(BaseModel):
    """A part of a message; only text can be read."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """The message's text, its parts joined."""
        if isinstance(self.content, list):
            return " ".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    """What a streamed completion ends with."""

    include_usage: bool = False


class ChatBody(BaseModel):
    """A chat completion as OpenAI's clients send it. The last user message is the question; decoding is greedy,
    so `temperature` and the like are accepted and change nothing."""

    model: str = Field(min_length=1, description='"dysra:<stream>"')
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=4_096)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=4_096)
    n: Literal[1] | None = None

    def question(self) -> str:
        """The last user message; ValueError if there is none."""
        for message in reversed(self.messages):
            if message.role == "user":
                if not message.text.strip():
                    raise ValueError("the last user message is empty; ask something")
                return message.text.strip()
        raise ValueError("'messages' holds no message of role 'user'; the last one is the question")
