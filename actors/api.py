"""The HTTP API: questions, summaries and pages of streams, and OpenAI's chat completions."""

# No postponed annotations here: FastAPI could not look up names that live inside `build_api`.
import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import asdict
from typing import Annotated, Any

import orjson
from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Send

from actors.api_chat import Completion, stream_of
from actors.api_guard import Door, Tenant, error_body, install, raise_if_refused
from actors.api_health import Health
from actors.api_models import AskBody, ChatBody, SummaryBody
from actors.hosts import Hosts
from actors.keys import Keys, RateLimit
from actors.metrics import metric
from actors.serve_config import ServeConfig
from actors.session_service import Refused
from pipeline.session.answer import Question
from pipeline.session.state import SessionKey

_SSE = "text/event-stream"
_SSE_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_POLL_S = 0.5
_KEEP_ALIVE_S = 15.0
_GONE_S = 10.0
_MAX_STREAM_CHARS = 512
_ABOUT = """
Ask streams of news what they say, and get answers with their sources.

A stream is named in the path, or for `/v1/chat/completions` as the model `dysra:<stream>`.
"""


def build_api(hosts: Hosts, config: ServeConfig, keys: Keys | None) -> FastAPI:
    """The application; `keys` None lets everyone in as one tenant."""
    app = FastAPI(title="DySRA", description=_ABOUT, version="1")
    install(app, config.max_request_bytes)
    door = Door(keys, RateLimit(config.rate_per_minute), config.max_ongoing_per_tenant, config.retry_after_s)
    health = Health(hosts)

    async def enter(request: Request) -> Tenant:
        return door.enter(request)

    Entered = Annotated[Tenant, Depends(enter)]

    def session_key(tenant: Tenant, stream: str) -> SessionKey:
        if not stream.strip() or len(stream) > _MAX_STREAM_CHARS:
            raise Refused(422, f"the stream's name must have 1 to {_MAX_STREAM_CHARS} characters")
        tenant.require(stream)
        return SessionKey(tenant.name, stream)

    def check_question(text: str) -> None:
        if len(text) > config.max_question_chars:
            raise Refused(
                422,
                f"the question has {len(text):,} characters; at most {config.max_question_chars:,} are allowed",
            )

    @app.get("/healthz")
    async def healthz(deep: bool = False) -> JSONResponse:
        """Whether requests are taken; with `deep`, whether every replica that holds sessions answers."""
        if not deep:
            return JSONResponse({"status": "ok"})
        replicas = await health.replicas()
        well = all(replica["status"] == "ok" for replica in replicas)
        return JSONResponse(
            {"status": "ok" if well else "degraded", "replicas": replicas}, 200 if well else 503
        )

    @app.post("/v1/streams/{stream:path}/ask", response_model=None)
    async def ask(
        stream: str, body: AskBody, tenant: Entered, accept: Annotated[str, Header()] = ""
    ) -> Response:
        """An answer with its sources and its cost; as server-sent events where asked for."""
        key = session_key(tenant, stream)
        check_question(body.question)
        if body.cross_stream:
            tenant.require_all()
        opened = await _first(_measured("ask", hosts.ask(key, body.to_question())))
        if body.stream or _SSE in accept:
            return Streamed(_answer_sse(opened), media_type=_SSE, headers=_SSE_HEADERS)
        return JSONResponse(await _final(opened))

    @app.post("/v1/streams/{stream:path}/summary", response_model=None)
    async def summary(stream: str, tenant: Entered, body: SummaryBody | None = None) -> Response:
        """What the stream's recent articles report most, quoted, each line with its source."""
        key = session_key(tenant, stream)
        request = (body or SummaryBody()).to_request()
        return _json(raise_if_refused(await hosts.call(key, "summarize", asdict(request))))

    @app.get("/v1/streams/{stream:path}/events", response_model=None)
    async def events(
        stream: str,
        tenant: Entered,
        last_event_id: Annotated[int, Header()] = 0,
    ) -> Response:
        """The session's events as they happen: started, read, caught_up, snapshot, problem…"""
        key = session_key(tenant, stream)
        if raise_if_refused(await hosts.call(key, "info")) is None:
            raise _unknown(stream)
        followed = _follow(hosts, key, last_event_id, config.events_s)
        return Streamed(followed, media_type=_SSE, headers=_SSE_HEADERS)

    @app.get("/v1/streams", response_model=None)
    async def streams(tenant: Entered) -> Response:
        """The tenant's sessions: those in memory with their pages, those at rest by name."""
        rows: list[dict[str, Any]] = []
        for rank in range(hosts.num_replicas):
            rows += raise_if_refused(await hosts.call_rank(rank, "infos", tenant.name))
        held = {row["stream"] for row in rows}
        stored = raise_if_refused(await hosts.call_rank(0, "stored", tenant.name))
        rows += [{"stream": name, "state": "stored"} for name in stored if name not in held]
        return _json({"streams": [row for row in rows if tenant.may(row["stream"])]})

    @app.get("/v1/streams/{stream:path}", response_model=None)
    async def stream_page(stream: str, tenant: Entered, digest: bool = False) -> Response:
        """The session's page; with `digest`, a hash of its cache and offsets too."""
        found = raise_if_refused(await hosts.call(session_key(tenant, stream), "info", digest))
        if found is None:
            raise _unknown(stream)
        return _json(found)

    @app.post("/v1/streams/{stream:path}", response_model=None, status_code=201)
    async def open_stream(stream: str, tenant: Entered) -> Response:
        """Open a session of the stream, whether or not anything was published on it yet."""
        page = raise_if_refused(await hosts.call(session_key(tenant, stream), "create"))
        return _json(page, 201)

    @app.delete("/v1/streams/{stream:path}", response_model=None, status_code=204)
    async def remove_stream(stream: str, tenant: Entered) -> Response:
        """Forget the tenant's session of the stream, its snapshots too; the stream's articles stay in the store."""
        removed = raise_if_refused(await hosts.call(session_key(tenant, stream), "remove"))
        if not removed["removed"]:
            raise _unknown(stream)
        return Response(status_code=204)

    @app.get("/v1/models", response_model=None)
    async def models(tenant: Entered) -> Response:
        """The streams of the tenant as models, for OpenAI's clients, and the model that reads them."""
        reader = raise_if_refused(await hosts.call_rank(0, "model"))
        names = raise_if_refused(await hosts.call_rank(0, "stored", tenant.name))
        data = [
            {"id": f"dysra:{name}", "object": "model", "created": 0, "owned_by": "dysra"}
            for name in names
            if tenant.may(name)
        ]
        return _json({"object": "list", "data": data, "reader": reader})

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(
        body: ChatBody, tenant: Entered, x_dysra_stream: Annotated[str | None, Header()] = None
    ) -> Response:
        """OpenAI's chat completions over a stream; `sources` and `dysra` are fields of ours."""
        stream = x_dysra_stream or stream_of(body.model)
        key = session_key(tenant, stream)
        try:
            text = body.question()
        except ValueError as error:
            raise Refused(422, str(error)) from None
        check_question(text)
        question = Question(text=text, max_new_tokens=body.max_completion_tokens or body.max_tokens)
        opened = await _first(_measured("chat", hosts.ask(key, question)))
        completion = Completion(body)
        if body.stream:
            chunks = completion.chunks(opened)
            return Streamed(chunks, media_type=_SSE, headers=_SSE_HEADERS)
        return JSONResponse(completion.whole(await _final(opened)))

    return app


class Streamed(StreamingResponse):
    """A response whose events are closed with it, whatever ends it: a client that hangs up or takes nothing leaves
    no answer under way until somebody collects garbage."""

    async def stream_response(self, send: Send) -> None:
        """Send the events as they come."""
        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().stream_response(send)


def _unknown(stream: str) -> Refused:
    return Refused(404, f"there is no session of stream {stream!r}; POST /v1/streams/{stream} opens one")


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


async def _measured(
    route: str, events: AsyncIterator[dict[str, Any]]
) -> AsyncGenerator[dict[str, Any], None]:
    """The events, their cost noted once the answer is done; closed with their consumer."""
    began = time.monotonic()
    try:
        async for event in events:
            if event["kind"] == "done":
                metric("answer_ms").observe(1_000 * (time.monotonic() - began), tags={"route": route})
                tokens = event["tokens"]
                read = tokens["question"] + tokens["read"] + tokens["cache"]
                metric("tokens_read_per_answer").observe(max(1, read), tags={"route": route})
            yield event
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


async def _first(events: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[dict[str, Any], None]:
    """The events with the first one fetched, so that a refusal becomes the response's status."""
    try:
        first = raise_if_refused(await anext(events))
    except BaseException:
        await events.aclose()
        raise

    async def rest() -> AsyncGenerator[dict[str, Any], None]:
        try:
            yield first
            async for event in events:
                yield event
        finally:
            await events.aclose()

    return rest()


async def _final(events: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    async with aclosing(events) as following:
        async for event in following:
            raise_if_refused(event)
            if event["kind"] == "done":
                return {name: value for name, value in event.items() if name != "kind"}
    raise Refused(503, "the answer ended early; ask again", 2)


async def _answer_sse(events: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[bytes]:
    async with aclosing(events) as following:
        async for event in following:
            kind = event.pop("kind")
            data = error_body(event["status"], event["message"]) if kind == "error" else event
            yield sse(data, kind)


async def _follow(hosts: Hosts, key: SessionKey, after: int, limit_s: float) -> AsyncIterator[bytes]:
    """Events after `after`, by asking again and again: a follower holds no place at the replica.

    Ends early where no replica answers for `_GONE_S`, so that no follower keeps a service from stopping; the client
    comes back with its last event's id.
    """
    began = spoke = heard = time.monotonic()
    yield b"retry: 2000\n\n"
    while time.monotonic() - began < limit_s:
        found = None
        # Serve does not refuse while a session's owner is away, or while all of it is being stopped: it waits.
        with suppress(TimeoutError):
            async with asyncio.timeout(_GONE_S):
                found = await hosts.call(key, "events_after", after)
        if isinstance(found, list):
            heard = time.monotonic()
        elif time.monotonic() - heard >= _GONE_S:
            return
        for event in found if isinstance(found, list) else []:
            after = event["id"]
            spoke = time.monotonic()
            yield sse(event, event["event"], event["id"])
        if time.monotonic() - spoke > _KEEP_ALIVE_S:
            spoke = time.monotonic()
            yield b": still here\n\n"
        await asyncio.sleep(_POLL_S)


def sse(data: Any, event: str | None = None, event_id: int | None = None) -> bytes:
    """One server-sent event."""
    head = (f"id: {event_id}\n" if event_id is not None else "") + (f"event: {event}\n" if event else "")
    return head.encode() + b"data: " + orjson.dumps(data) + b"\n\n"
