"""Rows of a co-training run, written as they come: what a host found before it went away is at home with them.

Each run appends to `rows.jsonl` of its own folder, which a second call goes on from, and to one file of OUT, which
comes home whatever ends the call. A row holds `run` and `seed` and one of: `begun`, what the run is made of;
`curve`, a point of its training; `trained`, the figures of its training; `mark`, what it was worth on dev after
some updates, and `chosen`, after how many it is judged; `set` and `point` with `figures` and `scores` (F1 made to
answer, question by question), a choice judged; `ended`. `at_s` tells when: seconds since the run's process began.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infra.evaluation.policy_judge import paired

ROWS = "rows.jsonl"


@dataclass(frozen=True, slots=True)
class Notes:
    """Where the rows of one run go: its own folder's file, and the one of all runs."""

    run: str
    seed: int
    own: Path
    all_runs: Path
    began: float = field(default_factory=time.monotonic)

    def add(self, **row: Any) -> None:
        """Append a row to both files, in one write each: other runs append to the second meanwhile."""
        stamped = {"run": self.run, "seed": self.seed, **row, "at_s": round(time.monotonic() - self.began, 1)}
        line = json.dumps(stamped, default=str) + "\n"
        for path in (self.own, self.all_runs):
            path.parent.mkdir(parents=True, exist_ok=True)
            _append(path, line)

    def rows(self) -> list[dict[str, Any]]:
        """What this run has noted so far, in earlier calls too."""
        return read_rows(self.own)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; one that was cut off while it was written is left out, a missing file has none."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "run" in row:
            rows.append(row)
    return rows


def assemble(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The runs that have anything judged, by folder, with gains on `start` question by question.

    A run that was cut off has the points that it reached and `ended` false; without its `start` it has no gains.
    """
    found: dict[str, dict[str, Any]] = {}
    scores: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = folder_of(row["run"], row["seed"])
        figures = found.setdefault(
            name,
            {"run": row["run"], "seed": row["seed"], "ended": False, "judged": {}, "curve": [], "marks": []},
        )
        if "point" in row:
            figures["judged"].setdefault(row["set"], {})[row["point"]] = row["figures"]
            scores.setdefault(name, {})[f"{row['set']}.{row['point']}"] = np.array(row["scores"], np.float64)
        elif "curve" in row:
            figures["curve"].append(row["curve"])
        elif "mark" in row:
            figures["marks"].append(row["mark"])
        elif "chosen" in row:
            figures["chosen"] = row["chosen"]
        else:
            about = row.get("begun") or row.get("trained") or row.get("ended") or {}
            figures.update(about, ended=figures["ended"] or "ended" in row)
    begun = scores.get("start", {})
    for name, figures in found.items():
        ours = scores.get(name, {})
        if figures["run"] != "start" and begun and ours:
            figures["gain_on_start"] = {key: paired(ours[key], begun[key]) for key in ours if key in begun}
    return {name: figures for name, figures in found.items() if figures["judged"]}


def folder_of(name: str, seed: int) -> str:
    """The folder of a run in WORK."""
    return name if name == "start" else f"{name}-{seed}"


def _append(path: Path, line: str) -> None:
    """One write at the file's end; behind a line that was cut off, on a line of its own."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, (("\n" if torn else "") + line).encode())
    finally:
        os.close(handle)
