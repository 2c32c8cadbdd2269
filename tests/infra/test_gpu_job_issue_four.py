"""infra/gpu_host/jobs/issue_four.sh: every stage within its time, what is whole passed over, verdicts kept."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "gpu_host" / "jobs" / "issue_four.sh"
PYTHON = """#!/bin/bash
echo "$*" >> "$ROOT/told"
case "$*" in
  *gpu_session*)
    echo "jit=$FLASHINFER_DISABLE_JIT path=$PYTHONPATH" >> "$ROOT/told"
    mkdir -p "$OUT/kernels"
    echo "{\\"results\\": $(cat "$ROOT/found")}" > "$OUT/kernels/bench.json" ;;
  "-c import json"*) exec "$REAL" "$@" ;;
  *"-m pytest"*test_sparse_attention*)
    [ -z "$CUT" ] && { echo "PASSED tests/a.py::test_sparse"; echo "1 passed"; exit; }
    echo "tests/a.py::test_e[in place] "; echo "[gw3] [  1%] PASSED tests/a.py::test_e[in place] "; sleep 60 ;;
  *"-m pytest"*test_retrieve_decode*)
    [ -z "$CUT" ] && { echo "PASSED tests/a.py::test_retrieve"; echo "1 passed"; exit; }
    echo "tests/a.py::test_c[two words] FAILED  [ 12%]"
    echo "tests/a.py::test_d SKIPPED (no CUDA) [ 15%]"; sleep 60 ;;
  *"-m pytest"*test_landmark_topk*) echo "FAILED tests/a.py::test_b"; echo "1 failed, 2 passed"; exit 1 ;;
  *"-m pytest"*) echo "PASSED tests/a.py::test_$RANDOM"; echo "1 passed" ;;
  *session_bytes*) sleep "${SLEEP:-0}"; exit "${FAIL:-0}" ;;
esac
"""


class Host:
    """A lease's folder whose python3 writes down what it was asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("tree", "out", "work", "bin", "reader", "parts/subq-a", "parts/subq-b", "parts/subq-c"):
            (root / name).mkdir(parents=True)
        for part in "abc":
            (root / f"parts/subq-{part}/file-{part}").write_text(part)
        (root / "parts" / "weights-subq").mkdir()
        (root / "parts" / "weights-subq" / "config.json").write_text("{}")
        (root / "reader" / "ready.json").write_text("{}")
        (root / "found").write_text('{"sparse": 1, "decode": 1, "landmarks": 1}')
        python = root / "bin" / "python3"
        python.write_text(PYTHON)
        python.chmod(0o755)

    def run(self, stages: str, seconds: int = 900, **settings: str) -> subprocess.CompletedProcess[str]:
        told = {
            **os.environ, "PATH": f"{self.root}/bin:{os.environ['PATH']}", "LEASE_ROOT": str(self.root),
            "OUT": f"{self.root}/out", "WORK": f"{self.root}/work", "SECONDS_LIMIT": str(seconds), "STAGES": stages,
            "REAL": sys.executable, **settings,
        }  # fmt: skip
        return subprocess.run(
            ["bash", str(SCRIPT)], env=told, capture_output=True, text=True, timeout=120, check=False
        )

    def told(self) -> list[str]:
        return (self.root / "told").read_text().splitlines()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_every_stage_runs_once_and_a_failed_test_is_a_verdict(host: Host) -> None:
    """The job ends with what the tests said; given again it has nothing left to do; one log names every result."""
    first = host.run("kernels agreement session tests minutes")
    assert first.returncode == 1, first.stdout + first.stderr
    told = host.told()
    assert [
        sum(word in line for line in told) for word in ("gpu_session bench", "decode_agreement --model")
    ] == [1, 2]
    assert any("--tokens 16777216 --read-block 16384 --seconds 200" in line for line in told)
    assert any("train" in line and "--minutes 5" in line for line in told)
    assert any("needles" in line and "--lengths 1M --cells known-5 --trials 100" in line for line in told)
    assert {path.name for path in (host.root / "subq-data").iterdir()} == {"file-a", "file-b", "file-c"}
    assert (host.root / "tree/models/weights/subq/config.json").exists()
    log = (host.root / "out" / "gpu_tests.log").read_text()
    assert "landmarks: rc=1: 1 failed, 2 passed" in log and "FAILED tests/a.py::test_b" in log
    assert log.count("\nPASSED") == 6
    assert host.run("kernels agreement session tests minutes").returncode == 0
    assert host.told() == told


def test_a_log_that_was_cut_off_names_what_it_had_told(host: Host) -> None:
    """In one process and in several, names with spaces too; sparse attention's tests run in several."""
    ended = host.run("tests", CUT="1", TESTS_S="14", LEAST_S="2", GROUPS_ONLY="sparse retrieve")
    assert ended.returncode == 124 and not (host.root / "out" / "tests.done").exists()
    log = (host.root / "out" / "gpu_tests.log").read_text().splitlines()
    assert [line for line in log if "::" in line and "rc=" not in line] == [
        "FAILED tests/a.py::test_c[two words]",
        "PASSED tests/a.py::test_e[in place]",
        "SKIPPED tests/a.py::test_d",
    ]
    spread = {line.split()[-1]: re.findall(r"-n (\d+)", line) for line in host.told() if "-m pytest" in line}
    assert spread == {
        "tests/models/kernels/test_sparse_attention.py": ["8"],
        "tests/models/kernels/test_retrieve_decode.py": ["3"],
    }


def test_benchmarks_that_were_cut_off_are_not_done(host: Host) -> None:
    """Two of three are kept and made again."""
    (host.root / "found").write_text('{"sparse": 1, "decode": 1}')
    assert host.run("kernels").returncode == 4
    assert not (host.root / "out" / "kernels.done").exists()
    (host.root / "found").write_text('{"sparse": 1, "decode": 1, "landmarks": 1}')
    assert host.run("kernels").returncode == 0
    assert (host.root / "out" / "kernels.done").exists()


@pytest.mark.parametrize("runs", [True, False])
def test_flashinfer_stands_beside_decode_where_it_was_made_ready(host: Host, runs: bool) -> None:
    """Nothing is compiled in the middle of a measurement; where nothing runs the benchmarks do without."""
    (host.root / "parts/flashinfer").mkdir()
    (host.root / "parts/flashinfer/part-00").write_text("")
    job = host.root / "tree/infra/gpu_host/jobs/flashinfer.sh"
    job.parent.mkdir(parents=True)
    job.write_text(f"exit {0 if runs else 1}\n")
    assert host.run("kernels").returncode == 0
    (told,) = (line for line in host.told() if line.startswith("jit="))
    assert told.startswith("jit=1 " if runs else "jit= ")
    assert told.endswith(f":{host.root}/flashinfer") == runs


def test_a_stage_that_hangs_is_ended_and_the_next_one_goes_on(host: Host) -> None:
    """Within its own limit; and what has too few seconds left is named."""
    ended = host.run("session kernels", SLEEP="60", SESSION_S="3", LEAST_S="2")
    assert ended.returncode == 124 and "session: rc=124" in ended.stdout and "kernels: rc=0" in ended.stdout
    assert host.run("session", FAIL="1").returncode == 1  # a traceback is no verdict
    assert not (host.root / "out" / "session.done").exists()
    late = host.run("session", seconds=20)
    assert late.returncode == 5 and "too few to begin" in late.stdout


def test_an_unknown_stage_is_refused_by_name(host: Host) -> None:
    ended = host.run("kernel")
    assert (
        ended.returncode == 2
        and "given kernel; allowed: kernels agreement session tests minutes" in ended.stderr
    )


def test_every_file_with_a_gpu_test_is_in_a_group() -> None:
    """So that the log is of all of them."""
    root = SCRIPT.parents[3]
    marked = {
        str(path.relative_to(root))
        for path in (root / "tests").rglob("test_*.py")
        if "pytest.mark.gpu" in path.read_text(encoding="utf-8") and path != Path(__file__)
    }
    by_fixture = {
        str(path.relative_to(root))
        for path in (root / "tests/models/kernels").glob("test_latent_decode_of*.py")
    }
    told = SCRIPT.read_text(encoding="utf-8")
    assert [name for name in sorted(marked | by_fixture) if name not in told] == []


def test_every_file_with_a_gpu_test_says_why_it_is_skipped() -> None:
    """`make test-gpu` on a machine without a GPU skips by name and fails nothing."""
    root = SCRIPT.parents[3]
    silent = [
        str(path.relative_to(root))
        for path in (root / "tests").rglob("test_*.py")
        if "pytest.mark.gpu" in (text := path.read_text(encoding="utf-8"))
        and path != Path(__file__)
        and "no CUDA device" not in text
    ]
    assert silent == []
