"""Whether a store's files are bounded: never more than what retention allows to be there.

What an article takes is seen before the first can expire: all files over all articles read, in the second half of
the first `retained_s`. A segment goes as a whole once its newest article is past retention, so an article may stay
longer by what a segment spans, and until maintenance has looked and the checkpoint before is gone (`SLACK_S`).
**Files are bounded** where after warm-up they never take more than `ROOM` times what the articles read within that
time do: compaction and the keyword index's merges write the new beside the old. Below that they may swing. Articles
that live three times as long as they may are caught where `retained_s` is at least `window_s` + `SLACK_S`.

**Seconds in which nothing is read do not count** (`ReadClock`). The files that a checkpoint has no use for stay
until the one after it, which is what a damaged manifest falls back to, and where no article comes there is none:
what had expired when reading stood stays as it is until it goes on. It cannot grow meanwhile. A soak that stood
for half a minute on a crowded host was called unbounded for that, at eight times the few articles that had
trickled in.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LOOK_S = 2.0
"""Seconds between two looks of the soak's maintenance."""
SLACK_S = 8.0
"""A look, its turn after a sealing (up to 4 s), and the next checkpoint but one: then the files go."""
ROOM = 1.5
STILL_S = 5
"""Reading stands where so many seconds on end bring less than `STILL_SHARE` of the run's mean rate."""
STILL_SHARE = 0.1
Samples = list[tuple[float, float]]
"""Seconds since sampling began, and a value."""


def longest_s(retained_s: float, window_s: float) -> float:
    """How long an article's files may stay, from when it is published: a segment spans a window, or an eighth of
    retention where compaction has joined several."""
    return retained_s + max(window_s, retained_s / 8) + SLACK_S


def article_bytes(disk: Samples, read: Samples, retained_s: float) -> float:
    """Bytes of files for each article read, before the first expires; nan where nothing was sampled then."""
    begun = next((at for at, count in read if count), None)
    if begun is None:
        return float("nan")
    sizes = [
        size / count
        for at, size in disk
        if begun + retained_s / 2 <= at <= begun + retained_s and (count := _read_by(read, at)) > 0
    ]
    return float(np.median(sizes)) if sizes else float("nan")


class ReadClock:
    """How many articles had been read by when, and the clock that stands while next to none are."""

    def __init__(self, read: Samples) -> None:
        self._at = np.array([when for when, _ in read], dtype=np.float64)
        self._counts = np.array([count for _, count in read], dtype=np.float64)
        begun = self._at[np.argmax(self._counts > 0)]
        self._seconds = np.arange(np.floor(begun), np.ceil(self._at[-1]) + 1.0)
        by = np.interp(self._seconds, self._at, self._counts, left=0.0)
        still = np.zeros(max(0, len(by) - 1), dtype=bool)
        if len(by) > STILL_S:
            few = STILL_SHARE * STILL_S * by[-1] / (len(by) - 1)
            slow = by[STILL_S:] - by[:-STILL_S] < few
            still = np.convolve(slow, np.ones(STILL_S)) > 0  # every second of such a stretch
        self._still = still
        self._clock = np.concatenate(([0.0], np.cumsum(~still)))

    def by(self, at: float) -> float:
        """Articles read by then."""
        return float(np.interp(at, self._at, self._counts, left=0.0))

    def within(self, at: float, seconds: float) -> float:
        """Articles read in the last `seconds` of reading before `at`."""
        clock = float(np.interp(at, self._seconds, self._clock, left=0.0))
        return self.by(at) - self.by(float(np.interp(clock - seconds, self._clock, self._seconds)))

    def stood_s(self, since: float) -> float:
        """Seconds from `since` on in which reading stood."""
        return float(self._still[self._seconds[:-1] >= since].sum())


def judged_files(
    disk: Samples, read: Samples, *, retained_s: float, window_s: float, warm_s: float
) -> dict[str, Any]:
    """The fullest that files were of what retention allows, after `warm_s`, and whether that is bounded; `stood_s`:
    seconds of that time that do not count, for nothing was read.

    `read` counts the articles read by then, `disk` the bytes of all files.
    """
    each, stay_s = article_bytes(disk, read, retained_s), longest_s(retained_s, window_s)
    reading = ReadClock(read) if any(count for _, count in read) else None
    fullest, allowed_mb = 0.0, 0.0
    for at, size in disk:
        held = reading.within(at, stay_s) * each if reading else 0.0
        if at >= warm_s and held > 0 and size / held > fullest:
            fullest, allowed_mb = size / held, ROOM * held / 1e6
    return {
        "article_bytes": round(each, 1),
        "allowed_mb": round(allowed_mb, 1),
        "share_of_allowed": round(fullest / ROOM, 3) if fullest else float("nan"),
        "bounded": 0.0 < fullest <= ROOM,
        "stood_s": reading.stood_s(warm_s) if reading else 0.0,
    }


def _read_by(read: Samples, at: float) -> float:
    return float(np.interp(at, [when for when, _ in read], [count for _, count in read], left=0.0))
