"""infra/gpu_host: jobs on a lent GPU host outlive the call that starts them, and come home."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "infra" / "gpu_host"


class Host:
    """A lease's folders in `root`, and a folder as one call brings it."""

    def __init__(self, root: Path) -> None:
        self.root = root / "host"
        self.call = root / "call"
        (self.call / "build" / "one").mkdir(parents=True)
        (self.call / "models" / "weights").mkdir(parents=True)
        (self.call / "build" / "one" / "job.sh").write_text(
            'echo "$TOLD"; echo figure > "$OUT/figure"; exit 3\n'
        )
        (self.call / "build" / "one" / "long.sh").write_text("sleep 60 & sleep 60\n")

    def run(self, script: str, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(SCRIPTS / f"{script}.sh"), *words], cwd=cwd or self.call, capture_output=True, text=True,
            timeout=60, env={**os.environ, "LEASE_ROOT": str(self.root)},
        )  # fmt: skip


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    assert host.run("arrive").returncode == 0
    return host


def test_a_job_runs_on_from_a_copy_of_the_tree_and_its_files_come_home(host: Host, tmp_path: Path) -> None:
    """The call's own folder may be gone; exit code, log and results are kept and packed."""
    job = host.root / "parts" / "one" / "job.sh"
    assert host.run("start", "mine", "0", "20", str(job), "TOLD=words").returncode == 0
    assert host.run("wait", "30", "mine").returncode == 0
    assert (host.root / "logs" / "mine.rc").read_text().strip() == "3"
    assert "== mine rc=3" in host.run("look").stdout
    assert host.run("home", str(tmp_path / "home"), "mine").returncode == 0
    packed = subprocess.run(
        f"cat {tmp_path}/home/home.tgz.* | tar tz", shell=True, capture_output=True, text=True, timeout=30
    )
    assert {"out/mine/figure", "logs/mine.log"} <= set(packed.stdout.split())
    assert (host.root / "logs" / "mine.log").read_text() == "words\n"


def test_a_running_job_is_not_started_twice_and_ends_with_all_its_processes(host: Host) -> None:
    """A second start is refused by name; stopping ends all processes of its session."""
    job = str(host.root / "parts" / "one" / "long.sh")
    assert host.run("start", "long", "", "30", job).returncode == 0
    again = host.run("start", "long", "", "30", job)
    assert again.returncode == 2 and "long is running" in again.stderr
    session_file = host.root / "logs" / "long.session"

    def sleeping() -> int:
        if not session_file.exists() or not (session := session_file.read_text().strip()):
            return 0
        found = subprocess.run(
            ["pgrep", "-c", "-s", session, "sleep"], capture_output=True, text=True, timeout=30
        )
        return int(found.stdout)

    for _ in range(200):
        if sleeping() == 2:
            break
        time.sleep(0.05)
    assert sleeping() == 2
    assert host.run("stop", "long").returncode == 0
    assert sleeping() == 0
    assert host.run("start", "long", "", "30", job).returncode == 0
    assert host.run("stop", "long").returncode == 0


def test_what_is_missing_is_named(host: Host) -> None:
    """A script that no call brought, and a job that does not exist."""
    missing = host.run("start", "mine", "0", "20", str(host.root / "parts" / "two" / "job.sh"))
    assert missing.returncode == 2 and "parts/two/job.sh is not here" in missing.stderr
    unknown = host.run("stop", "other")
    assert unknown.returncode == 2 and "no job other" in unknown.stderr


def test_jobs_run_from_what_was_committed_where_the_first_call_carries_it(tmp_path: Path) -> None:
    host = Host(tmp_path)
    committed = tmp_path / "committed"
    committed.mkdir()
    (committed / "told.txt").write_text("committed")
    (host.call / "told.txt").write_text("half edited")
    (host.call / "build" / "head").mkdir()
    packed = host.call / "build" / "head" / "tree.tgz"
    subprocess.run(["tar", "czf", str(packed), "-C", str(committed), "."], check=True, timeout=60)
    assert host.run("arrive").returncode == 0
    assert (host.root / "tree" / "told.txt").read_text() == "committed"


@pytest.mark.parametrize("script", sorted(path.stem for path in (SCRIPTS / "jobs").glob("*.sh")))
def test_a_job_without_its_tree_ends_at_once(script: str, tmp_path: Path) -> None:
    told = {**os.environ, "LEASE_ROOT": str(tmp_path), "OUT": str(tmp_path), "WORK": str(tmp_path)}
    settings = {"SECONDS_LIMIT": "60", "SEED": "0", "STAGES": "material"}
    ended = subprocess.run(
        ["bash", str(SCRIPTS / "jobs" / f"{script}.sh")], env={**told, **settings}, capture_output=True,
        timeout=60,
    )  # fmt: skip
    assert ended.returncode == 2


def test_a_part_that_cannot_be_packed_is_named(tmp_path: Path) -> None:
    ended = subprocess.run(
        ["bash", str(SCRIPTS / "pack.sh"), "nothing"], env={**os.environ, "DYSRA_DATA": str(tmp_path)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 2 and "given nothing; allowed: head" in ended.stderr
