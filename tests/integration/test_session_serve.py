"""Sessions served for real: broker, store actors, Serve, HTTP; killed, overloaded, hung up on, drained."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.kafka import Broker
from models.hf import HfBackbone
from pipeline.session.session import Session, SessionParts
from pipeline.session.snapshot import SnapshotFolder
from pipeline.session.state import SessionKey
from tests.integration.session_served import LIMIT_S, TENANT, Served, serving

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def served(broker: Broker, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One service for all tests of this module."""
    with serving(broker, tmp_path_factory.mktemp("serve")) as one:
        yield one


def test_answers_come_with_sources_over_http(served: Served) -> None:
    """A question over HTTP is answered from the store, by a session that reads the topic beside."""
    stream = served.streams[0]
    with served.client() as client:
        answer = client.post(f"/v1/streams/{stream}/ask", json={"question": "Which pier 3 opened?"}).json()
        chat = client.post(
            "/v1/chat/completions",
            json={
                "model": f"dysra:{stream}",
                "messages": [{"role": "user", "content": "Which pier opened?"}],
            },
        ).json()
        events = client.post(
            f"/v1/streams/{stream}/ask", json={"question": "Which pier 3 opened?", "stream": True}
        ).text
        summary = client.post(f"/v1/streams/{stream}/summary", json={"sentences": 2}).json()
    assert answer["tokens"]["read"] > 0 and answer["session_bytes"] > 0 and not answer["partial"]
    assert {source["stream"] for source in answer["sources"]} <= {stream}
    assert chat["object"] == "chat.completion" and chat["usage"]["total_tokens"] > 0
    assert events.startswith("event: sources\n") and "event: done\n" in events
    assert 1 <= len(summary["sources"]) <= 2 and summary["articles_considered"] == 6


def test_requests_without_a_key_are_turned_away(served: Served) -> None:
    """Nothing is told without the tenant's key; health is."""
    with httpx.Client(base_url=served.url, timeout=30) as client:
        assert client.get("/v1/streams").status_code == 401
        assert client.get("/healthz").status_code == 200


def test_headers_that_command_serve_are_not_obeyed(served: Served) -> None:
    """Serve's own: a time limit, bytes that are not UTF-8, which its proxy answers with a 500, giant ones."""
    with served.client() as client:
        for name in (
            b"X-Request-Id",
            b"X-Session-Id",
            b"X-Request-Timeout-Seconds",
            b"serve_multiplexed_model_id",
        ):
            assert client.get("/healthz", headers=[(name, b"\xff")]).status_code == 200, name
        assert client.get("/healthz", headers={"X-Request-Timeout-Seconds": "1e-9"}).status_code == 200
        assert client.get("/healthz", headers={"X-A": "a" * 40_000}).status_code == 431


def test_sessions_live_on_the_replica_of_their_slot(served: Served) -> None:
    """Each session is held by the rank that its slot belongs to, whichever request comes."""
    for rank, stream in enumerate(served.streams):
        pages = [served.page(stream) for _ in range(5)]
        assert {page["replica"]["rank"] for page in pages} == {rank}
        assert len({page["replica"]["pid"] for page in pages}) == 1


def test_session_reads_what_an_undisturbed_twin_reads(served: Served) -> None:
    """A served session ends with the bytes of one that read the same topic alone."""
    stream = served.streams[0]
    page = served.wait(stream, lambda p: p["articles_read"] == 6 and p["lag"]["records"] == 0, "not read")
    assert page["digest"] == served.twin_digest(stream)


def test_killed_session_comes_back_on_its_slot_with_the_same_bytes(served: Served) -> None:
    """After kill -9 in the middle of reading, the replacement holds the rank, and the session equals its twin."""
    victim, bystander = served.streams
    before = served.wait(victim, lambda p: p["articles_read"] >= 6, "not read")
    other = served.page(bystander)["replica"]
    served.publish(victim, 6, 12)
    os.kill(before["replica"]["pid"], signal.SIGKILL)
    page = served.wait(
        victim,
        lambda p: (
            p["replica"]["pid"] != before["replica"]["pid"]
            and p.get("articles_read") == 18
            and p["lag"]["records"] == 0
        ),
        "did not come back",
    )
    assert page["replica"]["rank"] == before["replica"]["rank"]
    assert page["restored"] and page["epoch"] > before["epoch"]
    assert page["digest"] == served.twin_digest(victim)
    assert served.page(bystander)["replica"] == other
    with served.client() as client:
        again = client.post(f"/v1/streams/{victim}/ask", json={"question": "Which pier 3 opened?"})
    assert again.status_code == 200


def test_client_that_hangs_up_leaves_the_session_as_it_was(served: Served) -> None:
    """A connection closed in the middle of an answer changes no byte and blocks nobody."""
    stream = served.streams[1]
    served.wait(stream, lambda p: p["lag"]["records"] == 0 and p["state"] == "resident", "not read")
    before = served.page(stream, digest=True)["digest"]
    body = {"question": "Which pier opened on Monday?", "stream": True, "max_new_tokens": 250}
    for _ in range(5):
        with (
            served.client() as client,
            client.stream("POST", f"/v1/streams/{stream}/ask", json=body) as answer,
        ):
            assert next(answer.iter_lines()).startswith("event: sources")
    deadline = time.monotonic() + LIMIT_S
    while True:
        with served.client() as client:
            response = client.post(f"/v1/streams/{stream}/ask", json={"question": "Which pier opened?"})
        if response.status_code == 200:
            break
        assert response.status_code == 429 and time.monotonic() < deadline, response.text
        time.sleep(0.2)
    assert served.page(stream, digest=True)["digest"] == before


def test_overload_is_429_with_retry_after(served: Served) -> None:
    """Of many questions at once some are answered and the others told when to come again; none fails."""
    stream = served.streams[0]

    def ask(number: int) -> httpx.Response:
        with served.client() as client:
            return client.post(f"/v1/streams/{stream}/ask", json={"question": f"Which pier {number}?"})

    with ThreadPoolExecutor(16) as threads:
        responses = list(threads.map(ask, range(16)))
    statuses = {response.status_code for response in responses}
    assert statuses == {200, 429}
    refused = next(response for response in responses if response.status_code == 429)
    assert refused.headers["retry-after"] == "3" and refused.json()["error"]["type"] == "rate_limit_error"


def test_correction_and_withdrawal_are_seen_by_the_next_answer(served: Served) -> None:
    """The old form of an article is not cited once the store holds a correction or a withdrawal; the session
    drops it, though no record of its topic tells of it."""
    stream = served.streams[0]
    served.filler.delete(f"{stream}-3")
    with served.client() as client:
        body = {"question": "Which pier 3 opened?", "stream": True}
        text = client.post(f"/v1/streams/{stream}/ask", json=body).text
    assert f'"{stream}-3"' not in text and f'"{stream}-' in text
    served.wait(stream, lambda p: p["dropped_elsewhere"] == 1 and not p["rebuilding"], "not dropped")


def test_events_follow_the_session(served: Served) -> None:
    """A follower sees the next article being read."""
    stream = served.streams[1]
    deadline = time.monotonic() + LIMIT_S
    with served.client() as client, client.stream("GET", f"/v1/streams/{stream}/events") as response:
        served.publish(stream, 40, 1)
        for line in response.iter_lines():
            if line.startswith("data: ") and json.loads(line[6:]).get("article_id") == f"{stream}-40":
                break
            assert time.monotonic() < deadline


def _redeploy(served: Served, **sections: Any) -> None:
    """Deploy the application again with some sections changed; numbers seeded alike must not matter."""
    from actors.serve_app import redeploy

    random.seed(0)
    redeploy(replace(served.settings, **sections))


def test_withdrawal_on_the_topic_is_told_and_rebuilt(served: Served) -> None:
    """A deletion on the topic leaves the session at once and is followed by a rebuild, both in its events."""
    stream = served.streams[0]
    before = served.page(stream)
    # the newest article: one that left the small cache long ago would leave no trace to rebuild
    withdrawn = served.publish(stream, 30, 1)[0].id
    served.wait(stream, lambda p: p["articles_read"] > before["articles_read"], "not read")
    served.publisher.delete(withdrawn, stream)
    served.publisher.flush()
    served.filler.delete(withdrawn)
    page = served.wait(stream, lambda p: p["withdrawn"] == 1 and not p["rebuilding"], "not withdrawn")
    assert page["retractions"] == before["retractions"] + 1 and page["rebuilds"] == before["rebuilds"] + 1
    told = []
    with served.client() as client, client.stream("GET", f"/v1/streams/{stream}/events") as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                told.append(json.loads(line[6:]))
                dropped = [event["article_id"] for event in told if "dropped" in event]
                if "left_out" in told[-1] and withdrawn in dropped:
                    break
    assert dropped.count(withdrawn) == 1 and dropped[-1] == withdrawn


def test_redeployed_settings_keep_sessions(served: Served) -> None:
    """A deployment with another session section changes no byte of a session; the settings hold then."""
    stream = served.streams[0]
    before = served.wait(stream, lambda p: p["state"] == "resident", "not resident")
    _redeploy(served, session=replace(served.settings.session, max_new_tokens_limit=9))
    pid = before["replica"]["pid"]
    after = served.wait(stream, lambda p: p["state"] == "resident" and p["replica"]["pid"] != pid, "not back")
    assert after["restored"] and after["digest"] == before["digest"]
    with served.client() as client:
        body = {"question": "Which pier opened?", "max_new_tokens": 200}
        answer = client.post(f"/v1/streams/{stream}/ask", json=body).json()
    assert answer["tokens"]["generated"] <= 9


def test_redeployed_cache_shape_keeps_what_was_read(served: Served) -> None:
    """A deployment with another shape of cache brings new replicas; their sessions go on where those were."""
    stream = served.streams[1]
    before = served.wait(stream, lambda p: p["state"] == "resident", "not resident")
    for cache in (replace(served.settings.cache, rank=3), served.settings.cache):
        _redeploy(served, cache=cache)
        after = served.wait(
            stream,
            lambda p, pid=before["replica"]["pid"]: (
                p["replica"]["pid"] != pid and p["state"] == "resident" and p["rebuilds"]
            ),
            "not rebuilt",
        )
        assert after["restored"] and not after["rebuilding"]
        assert after["records_seen"] == before["records_seen"]
        before = after


def _rank_holder(served: Served, rank: int) -> int:
    """The process that holds a rank, as its file says."""
    return int((served.settings.serve.sessions_dir / ".ranks" / str(rank)).read_text().split()[1])


def _stopping() -> int:
    """Replicas of the sessions that Serve has asked to drain and that have not ended."""
    from ray import serve

    from actors.serve_app import APP

    states = serve.status().applications[APP].deployments["SessionHost"].replica_states
    return sum(count for state, count in states.items() if str(getattr(state, "value", state)) == "STOPPING")


def _wait_for_drain(seconds: float) -> None:
    """Return once replicas have been draining for so long without a break: an idle one is done sooner."""
    deadline = time.monotonic() + LIMIT_S
    since: float | None = None
    while since is None or time.monotonic() - since < seconds:
        assert time.monotonic() < deadline, "no replica was asked to drain"
        since = (since or time.monotonic()) if _stopping() else None
        time.sleep(0.1)


@pytest.mark.parametrize("ends", ["by itself", "by force"])
def test_replacement_waits_for_a_replica_that_drains_long(served: Served, ends: str) -> None:
    """While the former replica hangs in its drain nobody else has its rank or its sessions; when it has ended, by
    itself or after `serve.drain_s` by Serve's hand, the replacement takes exactly these, and not a byte differs."""
    rank, stream = 1, served.streams[1]
    idle = served.wait(stream, lambda p: p["state"] == "resident" and not p["lag"]["records"], "not read")
    read = idle["articles_read"]
    served.publish(stream, 60 if ends == "by itself" else 70, 3)
    before = served.wait(
        stream,
        lambda p: p["state"] == "resident" and p["articles_read"] >= read + 3 and not p["lag"]["records"],
        "not read",
    )
    former = before["replica"]["pid"]
    assert before["replica"]["rank"] == rank and _rank_holder(served, rank) == former
    limit = 11 if ends == "by itself" else 12
    settings = replace(served.settings.session, max_new_tokens_limit=limit)
    os.kill(former, signal.SIGSTOP)
    try:
        began = time.monotonic()
        _redeploy(served, session=settings)
        assert time.monotonic() - began < served.settings.serve.drain_s, "it waited for the drain"
        _wait_for_drain(8.0)
        hung_until = time.monotonic() + 6.0
        while time.monotonic() < hung_until:
            assert _rank_holder(served, rank) == former
            with contextlib.suppress(httpx.HTTPError), served.client() as client:
                answer = client.get(f"/v1/streams/{stream}", timeout=1.0)
                assert answer.status_code != 200, answer.json()
            time.sleep(0.2)
    finally:
        if ends == "by itself":
            with contextlib.suppress(ProcessLookupError):
                os.kill(former, signal.SIGCONT)
    after = served.wait(
        stream, lambda p: p["state"] == "resident" and p["replica"]["pid"] != former, "not back"
    )
    assert after["replica"]["rank"] == rank and _rank_holder(served, rank) == after["replica"]["pid"]
    assert after["restored"] and after["epoch"] > before["epoch"]
    assert after["digest"] == before["digest"] and after["articles_read"] == before["articles_read"]
    assert served.page(served.streams[0])["replica"]["rank"] == 0


def test_drained_service_has_saved_every_session(served: Served, tmp_path: Path) -> None:
    """Stopping Serve leaves snapshots of all that was read, and frees the port. Runs last."""
    from actors.serve_app import shutdown, status

    keys = {stream: SessionKey(TENANT, stream) for stream in served.streams}
    pages = {
        stream: served.wait(
            stream, lambda p: p["lag"]["records"] == 0 and p["state"] == "resident", "not read"
        )
        for stream in keys
    }
    assert status()["status"].endswith("RUNNING")
    assert shutdown(60)
    parts = SessionParts(
        config=served.settings.session,
        cache=served.settings.cache,
        limits=served.settings.articles,
        backbone=HfBackbone.load(served.settings.backbone),
    )
    for stream, key in keys.items():
        (path,) = served.settings.serve.sessions_dir.glob(f"*/{key.folder}")
        snapshot, problems = SnapshotFolder(path, "test").newest()
        assert snapshot is not None and problems == []
        assert Session.restore(key, parts, snapshot).digest() == pages[stream]["digest"]
    # Serve's proxy ends beside its controller: on a busy machine some seconds after it.
    deadline = time.monotonic() + 30
    while not _is_free(served.settings.serve.port) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert _is_free(served.settings.serve.port)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False
