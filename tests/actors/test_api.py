"""The HTTP API over a real session service in this process: shapes, refusals, tenants, streams of events."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from actors import api
from actors.api import build_api
from actors.hosts import LocalHosts
from actors.keys import Keys, new_key
from actors.serve_config import ServeConfig
from actors.session_service import Refused, SessionService
from pipeline.session.state import SessionKey
from tests.actors.session_support import make_service
from tests.pipeline.session.support import STREAM, ShardLibrary, article, record, stocked

ASK = f"/v1/streams/{STREAM}/ask"
CHAT = "/v1/chat/completions"


class Client:
    """Requests to the application, one event loop each."""

    def __init__(
        self, service: SessionService | LocalHosts, config: ServeConfig, keys: Keys | None = None
    ) -> None:
        hosts = service if isinstance(service, LocalHosts) else LocalHosts(service)
        self._app = build_api(hosts, config, keys)

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        """One request, its whole response."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
                return await client.request(method, path, **more)

        return anyio.run(send)

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """POST a JSON body."""
        return self.request("POST", path, json=body, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        """GET a page."""
        return self.request("GET", path, **more)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShardLibrary]:
    """A store with five articles of the stream."""
    with stocked(
        tmp_path_factory.mktemp("store"),
        *(article(n, url=f"https://courier.example/{n}") for n in range(1, 6)),
    ) as shelf:
        yield shelf


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, library: ShardLibrary) -> Iterator[SessionService]:
    """Sessions over that store; their topic holds the same articles."""
    topic = [record(n - 1, article(n)) for n in range(1, 6)]
    running = make_service(tmp_path_factory.mktemp("sessions"), library, topic)
    yield running
    running.close()


@pytest.fixture(scope="module")
def client(service: SessionService) -> Client:
    """A client of an API without keys."""
    return Client(service, service.config, None)


def test_answer_has_text_sources_cost_and_lag(client: Client) -> None:
    """Everything that an answer promises is there, and its sources are articles of the stream."""
    response = client.post(ASK, {"question": "Which pier opened? Pier 3?"})
    answer = response.json()
    assert response.status_code == 200
    assert set(answer) >= {
        "text", "sources", "given_up", "partial", "lag", "tokens", "session_bytes", "latency_ms", "model",
    }  # fmt: skip
    assert answer["session_bytes"] > 0 and answer["stream"] == STREAM
    assert 0 < answer["tokens"]["read"] <= 128 + 8 and answer["tokens"]["question"] > 0
    assert answer["given_up"] or {s["article_id"] for s in answer["sources"]} <= {
        f"a{n}" for n in range(1, 6)
    }


@pytest.mark.parametrize("asked", [{"json": {"question": "Pier 2?", "stream": True}}, {"accept": True}])
def test_events_come_as_sources_tokens_done(client: Client, asked: dict[str, Any]) -> None:
    """A streamed answer tells its sources, its tokens, and at last the whole answer."""
    body = asked.get("json", {"question": "Pier 2?"})
    headers = {"Accept": "text/event-stream"} if "accept" in asked else {}
    response = client.post(ASK, body, headers=headers)
    events = parse_sse(response.text)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events[0][0] == "sources" and events[-1][0] == "done"
    assert events[0][1]["sources"][0]["article_id"] == "a2"
    said = "".join(data["text"] for kind, data in events if kind == "token")
    assert said.strip().startswith(events[-1][1]["text"][:3]) or events[-1][1]["given_up"]


def test_chat_completion_has_openais_shape(client: Client) -> None:
    """The fields that OpenAI's clients read are there, usage adds up, sources are an extra field."""
    body = {"model": f"dysra:{STREAM}", "messages": [{"role": "user", "content": "Which pier opened?"}]}
    value = client.post(CHAT, {**body, "max_tokens": 5, "temperature": 0.3, "user": "x"}).json()
    choice = value["choices"][0]
    assert value["object"] == "chat.completion" and value["id"].startswith("chatcmpl-")
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"]
    assert choice["finish_reason"] == "stop" and value["model"] == body["model"]
    usage = value["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] <= 5
    assert isinstance(value["sources"], list) and value["dysra"]["stream"] == STREAM


def test_streamed_chat_ends_with_usage_and_done(client: Client) -> None:
    """Chunks carry a role, text, a finish reason and at the end the usage; [DONE] is last."""
    parts = [{"type": "text", "text": "Which pier"}, {"type": "text", "text": "opened?"}]
    body = {
        "model": "anything",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text = client.post(CHAT, body, headers={"x-dysra-stream": STREAM}).text
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    chunks = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == "[DONE]"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop" and "sources" in chunks[-2]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] > 0
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "question"),
        ({"question": "   "}, "question"),
        ({"question": "x", "k": 0}, "k"),
        ({"question": "x", "as_of": "yesterday"}, "as_of"),
        ({"question": "x", "as_of": 5}, "as_of"),
        ({"question": "x", "sources": []}, "sources"),
        ({"question": "x", "colour": "red"}, "colour"),
        ({"question": "x" * 5_000}, "5,000 characters"),
        ({"question": "x", "since": "2024-06-01", "as_of": "2024-05-01"}, "since"),
    ],
    ids=str,
)
def test_bad_question_is_named(client: Client, body: dict[str, Any], named: str) -> None:
    """A request that cannot be served says which field is wrong, in one shape of error."""
    response = client.post(ASK, body)
    assert response.status_code == 422
    assert named in response.json()["error"]["message"]


def test_body_that_is_not_json_is_named(client: Client) -> None:
    """A broken body is a client's error."""
    response = client.request("POST", ASK, content=b"{broken", headers={"content-type": "application/json"})
    assert response.status_code == 422 and "JSON" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "messages", [[], [{"role": "assistant", "content": "x"}], [{"role": "user", "content": " "}]]
)
def test_chat_without_a_question_is_refused(client: Client, messages: list[Any]) -> None:
    """A conversation needs a last user message with text."""
    response = client.post(CHAT, {"model": f"dysra:{STREAM}", "messages": messages})
    assert response.status_code == 422 and "messages" in response.json()["error"]["message"] + "messages"


@pytest.mark.parametrize("model", ["gpt-4", "dysra:", "dysra"])
def test_unknown_model_says_how_streams_are_named(client: Client, model: str) -> None:
    """A model that is no stream is 404 with the right form."""
    response = client.post(CHAT, {"model": model, "messages": [{"role": "user", "content": "x"}]})
    assert response.status_code == 404 and "dysra:<stream>" in response.json()["error"]["message"]


def test_unknown_stream_and_page_are_404(client: Client) -> None:
    """A stream that nobody published on, a session that is not there, a page that is not there."""
    for response in (
        client.post("/v1/streams/nowhere/ask", {"question": "x"}),
        client.get("/v1/streams/nowhere"),
        client.get("/v1/streams/nowhere/events"),
        client.get("/nothing"),
    ):
        assert response.status_code == 404 and response.json()["error"]["code"] == 404


def test_opened_stream_waits_for_its_first_article(client: Client) -> None:
    """A session can be opened before anything is published; it then gives up on questions."""
    assert client.post("/v1/streams/future/of%20news").status_code == 201
    assert client.get("/v1/streams/future/of%20news").json()["stream"] == "future/of news"
    answer = client.post("/v1/streams/future/of%20news/ask", {"question": "Anything?"}).json()
    assert answer["given_up"] and answer["text"] == "" and answer["sources"] == []


def test_large_body_is_413(client: Client, service: SessionService) -> None:
    """A body over the limit is refused, told beforehand or found while it is read."""
    limit = service.config.max_request_bytes
    body = json.dumps({"question": "x" * limit}).encode()

    async def in_pieces() -> Any:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    head = {"content-type": "application/json"}
    assert client.request("POST", ASK, content=body, headers=head).status_code == 413
    assert client.request("POST", ASK, content=in_pieces(), headers=head).status_code == 413


def test_summary_quotes_articles_of_the_period(client: Client) -> None:
    """A summary's lines are sentences of articles in the period, each with its source."""
    value = client.post(
        f"/v1/streams/{STREAM}/summary", {"since": "2024-03-03", "until": "2024-03-05"}
    ).json()
    ids = {source["article_id"] for source in value["sources"]}
    assert ids == {"a2", "a3", "a4"}
    assert all(source["quote"] in value["text"] for source in value["sources"])
    assert client.post(f"/v1/streams/{STREAM}/summary").json()["articles_considered"] == 5


def test_session_page_and_lists(client: Client) -> None:
    """A session's page shows what it read; it is listed as a stream and as a model."""
    client.post(f"/v1/streams/{STREAM}")
    deadline = time.monotonic() + 30
    while (page := client.get(f"/v1/streams/{STREAM}?digest=true").json())["state"] != "resident":
        assert time.monotonic() < deadline, page
        time.sleep(0.05)
    assert page["articles_read"] == 5 and page["lag"]["records"] == 0 and len(page["digest"]) == 64
    assert STREAM in {row["stream"] for row in client.get("/v1/streams").json()["streams"]}
    models = client.get("/v1/models").json()
    assert f"dysra:{STREAM}" in {row["id"] for row in models["data"]} and models["reader"]["model"]


def test_events_can_be_followed_and_resumed(service: SessionService) -> None:
    """A follower gets what happened to the session, and after a break only what is new."""
    client = Client(service, replace(service.config, events_s=0.2), None)
    client.post(f"/v1/streams/{STREAM}")
    events = parse_sse(client.get(f"/v1/streams/{STREAM}/events").text)
    assert "started" in [kind for kind, _ in events]
    last = events[-1][1]["id"]
    again = parse_sse(client.get(f"/v1/streams/{STREAM}/events", headers={"Last-Event-ID": str(last)}).text)
    assert all(data["id"] > last for _, data in again)


class Away(LocalHosts):
    """A service whose sessions' replica is gone for some calls, or for good: refused, or waited for."""

    def __init__(self, service: SessionService, calls: float, waits_s: float = 0.0) -> None:
        super().__init__(service)
        self._calls, self._waits_s = calls, waits_s

    async def call(self, key: SessionKey, method: str, *args: Any) -> Any:
        """A refusal while it is away."""
        if method == "events_after" and self._calls > 0:
            self._calls -= 1
            await anyio.sleep(self._waits_s)
            return Refused(503, "the session's replica is being replaced", 2).to_event()
        return await super().call(key, method, *args)


@pytest.mark.parametrize(
    ("calls", "waits_s", "stays"),
    [(3, 0.0, True), (math.inf, 0.0, False), (math.inf, 60.0, False)],
    ids=["a gap", "refused", "waited for"],
)
def test_a_follower_outlasts_a_gap_and_does_not_keep_a_stopped_service(
    service: SessionService, monkeypatch: pytest.MonkeyPatch, calls: float, waits_s: float, stays: bool
) -> None:
    """Events go on after a replica was away for a moment; where none comes back the follower is let go of, long
    before its connection's end."""
    monkeypatch.setattr(api, "_POLL_S", 0.01)
    if not stays:
        monkeypatch.setattr(api, "_GONE_S", 0.3)
    config = replace(service.config, events_s=1.0 if stays else 30.0)
    Client(service, config, None).post(f"/v1/streams/{STREAM}")
    began = time.monotonic()
    events = parse_sse(Client(Away(service, calls, waits_s), config).get(f"/v1/streams/{STREAM}/events").text)
    took = time.monotonic() - began
    assert ("started" in [kind for kind, _ in events]) is stays
    assert took >= 1.0 if stays else 0.3 <= took < 20.0


def test_health_needs_no_key_and_deep_health_asks_replicas(service: SessionService, tmp_path: Path) -> None:
    """Probes pass without a key; the deep one names every replica."""
    new_key(tmp_path / "keys.json", "desk")
    client = Client(service, service.config, Keys(tmp_path / "keys.json"))
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/healthz?deep=true").json()["replicas"] == [{"rank": 0, "status": "ok"}]


def test_keys_open_and_tenants_are_apart(service: SessionService, tmp_path: Path) -> None:
    """Without a good key nothing is told; sessions of one tenant are not those of another."""
    path = tmp_path / "keys.json"
    one, two = (new_key(path, name) for name in ("one", "two"))
    client = Client(service, service.config, Keys(path))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {one}"}):
        response = client.get("/v1/streams", headers=headers)
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    client.post("/v1/streams/private", headers={"Authorization": f"Bearer {one}"})
    seen = client.get("/v1/streams", headers={"Authorization": f"Bearer {one}"}).json()["streams"]
    assert [row["stream"] for row in seen] == ["private"]
    other = {"Authorization": f"Bearer {two}"}
    assert client.get("/v1/streams", headers=other).json()["streams"] == []
    assert client.get("/v1/streams/private", headers=other).status_code == 404


def test_a_keys_file_that_cannot_be_read_is_no_client_s_fault(
    service: SessionService, tmp_path: Path
) -> None:
    """While it is half written or gone nobody is let in, with 503 and not a word about where it lies; then all is
    as before."""
    path = tmp_path / "keys.json"
    headers = {"Authorization": f"Bearer {new_key(path, 'one')}"}
    client = Client(service, service.config, Keys(path))
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], None):
        path.write_bytes(broken) if broken is not None else path.unlink()
        refused = client.get("/v1/streams", headers=headers)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "10"
        assert str(tmp_path) not in refused.text
    path.write_bytes(whole)
    assert client.get("/v1/streams", headers=headers).status_code == 200


def test_key_limited_to_streams_is_403_elsewhere(service: SessionService, tmp_path: Path) -> None:
    """A key for some streams opens no other."""
    path = tmp_path / "keys.json"
    headers = {"Authorization": f"Bearer {new_key(path, 'desk', [STREAM])}"}
    client = Client(service, service.config, Keys(path))
    assert client.post(ASK, {"question": "Pier 1?"}, headers=headers).status_code == 200
    assert client.post("/v1/streams/other/ask", {"question": "x"}, headers=headers).status_code == 403
    across = client.post(ASK, {"question": "x", "cross_stream": True}, headers=headers)
    assert across.status_code == 403 and "across" in across.json()["error"]["message"]


def test_tenant_that_asks_too_often_is_429(service: SessionService) -> None:
    """Over the rate the answer is 429, and Retry-After says when to come again."""
    client = Client(service, replace(service.config, rate_per_minute=3), None)
    statuses = [client.get("/v1/streams").status_code for _ in range(4)]
    refused = client.get("/v1/streams")
    assert statuses == [200, 200, 200, 429]
    assert int(refused.headers["retry-after"]) >= 1 and refused.json()["error"]["type"] == "rate_limit_error"


def parse_sse(text: str) -> list[tuple[str, dict[str, Any]]]:
    """(event, data) of each server-sent event."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != ":")
        if "data" in fields:
            found.append((fields.get("event", ""), json.loads(fields["data"])))
    return found
