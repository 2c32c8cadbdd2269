"""The fault harness: what it draws, what its checker sees, and its short form over every kind of file fault."""

from __future__ import annotations

import dataclasses
import random
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from infra.bench.faults import cluster_run
from infra.bench.faults.check import compare
from infra.bench.faults.cluster_world import same_end
from infra.bench.faults.file_faults import flip_one, snapshot_restored
from infra.bench.faults.kinds import KINDS
from infra.bench.faults.news import Expected, Known, Timeline
from infra.bench.faults.plan import FaultsConfig, faults
from infra.bench.faults.report import FaultResult, append_line, figures, read_lines
from infra.bench.faults.run import run
from infra.bench.faults.shard_world import ShardWorld
from infra.bench.faults.tmpfs import small_disk
from infra.bench.faults.world_run import WorldRun
from pipeline.errors import UsageError
from pipeline.store.errors import StoreCorrupt
from tests.forked import forkserver


@pytest.fixture(scope="module", autouse=True)
def _imported_once() -> None:
    """As `run` has it: some hundred processes are started here, and each would import faiss and pyarrow anew."""
    forkserver()


def test_the_same_seed_gives_the_same_news_and_the_same_plan() -> None:
    """A fault can be made again by its seed and number."""
    one, other = (Timeline(3).draw(300) for _ in range(2))
    assert one == other and {record.kind for record in one} >= {"update", "delete", "revive", "near", "bad"}
    config = FaultsConfig(faults=40, seed=5)
    places = {"shard", "tmpfs", "cluster"}
    assert list(faults(config, places)) == list(faults(config, places))
    assert Counter(kind.place for _, kind in faults(config, places))["cluster"] == 3
    assert all(kind.name != "fill-disk" for _, kind in faults(config, {"cluster"}, ("fill-disk",)))


def test_every_kind_comes_before_any_is_drawn_again() -> None:
    """The run that counts leaves no kind out; the rarest comes too."""
    places = {kind.place for kind in KINDS.values()}
    drawn = [kind.name for _, kind in faults(FaultsConfig(faults=1_000, seed=2, cluster_every=24), places)]
    assert set(drawn) == set(KINDS)
    quick = [name for name in drawn if KINDS[name].place != "cluster"]
    assert len(set(quick[:34])) == 34 and Counter(quick)["disk-full"] > 2 * Counter(quick)["manifests-lost"]


def test_expectation_knows_what_a_store_must_do() -> None:
    """Newer replaces, older never does, a withdrawn id comes back only with a later version."""
    expected, timeline = Expected(), Timeline(9)
    for record in timeline.draw(400):
        before = dataclasses.replace(known) if (known := expected.articles.get(record.article_id)) else None
        expected.take(record)
        after = expected.articles.get(record.article_id)
        if record.kind in ("older", "repeat"):
            assert after == before
        elif record.kind == "delete":
            assert after is not None and after.state == "deleted" and after.article is None
        elif record.kind in ("new", "update", "revive"):
            assert after == Known("live", after.version_ms, record.article)
            assert before is None or after.version_ms > before.version_ms
    assert sum(expected.outcomes.values()) == expected.num_records == 400


@pytest.mark.parametrize("kinds", ["nothing", "wal-tail,nothing"])
def test_unknown_kinds_are_refused(kinds: str) -> None:
    """With the names that there are."""
    with pytest.raises(UsageError, match="wal-flip"):
        FaultsConfig(kinds=tuple(kinds.split(",")))


def test_results_survive_a_torn_line(tmp_path: Path) -> None:
    """A run that was killed while it wrote goes on after the last whole result."""
    path = tmp_path / "faults.jsonl"
    for number in range(3):
        append_line(
            path,
            FaultResult(number=number, kind="kill", place="shard", note="", recover_s=number, lost=number),
        )
    path.write_bytes(path.read_bytes()[:-9])
    kept = read_lines(path)
    assert [result.number for result in kept] == [0, 1]
    assert figures(kept)["lost"] == 1 and figures(kept)["not_held"] == 1
    append_line(path, dataclasses.replace(kept[0], number=2))
    assert [result.number for result in read_lines(path)] == [0, 1, 2]
    append_line(path, dataclasses.replace(kept[0], number=3))
    assert [result.number for result in read_lines(path)] == [0, 1, 2, 3]


def test_connecting_to_ray_leaves_the_handler_of_sigterm() -> None:
    """Ray's own ends the process at once; the run's unmounts its disks and ends its cluster first."""
    before = signal.getsignal(signal.SIGTERM)
    mine = lambda number, frame: None  # noqa: E731
    try:
        signal.signal(signal.SIGTERM, mine)
        with same_end():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_cluster_that_does_not_come_up_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice more; then the fault says that nothing was injected, and the run goes on."""
    tries: list[int] = []

    def failing(folder: Path, seed: int, disk: Path | None, say: object) -> None:
        tries.append(seed)
        raise TimeoutError("the raylet did not start")

    monkeypatch.setattr(cluster_run, "ClusterWorld", failing)
    monkeypatch.setattr(cluster_run, "load_embedder", lambda config: None)
    said: list[str] = []
    result = cluster_run.ClusterRun(tmp_path, 1, None, said.append).inject(7, KINDS["kill-driver"])
    assert len(tries) == 3 and len(said) == 2
    assert "no fault was injected" in result.problems[0] and "raylet" in result.problems[0]


def test_the_checker_sees_what_is_lost_doubled_or_of_another_version(tmp_path: Path) -> None:
    """On a real shard: a dump that is right has no difference, and each kind of wrong one is told."""
    world = ShardWorld(tmp_path, 4)
    try:
        world.start()
        world.publish(60)
        world.recover()
        expected = world.timeline.expected
        assert not world.check().any
        dump = world.call("dump", list(expected.articles))
        live = next(name for name, known in expected.articles.items() if known.state == "live")
        state, version_ms, article, canonical, chunks = dump["articles"][live]

        def differing(**changes: object) -> tuple[int, int, int]:
            found = compare(expected, {**dump, **changes})
            return found.lost, found.doubled, found.wrong_version

        articles = dump["articles"]
        without = {name: row for name, row in articles.items() if name != live}
        assert differing(articles=without, keyword_chunks=dump["keyword_chunks"] - chunks)[0] == 1
        old = {**articles, live: (state, version_ms - 1, article, canonical, chunks)}
        assert differing(articles=old) == (0, 0, 1)
        twice = [hit for hit in dump["dense"] if hit[1] == live][:1]
        assert differing(dense=dump["dense"] + twice) == (0, 1, 0)
        assert differing(bm25=[hit for hit in dump["bm25"] if hit[1] != live]) == (1, 0, 0)
        assert differing(ledger={**dump["ledger"], "read": dump["ledger"]["read"] + 2}) == (0, 2, 0)
        world.timeline.draw(1)  # published, as the expectation has it, and never given to the shard
        assert world.check().any
    finally:
        world.close()


def test_every_fault_of_a_shard_and_its_files_is_held(tmp_path: Path) -> None:
    """Each kind once, on real files and processes: nothing lost, doubled or of a wrong version."""
    with small_disk(tmp_path / "disk", 24) as disk:
        places = {"shard"} if disk is None else {"shard", "tmpfs"}
        kinds = [kind for kind in KINDS.values() if kind.place in places]
        worlds = WorldRun(tmp_path, 11, disk, None)
        try:
            results = [worlds.inject(number, kind) for number, kind in enumerate(kinds)]
        finally:
            worlds.close()
    assert [result for result in results if not result.held] == []


def test_a_snapshot_that_shares_two_damages_is_refused_and_any_other_is_restored(tmp_path: Path) -> None:
    """Its files are the store's (hard links): one form is mended, both are lost; no other damage is excused."""
    world = ShardWorld(tmp_path, 6)
    draw = random.Random(6)
    try:
        world.start()
        world.publish(40)
        while world.append_next(8):
            pass
        world.call("seal")
        snapshot = world.snapshot()
        (segment,) = (world.shard_folder / "segments").glob("seg-??????")
        flip_one([segment / "chunks.parquet"], draw)
        assert world.lost_in(snapshot) == []
        assert snapshot_restored(world, draw) == snapshot.name
        world.recover()
        flip_one([snapshot / "shard-0000/segments" / segment.name / "chunks.arrow"], draw)
        assert world.lost_in(snapshot) == [f"{segment.name}/chunks"]
        assert "refused: both forms of" in snapshot_restored(world, draw)
        assert world.snapshots == [] and not snapshot.exists()
        world.recover()
        world.snapshot()
        for manifest in world.snapshots[0].rglob("manifest*.json"):
            manifest.write_bytes(manifest.read_bytes()[:40])
        with pytest.raises(StoreCorrupt):
            snapshot_restored(world, draw)
    finally:
        world.close()


def test_a_run_that_was_cut_goes_on(tmp_path: Path) -> None:
    """The results of the first piece stay as they are, and the figures count both pieces."""
    piece = FaultsConfig(faults=2, seed=1, kinds=("wal-tail", "stale-writer"), work=tmp_path)
    run(piece, lambda line: None)
    first = (tmp_path / "faults.jsonl").read_bytes()
    said: list[str] = []
    result = run(dataclasses.replace(piece, faults=4, resume=True), said.append)
    assert (tmp_path / "faults.jsonl").read_bytes().startswith(first) and "after 2 faults" in said[0]
    assert result["faults"] == 4 and result["lost"] == 0 and result["not_held"] == []
    assert {row["fault"] for row in result["rows"]} <= {"wal-tail", "stale-writer"}


def test_a_run_that_is_ended_tells_the_fault_that_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that stands until its run is terminated has no result: its number, kind and time are said."""
    monkeypatch.setattr(WorldRun, "inject", lambda self, number, kind: sys.exit(143))
    said: list[str] = []
    with pytest.raises(SystemExit):
        run(FaultsConfig(faults=1, kinds=("wal-tail",), work=tmp_path), said.append)
    assert any("fault 0, wal-tail" in line for line in said)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_faults_of_sessions_leave_them_as_their_twins(tmp_path: Path) -> None:
    """Killed, paused, with damaged snapshots: the session has the bytes of one that was never disturbed."""
    result = run(FaultsConfig(faults=12, seed=2, kinds=("session", "session-tmpfs"), work=tmp_path))
    assert result["faults"] == 12 and result["ratios"]["sessions_differing"] == 0 and not result["not_held"]


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_faults_of_a_cluster_lose_and_double_nothing(tmp_path: Path) -> None:
    """A broker, two Ray nodes, `dysra ingest` and Serve: an ingester and a replica killed, a log cut under it."""
    kinds = ("kill-ingester", "cut-log", "kill-replica")
    result = run(FaultsConfig(faults=4, seed=3, kinds=kinds, work=tmp_path))
    assert result["faults"] == 4 and not result["not_held"]
    assert (result["lost"], result["doubled"], result["wrong_version"], result["sessions_differing"]) == (
        0,
        0,
        0,
        0,
    )
