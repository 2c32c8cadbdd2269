"""Whether a store's files are bounded: never more than what retention allows to be there.

What an article takes is seen before the first can expire: all files over all articles read, in the second half of
the first `retained_s`. A segment goes as a whole once its newest article is past retention, so an article may stay
longer by what a segment spans, and until maintenance has looked and the checkpoint before is gone (`SLACK_S`).
**Files are bounded** where after warm-up they never take more than `ROOM` times what the articles read within that
time do: compaction and the keyword index's merges write the new beside the old. Below that they may swing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LOOK_S = 2.0
"""Seconds between two looks of the soak's maintenance."""
SLACK_S = 10.0
"""A look that comes late, its turn after a sealing (up to 4 s), and the next checkpoint: then the files go."""
ROOM = 1.5
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


def judged_files(
    disk: Samples, read: Samples, *, retained_s: float, window_s: float, warm_s: float
) -> dict[str, Any]:
    """The fullest that files were of what retention allows, after `warm_s`, and whether that is bounded.

    `read` counts the articles read by then, `disk` the bytes of all files.
    """
    each, stay_s = article_bytes(disk, read, retained_s), longest_s(retained_s, window_s)
    fullest, allowed_mb = 0.0, 0.0
    for at, size in disk:
        held = (_read_by(read, at) - _read_by(read, at - stay_s)) * each
        if at >= warm_s and held > 0 and size / held > fullest:
            fullest, allowed_mb = size / held, ROOM * held / 1e6
    return {
        "article_bytes": round(each, 1),
        "allowed_mb": round(allowed_mb, 1),
        "share_of_allowed": round(fullest / ROOM, 3) if fullest else float("nan"),
        "bounded": 0.0 < fullest <= ROOM,
    }


def _read_by(read: Samples, at: float) -> float:
    return float(np.interp(at, [when for when, _ in read], [count for _, count in read], left=0.0))
