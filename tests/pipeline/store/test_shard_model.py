"""A shard against a plain dictionary, through appends, replays, crashes, sealing and compaction."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.store import DeadLetter
from tests.pipeline.store import make

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
VERSIONS = st.integers(0, 4)
STREAMS = ("wire", "post")


@dataclass
class Known:
    """What the model knows of an id."""

    kind: str
    version_ms: int
    version: int = 0
    num_chunks: int = 0


class ShardMachine(RuleBasedStateMachine):
    """Rules are what ingest and operators do; invariants compare every answer with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="shard-model-"))
        self.shard = make.open_shard(self.root, change_log=1_000)
        self.known: dict[str, Known] = {}
        self.counts: Counter[str] = Counter()
        self.changes: list[tuple[str, str]] = []
        self.given: list = []
        self.offset = 0

    @rule(
        items=st.lists(
            st.tuples(st.sampled_from("uuudlx"), NAMES, VERSIONS, st.integers(0, 3)), min_size=1, max_size=6
        )
    )
    def append(self, items: list) -> None:
        """A batch; every outcome is as the rules of the articles say."""
        records, expected = [], []
        for kind, name, version, num_chunks in items:
            record, outcome = self._record(kind, name, version, num_chunks)
            records.append(record)
            expected.append(outcome)
            self.counts[outcome] += 1
        self.given.append(records)
        assert list(make.put(self.shard, *records)) == expected

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """Batches that were given before change nothing."""
        begin = data.draw(st.integers(0, len(self.given) - 1))
        for records in self.given[begin:]:
            assert set(make.put(self.shard, *records)) == {"replayed"}

    @rule()
    def close_and_open(self) -> None:
        """A clean restart."""
        self.shard.close()
        self.shard = make.open_shard(self.root, change_log=1_000)

    @rule()
    def crash_and_open(self) -> None:
        """A restart without a goodbye."""
        make.crash(self.shard)
        self.shard = make.open_shard(self.root, change_log=1_000)

    @rule()
    def seal(self) -> None:
        """A checkpoint."""
        self.shard.seal()

    @rule()
    def compact(self) -> None:
        """A compaction, and merging of small segments."""
        self.shard.compact()

    @invariant()
    def ledger_adds_up(self) -> None:
        """Every coordinate is counted once."""
        total = self.shard.ledger().total().to_dict()
        expected = {
            name: self.counts[name]
            for name in ("stored", "deleted", "dead_lettered", "linked", "same_version", "older")
        }
        assert {name: total[name] for name in expected} == expected
        assert total["read"] == sum(expected.values()) == self.offset
        assert (
            total["read"] == total["stored"] + total["deleted"] + total["dead_lettered"] + total["duplicates"]
        )
        assert self.shard.offsets().get((make.TOPIC, 0), 0) == self.offset

    @invariant()
    def articles_are_the_newest(self) -> None:
        """Every id has its newest version, or its tombstone."""
        for name in "abcde":
            stored, known = self.shard.article(name), self.known.get(name)
            if known is None:
                assert stored is None
                continue
            assert stored is not None
            assert stored.version_ms == known.version_ms
            assert stored.deleted == (known.kind == "deleted")
            if known.kind == "live":
                assert stored.article == self._article(name, known.version)
                assert stored.num_chunks == known.num_chunks
            assert (stored.canonical_id == "canon") == (known.kind == "linked")
        versions = self.shard.known("abcde")
        assert versions == {
            n: self.known[n].version_ms if n in self.known and self.known[n].kind == "live" else None
            for n in "abcde"
        }

    @invariant()
    def dense_search_is_brute_force(self) -> None:
        """The dense list is what a loop over all live chunks gives, for every filter."""
        query = make.vectors("question", 1, 1).astype(np.float32)
        for filters in ({}, {"streams": frozenset({"post"})}, {"as_of_ms": self._article("a", 2).version_ms}):
            rows = []
            for name, known in self.known.items():
                article = self._article(name, known.version)
                if known.kind != "live" or article.version_ms > filters.get("as_of_ms", 2**62):
                    continue
                if "streams" in filters and article.stream not in filters["streams"]:
                    continue
                scores = make.vectors(name, known.version, known.num_chunks).astype(np.float32) @ query[0]
                rows += [(-float(score), name, ordinal) for ordinal, score in enumerate(scores)]
            request = make.near("question", 1, k=4, depth=4, **filters)
            expected = [(name, ordinal) for _, name, ordinal in sorted(rows)[:4]]
            assert make.found(self.shard, request) == expected

    @invariant()
    def words_are_found_in_the_newest_version_only(self) -> None:
        """Keyword search sees each live article's own version, and nothing withdrawn."""
        for version in range(5):
            hits = self.shard.candidates(make.says(f"word{version}", k=50)).bm25[0]
            found = {(hit.article_id, hit.ordinal) for hit in hits}
            assert found == {
                (name, ordinal)
                for name, known in self.known.items()
                if known.kind == "live" and known.version == version
                for ordinal in range(known.num_chunks)
            }

    @invariant()
    def changes_and_recent_agree(self) -> None:
        """Corrections and withdrawals are told in order; recent articles are the living ones."""
        changes = self.shard.changes(0)
        assert [(change.article_id, change.kind) for change in changes] == self.changes
        assert not changes.truncated
        for stream in STREAMS:
            names = [a.id for a in self.shard.recent(stream, 10)]
            alive = {
                n
                for n, k in self.known.items()
                if k.kind != "deleted" and self._article(n, 0).stream == stream
            }
            assert sorted(names) == sorted(alive)
            published = [a.published for a in self.shard.recent(stream, 10)]
            assert published == sorted(published, reverse=True)
        live = [known for known in self.known.values() if known.kind == "live"]
        assert self.shard.stats()["live_chunks"] == sum(known.num_chunks for known in live)
        assert len(self.shard.signatures(0)) == len(live)

    def teardown(self) -> None:
        """Remove the shard."""
        self.shard.close()
        shutil.rmtree(self.root)

    def _article(self, name: str, version: int):
        place = "abcde".index(name)
        return make.article(name, version, stream=STREAMS[place % 2], hours=place)

    def _record(self, kind: str, name: str, version: int, num_chunks: int) -> tuple[object, str]:
        offset, self.offset = self.offset, self.offset + 1
        if kind == "x":
            return DeadLetter(coordinate=make.at(offset), reason="not_json"), "dead_lettered"
        known = self.known.get(name)
        if kind == "d":
            self.changes.append((name, "deleted"))
            if known is not None:
                self.known[name] = Known("deleted", known.version_ms)
            return make.delete(name, offset), "deleted"
        place = "abcde".index(name)
        fields = {"stream": STREAMS[place % 2], "hours": place}
        if kind == "u":
            record: object = make.upsert(name, offset, version, num_chunks, **fields)
        else:
            record, num_chunks = make.link(name, offset, "canon", version, **fields), 0
        version_ms = self._article(name, version).version_ms
        if known is not None and version_ms <= known.version_ms:
            return record, "same_version" if version_ms == known.version_ms else "older"
        if known is not None and known.kind != "deleted":
            self.changes.append((name, "updated"))
        self.known[name] = Known("live" if kind == "u" else "linked", version_ms, version, num_chunks)
        return record, "stored" if kind == "u" else "linked"


TestShardMachine = ShardMachine.TestCase
TestShardMachine.settings = settings(
    max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
