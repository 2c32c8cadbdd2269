"""infra/gpu_host/policy_home.sh: what a run has so far comes home while it still works."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "gpu_host" / "policy_home.sh"


def bring(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), str(root / "home"), *words], capture_output=True, text=True, timeout=60,
        env={**os.environ, "LEASE_ROOT": str(root)},
    )  # fmt: skip


def names_in(root: Path, what: str) -> set[str]:
    """The files of a packed part, its pieces put together."""
    told = subprocess.run(
        f"cat {root}/home/one-{what}.tgz.* | tar tz", shell=True, capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0, told.stderr
    return {name for name in told.stdout.split() if not name.endswith("/")}


def test_choices_and_policies_come_home_without_halves(tmp_path: Path) -> None:
    """A file that is being written is left out; what a run does not have yet is no error."""
    run = tmp_path / "work" / "one"
    for name in (
        "judged/bm25.points.json", "judged/readings-0-1a.npz", "judged/readings-0-1b.part.npz",
        "policies/reinforce-0/policy/config.json", "policies/reinforce-0/carried/config.json",
        "policies/reinforce-0/record.json",
    ):  # fmt: skip
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}")
    assert bring(tmp_path, "one", "judged", "policies", "scores").returncode == 0
    assert names_in(tmp_path, "judged") == {"judged/bm25.points.json", "judged/readings-0-1a.npz"}
    assert names_in(tmp_path, "policies") == {
        "policies/reinforce-0/policy/config.json", "policies/reinforce-0/record.json",
    }  # fmt: skip
    assert not list((tmp_path / "home").glob("one-scores*"))


def test_all_that_the_second_pass_wants_comes_home(tmp_path: Path) -> None:
    """Readers of every fold and kind, and every kind's scores; put together they are the run's folders again."""
    run = tmp_path / "work" / "one"
    files = [
        f"{place}/{fold}/{name}"
        for place in ("pairs_mpnet", "pairs_e5_dual")
        for fold in ("whole", "fold0", "fold1")
        for name in ("pair_reader.safetensors", "config.json", "scores.npz")
    ]
    for name in files:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    parts = ("readers", "fold0", "fold1", "scores")
    assert bring(tmp_path, "one", *parts).returncode == 0
    assert set().union(*(names_in(tmp_path, part) for part in parts)) == set(files)
    assert names_in(tmp_path, "fold1") == {name for name in files if "fold1" in name and "scores" not in name}


def test_made_questions_come_home_once_they_are_whole(tmp_path: Path) -> None:
    """Before that there is nothing to bring; made small once, they are packed as the part that policy.sh knows."""
    (tmp_path / "work" / "one").mkdir(parents=True)
    (tmp_path / "made").mkdir()
    assert bring(tmp_path, "one", "made").returncode == 0
    assert not list((tmp_path / "home").glob("one-made*"))
    (tmp_path / "made" / "ready").touch()
    (tmp_path / "out" / "policy-made").mkdir(parents=True)
    (tmp_path / "out" / "policy-made" / "manifest.json").touch()
    assert bring(tmp_path, "one", "made").returncode == 0
    assert names_in(tmp_path, "made") == {"policy-made/manifest.json"}


def test_a_run_or_a_part_that_there_is_not_is_named(tmp_path: Path) -> None:
    missing = bring(tmp_path, "two", "judged")
    assert missing.returncode == 2 and "work/two is not there" in missing.stderr
    (tmp_path / "work" / "one").mkdir(parents=True)
    wrong = bring(tmp_path, "one", "everything")
    assert wrong.returncode == 2 and "given everything; allowed: judged policies" in wrong.stderr
