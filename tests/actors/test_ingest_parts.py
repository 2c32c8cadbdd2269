"""The parts of ingest without Ray: micro-batches, delays, retries, records to batches."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.delays import Delays
from actors.embedder import MicroBatcher
from actors.ingest import Ingester
from actors.ingest_config import IngestConfig
from actors.ingest_prepare import Preparer
from actors.ingest_spec import Assignment, IngestSpec
from actors.near_duplicates import Verdicts
from actors.remote import Stopped, persist, store_name, take
from models.embed import load_tokenizer
from pipeline.article import Article
from pipeline.chunker import ChunkConfig
from pipeline.errors import DependencyUnreachable
from pipeline.kafka import KafkaConfig
from pipeline.near_duplicates import Match
from pipeline.placement import shard_of
from pipeline.source import Record
from pipeline.store import StoreConfig


class LengthEmbedder:
    """Embeds a text as its length; notes each batch, and waits for `gate` before each."""

    identity, dim, max_tokens, batch_texts = "length", 1, 100, 4

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Semaphore(1_000)
        self.entered = threading.Event()

    def encode(self, texts: Sequence[str]) -> Any:
        self.entered.set()
        assert self.gate.acquire(timeout=10)
        self.batches.append(list(texts))
        return np.asarray([[len(text)] for text in texts], dtype=np.float32)


@pytest.fixture
def batcher() -> Any:
    """A batcher over the embedder of lengths."""
    made = MicroBatcher(LengthEmbedder())  # type: ignore[arg-type]
    yield made
    made.close()


def _embedder(batcher: MicroBatcher) -> LengthEmbedder:
    return batcher._embedder  # type: ignore[return-value]


def test_concurrent_requests_each_get_their_own_vectors(batcher: MicroBatcher) -> None:
    """Whatever batches form, every caller gets its rows in its order."""
    results: dict[int, list[float]] = {}

    def ask(number: int) -> None:
        texts = ["x" * (number + step) for step in (9, 1, 5)]
        results[number] = batcher.encode(texts)[:, 0].tolist()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert results == {n: [n + 9, n + 1, n + 5] for n in range(20)}


def test_batches_hold_texts_of_like_length(batcher: MicroBatcher) -> None:
    """A window of waiting texts is sorted by length before it is cut into batches."""
    embedder = _embedder(batcher)
    embedder.gate = threading.Semaphore(0)
    lengths = [1, 50, 2, 60, 3, 70, 4, 80]
    thread = threading.Thread(target=lambda: batcher.encode(["x" * length for length in lengths]))
    thread.start()
    embedder.gate.release(2)
    thread.join(timeout=10)
    assert [sorted(map(len, batch)) for batch in embedder.batches] == [[50, 60, 70, 80], [1, 2, 3, 4]]


def test_nothing_is_embedded_for_a_caller_who_waits_no_longer(
    batcher: MicroBatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told after its time, and what it left behind costs nobody anything."""
    monkeypatch.setattr("actors.embedder._REQUEST_LIMIT_S", 0.1)
    embedder = _embedder(batcher)
    embedder.gate = threading.Semaphore(0)
    for texts in (["first"], ["left"] * 12):
        with pytest.raises(TimeoutError):
            batcher.encode(texts)
        assert embedder.entered.wait(timeout=10)
    monkeypatch.setattr("actors.embedder._REQUEST_LIMIT_S", 10.0)
    embedder.gate.release(1_000)
    assert batcher.encode(["next"])[0, 0] == 4
    assert embedder.batches == [["first"], ["next"]]


def test_question_overtakes_waiting_articles(batcher: MicroBatcher) -> None:
    """An urgent request is embedded after the batch at hand, not after all that wait."""
    embedder = _embedder(batcher)
    embedder.gate = threading.Semaphore(0)
    slow = threading.Thread(target=lambda: batcher.encode(["article"] * 12))
    slow.start()
    assert embedder.entered.wait(timeout=10)
    urgent = threading.Thread(target=lambda: batcher.encode(["question"], urgent=True))
    urgent.start()
    deadline = time.monotonic() + 10
    while not batcher._urgent and time.monotonic() < deadline:
        time.sleep(0.01)
    embedder.gate.release(4)
    slow.join(timeout=10)
    urgent.join(timeout=10)
    assert ["question"] in embedder.batches
    assert embedder.batches.index(["question"]) == 1


def test_embedder_error_reaches_every_caller_of_its_batch() -> None:
    """A failure is the caller's to see, and the batcher goes on."""

    class Failing(LengthEmbedder):
        def encode(self, texts: Sequence[str]) -> Any:
            if "bad" in texts:
                raise RuntimeError("out of memory")
            return super().encode(texts)

    batcher = MicroBatcher(Failing())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="out of memory"):
        batcher.encode(["bad"])
    assert batcher.encode(["fine"]).tolist() == [[4.0]]
    batcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        batcher.encode(["late"])


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=200), st.sampled_from([0.5, 0.99]))
def test_percentile_lies_within_a_bucket_of_the_true_one(delays: list[float], share: float) -> None:
    """A percentile is at most 5% off the sorted list's own."""
    histogram = Delays()
    for delay in delays:
        histogram.add(delay)
    exact = sorted(delays)[int(np.ceil(share * len(delays))) - 1]
    assert histogram.percentile(share) == pytest.approx(exact, rel=0.06, abs=0.1)


def test_merged_delays_count_both() -> None:
    """Two histograms merge to that of all delays; an empty one has no percentile."""
    one, two = Delays(), Delays()
    one.add(10)
    two.add(1_000)
    one.merge(two.counts)
    assert sum(one.counts.values()) == 2
    assert Delays().to_dict() == {"p50": None, "p99": None}


def _persist(attempt: Callable[[], Any], *, limit_s: float = 5.0, stopped: bool = False) -> Any:
    return persist(attempt, "the part", first_s=0.001, max_s=0.002, limit_s=limit_s, stopped=lambda: stopped)


def test_outage_is_retried_until_it_ends() -> None:
    """Connection errors are tried again; the result comes out in the end."""
    failures = [ConnectionError("down"), DependencyUnreachable("down")]

    def attempt() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert _persist(attempt) == "done"


def test_other_errors_are_not_retried() -> None:
    """What a retry cannot mend is raised at once."""
    calls: list[int] = []

    def attempt() -> None:
        calls.append(1)
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        _persist(attempt)
    assert len(calls) == 1


def test_endless_outage_ends_with_a_limit() -> None:
    """After the limit the part that does not answer is named."""

    def attempt() -> None:
        raise ConnectionError("refused")

    with pytest.raises(DependencyUnreachable, match="the part has not answered"):
        _persist(attempt, limit_s=0.01)
    with pytest.raises(Stopped):
        _persist(attempt, stopped=True)


@given(st.text(min_size=1), st.integers(1, 12))
def test_placement_moves_only_to_the_new_shard(key: str, num_shards: int) -> None:
    """With one shard more a key stays where it was or goes to the new one."""
    assert shard_of(key, num_shards + 1) in (shard_of(key, num_shards), num_shards)


def test_placement_is_even() -> None:
    """Four shards share 4,000 keys within a tenth."""
    counts = np.bincount([shard_of(f"article-{number}", 4) for number in range(4_000)])
    assert counts.min() > 900
    assert counts.max() < 1_100


def test_store_name_follows_the_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two spellings of one folder are one store; another folder is another."""
    monkeypatch.chdir(tmp_path)
    assert store_name(Path("store")) == store_name(tmp_path / "store")
    assert store_name(Path("store")) != store_name(tmp_path / "deep" / "store")


@pytest.mark.parametrize("fields", [{"num_ingesters": 0}, {"resume_at": 1.0}, {"commit_interval_s": 0}])
def test_wrong_ingest_configuration_is_named(fields: dict[str, float]) -> None:
    """The message names the field and the value given."""
    name, value = next(iter(fields.items()))
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        IngestConfig(**fields)  # type: ignore[arg-type]


class _Letters:
    """Stands in for the dead-letter topic, which needs a broker."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, str]] = []

    def send_many(self, letters: list[tuple[Record, str, str]]) -> int:
        self.sent += [(record.offset, reason) for record, reason, _ in letters]
        return len(letters)


def _record(offset: int, value: bytes | None, key: bytes = b"k", partition: int = 0) -> Record:
    return Record("news", partition, offset, 1_700_000_000_000, key, value, ())


def _value(article_id: str, text: str = "Rain fell on the harbour.") -> bytes:
    return Article(
        id=article_id, published=datetime(2024, 1, 1, tzinfo=UTC), source="s", title="t", text=text
    ).to_json()


def _preparer(
    tmp_path: Path,
    seen: dict[str, int] | None = None,
    matches: dict[str, Match] | None = None,
    durable: int = 0,
) -> tuple[Preparer, _Letters]:
    spec = IngestSpec(
        kafka=KafkaConfig(),
        store=StoreConfig(path=tmp_path),
        chunks=ChunkConfig(max_tokens=32, max_title_tokens=4),
    )
    assignment = Assignment(ingester=0, epoch=1, offsets={0: 0}, durable=({0: durable},))
    preparer = Preparer(
        spec,
        assignment,
        load_tokenizer("minilm"),
        seen=lambda ids: {name: version for name, version in (seen or {}).items() if name in ids},
        judge=lambda entries: Verdicts(
            1, [(matches or {}).get(e if isinstance(e, str) else e.article_id) for e in entries]
        ),
        persist=lambda attempt, what: attempt(),
    )
    letters = _Letters()
    preparer._dead_letters = letters  # type: ignore[assignment]
    return preparer, letters


def test_every_record_becomes_one_item_in_order(tmp_path: Path) -> None:
    """Articles, deletions and bad records keep their order, and each has one fate."""
    preparer, letters = _preparer(tmp_path, matches={"b": Match("a", 0.9, True)})
    records = [
        _record(0, _value("a")),
        _record(1, b"not json"),
        _record(2, None, key=b"gone"),
        _record(3, _value("b")),
        _record(4, None, key=b""),
    ]
    (batch,) = preparer.batches(records, lambda: 1_000)
    assert [item.record.offset for item in batch.items] == [0, 1, 2, 3, 4]
    assert [item.reason for item in batch.items] == ["", "not_json", "", "", "no_key"]
    assert [item.delete_id for item in batch.items] == [None, None, "gone", None, None]
    assert batch.items[3].canonical_id == "a"
    assert batch.texts() == ["t\nRain fell on the harbour."]
    assert batch.through == {0: 5}
    assert letters.sent == [(1, "not_json"), (4, "no_key")]


def test_polls_that_wait_are_taken_together_in_order() -> None:
    """Records behind one another make one list, at most so many; a gap and the end keep their place."""
    ingester = object.__new__(Ingester)
    ingester._polled, ingester._held, ingester._abandon = queue.SimpleQueue(), None, threading.Event()
    many = [_record(n, b"") for n in range(5_000)]
    parts: list[Any] = [many[:2], many[2:3], {0: 7}, many[3:4], many[4:3_000], many[3_000:], None]
    for part in parts:
        ingester._polled.put(part)
    taken = [ingester._next_polled() for _ in range(5)]
    assert taken == [many[:3], {0: 7}, many[3:3_000], many[3_000:], None]


def test_a_thread_that_waits_for_the_one_before_ends_when_nobody_wants_more() -> None:
    """What is there is taken first; then, where nothing ever comes, the wait ends once the ingester is given up."""
    given_up, waiting = threading.Event(), queue.SimpleQueue[str]()
    given_up.set()
    waiting.put("last")
    assert take(waiting, given_up.is_set) == "last"
    given_up.clear()
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()

    def wait() -> None:
        try:
            ended.put(take(waiting, given_up.is_set))
        except Stopped as error:
            ended.put(str(error))

    threading.Thread(target=wait, daemon=True).start()
    given_up.set()
    assert ended.get(timeout=30) == "what the thread before hands on"


def test_a_stop_gives_up_threads_that_a_hanging_poll_would_keep() -> None:
    """The thread that polls does not end; those behind it do."""
    ingester = object.__new__(Ingester)
    ingester._config = IngestConfig(stop_grace_s=0.01)
    ingester._stopping, ingester._abandon = threading.Event(), threading.Event()
    ingester._ended = SimpleNamespace(wait=lambda timeout: False)  # type: ignore[assignment]
    ingester.figures = lambda: {"ended": False}  # type: ignore[method-assign]
    ingester._polled, ingester._held = queue.SimpleQueue(), None
    assert ingester.stop() == {"ended": False}
    assert ingester._abandon.is_set()
    with pytest.raises(Stopped):
        ingester._next_polled()


def test_batches_are_cut_by_chunks(tmp_path: Path) -> None:
    """A long article fills a batch, short ones share one; the offsets follow."""
    preparer, _ = _preparer(tmp_path)
    records = [_record(n, _value(f"a{n}", "Rain fell. " * (40 if n == 0 else 1))) for n in range(6)]
    batches = list(preparer.batches(records, lambda: 4))
    assert [[item.record.offset for item in batch.items] for batch in batches] == [[0], [1, 2, 3, 4], [5]]
    assert [batch.through[0] for batch in batches] == [1, 5, 6]


def test_version_seen_before_is_not_embedded_again(tmp_path: Path) -> None:
    """The same or an older version goes through without texts; a newer one with them."""
    version = 1_704_067_200_000
    preparer, _ = _preparer(tmp_path, seen={"same": version, "newer": version - 1})
    (batch,) = preparer.batches([_record(0, _value("same")), _record(1, _value("newer"))], lambda: 100)
    assert [bool(item.texts) for item in batch.items] == [False, True]
    assert batch.items[1].fingerprint is not None
    assert batch.items[1].fingerprint.known


def test_record_that_its_shard_has_is_passed_over(tmp_path: Path) -> None:
    """Read again for another shard's sake, a record is neither embedded nor dead-lettered twice."""
    preparer, letters = _preparer(tmp_path, durable=2)
    (batch,) = preparer.batches(
        [_record(0, b"bad"), _record(1, _value("a")), _record(2, b"bad")], lambda: 100
    )
    assert [item.done for item in batch.items] == [True, True, False]
    assert batch.texts() == []
    assert letters.sent == [(2, "not_json")]


def test_article_that_would_need_too_many_chunks_is_a_dead_letter(tmp_path: Path) -> None:
    """The bound on chunks has the clear outcome `too_long`."""
    preparer, letters = _preparer(tmp_path)
    preparer._spec = IngestSpec(
        kafka=KafkaConfig(), store=StoreConfig(path=tmp_path), chunks=ChunkConfig(max_chunks=2)
    )
    list(preparer.batches([_record(0, _value("a", "Rain fell on the harbour. " * 200))], lambda: 100))
    assert letters.sent == [(0, "too_long")]


def test_record_that_could_not_be_unpacked_says_so(tmp_path: Path) -> None:
    """It has neither key nor value, and is no withdrawal and no bad JSON: the letter's reason is why."""
    preparer, letters = _preparer(tmp_path)
    lost = Record("news", 0, 1, 1_700_000_000_000, None, b"", (), "its batch unpacks to more than 1,000")
    (batch,) = preparer.batches([_record(0, _value("a")), lost], lambda: 100)
    assert [item.reason for item in batch.items] == ["", "unreadable"]
    assert batch.items[1].detail == lost.unreadable
    assert letters.sent == [(1, "unreadable")]
