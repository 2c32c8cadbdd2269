"""Files of a soak: bounded by what retention allows, whatever line could be laid through them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from infra.bench.soak_files import ROOM, article_bytes, judged_files, longest_s

RATE, EACH, RETAINED_S = 1_000.0, 5_000.0, 20.0
READ = [(float(t), max(0.0, t - 5.0) * RATE) for t in range(400)]


def files(stay_s: Callable[[int], float]) -> list[tuple[float, float]]:
    """Bytes of what was read within `stay_s(t)` seconds of second t; reading begins at second 5."""
    return [(float(t), EACH * RATE * min(max(0.0, t - 5.0), stay_s(t))) for t in range(400)]


@pytest.mark.parametrize(
    ("stay_s", "bounded"),
    [
        (lambda t: 25.0, True),
        (lambda t: 20.0 + 15.0 * (t // 40 % 2), True),  # swings, ends high: a line says that it rises
        (lambda t: 20.0 + 15.0 * (t > 300), True),
        (lambda t: 25.0 + max(0.0, t - 60.0) / 4, False),  # a little longer all the time
        (lambda t: 1e9, False),  # nothing ever goes
        (lambda t: 25.0 + 60.0 * (150 < t < 240), False),  # for minutes nothing goes, then all at once
    ],
)
def test_files_are_bounded_where_retention_is_kept(stay_s: Callable[[int], float], bounded: bool) -> None:
    """The peak is held against the articles that may be there, not the last quarter against the first."""
    judged = judged_files(files(stay_s), READ, retained_s=RETAINED_S, window_s=5.0, warm_s=60.0)
    assert judged["article_bytes"] == EACH
    assert judged["bounded"] is bounded
    assert (judged["share_of_allowed"] <= 1.0) is bounded


def test_what_is_allowed_follows_the_rate() -> None:
    """Twice as many articles a second may take twice the room."""
    read = [(t, count if t < 200 else count + (t - 200) * RATE) for t, count in READ]
    disk = [(t, size * (2.0 if t > 240 else 1.0)) for t, size in files(lambda t: 30.0)]
    judged = judged_files(disk, read, retained_s=RETAINED_S, window_s=5.0, warm_s=60.0)
    stays = longest_s(RETAINED_S, 5.0)
    assert stays == 33.0 and judged["bounded"]
    assert judged["share_of_allowed"] == pytest.approx(30.0 / stays / ROOM, rel=0.02)


def test_a_run_without_samples_before_the_first_expiry_is_not_called_bounded() -> None:
    """What an article takes is not known then."""
    disk = files(lambda t: 25.0)[60:]
    assert math.isnan(article_bytes(disk, READ, RETAINED_S))
    assert math.isnan(article_bytes(disk, [], RETAINED_S))
    assert not judged_files(disk, READ, retained_s=RETAINED_S, window_s=5.0, warm_s=60.0)["bounded"]


@pytest.mark.parametrize(("stay_s", "bounded"), [(16.0, True), (22.0, True), (36.0, False), (1e9, False)])
@pytest.mark.parametrize("stands_s", [0, 40])
def test_files_are_judged_where_reading_stood(stay_s: float, bounded: bool, stands_s: int) -> None:
    """What had expired stays until articles come again, and is not held against the few of the standstill; articles
    that live three times their 12 s are found out with a standstill as without."""
    rate, seconds = 6_000.0, range(400)
    counts = {t: rate * (t - min(max(0, t - 200), stands_s)) for t in seconds}
    read = [(float(t), counts[t] + 100.0 * min(max(0, t - 200), stands_s)) for t in seconds]
    disk = [(float(t), EACH * min(counts[t], rate * stay_s)) for t in seconds]
    judged = judged_files(disk, read, retained_s=12.0, window_s=3.0, warm_s=60.0)
    assert judged["bounded"] is bounded
    assert judged["stood_s"] == stands_s


def test_a_standstill_is_no_leave_to_grow() -> None:
    """Files that double while nothing is read are found out."""
    read = [(float(t), 6_000.0 * (t - min(max(0, t - 200), 40))) for t in range(400)]
    disk = [(t, EACH * min(count, 96_000.0) * (2.5 if 220 < t < 240 else 1.0)) for t, count in read]
    judged = judged_files(disk, read, retained_s=12.0, window_s=3.0, warm_s=60.0)
    assert not judged["bounded"] and judged["stood_s"] == 40
