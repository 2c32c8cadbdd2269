"""Answers in the shape of OpenAI's chat completions, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import orjson

from actors.api_guard import error_body
from actors.api_models import ChatBody
from actors.session_service import Refused

PREFIX = "dysra:"
NOT_TOLD = "The news of this stream does not say."
"""What a chat client reads where the session gave up."""


def stream_of(model: str) -> str:
    """The stream that a model name stands for; Refused for any other name."""
    if not model.startswith(PREFIX) or len(model) == len(PREFIX):
        raise Refused(
            404,
            f"model {model!r} is not known; name a stream as 'dysra:<stream>' (GET /v1/models lists them)",
        )
    return model[len(PREFIX) :]


class Completion:
    """One completion: an id, a time, and the request's model name."""

    def __init__(self, body: ChatBody) -> None:
        self._model = body.model
        self._usage_wanted = body.stream_options is not None and body.stream_options.include_usage
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The completion of an answer."""
        message = {"role": "assistant", "content": content_of(answer), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage(answer),
            **_ours(answer),
        }

    async def chunks(self, events: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[bytes]:
        """The chunks of a streamed completion, `[DONE]` last. The last chunk with a choice has the sources."""
        yield self._chunk({"role": "assistant", "content": ""})
        said = False
        async with aclosing(events) as following:
            async for event in following:
                if event["kind"] == "error":
                    yield _data(error_body(event["status"], event["message"]))
                    return
                if event["kind"] == "token":
                    said = True
                    yield self._chunk({"content": event["text"]})
                elif event["kind"] == "restart" and said:
                    # What was sent cannot be taken back; the client is told that it no longer holds.
                    yield self._chunk({"content": "\n[a source was corrected; answering again]\n"})
                elif event["kind"] == "done":
                    if event["given_up"]:
                        lead = "\n" if said else ""
                        yield self._chunk({"content": lead + NOT_TOLD})
                    yield self._chunk({}, "stop", _ours(event))
                    if self._usage_wanted:
                        body = {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(event)}
                        yield _data(body)
        yield b"data: [DONE]\n\n"

    def _chunk(
        self, delta: dict[str, Any], finish: str | None = None, more: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        body = {**self._head("chat.completion.chunk"), "choices": [choice], **(more or {})}
        if self._usage_wanted:
            body["usage"] = None
        return _data(body)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def content_of(answer: dict[str, Any]) -> str:
    """The answer's text, or a sentence that it was given up."""
    return NOT_TOLD if answer["given_up"] else str(answer["text"])


def usage(answer: dict[str, Any]) -> dict[str, int]:
    """Tokens as OpenAI counts them: all that was read for the answer, and all that was written."""
    tokens = answer["tokens"]
    prompt = tokens["question"] + tokens["read"] + tokens["cache"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": tokens["generated"],
        "total_tokens": prompt + tokens["generated"],
    }


def _ours(answer: dict[str, Any]) -> dict[str, Any]:
    names = ("given_up", "partial", "lag", "tokens", "session_bytes", "latency_ms", "model", "stream")
    return {"sources": answer["sources"], "dysra": {name: answer[name] for name in names}}


def _data(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
