"""One line a fault in a JSONL file, and the table and figures made of all lines."""

from __future__ import annotations

import os
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from infra.bench.faults.check import Differences
from infra.bench.faults.kinds import Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultResult:
    """What one fault did. `recover_s`: from its end until everything published was durable and readable."""

    number: int
    kind: str
    place: str
    note: str
    recover_s: float
    lost: int = 0
    doubled: int = 0
    wrong_version: int = 0
    sessions_differing: int = 0
    problems: list[str] = field(default_factory=list)
    at: str = ""
    commit: str = ""

    @classmethod
    def of(
        cls, number: int, kind: Kind, note: str, recover_s: float, found: Differences, problems: list[str]
    ) -> FaultResult:
        """The result of fault `number` with the differences that were found after it."""
        return cls(
            number=number,
            kind=kind.name,
            place=kind.place,
            note=note,
            recover_s=round(recover_s, 4),
            lost=found.lost,
            doubled=found.doubled,
            wrong_version=found.wrong_version,
            sessions_differing=found.sessions_differing,
            problems=problems,
        )

    @property
    def held(self) -> bool:
        """Whether nothing at all went wrong."""
        return not (
            self.lost or self.doubled or self.wrong_version or self.sessions_differing or self.problems
        )


def append_line(path: Path, result: FaultResult) -> None:
    """Keep one result; a run that is cut short loses none, and what it left of a line stays a line of its own."""
    with path.open("ab+") as file:
        torn = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + orjson.dumps(asdict(result)) + b"\n")


def read_lines(path: Path) -> list[FaultResult]:
    """All results of a file; a torn last line is left out."""
    results = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            results.append(FaultResult(**orjson.loads(line)))
        except orjson.JSONDecodeError:
            continue
    return results


def figures(results: list[FaultResult]) -> dict[str, Any]:
    """The numbers that a kept result names."""
    times = sorted(result.recover_s for result in results)
    return {
        "faults": len(results),
        "kinds": len({result.kind for result in results}),
        "lost": sum(result.lost for result in results),
        "doubled": sum(result.doubled for result in results),
        "wrong_version": sum(result.wrong_version for result in results),
        "sessions_differing": sum(result.sessions_differing for result in results),
        "not_held": sum(not result.held for result in results),
        "recovery_p50_s": _share(times, 0.5),
        "recovery_p99_s": _share(times, 0.99),
    }


def rows(results: list[FaultResult], about: dict[str, str]) -> list[dict[str, Any]]:
    """One row a kind, in the order of `about`."""
    table = []
    for kind, text in about.items():
        chosen = [result for result in results if result.kind == kind]
        if not chosen:
            continue
        times = sorted(result.recover_s for result in chosen)
        table.append(
            {
                "fault": kind,
                "what": text,
                "times": len(chosen),
                "lost": sum(result.lost for result in chosen),
                "doubled": sum(result.doubled for result in chosen),
                "wrong_version": sum(result.wrong_version for result in chosen),
                "sessions_differing": sum(result.sessions_differing for result in chosen),
                "not_held": sum(not result.held for result in chosen),
                "recover_p50_s": round(statistics.median(times), 3),
                "recover_p99_s": _share(times, 0.99),
            }
        )
    return table


def _share(times: list[float], share: float) -> float | None:
    if not times:
        return None
    return round(times[min(len(times) - 1, int(share * len(times)))], 3)
