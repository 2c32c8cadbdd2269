"""Several runs of faults side by side become one table; their clusters share the kinds out and miss none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from infra.bench.faults import merged, ray_cluster
from infra.bench.faults.kinds import KINDS
from infra.bench.faults.report import FaultResult, append_line, read_lines


def _one(number: int, kind: str, **fields: int) -> FaultResult:
    return FaultResult(
        number=number, kind=kind, place=KINDS[kind].place, note="", recover_s=float(number), **fields
    )


@pytest.mark.parametrize("parts", [1, 4, 6, 30])
def test_shares_of_a_clusters_kinds_leave_none_out(parts: int) -> None:
    """Each kind is in one share; more runs than kinds leave some without."""
    dealt = [name for share in merged.shares(parts) for name in share.split(",") if name]
    assert sorted(dealt) == sorted(name for name, kind in KINDS.items() if kind.place == "cluster")


def test_runs_side_by_side_make_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Faults of equal numbers and kinds in two runs are two; a loss in one is the table's; a run without a result
    counts as none."""
    for name, lost in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        append_line(tmp_path / name / "faults.jsonl", _one(0, "kill", lost=lost))
        append_line(tmp_path / name / "faults.jsonl", _one(1, "wal-flip"))
    folders = [str(tmp_path / name) for name in ("a", "b", "c")]
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["merged", *folders, "--seeds", "41,42,43", "--out", str(out)])

    merged.main()

    told = json.loads(capsys.readouterr().out)
    whole = json.loads((out / "faults.json").read_text())
    assert told["runs"] == {"a": 2, "b": 2, "c": 0} and whole["seed"] == [41, 42, 43]
    assert (whole["faults"], whole["kinds"], whole["lost"], whole["not_held"][0]["kind"]) == (4, 2, 1, "kill")
    assert {row["fault"]: (row["times"], row["lost"]) for row in whole["rows"]} == {
        "kill": (2, 1),
        "wal-flip": (2, 0),
    }
    assert "| wal-flip |" in (out / "faults.md").read_text()
    assert [one.lost for one in read_lines(out / "faults.jsonl")] == [0, 0, 1, 0]


def test_a_table_of_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run is named: it says what to name."""
    monkeypatch.setattr(sys, "argv", ["merged"])
    with pytest.raises(SystemExit):
        merged.main()


def test_rays_program_need_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is started as a module of this Python, which finds what PYTHONPATH names."""
    asked: list[tuple[list[str], dict[str, str]]] = []

    def started(self: ray_cluster.RayCluster, *arguments: str) -> None:
        asked.append(([*arguments], self.env))

    monkeypatch.setenv("PYTHONPATH", "/carried/site")
    monkeypatch.setattr(ray_cluster.RayCluster, "_ray_start", started)
    monkeypatch.setattr(ray_cluster.RayCluster, "start_node", lambda self: None)
    cluster = ray_cluster.RayCluster()
    cluster.close()
    assert asked[0][1]["PYTHONPATH"].split(":")[1:] == [ray_cluster._ROOT, "/carried/site"]
