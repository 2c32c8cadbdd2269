"""Runs side by side end with their codes, or at the limit; their files travel in one."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import time
from pathlib import Path

from infra.training.side_by_side import codes_by, pack_results, read_json, run_side_by_side


def test_runs_end_with_their_codes_or_at_the_limit(tmp_path: Path) -> None:
    """One ends well, one fails and its words are kept, one is ended when the time is over."""
    commands = {
        "well": ["-c", "print('done')"],
        "badly": ["-c", "import sys; sys.exit('no data')"],
        "late": ["-c", "import time; time.sleep(600)"],
    }
    began = time.monotonic()
    told: list[dict[str, int]] = []
    codes = run_side_by_side(commands, tmp_path, 6.0, on_end=told.append)
    assert codes == {"well": 0, "badly": 1, "late": -9}
    assert told[-1] == {"well": 0, "badly": 1}  # while the third still ran
    assert time.monotonic() - began < 120
    assert "no data" in (tmp_path / "badly.log").read_text()


def test_at_most_so_many_run_at_once_and_those_never_started_have_no_code(tmp_path: Path) -> None:
    """The third starts when one of two ends; behind one that never ends nothing starts; variables are handed on."""
    told = "import os, pathlib, time; p = pathlib.Path(os.environ['AT']) / str(os.getpid()); p.touch(); "
    told += "n = len(list(p.parent.iterdir())); print(n); time.sleep(1); p.unlink(); assert n <= 2"
    (tmp_path / "at").mkdir()
    environment = {"AT": str(tmp_path / "at")}
    some = {name: ["-c", told] for name in ("a", "b", "c")}
    assert run_side_by_side(some, tmp_path / "x", 120.0, at_once=2, environment=environment) == {
        "a": 0, "b": 0, "c": 0,
    }  # fmt: skip
    asked = {"jax": ["-c", "import os; assert os.environ['JAX_PLATFORMS'] == 'cpu'"]}
    assert run_side_by_side(asked, tmp_path / "z", 60.0) == {"jax": 0}
    held = {"late": ["-c", "import time; time.sleep(600)"], "never": ["-c", "print(1)"]}
    assert run_side_by_side(held, tmp_path / "y", 1.0, at_once=1) == {"late": -9}
    assert not (tmp_path / "y" / "never.log").exists()


def test_results_travel_in_one_file_without_what_is_left_out(tmp_path: Path) -> None:
    """Files keep their folders' names; states stay behind; a cut-off JSON file counts as none."""
    (tmp_path / "run" / "states").mkdir(parents=True)
    (tmp_path / "run" / "model.bin").write_bytes(b"m")
    (tmp_path / "run" / "states" / "step.pt").write_bytes(b"s")
    packed = pack_results({"a": tmp_path / "run"}, tmp_path / "out" / "all.tar", ("states/",))
    with tarfile.open(packed) as file:
        assert file.getnames() == ["a/model.bin"]
    (tmp_path / "half.json").write_text('{"a": ')
    assert read_json(tmp_path / "half.json") is None
    assert read_json(tmp_path / "none.json") is None


def test_processes_have_one_limit_together_and_what_stands_is_killed() -> None:
    """Codes come in the order given: one's own, and 124 for a process that stood still."""
    programs = ("import time; time.sleep(60)", "raise SystemExit(3)")
    children = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]
    assert codes_by(children, time.monotonic() + 2) == [124, 3]
    assert children[0].wait(timeout=10) == -9
