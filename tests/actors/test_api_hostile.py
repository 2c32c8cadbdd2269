"""Requests that nobody should send: generated from the OpenAPI schema, without keys, with others' keys, too large,
too slow, too many. Never a 5xx, never data for a stranger."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings

from actors.api import build_api
from actors.api_guard import Measured
from actors.hosts import LocalHosts
from actors.keys import Keys, new_key
from actors.session_service import SessionService
from tests.actors.session_support import make_service
from tests.pipeline.session.support import STREAM, ShardLibrary, article, record

EVERY_PAGE = [
    ("GET", "/v1/streams"),
    ("GET", "/v1/models"),
    ("GET", f"/v1/streams/{STREAM}"),
    ("POST", f"/v1/streams/{STREAM}"),
    ("DELETE", f"/v1/streams/{STREAM}"),
    ("GET", f"/v1/streams/{STREAM}/events"),
    ("POST", f"/v1/streams/{STREAM}/ask"),
    ("POST", f"/v1/streams/{STREAM}/summary"),
    ("POST", "/v1/chat/completions"),
]
MAX_BYTES = 20_000


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SessionService]:
    """Sessions over five articles, few of them in memory at a time, events that end at once."""
    library = ShardLibrary(tmp_path_factory.mktemp("store"))
    library.add(*(article(n) for n in range(1, 6)))
    topic = [record(n - 1, article(n)) for n in range(1, 6)]
    running = make_service(tmp_path_factory.mktemp("sessions"), library, topic, max_resident=4)
    running.config = replace(
        running.config, events_s=0.05, max_request_bytes=MAX_BYTES, rate_per_minute=0, answer_timeout_s=30.0
    )
    yield running
    running.close()
    library.close()


@pytest.fixture(scope="module")
def app(service: SessionService) -> FastAPI:
    """An API that lets everyone in as one tenant: what it is sent reaches the sessions."""
    return build_api(LocalHosts(service), service.config, None)


@pytest.fixture(scope="module")
def keyed(
    service: SessionService, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FastAPI, dict[str, str]]:
    """An API with keys, and the keys of two tenants."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    keys = {tenant: new_key(path, tenant) for tenant in ("red", "blue")}
    return build_api(LocalHosts(service), service.config, Keys(path)), keys


def send(app: Any, method: str, path: str, **more: Any) -> httpx.Response:
    """One request, its whole response; an exception of the application comes back as its 500."""

    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.request(method, path, **more)

    return anyio.run(request)


def check_generated(app: FastAPI, examples: int) -> int:
    """Send requests made from the schema to every operation; how many were sent. Fails on any 5xx."""
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    sent = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def generated(case: Any) -> None:
            nonlocal sent
            sent += 1
            answer = case.call()
            assert answer.status_code < 500, f"{answer.status_code} for {case.as_curl_command()}"

        generated()
    return sent


def test_a_few_requests_made_from_the_schema_are_answered_without_5xx(app: FastAPI) -> None:
    """Every operation takes whatever its schema allows, and what it does not."""
    assert check_generated(app, 3) >= 9


@pytest.mark.slow
def test_requests_made_from_the_schema_are_answered_without_5xx(app: FastAPI) -> None:
    """The same with many more of them."""
    assert check_generated(app, 100) >= 500


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic ZHlzcmE6ZHlzcmE="},
        {"Authorization": "Bearer dysra-00000000-"},
        {"Authorization": "Bearer dysra-../../etc-x"},
        {"Authorization": "Bearer " + "A" * 20_000},
        {"Authorization": b"Bearer \xff\xfe\x00"},
        {"X-API-Key": "dysra", "X-Forwarded-User": "red", "X-Tenant": "red", "Cookie": "tenant=red"},
    ],
    ids=lambda headers: repr(headers)[:40],
)
def test_without_a_valid_key_nothing_is_told(
    keyed: tuple[FastAPI, dict[str, str]], headers: dict[str, Any]
) -> None:
    """401 on every page, before the body or the stream is looked at, and the answer names no stream."""
    for method, path in EVERY_PAGE:
        response = send(keyed[0], method, path, headers=headers, content=b"{" if method == "POST" else None)
        assert response.status_code == 401, (method, path, response.status_code)
        assert set(response.json()) == {"error"}
        assert STREAM not in response.text


def test_a_key_in_another_place_or_changed_by_a_character_is_no_key(
    keyed: tuple[FastAPI, dict[str, str]],
) -> None:
    """Neither in the query nor in a body, nor one that is cut, doubled or in other letters."""
    app, keys = keyed
    red = keys["red"]
    wrong = [red[:-1], red + "x", red.upper(), f"{red} {red}", red.replace("-", "_"), f"{red},{keys['blue']}"]
    for key in wrong:
        assert send(app, "GET", "/v1/streams", headers={"Authorization": f"Bearer {key}"}).status_code == 401
    assert send(app, "GET", f"/v1/streams?api_key={red}&authorization=Bearer%20{red}").status_code == 401
    assert send(app, "GET", "/v1/streams", headers={"Authorization": f"Bearer {red}"}).status_code == 200


def test_a_tenant_never_sees_another_tenants_session(keyed: tuple[FastAPI, dict[str, str]]) -> None:
    """Not in lists, not by name, not by a name that looks like a path into the other's folder."""
    app, keys = keyed
    red, blue = ({"Authorization": f"Bearer {keys[tenant]}"} for tenant in ("red", "blue"))
    assert send(app, "POST", f"/v1/streams/{STREAM}", headers=red).status_code == 201
    assert [row["stream"] for row in send(app, "GET", "/v1/streams", headers=red).json()["streams"]] == [
        STREAM
    ]
    assert send(app, "GET", "/v1/streams", headers=blue).json()["streams"] == []
    assert send(app, "GET", "/v1/models", headers=blue).json()["data"] == []
    tricks = [
        STREAM,
        f"..%2Fred%2F{STREAM}",
        f"red%2F{STREAM}",
        f"../red/{STREAM}",
        f"{STREAM}%00",
        f"%2e%2e/red/{STREAM}",
    ]
    for name in tricks:
        for page in (name, f"{name}/events"):
            response = send(app, "GET", f"/v1/streams/{page}", headers=blue)
            assert response.status_code == 404, (page, response.status_code, response.text)
    hostile = {**blue, "X-Dysra-Stream": STREAM, "X-Session-Id": f"red/{STREAM}", "X-Tenant": "red"}
    assert send(app, "GET", f"/v1/streams/{STREAM}", headers=hostile).status_code == 404


def test_oversized_bodies_are_413_however_they_state_their_length(app: FastAPI) -> None:
    """With an honest length, in pieces without one, and with a length that lies."""
    path = f"/v1/streams/{STREAM}/ask"
    large = b'{"question": "' + b"x" * MAX_BYTES + b'"}'

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(large), 1_000):
            yield large[at : at + 1_000]

    assert send(app, "POST", path, content=large).status_code == 413
    assert send(app, "POST", path, content=pieces()).status_code == 413
    lying = send(app, "POST", path, content=pieces(), headers={"Content-Length": "10"})
    assert lying.status_code in (400, 413)
    for length in ("-1", "1e9", "0x10", "９", "10, 20000000"):
        headers = {"Content-Length": length.encode(), "Content-Type": "application/json"}
        assert send(app, "POST", path, content=b"{}", headers=headers).status_code < 500


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe{}",
        b"[" * 9_000,
        b'{"question": "\\ud800"}',
        b'{"question": "\\u0000", "sources": ["\\udfff"]}',
        b'{"question": "a", "k": 1e400}',
        b'{"question": "a", "k": 9' + b"9" * 5_000 + b"}",
        b'{"question": "a", "as_of": "0001-01-01T00:00:00+23:59"}',
        b'{"question": "a", "since": "9999-12-31T23:59:59-23:59"}',
        b'{"question": "a", "as_of": "0001-01-01", "since": "9999-12-31"}',
        b'{"question": NaN}',
    ],
    ids=lambda body: repr(body)[:40],
)
def test_bodies_that_break_parsers_are_told_so(app: FastAPI, body: bytes) -> None:
    """Not UTF-8, nested without end, lone surrogates, numbers and times that nothing can hold: never a 5xx."""
    headers = {"Content-Type": "application/json"}
    for path in (f"/v1/streams/{STREAM}/ask", f"/v1/streams/{STREAM}/summary", "/v1/chat/completions"):
        response = send(app, "POST", path, content=body, headers=headers)
        assert response.status_code < 500, (path, response.status_code, response.text[:300])


def test_a_body_that_does_not_arrive_is_given_up(app: FastAPI) -> None:
    """A client that sends its body too slowly gets 408 and holds nothing any longer."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await anyio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def take(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": f"/v1/streams/{STREAM}/ask", "raw_path": b"/", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "client": ("127.0.0.1", 1), "server": ("api", 80),
    }  # fmt: skip

    async def run() -> None:
        with anyio.fail_after(20):
            await Measured(app, MAX_BYTES, body_limit_s=0.2)(scope, receive, take)

    anyio.run(run)
    assert sent[0]["status"] == 408


def test_a_flood_of_sessions_is_bounded_and_the_rest_goes_on(app: FastAPI, service: SessionService) -> None:
    """Far more sessions than stay in memory: each is opened or refused with 429, and questions are answered."""
    opened = [send(app, "POST", f"/v1/streams/flood-{n}").status_code for n in range(24)]
    assert set(opened) <= {201, 429}
    deadline = time.monotonic() + 30
    while len(service.pool.infos("local")) > 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(service.pool.infos("local")) <= 4
    asked = send(app, "POST", f"/v1/streams/{STREAM}/ask", json={"question": "Which pier opened?"})
    assert asked.status_code == 200


def test_a_tenant_with_all_its_sessions_is_told_so(app: FastAPI, service: SessionService) -> None:
    """409 with the setting's name for one more; the sessions it has answer as ever."""
    pool = service.pool
    assert send(app, "POST", f"/v1/streams/{STREAM}").status_code == 201
    held = pool.sessions
    pool.sessions = replace(held, config=replace(held.config, max_per_tenant=1))
    try:
        refused = send(app, "POST", "/v1/streams/one-more")
        assert refused.status_code == 409 and "max_per_tenant" in refused.json()["error"]["message"]
        assert refused.json()["error"]["type"] == "too_many_sessions"
        assert send(app, "POST", f"/v1/streams/{STREAM}").status_code == 201
    finally:
        pool.sessions = held


def test_a_removed_session_is_gone_for_its_tenant_alone(keyed: tuple[FastAPI, dict[str, str]]) -> None:
    """204, then 404; the other tenant's session of the same stream stays."""
    app, keys = keyed
    red, blue = ({"Authorization": f"Bearer {keys[tenant]}"} for tenant in ("red", "blue"))
    path = "/v1/streams/to-remove"
    for headers in (red, blue):
        assert send(app, "POST", path, headers=headers).status_code == 201
    assert send(app, "DELETE", path, headers=red).status_code == 204
    assert send(app, "DELETE", path, headers=red).status_code == 404
    assert send(app, "GET", path, headers=red).status_code == 404
    assert send(app, "GET", path, headers=blue).status_code == 200
    assert send(app, "DELETE", path, headers=blue).status_code == 204
