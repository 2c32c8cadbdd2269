"""Serve among clients that stall, flood and hold on, and replicas told to end: nobody waits, nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors.keys import new_key
from infra.kafka import Broker
from tests.integration.session_served import LIMIT_S, Served, serving

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.ray, pytest.mark.timeout(900)]

PATIENCE_S = 20.0
"""How long an honest client may wait beside the others, on a crowded machine."""


@pytest.fixture(scope="module")
def served(broker: Broker, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One service for all tests of this module."""
    with serving(broker, tmp_path_factory.mktemp("strangers")) as one:
        yield one


@pytest.fixture(scope="module")
def other_key(served: Served) -> str:
    """The key of a second tenant."""
    assert served.settings.serve.keys_file is not None
    return new_key(served.settings.serve.keys_file, "neighbour")


def connect(served: Served) -> socket.socket:
    """A connection to the proxy."""
    opened = socket.create_connection(("127.0.0.1", served.settings.serve.port), timeout=60)
    opened.settimeout(60)
    return opened


def proxy_rss_bytes(served: Served) -> int:
    """Memory of the process that listens on the service's port."""
    inodes = set()
    wanted = f":{served.settings.serve.port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(wanted) and fields[3] == "0A":
            inodes.add(f"socket:[{fields[9]}]")
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            if any(os.readlink(link) in inodes for link in folder.iterdir()):
                status = (folder.parent / "status").read_text()
                (line,) = (row for row in status.splitlines() if row.startswith("VmRSS"))
                return int(line.split()[1]) * 1024
    raise AssertionError("no process listens there")


def ask_s(served: Served, key: str | None = None) -> float:
    """Seconds that an honest question takes; it must be answered."""
    began = time.monotonic()
    with served.client(key) as client:
        answer = client.post(
            f"/v1/streams/{served.streams[0]}/ask", json={"question": "Which pier 3 opened?"}
        )
    assert answer.status_code == 200, answer.text
    return time.monotonic() - began


def gone(opened: socket.socket) -> bool:
    """Whether the server has hung up."""
    opened.setblocking(False)
    try:
        return opened.recv(65_536, socket.MSG_PEEK) == b"" or gone_after(opened)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    finally:
        opened.setblocking(True)


def gone_after(opened: socket.socket) -> bool:
    """Whether it has hung up behind an answer."""
    while True:
        try:
            if opened.recv(65_536) == b"":
                return True
        except BlockingIOError:
            return False


def test_bodies_that_trickle_hold_no_place(served: Served) -> None:
    """More requests without a key than Serve takes at once, each body a byte at a time: others are answered."""
    ask_s(served)
    head = (
        f"POST /v1/streams/{served.streams[0]}/ask HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    )
    with contextlib.ExitStack() as held:
        opened = [held.enter_context(connect(served)) for _ in range(600)]
        for one in opened:
            one.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        for _ in range(3):
            for one in opened:
                with contextlib.suppress(ConnectionError):
                    one.sendall(b" ")
            assert ask_s(served) < PATIENCE_S
        deadline = time.monotonic() + 90
        while not all(gone(one) for one in opened):
            assert time.monotonic() < deadline, "bodies that do not come are waited for without end"
            time.sleep(1)


def test_idle_connections_and_heads_without_end_are_let_go(served: Served) -> None:
    """They keep nobody waiting, and are closed within a limit."""
    with contextlib.ExitStack() as held:
        opened = [held.enter_context(connect(served)) for _ in range(400)]
        for one in opened[:200]:
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        assert ask_s(served) < PATIENCE_S
        deadline = time.monotonic() + 60
        while not all(gone(one) for one in opened):
            for one in opened[:100]:
                with contextlib.suppress(ConnectionError):
                    one.sendall(b"a")
            assert time.monotonic() < deadline, "heads that do not end are waited for without end"
            time.sleep(1)


def test_a_header_without_end_takes_no_memory(served: Served) -> None:
    """It is cut off long before it has filled anything."""
    ask_s(served)
    before = proxy_rss_bytes(served)
    sent = 0
    with connect(served) as opened, contextlib.suppress(ConnectionError):
        opened.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Large: ")
        for _ in range(300):
            opened.sendall(b"a" * 1_000_000)
            sent += 1_000_000
    grown = proxy_rss_bytes(served) - before
    assert sent < 50_000_000 and grown < 50_000_000, (sent, grown)


def test_followers_of_one_tenant_leave_places_to_the_others(served: Served, other_key: str) -> None:
    """A tenant that follows events by the hundred is told 429; another is answered meanwhile."""
    stream = served.streams[0]
    request = (
        f"GET /v1/streams/{stream}/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {served.key}\r\n\r\n"
    ).encode()
    with contextlib.ExitStack() as held:
        opened = [held.enter_context(connect(served)) for _ in range(300)]
        for one in opened:
            one.sendall(request)
        heads = []
        for one in opened:
            with contextlib.suppress(OSError):
                heads.append(one.recv(20)[9:12])
        assert set(heads) == {b"200", b"429"}, {head: heads.count(head) for head in heads}
        with served.client(other_key) as client:
            began = time.monotonic()
            answer = client.post(f"/v1/streams/{stream}/ask", json={"question": "Which pier 3 opened?"})
        assert answer.status_code == 200 and time.monotonic() - began < PATIENCE_S, answer.text
    deadline = time.monotonic() + LIMIT_S
    while True:  # those that hung up leave their places
        with served.client() as client:
            if client.get(f"/v1/streams/{stream}").status_code == 200:
                break
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_deep_health_does_not_cost_questions_their_place(served: Served) -> None:
    """Strangers who ask for it by the hundred keep no tenant from its answer."""

    def deep(_: int) -> int:
        with httpx.Client(base_url=served.url, timeout=60) as client:
            return client.get("/healthz?deep=true").status_code

    with ThreadPoolExecutor(60) as threads:
        asked = threads.map(deep, range(240))
        took = [ask_s(served) for _ in range(3)]
        statuses = set(asked)
    assert max(took) < PATIENCE_S
    assert statuses <= {200, 429, 503}  # 503: a replica of a crowded machine took over 5 s


def long_answer(served: Served, stream: str, told: list[Any], begun: threading.Event) -> None:
    """Ask for a long answer and keep the kinds of its events; `None` where the connection broke."""
    body = {"question": "Which pier opened on Monday?", "stream": True, "max_new_tokens": 250}
    try:
        with (
            served.client() as client,
            client.stream("POST", f"/v1/streams/{stream}/ask", json=body) as answer,
        ):
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    told.append(line[7:])
                    begun.set()
                elif line.startswith("data: ") and told[-1] == "error":
                    told.append(json.loads(line[6:])["error"]["code"])
    except httpx.HTTPError:
        told.append(None)
    begun.set()


def test_settings_change_while_a_stream_flows_and_an_answer_is_under_way(served: Served) -> None:
    """New replicas: the answer under way ends whole; the session goes on byte for byte as an undisturbed twin."""
    from actors.serve_app import redeploy

    stream = served.streams[1]
    told: list[Any] = []
    begun = threading.Event()
    asking = threading.Thread(target=long_answer, args=(served, stream, told, begun), daemon=True)
    before = served.page(stream)
    asking.start()
    assert begun.wait(60)
    for number in range(100, 112):
        served.publish(stream, number, 1)
        if number == 103:
            redeploy(
                replace(served.settings, session=replace(served.settings.session, max_new_tokens_limit=255))
            )
    page = served.wait(
        stream,
        lambda p: (
            p["replica"]["pid"] != before["replica"]["pid"]
            and p["articles_read"] == before["articles_read"] + 12
            and p["lag"]["records"] == 0
        ),
        "not taken over",
    )
    asking.join(60)
    assert told[-1] == "done" and told.count("token") > 1, told
    assert page["restored"] and page["digest"] == served.twin_digest(stream)


def test_sigterm_of_a_replica_loses_no_record(served: Served) -> None:
    """As a node that is shut down sends it: the answer under way breaks off with a refusal or the connection, the
    session comes back with its twin's bytes, and answers."""
    stream = served.streams[1]
    before = served.wait(stream, lambda p: p["lag"]["records"] == 0 and p["state"] == "resident", "not read")
    told: list[Any] = []
    begun = threading.Event()
    asking = threading.Thread(target=long_answer, args=(served, stream, told, begun), daemon=True)
    asking.start()
    assert begun.wait(60)
    served.publish(stream, 130, 6)
    os.kill(before["replica"]["pid"], signal.SIGTERM)
    page = served.wait(
        stream,
        lambda p: (
            p["replica"]["pid"] != before["replica"]["pid"]
            and p["articles_read"] == before["articles_read"] + 6
            and p["lag"]["records"] == 0
        ),
        "did not come back",
    )
    asking.join(60)
    assert not asking.is_alive() and told[-1] in ("done", None, 503, 500), told
    assert page["digest"] == served.twin_digest(stream)
    with served.client() as client:
        again = client.post(f"/v1/streams/{stream}/ask", json={"question": "Which pier 3 opened?"})
    assert again.status_code == 200


def test_a_drain_does_not_cut_an_answer_that_takes_its_time(served: Served) -> None:
    """An answer that needs half of its limit while its replica is replaced ends whole, and the session is saved."""
    from actors.serve_app import redeploy

    stream = served.streams[1]
    before = served.wait(stream, lambda p: p["lag"]["records"] == 0 and p["state"] == "resident", "not read")
    pid = before["replica"]["pid"]
    told: list[Any] = []
    begun = threading.Event()
    asking = threading.Thread(target=long_answer, args=(served, stream, told, begun), daemon=True)
    asking.start()
    assert begun.wait(60)
    os.kill(pid, signal.SIGSTOP)
    try:
        redeploy(replace(served.settings, session=replace(served.settings.session, max_new_tokens_limit=254)))
        time.sleep(served.settings.serve.answer_timeout_s / 2)
    finally:
        os.kill(pid, signal.SIGCONT)
    asking.join(60)
    assert told[-1] == "done" and told.count("token") > 1, told
    page = served.wait(
        stream,
        lambda p: p["replica"]["pid"] != pid and p["state"] == "resident",
        "not taken over",
    )
    assert page["restored"] and page["digest"] == before["digest"]


def follow(served: Served, stream: str, told: list[str], begun: threading.Event) -> None:
    """Follow a stream's events to their end; the last word tells whether the server ended them or a break."""
    try:
        with (
            served.client() as client,
            client.stream("GET", f"/v1/streams/{stream}/events") as followed,
        ):
            for line in followed.iter_lines():
                told.append(line)
                begun.set()
        told.append("ended")
    except httpx.HTTPError as error:
        told.append(repr(error))
    begun.set()


def test_an_answer_under_way_ends_before_the_service_does(served: Served) -> None:
    """As `dysra serve` stops on SIGTERM: what was begun is answered whole, who follows events is let go of and
    keeps nobody waiting, who comes then is refused. Runs last."""
    from actors.serve_app import shutdown

    stream = served.streams[0]
    served.wait(stream, lambda p: p["state"] == "resident" and not p["lag"]["records"], "not read")
    told: list[Any] = []
    begun = threading.Event()
    asking = threading.Thread(target=long_answer, args=(served, stream, told, begun), daemon=True)
    heard: list[str] = []
    following = threading.Event()
    follower = threading.Thread(target=follow, args=(served, stream, heard, following), daemon=True)
    follower.start()
    assert following.wait(60)
    asking.start()
    assert begun.wait(60)
    assert shutdown(90)
    asking.join(30)
    assert told[-1] == "done", told
    follower.join(30)
    assert heard[-1] == "ended", heard[-1]
    with pytest.raises(httpx.HTTPError):
        served.page(stream)
