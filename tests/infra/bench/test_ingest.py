"""The ingest bench: what it refuses, how a row is made, and whose processor time it counts."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from infra.bench import ingest
from infra.bench.local import _part, cpu_by_part, cpu_spent
from pipeline.errors import UsageError


def test_more_ingesters_than_partitions_are_refused() -> None:
    """Some would read nothing; the message says what to set."""
    with pytest.raises(UsageError, match="set partitions to at least 8"):
        ingest.run(articles=10, ingesters=8, partitions=4)


def test_other_divisions_of_the_cores_are_read_from_their_names() -> None:
    """Each has a row of its own; one that cannot be read, or wants more partitions than there are, is refused."""
    assert ingest._shapes("") == {}
    assert ingest._shapes("12x14x4, 10x8x2") == {"ingest 12x14x4": (12, 14, 4), "ingest 10x8x2": (10, 8, 2)}
    for wrong in ("12x14", "12x14x0", "12xax4", "12x14x4,"):
        with pytest.raises(UsageError, match="such as 12x14x4"):
            ingest._shapes(wrong)
    with pytest.raises(UsageError, match="set partitions to at least 12"):
        ingest.run(articles=10, shapes="12x14x4")


def test_row_tells_rates_cores_and_processor_time_apart_from_the_brokers() -> None:
    """Medians of the runs, each figure for one record."""
    done = [
        {"seconds": seconds, "cpu_s": 2 * seconds, "broker_s": 0.1, "parts": {"shards": seconds}}
        for seconds in (1.0, 2.0, 4.0)
    ]
    row = ingest._row(done, 1_000, 15.2)
    assert row == {
        "records": 1_000,
        "mean_bytes": 15,
        "records_per_s": 500,
        "lowest_per_s": 250,
        "highest_per_s": 1_000,
        "cpu_us_per_record": 4_000,
        "broker_us_per_record": 100,
        "cores": 2.0,
        "repeats": 3,
    }
    assert ingest._by_part(done, 1_000) == {"shards_us": 2_000.0}


def test_processor_time_is_counted_by_what_a_process_does() -> None:
    """A child named as an actor counts as that part, and this process as the bench."""
    program = (
        "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\ntime.sleep(60)"
    )
    child = subprocess.Popen(["ray::Ingester.figures", "-c", program], executable=sys.executable)
    try:
        deadline = time.monotonic() + 30
        while cpu_by_part().get("ingesters", 0.0) < 0.25 and time.monotonic() < deadline:
            time.sleep(0.05)
        parts = cpu_by_part()
    finally:
        child.kill()
        child.wait()
    assert parts["ingesters"] >= 0.25
    assert parts["bench"] > 0


@pytest.mark.parametrize(
    ("title", "part"),
    [
        ("ray::Ingester", "ingesters"),
        ("ray::Ingester.figures", "ingesters"),
        ("ray::store-store-2-ee80e48e:shard:0:ShardActor.append", "shards"),
        ("ray::store-store-2-ee80e48e:near-duplicates:NearDuplicateActor", "near_duplicates"),
        ("ray::EmbedderActor", "other_actors"),
        ("java", "broker"),
        ("raylet", "ray"),
    ],
)
def test_an_actors_process_is_known_by_its_class(title: str, part: str) -> None:
    """Whether it has a name, and in whichever method it is."""
    assert _part(title) == part


def test_what_a_process_spent_counts_as_what_it_became() -> None:
    """A worker that waited for an actor and became it counts as that actor, without what it spent before."""
    before = {1: ("bench", 2.0), 2: ("other_actors", 3.0)}
    after = {1: ("bench", 2.5), 2: ("ingesters", 7.0), 3: ("shards", 1.0)}
    assert cpu_spent(before, after) == {"bench": 0.5, "ingesters": 4.0, "shards": 1.0}
