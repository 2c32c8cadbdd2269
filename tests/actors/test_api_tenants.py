"""Tenants beside each other: every operation of the schema, with no key, with another's, with tricks around it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from actors.api import build_api
from actors.api_health import Health
from actors.hosts import LocalHosts
from actors.keys import Keys, new_key
from actors.session_service import SessionService
from pipeline.session.state import SessionKey
from tests.actors.session_support import make_service
from tests.actors.test_api_hostile import send
from tests.pipeline.session.support import ShardLibrary, article, record

SECRET = "reds-secret-stream"
OPEN = {"/healthz"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND")
BODIES: dict[str, Any] = {
    "/v1/streams/{stream}/ask": {"question": "Which pier opened?"},
    "/v1/chat/completions": {"model": f"dysra:{SECRET}", "messages": [{"role": "user", "content": "Which?"}]},
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SessionService]:
    """Sessions over a store of one article, whose events end at once."""
    library = ShardLibrary(tmp_path_factory.mktemp("store"))
    library.add(article(1))
    running = make_service(tmp_path_factory.mktemp("sessions"), library, [record(0, article(1))])
    running.config = replace(running.config, events_s=0.05, rate_per_minute=0)
    yield running
    running.close()
    library.close()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Keys, dict[str, dict[str, str]]]:
    """Keys of two tenants, and one of blue that is good for one stream; as headers."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {tenant: new_key(path, tenant) for tenant in ("red", "blue")}
    made["blue, one stream"] = new_key(path, "blue", ["weather"])
    return Keys(path), {name: {"Authorization": f"Bearer {key}"} for name, key in made.items()}


@pytest.fixture(scope="module")
def app(service: SessionService, keys: tuple[Keys, Any]) -> FastAPI:
    """The API; red has a session of a stream that only red knows."""
    made = build_api(LocalHosts(service), service.config, keys[0])
    assert send(made, "POST", f"/v1/streams/{SECRET}", headers=keys[1]["red"]).status_code == 201
    return made


def operations(app: FastAPI) -> list[tuple[str, str]]:
    """(path, method) of all that the schema tells of."""
    paths = app.openapi()["paths"]
    return [(path, method.upper()) for path, methods in paths.items() for method in methods]


def call(app: FastAPI, path: str, method: str, headers: Any) -> httpx.Response:
    """An operation on red's stream."""
    return send(app, method, path.replace("{stream}", SECRET), headers=headers, json=BODIES.get(path))


def test_no_operation_and_no_other_method_is_served_without_a_key(app: FastAPI) -> None:
    """Whatever is added to the schema later, too; health alone is open."""
    found = operations(app)
    assert len(found) >= 10
    for path in {path for path, _ in found} - OPEN:
        for method in METHODS:
            status = call(app, path, method, {}).status_code
            wanted = {401} if (path, method) in found else {401, 405}
            assert status in wanted, (method, path, status)


def test_no_operation_tells_one_tenant_of_another_s(app: FastAPI, keys: tuple[Keys, Any]) -> None:
    """Each operation with blue's key on red's stream is answered as on one that nobody has, and changes nothing."""
    headers = keys[1]
    before = _caught_up(app, headers["red"])
    nobodys = "n" * len(SECRET)
    for path, method in operations(app):
        if path in OPEN or (path, method) == ("/v1/streams/{stream}", "POST"):
            continue
        mine = call(app, path, method, headers["blue"])
        other = send(
            app,
            method,
            path.replace("{stream}", nobodys),
            headers=headers["blue"],
            json=_renamed(path, nobodys),
        )
        assert mine.status_code == other.status_code, (method, path)
        assert mine.text.replace(SECRET, nobodys) == other.text, (method, path)
        if "{stream}" in path or path.endswith("completions"):
            assert mine.status_code == 404, (method, path, mine.status_code)
        else:
            assert SECRET not in mine.text
    after = send(app, "GET", f"/v1/streams/{SECRET}", headers=headers["red"]).json()
    assert {**after, "snapshot_age_s": 0} == {**before, "snapshot_age_s": 0}


def _caught_up(app: FastAPI, headers: Any) -> Any:
    """The page of red's session once it has read what its topic holds: until then it changes by itself."""
    deadline = time.monotonic() + 30
    while not (page := send(app, "GET", f"/v1/streams/{SECRET}", headers=headers).json())["offsets"]:
        assert time.monotonic() < deadline, page
        time.sleep(0.05)
    return page


def _renamed(path: str, stream: str) -> Any:
    body = BODIES.get(path)
    return {**body, "model": f"dysra:{stream}"} if body and "model" in body else body


def test_a_stream_of_one_s_own_by_another_s_name_is_another_session(
    app: FastAPI, keys: tuple[Keys, Any]
) -> None:
    """Opened and removed by blue, it is red's as little as before."""
    headers = keys[1]
    page = f"/v1/streams/{SECRET}"
    assert send(app, "POST", page, headers=headers["blue"]).status_code == 201
    assert send(app, "DELETE", page, headers=headers["blue"]).status_code == 204
    assert send(app, "GET", page, headers=headers["blue"]).status_code == 404
    assert send(app, "GET", page, headers=headers["red"]).json()["state"] != "stored"


def test_a_key_for_one_stream_learns_nothing_of_others(app: FastAPI, keys: tuple[Keys, Any]) -> None:
    """403 for a stream of its own tenant that is there, and for one that nobody has: the same answer."""
    headers = keys[1]
    assert send(app, "POST", "/v1/streams/blues-other", headers=headers["blue"]).status_code == 201
    limited = headers["blue, one stream"]
    for path, method in operations(app):
        if "{stream}" not in path:
            continue
        answers = [
            send(app, method, path.replace("{stream}", name), headers=limited, json=BODIES.get(path))
            for name in ("blues-other", "blues-absnt", SECRET)
        ]
        assert [answer.status_code for answer in answers] == [403] * 3, (method, path)
        assert answers[0].text == answers[1].text.replace("absnt", "other")
    named = {**limited, "X-Dysra-Stream": "blues-other"}
    chat = {"model": "dysra:weather", "messages": [{"role": "user", "content": "Which?"}]}
    assert send(app, "POST", "/v1/chat/completions", headers=named, json=chat).status_code == 403
    for page in ("/v1/streams", "/v1/models"):
        assert "blues-other" not in send(app, "GET", page, headers=limited).text


def test_two_keys_in_one_request_are_none(app: FastAPI, keys: tuple[Keys, Any]) -> None:
    """A server before ours may have looked at the other one."""
    red, blue = (("Authorization", keys[1][name]["Authorization"]) for name in ("red", "blue"))
    wrong = ("authorization", "Bearer wrong")
    for pair in ([red, blue], [blue, red], [red, wrong], [wrong, red], [red, red]):
        answer = send(app, "GET", "/v1/streams", headers=pair)
        assert answer.status_code == 401 and SECRET not in answer.text
    joined = f"{red[1]}, {blue[1]}"
    assert send(app, "GET", "/v1/streams", headers={"Authorization": joined}).status_code == 401


@pytest.mark.parametrize(
    "header",
    [
        {"X-HTTP-Method-Override": "DELETE"}, {"X-HTTP-Method": "DELETE"}, {"X-Method-Override": "DELETE"},
        {"X-Original-URL": f"/v1/streams/{SECRET}"}, {"X-Rewrite-URL": f"/v1/streams/{SECRET}"},
        {"X-Forwarded-User": "red", "X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1"},
        {"X-Forwarded-Prefix": f"/v1/streams/{SECRET}", "Forwarded": "for=127.0.0.1;host=red"},
        {"Host": "red", "Origin": "null", "Referer": f"/v1/streams/{SECRET}"},
    ],
    ids=lambda header: next(iter(header)),
)  # fmt: skip
def test_headers_that_speak_for_others_change_nothing(
    app: FastAPI, keys: tuple[Keys, Any], header: dict[str, str]
) -> None:
    """Neither who asks, nor what is asked."""
    blue, red = keys[1]["blue"], keys[1]["red"]
    assert send(app, "GET", "/healthz", headers=header).json() == {"status": "ok"}
    assert send(app, "GET", "/v1/streams", headers=header).status_code == 401
    assert send(app, "GET", f"/v1/streams/{SECRET}", headers={**blue, **header}).status_code == 404
    assert (
        send(app, "POST", f"/v1/streams/{SECRET}?_method=DELETE", headers={**red, **header}).status_code
        == 201
    )
    assert send(app, "GET", f"/v1/streams/{SECRET}", headers=red).status_code == 200


@given(
    st.lists(st.tuples(st.sampled_from(["red", "re", "r"]), st.text(max_size=60)), min_size=2, unique=True)
)
def test_files_of_sessions_lie_apart(sessions: list[tuple[str, str]]) -> None:
    """A folder of its own for each tenant and stream, whatever path the name spells."""
    folders = set()
    for tenant, stream in sessions:
        path = Path(SessionKey("", tenant).folder) / SessionKey(tenant, stream).folder
        assert len(path.parts) == 2 and not set(path.parts) & {"", ".", ".."}
        assert all(len(part) <= 60 and part.isascii() for part in path.parts)
        folders.add(path)
    assert len(folders) == len(sessions)


def test_a_tenant_s_requests_under_way_are_bounded(service: SessionService, keys: tuple[Keys, Any]) -> None:
    """One too many is told 429 and when to come again, another tenant is served; ended ones leave their place."""
    config = replace(service.config, events_s=0.6, max_ongoing_per_tenant=2)
    app = build_api(LocalHosts(service), config, keys[0])
    path = "/v1/streams/followed"
    for name in ("red", "blue"):
        assert send(app, "POST", path, headers=keys[1][name]).status_code == 201
    told: list[tuple[str, int]] = []

    async def follow(client: httpx.AsyncClient, name: str) -> None:
        answer = await client.get(f"{path}/events", headers=keys[1][name])
        told.append((name, answer.status_code))
        assert answer.status_code == 200 or int(answer.headers["retry-after"]) > 0

    async def run() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            for _ in range(2):
                async with anyio.create_task_group() as group:
                    for name in ("red", "red", "red", "blue"):
                        group.start_soon(follow, client, name)

    anyio.run(run)
    assert sorted(told) == sorted([("red", 200), ("red", 200), ("red", 429), ("blue", 200)] * 2)


def test_replicas_are_asked_for_their_health_once_for_all() -> None:
    """However many want to know; again when what is known has aged, and a lost one is told."""
    asked: list[int] = []

    class Replicas:
        num_replicas = 2

        async def call_rank(self, rank: int, method: str, *args: Any) -> Any:
            asked.append(rank)
            await anyio.sleep(0.05)
            if rank == 1 and len(asked) > 2:
                raise ConnectionError
            return {}

    async def run() -> None:
        health = Health(Replicas(), fresh_s=0.2)  # type: ignore[arg-type]
        told: list[Any] = []

        async def tell() -> None:
            told.append(await health.replicas())

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(tell)
        assert told == [[{"rank": 0, "status": "ok"}, {"rank": 1, "status": "ok"}]] * 50 and len(asked) == 2
        await anyio.sleep(0.3)
        assert (await health.replicas())[1] == {"rank": 1, "status": "down", "reason": "ConnectionError"}

    anyio.run(run)
