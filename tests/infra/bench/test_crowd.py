"""Many processes at a topic: what they publish does not depend on their number, and one that fails is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from infra.bench import crowd, host_pack, host_session
from pipeline.article import Article, parse_record
from pipeline.errors import DysraError
from tests.broker import TopicFactory


def _double(ready: Callable[[], None], number: int) -> int:
    ready()
    return 2 * number


def _fail(ready: Callable[[], None], number: int) -> int:
    if number == 1:
        raise ValueError("number 1 cannot")
    ready()
    return number


def _hang(ready: Callable[[], None], number: int) -> int:
    time.sleep(600)
    return number


def test_rounds_are_wires_of_their_own() -> None:
    """No id and no stream is in two rounds; a record names the stream that it is published on, and can be read."""
    seen: list[set[str]] = []
    for round_ in (0, 1):
        rows = list(crowd.telling(round_, 30))
        streams = {stream for _, _, stream in rows}
        for key, value, stream in rows:
            if value is None:
                assert key.decode().startswith(f"{round_}-")
                continue
            article = parse_record(key, value)
            assert isinstance(article, Article)
            assert (article.id, article.stream) == (key.decode(), stream)
            assert orjson.loads(value)["id"].startswith(f"{round_}-")
        seen.append(streams | {key.decode() for key, _, _ in rows})
    assert not seen[0] & seen[1]
    assert list(crowd.telling(1, 30)) == rows


def test_work_is_done_in_processes_that_start_together() -> None:
    """Every task's result comes back."""
    assert sorted(crowd._together(_double, [(1,), (2,), (3,)], 120.0, "doubling")) == [2, 4, 6]


@pytest.mark.slow
def test_a_process_that_fails_is_told_and_none_is_left() -> None:
    """The error says what was done and why it ended; so does one about a limit that is over."""
    with pytest.raises(
        DysraError, match=r"failing by 2 processes: (ValueError: number 1 cannot|BrokenBarrier)"
    ):
        crowd._together(_fail, [(0,), (1,)], 120.0, "failing")
    with pytest.raises(DysraError, match="hanging by 1 processes: not within 1 s, 0 were done"):
        crowd._together(_hang, [(0,)], 1.0, "hanging")


@pytest.mark.broker
def test_loops_together_read_all_that_producers_published(topic: TopicFactory) -> None:
    """Two producers fill a topic, two loops read every record of it once, and one loop reads as many."""
    from pipeline.bare_loop import bare_loop

    kafka = topic(partitions=3)
    count, mean_bytes = crowd.publish_together(kafka, 60, 2, 120.0)
    assert count >= 60
    assert 500 < mean_bytes < 5_000
    every = crowd.loops_together(kafka, 2, parse=True, limit_s=120.0)
    assert len(every) == 2
    assert all(one.seconds >= 0 and one.cpu_s > 0 for one in every)
    assert bare_loop(kafka, None, parse=False).seconds > 0
    with pytest.raises(DysraError, match=f"{count} of {count + 1} records"):
        bare_loop(kafka, count + 1, parse=False, limit_s=0.5)


def test_pieces_dealt_to_folders_come_out_as_one_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder is above the limit, a part may lie in several, and what an earlier deal left is gone."""
    monkeypatch.setattr(host_pack, "PIECE_BYTES", 700)
    noise = bytes((i * i * 31 + i // 7) % 256 for i in range(4_000))
    (tmp_path / "left-9").mkdir()
    for name in ("one", "two"):
        (tmp_path / name / "site").mkdir(parents=True)
        (tmp_path / name / "site" / f"{name}.bin").write_bytes(noise + name.encode())
        host_pack.pack(tmp_path / name, tmp_path / f"host-{name}", level=1)
    folders = host_pack.deal([tmp_path / "host-one", tmp_path / "host-two"], tmp_path / "left")
    assert len(folders) > 1
    assert not (tmp_path / "left-9").exists()
    for folder in folders:
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 700
    for name in ("one", "two"):
        host_session.unpack([folder / f"host-{name}" for folder in folders], tmp_path / "there")
        assert (tmp_path / "there" / "site" / f"{name}.bin").read_bytes() == noise + name.encode()
