"""The soak's parts: who a process is, what rises, and articles as of now in order."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest

from infra.bench import soak
from pipeline.article import isoformat


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
    """Growth in the first quarter is none; steady growth after it is."""
    settled = [(float(t), 100.0 + min(t, 20) * 10) for t in range(100)]
    rising = [(float(t), 100.0 + t) for t in range(100)]

    assert soak.rise(settled)[1] == pytest.approx(0.0, abs=1e-9)
    assert soak.rise(rising)[1] == pytest.approx(74 / 162, rel=0.01)


def test_articles_are_published_as_of_now_out_of_several_wires(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bears the time at which it was taken, so that what is kept is steady; no wire's ids meet another's."""
    monkeypatch.setattr(soak, "_ROUND", 50)
    begun = isoformat(datetime.now(UTC))
    records = list(soak.fresh(120))

    times = [orjson.loads(value or b"")["published"] for _, value, _ in records]
    assert len(records) == 120
    assert times == sorted(times) and begun <= times[0] <= times[-1] <= isoformat(datetime.now(UTC))
    assert {key.split(b"-")[0] for key, _, _ in records} == {b"0", b"1", b"2"}
    assert all(orjson.loads(value or b"")["id"].encode() == key for key, value, _ in records)
