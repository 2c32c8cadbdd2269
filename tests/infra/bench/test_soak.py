"""The soak's parts: who a process is, what rises, and articles as of now in order."""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import orjson
import pytest

from infra.bench import soak, soak_feed, soak_trace
from pipeline.article import isoformat
from pipeline.errors import UsageError


@pytest.mark.parametrize(
    ("command", "role"),
    [
        (["/usr/bin/java", "-Xmx512m", "kafka.Kafka"], "java"),
        (["/x/ray/core/src/ray/raylet/raylet", "--java_worker_command=java"], "raylet"),
        (["ray::ShardActor.candidates"], "ShardActor"),
        (["ray::IDLE"], None),
        ([], None),
    ],
)
def test_processes_are_named_by_what_they_are(command: list[str], role: str | None) -> None:
    """A raylet, whose arguments name java, is no broker."""
    assert soak._role(command) == role


def test_a_rise_is_told_over_what_follows_warm_up() -> None:
    """Growth in the first quarter is none, nor is growth within the seconds that a run calls warm-up; steady growth
    after it is."""
    settled = [(float(t), 100.0 + min(t, 20) * 10) for t in range(100)]
    rising = [(float(t), 100.0 + t) for t in range(100)]

    assert soak.rise(soak.warm(settled, 0.0)) == pytest.approx(0.0, abs=1e-9)
    assert soak.rise(soak.warm(settled, 10.0)) > 0.01
    assert soak.rise(soak.warm(rising, 0.0)) == pytest.approx(74 / 162, rel=0.01)


@pytest.mark.parametrize(
    ("grown", "flat"),
    [
        (lambda t: 0.05 * t, True),
        (lambda t: 0.12 * t, False),  # by more than a tenth
        (lambda t: max(0.0, t - 0.5) * 0.14, False),  # by less than a tenth, all of it of late
        (lambda t: min(t, 0.4) * 0.45, False),
        (lambda t: min(t, 0.4) * 0.2, True),  # filled, and stayed so
    ],
)
def test_flat_is_a_small_rise_that_has_ended(grown: Callable[[float], float], flat: bool) -> None:
    """A line that rises by a tenth, or by a twentieth in the latter half, is not flat."""
    samples = [(float(t), 1e8 * (1.0 + grown(t / 1_000))) for t in range(1_000)]
    assert soak.judged(samples)["flat"] is flat


def test_quarters_are_medians_of_equal_times() -> None:
    """Samples that come more densely at first do not shift them."""
    samples = [(t / 10, 1e6) for t in range(100)] + [(10.0 + t, 2e6 + 1e6 * (t // 10)) for t in range(1, 31)]
    assert soak.quarters(samples) == "1 / 2 / 3 / 4"


def test_memory_of_its_own_is_told_from_pages_of_files() -> None:
    """A mapped file that was read counts as pages of files, what was written to as one's own."""
    before = soak.Memory.of(os.getpid())
    # mapped by itself: what the allocator still holds from other tests would be no growth
    with mmap.mmap(-1, 48 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(b"x" * len(held))
        after = soak.Memory.of(os.getpid())
    assert after.anonymous - before.anonymous > 40 << 20
    assert after.files - before.files < 8 << 20


def test_a_process_that_only_maps_more_files_is_flat() -> None:
    """The row tells both apart; one that ended during warm-up has none."""
    samples = [(float(t), soak.Memory(10_000_000, t * 100_000, 5_000_000)) for t in range(100)]
    row = soak.memory_row("Ingester 7", samples, 20.0)
    assert row is not None and row["flat"] and row["rise"] == 0.0 and row["resident_rise"] > 0.1
    assert row["anonymous_mb"] == "10 / 10 / 10 / 10" and row["shared_mb"] == "5 / 5 / 5 / 5"
    assert soak.memory_row("Ingester 8", samples[:15], 0.0) is None


def test_growth_is_told_for_each_article_that_was_read() -> None:
    """A shard that keeps 370 bytes of each article: what the rule's shares of a size do not say."""
    read = [(float(t), 1_500.0 * t) for t in range(0, 400, 5)]
    samples = [(float(t), 450e6 + 370.0 * 1_500 * t + 1e6 * (-1) ** t) for t in range(100, 300)]
    assert soak_trace.bytes_an_article(samples, read) == pytest.approx(370, rel=0.01)
    assert math.isnan(soak_trace.bytes_an_article(samples, []))
    assert math.isnan(soak_trace.bytes_an_article(samples[:7], read))


def test_the_course_is_kept_as_medians_of_five_seconds() -> None:
    """One moment's peak is left out; seconds without samples have no entry."""
    samples = [(float(t), 9e6 if t == 2 else 1e6) for t in range(5)] + [(10.0, 3e6)]
    assert soak_trace.trace(samples) == [[2.5, 1.0], [12.5, 3.0]]


def test_the_count_of_articles_is_kept_every_five_seconds() -> None:
    """The last count of each; a stretch in which nobody looked has none."""
    assert soak_trace.counted([(0.5, 0), (4.9, 70), (5.0, 80), (16.0, 90)]) == [
        [5.0, 70],
        [10.0, 80],
        [20.0, 90],
    ]


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    """Both are named."""
    with pytest.raises(UsageError, match="warm_s is 60 and seconds 60"):
        soak.run(seconds=60, warm_s=60)


def test_articles_are_published_as_of_now_out_of_several_wires(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bears the time at which it was taken, so that what is kept is steady; no wire's ids meet another's."""
    monkeypatch.setattr(soak_feed, "ROUND", 50)
    begun = isoformat(datetime.now(UTC))
    records = list(soak_feed.fresh(120))

    times = [orjson.loads(value or b"")["published"] for _, value, _ in records]
    assert len(records) == 120
    assert times == sorted(times) and begun <= times[0] <= times[-1] <= isoformat(datetime.now(UTC))
    assert {key.split(b"-")[0] for key, _, _ in records} == {b"0", b"1", b"2"}
    assert all(orjson.loads(value or b"")["id"].encode() == key for key, value, _ in records)


def test_producers_share_the_rounds_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three producers publish as many articles as one, and no two share an id or a stream."""
    monkeypatch.setattr(soak_feed, "ROUND", 20)
    parts = [list(soak_feed.fresh(110, producer, 3)) for producer in range(3)]

    assert [len(part) for part in parts] == [40, 40, 30]
    ids = [{key for key, _, _ in part} for part in parts]
    assert len(set.union(*ids)) == sum(map(len, ids))
    for number, part in enumerate(parts):
        assert all(stream.endswith(f"-{number}") for _, _, stream in part)
        assert all(orjson.loads(value or b"")["stream"] == stream for _, value, stream in part)


def test_publishing_waits_for_reading_and_ends_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the allowed number is ahead of what was read; all that was given out is counted."""
    monkeypatch.setattr(soak_feed, "_LOOK", 10)
    context = multiprocessing.get_context("spawn")
    published, read, over = context.Value("q", 0), context.Value("q", 0), context.Event()
    record = (b"key", b"{}", "wire")
    given: list[int] = []

    def take() -> None:
        given.append(sum(1 for _ in soak_feed._paced([record] * 500, published, read, over, 100)))

    thread = threading.Thread(target=take)
    thread.start()
    deadline = time.monotonic() + 20
    while published.value < 110 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert published.value == 110 and not given
    read.value = 50
    while published.value < 160 and time.monotonic() < deadline:
        time.sleep(0.01)
    over.set()
    thread.join(timeout=20)
    assert given == [published.value] == [160]
