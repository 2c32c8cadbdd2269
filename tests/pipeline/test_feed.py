"""Feeds of every kind of server, from a local HTTP server to a real topic."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.article import Article, parse_record
from pipeline.errors import BadData, DependencyUnreachable, StoppedEarly, UsageError
from pipeline.feed import FeedConfig, FeedPoller
from pipeline.feed_document import Fetched, FetchLimits, fetch, read_entries
from pipeline.html_text import html_to_text
from pipeline.kafka import KafkaConfig
from pipeline.publisher import Publisher
from tests.broker import TopicFactory
from tests.pipeline.test_publisher import read_all

RSS = """<?xml version="1.0"?><rss version="2.0"><channel><title>River &amp; Rain</title>{items}</channel></rss>"""
ITEM = """<item><guid isPermaLink="false">{number}</guid><title>Flood &lt;b&gt;{number}&lt;/b&gt;</title>
<link>http://news.example/{number}</link><pubDate>Wed, 0{number} Jan 2025 10:00:00 GMT</pubDate>
<category>weather</category><description>&lt;p&gt;The river {verb}.&lt;/p&gt;&lt;p&gt;Rain &amp;amp; wind.&lt;/p&gt;
</description></item>"""
ATOM = """<?xml version="1.0"?><feed xmlns="http://www.w3.org/2005/Atom"><title>Harbour</title>
<entry><id>urn:uuid:1</id><title>Ferry</title><link href="/ferry"/><published>2025-02-01T08:00:00Z</published>
<updated>{updated}</updated><content type="html">&lt;p&gt;{text}&lt;/p&gt;</content></entry></feed>"""

Reply = Callable[["Handler"], None]


def rss(*numbers: int, verb: str = "rose") -> bytes:
    """An RSS document of these items, newest first as feeds list them."""
    items = "".join(ITEM.format(number=number, verb=verb) for number in sorted(numbers, reverse=True))
    return RSS.format(items=items).encode()


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's `replies` say, by path."""

    server: Site

    def do_GET(self) -> None:
        """Hand the request to the reply of its path."""
        self.server.requests.append((self.path, dict(self.headers)))
        self.server.replies[self.path](self)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def answer(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        """One whole answer."""
        self.send_response(status)
        for name, value in {"Content-Type": "application/rss+xml", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Site(ThreadingHTTPServer):
    """A local web site whose pages a test sets."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: dict[str, Reply] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""

    def page(self, path: str, reply: Reply | bytes) -> str:
        """Set what a path answers; its address."""
        self.replies[path] = (lambda handler: handler.answer(reply)) if isinstance(reply, bytes) else reply
        return f"http://127.0.0.1:{self.server_port}{path}"


@pytest.fixture
def site() -> Iterator[Site]:
    """A running site."""
    server = Site()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


LIMITS = FetchLimits(timeout_s=2.0, max_bytes=1_000_000)


def poll(kafka: KafkaConfig, state: Path, *urls: str, **config: Any) -> dict[str, Any]:
    """One round with `--once`, as cron would run it."""
    with Publisher(kafka) as publisher:
        return FeedPoller(urls, publisher, FeedConfig(state=state, **config)).run(once=True)


def articles(kafka: KafkaConfig) -> list[Article]:
    """All articles on the topic, in order within a partition."""
    parsed = [parse_record(record.key, record.value, record.headers) for record in read_all(kafka)]
    return [one for one in parsed if isinstance(one, Article)]


def test_markup_becomes_the_text_that_a_reader_sees() -> None:
    """Paragraphs end lines, entities are resolved, scripts and comments go, bare signs stay."""
    assert html_to_text("<p>Rain &amp; wind<br/>fell.</p>\n<p>Then\n sun<script>x<y</script></p>") == (
        "Rain & wind\nfell.\nThen sun"
    )
    assert html_to_text("<b>bo</b>ld <!-- no --><td>1</td><td>2</td>") == "bold 1 2"
    assert html_to_text("1 < 2 & 3 > 2 &lt;p&gt;") == "1 < 2 & 3 > 2 <p>"
    assert html_to_text("<style>p{}</style>") == ""


def test_rss_entries_come_oldest_first_in_plain_text() -> None:
    """RSS 2.0: ids made unique by host, times in UTC, markup gone from titles and texts."""
    document = Fetched(
        outcome="document", body=rss(1, 2), content_type="text/xml", location="http://h.example/f"
    )

    first, second = read_entries(document, "http://h.example/f")

    assert (first.id, second.id) == ("h.example:1", "h.example:2")
    assert (first.title, first.text) == ("Flood 1", "The river rose.\nRain & wind.")
    assert (first.source, first.topics, first.url) == ("River & Rain", ("weather",), "http://news.example/1")
    assert (first.published, first.updated) == (datetime(2025, 1, 1, 10, tzinfo=UTC), None)


def test_document_is_never_taken_for_a_file_name(tmp_path: Path) -> None:
    """A server that answers with a path gets no file of ours read."""
    secret = tmp_path / "secret.xml"
    secret.write_bytes(rss(1))
    document = Fetched(
        outcome="document", body=str(secret).encode(), content_type="text/xml", location="http://h/"
    )

    with pytest.raises(ValueError, match="not a feed"):
        read_entries(document, "http://h/")


@pytest.mark.broker
def test_new_entries_are_published_once_over_restarts(
    topic: TopicFactory, site: Site, tmp_path: Path
) -> None:
    """A second run with the same state publishes what was added, and nothing again."""
    kafka = topic(partitions=1)
    url = site.page("/rss", rss(1, 2))
    first = poll(kafka, tmp_path, url)
    site.page("/rss", rss(2, 3))
    second = poll(kafka, tmp_path, url)

    assert [one.title for one in articles(kafka)] == ["Flood 1", "Flood 2", "Flood 3"]
    assert {one.stream for one in articles(kafka)} == {"river-rain"}
    assert (first["published"], first["unchanged"]) == (2, 0)
    assert (second["published"], second["unchanged"], second["updated"]) == (1, 1, 0)


@pytest.mark.broker
def test_changed_entry_is_published_again_as_a_newer_version(
    topic: TopicFactory, site: Site, tmp_path: Path
) -> None:
    """Atom's `updated` is the version; a text that changes under an old date is newer all the same."""
    kafka = topic(partitions=1)
    url = site.page("/atom", ATOM.format(updated="2025-02-01T08:00:00Z", text="It sails.").encode())
    poll(kafka, tmp_path, url)
    site.page("/atom", ATOM.format(updated="2025-02-02T08:00:00Z", text="It sails late.").encode())
    poll(kafka, tmp_path, url)
    site.page("/atom", ATOM.format(updated="2025-02-02T08:00:00Z", text="It sails not.").encode())
    figures = poll(kafka, tmp_path, url)

    versions = articles(kafka)
    assert [one.text for one in versions] == ["It sails.", "It sails late.", "It sails not."]
    assert {(one.id, one.published, one.url) for one in versions} == {
        ("urn:uuid:1", datetime(2025, 2, 1, 8, tzinfo=UTC), url.replace("/atom", "/ferry"))
    }
    assert versions[0].updated is None
    assert versions[1].updated == datetime(2025, 2, 2, 8, tzinfo=UTC)
    assert versions[2].version_ms > versions[1].version_ms
    assert (figures["published"], figures["updated"]) == (0, 1)


@pytest.mark.broker
def test_unchanged_document_is_asked_for_conditionally(
    topic: TopicFactory, site: Site, tmp_path: Path
) -> None:
    """The validators of the last document are sent, and a 304 costs nothing."""
    kafka = topic(partitions=1)

    def conditional(handler: Handler) -> None:
        if handler.headers.get("If-None-Match") == '"v1"':
            handler.send_response(304)
            handler.end_headers()
        else:
            handler.answer(rss(1), ETag='"v1"', Last_Modified="Wed, 01 Jan 2025 10:00:00 GMT")

    url = site.page("/rss", conditional)
    poll(kafka, tmp_path, url)
    figures = poll(kafka, tmp_path, url)

    assert (figures["not_modified"], figures["published"], len(articles(kafka))) == (1, 0, 1)
    assert site.requests[1][1]["If-Modified-Since"] == "Wed, 01 Jan 2025 10:00:00 GMT"


@pytest.mark.broker
def test_failing_feeds_do_not_stop_the_others(topic: TopicFactory, site: Site, tmp_path: Path) -> None:
    """Of six feeds five fail, each in its own way; the sixth is published and the errors name the five."""
    kafka = topic(partitions=1)

    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            time.sleep(0.1)

    urls = [
        site.page("/500", lambda handler: handler.answer(status=500)),
        site.page("/bad", b"<rss><channel><title>cut"),
        site.page("/slow", drip),
        site.page("/loop", lambda handler: handler.answer(status=302, Location="/loop")),
        f"http://127.0.0.1:{free_port()}/nobody",
        site.page("/good", rss(1)),
    ]
    figures = poll(kafka, tmp_path, *urls, timeout_s=1.0)

    assert [one.title for one in articles(kafka)] == ["Flood 1"]
    assert {url.rsplit("/", 1)[1] for url in figures["errors"]} == {"500", "bad", "slow", "loop", "nobody"}
    for url, said in zip(urls, ("answered 500", "not a feed", "in 1 s", "redirect", "Connect"), strict=False):
        assert said.lower() in figures["errors"][url].lower()


def free_port() -> int:
    """A port where nothing listens."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_server_that_drips_its_headers_is_left(site: Site) -> None:
    """The limit is for the whole answer: bytes that keep coming do not extend it."""

    def drip(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
        for _ in range(300):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.1)

    started = time.monotonic()
    answer = fetch(site.page("/drip", drip), None, None, FetchLimits(timeout_s=1.0, max_bytes=1_000))

    assert answer.outcome == "failed"
    assert time.monotonic() - started < 15.0


def test_compressed_document_is_bounded_after_decompression(site: Site) -> None:
    """100 MB of blanks in 100 kB of gzip are not taken in."""
    bomb = gzip.compress(b" " * 100_000_000)

    answer = fetch(site.page("/z", lambda h: h.answer(bomb, Content_Encoding="gzip")), None, None, LIMITS)

    assert answer.problem == "the document is larger than 1,000,000 bytes"


def test_redirect_is_followed_and_links_resolve_at_its_end(site: Site) -> None:
    """A moved feed is read; relative links are those of the new place."""
    atom = ATOM.format(updated="2025-02-01T08:00:00Z", text="x").encode()
    target = site.page("/new/atom", atom)
    url = site.page("/old", lambda handler: handler.answer(status=301, Location="/new/atom"))

    answer = fetch(url, None, None, LIMITS)

    assert (answer.outcome, answer.location) == ("document", target)
    assert read_entries(answer, url)[0].url == target.replace("/new/atom", "/ferry")


@pytest.mark.broker
def test_busy_server_is_not_asked_again_before_it_allows(
    topic: TopicFactory, site: Site, tmp_path: Path
) -> None:
    """429 with Retry-After: another run within that time makes no request."""
    kafka = topic(partitions=1)
    busy = site.page("/busy", lambda handler: handler.answer(status=429, Retry_After="600"))
    good = site.page("/good", rss(1))
    poll(kafka, tmp_path, busy, good)
    again = poll(kafka, tmp_path, busy, good)

    assert [path for path, _ in site.requests].count("/busy") == 1
    assert "asked again in" in again["errors"][busy]


@pytest.mark.broker
def test_running_poller_publishes_what_appears_and_stops_cleanly(
    topic: TopicFactory, site: Site, tmp_path: Path
) -> None:
    """Without --once it goes on: a later entry arrives, and a stop ends with the figures."""
    kafka = topic(partitions=1)
    url = site.page("/rss", rss(1))
    stop = threading.Event()
    publisher = Publisher(kafka)
    poller = FeedPoller([url], publisher, FeedConfig(state=tmp_path, interval_s=0.1))

    def later() -> None:
        deadline = time.monotonic() + 30
        while len(site.requests) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        site.page("/rss", rss(1, 2))
        while publisher.acked < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        stop.set()

    threading.Thread(target=later, daemon=True).start()
    with pytest.raises(StoppedEarly) as stopped:
        poller.run(stop=stop)
    publisher.close()

    assert stopped.value.figures["published"] == 2  # type: ignore[attr-defined]
    assert [one.title for one in articles(kafka)] == ["Flood 1", "Flood 2"]


@pytest.mark.broker
def test_no_readable_feed_is_an_error_of_its_kind(topic: TopicFactory, site: Site, tmp_path: Path) -> None:
    """Unreachable is a dependency, no feed is bad data, and an address that is none is wrong use."""
    kafka = topic(partitions=1)
    with pytest.raises(DependencyUnreachable, match="answered 500"):
        poll(kafka, tmp_path, site.page("/500", lambda handler: handler.answer(status=500)))
    with pytest.raises(BadData, match="not a feed"):
        poll(kafka, tmp_path, site.page("/page", b"<html><body>hello</body></html>"))
    with pytest.raises(UsageError, match="no feed address"):
        poll(kafka, tmp_path, "file:///etc/passwd")


@pytest.mark.broker
def test_entries_that_are_shown_are_never_forgotten(topic: TopicFactory, site: Site, tmp_path: Path) -> None:
    """A memory smaller than the feed still publishes each entry once."""
    kafka = topic(partitions=1)
    url = site.page("/rss", rss(1, 2, 3, 4, 5))
    for _ in range(3):
        poll(kafka, tmp_path, url, keep_seen=2)

    assert len(articles(kafka)) == 5


@pytest.mark.broker
def test_feed_command_prints_its_figures(topic: TopicFactory, site: Site, tmp_path: Path) -> None:
    """`dysra feed URL --once --json` publishes and counts."""
    kafka = topic(partitions=1)
    command = ["feed", site.page("/rss", rss(1)), "--once", "--json", "--topic", kafka.topic]
    command += ["--bootstrap-servers", kafka.bootstrap_servers, "--state", str(tmp_path), "--stream", "river"]

    ran = subprocess.run(
        [sys.executable, "-m", "infra.cli", *command], capture_output=True, text=True, timeout=60, check=False
    )

    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["published"] == 1
    assert [one.stream for one in articles(kafka)] == ["river"]
