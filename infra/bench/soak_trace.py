"""How memory went over a soak, kept beside its verdict: a later reader can hold another rule against it.

The rule's tolerances are shares of a process' size, so that one rule serves a broker and a shard. What they can
miss is told as bytes an article: a shard of 450 MB that takes 1,500 articles a second in may grow by a twentieth
in the latter two and a half minutes, 100 bytes an article; the leak that this bench once found was 370.
"""

from __future__ import annotations

import statistics

import numpy as np

from infra.bench.soak_files import Samples

EVERY_S = 5.0


def trace(samples: Samples) -> list[list[float]]:
    """Median megabytes of every five seconds: [seconds at their middle, MB]."""
    parts: dict[int, list[float]] = {}
    for at, value in samples:
        parts.setdefault(int(at / EVERY_S), []).append(value)
    return [
        [round((part + 0.5) * EVERY_S, 1), round(statistics.median(values) / 1e6, 2)]
        for part, values in sorted(parts.items())
    ]


def counted(read: Samples) -> list[list[float]]:
    """Articles read by the end of every five seconds: [seconds, articles]. With the files' course, what a rule for
    files needs; a run without it could not be judged by another rule afterwards."""
    last: dict[int, float] = {}
    for at, count in read:
        last[int(at / EVERY_S)] = count
    return [[(part + 1) * EVERY_S, count] for part, count in sorted(last.items())]


def bytes_an_article(samples: Samples, read: Samples) -> float:
    """What the line through the samples rises by for each article that the whole job read meanwhile; nan for fewer
    than eight samples, or where none was read."""
    rows = np.array(samples, dtype=np.float64).reshape(-1, 2)
    if len(rows) < 8 or not read:
        return float("nan")
    when, counts = zip(*read, strict=True)
    articles = float(np.interp(rows[-1, 0], when, counts) - np.interp(rows[0, 0], when, counts))
    slope = np.polyfit(rows[:, 0], rows[:, 1], 1)[0]
    return float(slope * (rows[-1, 0] - rows[0, 0]) / articles) if articles > 0 else float("nan")
