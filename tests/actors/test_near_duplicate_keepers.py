"""The near-duplicate index divided over several actors judges as one does, over moves, retries and restarts."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError

from actors import near_duplicate_keepers, store_watch
from actors.ingest_config import IngestConfig
from actors.near_duplicate_keepers import Entry, Keepers
from actors.near_duplicates import Asker, NearDuplicateActor, near_duplicates_name
from actors.store_watch import Restarts, StoreWatch
from pipeline.article import Article
from pipeline.errors import UsageError
from pipeline.near_duplicates import Fingerprint, Fingerprinter, NearDuplicateConfig
from pipeline.placement import shard_of
from pipeline.store import StaleEpoch

CONFIG = NearDuplicateConfig()
PRINTS = Fingerprinter(CONFIG)
START = datetime(2024, 5, 1, tzinfo=UTC)


def _print(article_id: str, seed: int, stream: str, minute: int = 0, *, known: bool = False) -> Fingerprint:
    words = random.Random(seed).choices([f"word{number}" for number in range(500)], k=60)
    article = Article(
        id=article_id, published=START + timedelta(minutes=minute), source="s", title="", text=" ".join(words),
        stream=stream,
    )  # fmt: skip
    return PRINTS.fingerprint(article)._replace(known=known)


class _Store:
    """A store without Ray: its keepers are objects, and a call runs when it is made."""

    name = "store"

    def __init__(self, count: int, rows: list[Fingerprint] | None = None) -> None:
        self.count = count
        self.rows = rows or []
        self.calls: list[tuple[int, str]] = []
        self.lost: set[int] = set()
        self.restarts: dict[int, int] = {}
        """Keepers to make anew, by the number of calls before."""
        self.forgot = 0
        self.keepers = [self.keeper(index) for index in range(count)]

    def keeper(self, index: int) -> NearDuplicateActor:
        rows = self.rows

        class Actor(NearDuplicateActor):
            def _ask(self, shard: int, method: str, *args: Any) -> Any:
                if method == "stats":
                    return {"newest_ms": 0, "live_articles": len(rows)}
                if method == "signatures":
                    _, keeper, num_keepers = args
                    return [row[:4] for row in rows if shard_of(row.stream, num_keepers) == keeper]
                return [None for _ in args[0]]

        return Actor(CONFIG, ["shard"], index, self.count)

    def handle(self, name: str) -> Any:
        index = [near_duplicates_name(self.name, at) for at in range(self.count)].index(name)

        def method(called: str) -> Any:
            def remote(*args: Any) -> Any:
                if (again := self.restarts.pop(len(self.calls), None)) is not None:
                    self.keepers[again] = self.keeper(again)
                self.calls.append((index, called))
                if index in self.lost:
                    self.lost.discard(index)
                    return GetTimeoutError("gone")
                return getattr(self.keepers[index], called)(*args)

            return SimpleNamespace(remote=remote)

        return SimpleNamespace(**{name: method(name) for name in ("judge", "remember", "adopt")})

    def forget_handles(self) -> None:
        self.forgot += 1


@pytest.fixture(autouse=True)
def _calls_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(ref: Any, timeout_s: float) -> Any:
        if isinstance(ref, Exception):
            raise ref
        return ref

    monkeypatch.setattr(near_duplicate_keepers, "call", call)


def _persist(attempt: Any, what: str) -> Any:
    for _ in range(5):
        try:
            return attempt()
        except GetTimeoutError:
            continue
    raise AssertionError(what)


def _keepers(store: _Store, under_way: list[Entry] | None = None, epoch: int = 1) -> Keepers:
    asker = Asker("news", (0,), epoch)
    return Keepers(store, store.count, asker, _persist, lambda: list(under_way or []))  # type: ignore[arg-type]


def _plan(seed: int, length: int = 120) -> list[Entry]:
    """Articles of few texts over many streams: copies, updates, moves between streams, withdrawals."""
    chance = random.Random(seed)
    plan: list[Entry] = []
    stored: set[str] = set()
    for minute in range(length):
        kind = chance.random()
        if stored and kind < 0.1:
            plan.append(gone := chance.choice(sorted(stored)))
            stored.discard(gone)
            continue
        again = bool(stored) and kind < 0.3
        article_id = chance.choice(sorted(stored)) if again else f"a{minute}"
        known = again and chance.random() < 0.5  # the others are still under way
        plan.append(
            _print(article_id, chance.randrange(12), f"stream-{chance.randrange(6)}", minute, known=known)
        )
        stored.add(article_id)
    return plan


def _links(store: _Store, plan: list[Entry], batch: int) -> list[str | None]:
    keepers = _keepers(store)
    links: list[str | None] = []
    for begin in range(0, len(plan), batch):
        verdicts = keepers.judge(plan[begin : begin + batch])
        assert verdicts.matches is not None
        links += [match.canonical_id if match else None for match in verdicts.matches]
    return links


@pytest.mark.parametrize("seed", range(8))
def test_several_keepers_link_as_one_does(seed: int) -> None:
    """The same articles in the same order give the same links, however the index and the calls are divided."""
    plan = _plan(seed)
    alone = _links(_Store(1), plan, 17)
    assert any(alone)
    assert _links(_Store(3), plan, 17) == alone
    assert _links(_Store(5), plan, 40) == alone


def test_every_keeper_has_its_share_and_is_asked_for_it_alone() -> None:
    """Streams are spread, no article is kept twice, and an article is judged by one keeper."""
    store = _Store(4)
    articles: list[Entry] = [_print(f"a{n}", n, f"stream-{n}") for n in range(80)]
    _keepers(store).judge(articles)
    sizes = [keeper.stats()["articles"] for keeper in store.keepers]
    assert sum(sizes) == 80
    assert min(sizes) > 5


def test_keepers_are_made_from_the_store_whatever_their_number_was() -> None:
    """What the shards hold is divided anew at a start: copies of it are linked, each by its own keeper."""
    rows = [_print(f"a{n}", n, f"stream-{n % 7}", n) for n in range(30)]
    copies: list[Entry] = [_print(f"copy{n}", n, f"stream-{n % 7}", 60 + n) for n in range(30)]
    for count in (1, 2, 6):
        store = _Store(count, rows)
        assert sum(keeper.stats()["articles"] for keeper in store.keepers) == 30
        assert _links(store, copies, 30) == [f"a{n}" for n in range(30)]


def test_a_keeper_that_does_not_answer_is_asked_again_alone() -> None:
    """The verdicts of those that answered stay; handles are looked up anew."""
    store = _Store(3)
    keepers = _keepers(store)
    keepers.judge([_print("first", 0, "stream-0")])
    store.calls.clear()
    articles: list[Entry] = [_print(f"a{n}", n + 1, f"stream-{n}") for n in range(12)]
    keepers.judge(articles)
    lost = store.calls[0][0]
    store.calls.clear()
    store.lost = {lost}
    copies: list[Entry] = [_print(f"copy{n}", n + 1, f"stream-{n}", 5) for n in range(12)]
    verdicts = keepers.judge(copies)
    assert [match.canonical_id if match else None for match in verdicts.matches or []] == [
        f"a{n}" for n in range(12)
    ]
    judged = [index for index, called in store.calls if called == "judge"]
    assert store.forgot == 1
    assert judged.count(lost) == 2
    assert len(judged) == len(set(judged)) + 1


def test_a_keeper_that_was_made_anew_is_told_what_is_under_way() -> None:
    """Accepted articles that no shard has are compared with again, withdrawn ones are not."""
    store = _Store(2)
    under_way: list[Entry] = [_print("a0", 0, "stream-0"), _print("a1", 1, "stream-1"), "a1"]
    keepers = _keepers(store, under_way)
    keepers.judge(under_way)
    store.keepers = [store.keeper(index) for index in range(2)]
    verdicts = keepers.judge([_print("copy0", 0, "stream-0", 5), _print("copy1", 1, "stream-1", 5)])
    assert [match.canonical_id if match else None for match in verdicts.matches or []] == ["a0", None]


def test_a_keeper_that_is_made_anew_within_a_call_is_told_the_calls_earlier_articles() -> None:
    """What was accepted in the call at hand is under way nowhere yet, and is still compared with."""
    store = _Store(2)
    home = shard_of("stream-0", 2)
    other = next(f"stream-{n}" for n in range(9) if shard_of(f"stream-{n}", 2) != home)
    keepers = _keepers(store)
    keepers.judge([_print(f"first-{stream}", n, stream) for n, stream in enumerate(("stream-0", other))])
    store.restarts = {len(store.calls) + 1: home}
    verdicts = keepers.judge(
        [
            _print("a", 7, "stream-0"),
            _print("a", 8, other, 1),
            _print("copy", 9, other, 2),
            _print("b", 7, "stream-0", 3),
        ]
    )
    assert verdicts.matches == [
        None,
        None,
        None,
        None,
    ]  # "a" went to the other stream: nothing is left to repeat
    store.restarts = {len(store.calls) + 1: home}
    verdicts = keepers.judge(
        [
            _print("c", 10, "stream-0"),
            _print("d", 11, other, 1),
            _print("d", 11, "stream-0", 2),
            _print("e", 10, "stream-0", 3),
        ]
    )
    assert [match.canonical_id if match else None for match in verdicts.matches or []] == [
        None,
        None,
        None,
        "c",
    ]


def test_copies_that_lost_their_original_are_adopted_by_their_streams_keepers() -> None:
    """The first of each text stands, the next ones repeat it, in the order given."""
    store = _Store(3)
    copies = [_print(f"copy{n}", n % 2, f"stream-{n % 2}", n) for n in range(6)]
    matches = _keepers(store).adopt(copies)
    links = [match.canonical_id if match else None for match in matches]
    assert links == [None, None, "copy0", "copy1", "copy0", "copy1"]


def test_a_replaced_ingester_is_refused_by_every_keeper() -> None:
    """One that was paused and goes on would put back, or take away, what its successor has told the keepers."""
    store = _Store(2)
    paused = _keepers(store, epoch=1)
    paused.judge([_print("a", 0, "stream-0"), _print("b", 1, "stream-1")])
    _keepers(store, epoch=2).judge(["c", _print("a", 2, "stream-0", 1, known=True)])
    for late in (["a"], [_print("a", 0, "stream-0")], [_print("b", 1, "stream-1")]):
        with pytest.raises(StaleEpoch, match="epoch 1 is older than 2"):
            paused.judge(late)  # type: ignore[arg-type]
    with pytest.raises(StaleEpoch):
        paused.adopt([_print("a", 0, "stream-0")])
    with pytest.raises(StaleEpoch):
        _keepers(store, epoch=1).judge([_print("d", 3, "stream-0")])  # is told what is under way first
    verdicts = _keepers(store, epoch=3).judge([_print("copy", 2, "stream-0", 2)])
    assert [match.canonical_id if match else None for match in verdicts.matches or []] == ["a"]


def test_two_jobs_must_divide_the_index_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second job into a store whose keepers are of another number is told which number they have."""
    made: list[str] = []
    living = SimpleNamespace(num_keepers=SimpleNamespace(remote=lambda: 3))
    monkeypatch.setattr(store_watch, "find_actor", lambda name: living)
    monkeypatch.setattr(store_watch, "call", lambda ref, timeout_s: ref)
    monkeypatch.setattr(store_watch, "named_actor", lambda cls, name, *args, **options: made.append(name))
    client = SimpleNamespace(name="store", num_shards=1)

    def watch(count: int) -> StoreWatch:
        ingest = IngestConfig(near_duplicate_shards=count)
        spec = SimpleNamespace(ingest=ingest, duplicates=CONFIG)
        return StoreWatch(spec, client, Restarts(ingest), detached=False)  # type: ignore[arg-type]

    with pytest.raises(UsageError, match="near_duplicate_shards is 1, and another job fills store with 3"):
        watch(1).start_near_duplicates()
    assert made == []
    watch(3).start_near_duplicates()
    assert made == ["store:near-duplicates", "store:near-duplicates:1", "store:near-duplicates:2"]
