"""infra/gpu_host/jobs/flashinfer.sh: ways made ready once, brought modules given up where they do not load."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "gpu_host" / "jobs" / "flashinfer.sh"
# a way runs where `runs` names it; with `breaks-aot` only without brought modules
PYTHON = """#!/bin/bash
case "$*" in
  "-c import sys, tarfile"*) exec "$REAL" "$@" ;;
  *flashinfer_decode*)
    aot=0; ls "$ROOT"/flashinfer/flashinfer/data/aot/*/*.so > /dev/null 2>&1 && aot=1
    echo "$3 aot=$aot" >> "$ROOT/told"
    [ -f "$ROOT/hangs" ] && sleep 60
    [ $aot = 1 ] && [ -f "$ROOT/breaks-aot" ] && { echo "undefined symbol"; exit 1; }
    grep -qx -- "$3" "$ROOT/runs" || { echo "no such kernel"; exit 1; }
    if [ $aot = 0 ]; then
      into="$FLASHINFER_WORKSPACE_BASE/.cache/flashinfer/0.5.3/90a/cached_ops/module_$3"
      mkdir -p "$into" && echo built > "$into/module_$3.so"
    fi
    echo "$3: differs from SDPA by 0.001" ;;
esac
"""
WAYS = ["paged-tensor-cores", "single", "single-tensor-cores"]


class Host:
    """A lease's folder with the part, whose python3 writes down what it was asked."""

    def __init__(self, root: Path, *, brought: bool) -> None:
        self.root = root
        for name in ("tree", "bin", "parts/flashinfer", "source/flashinfer", "aot/module_single"):
            (root / name).mkdir(parents=True)
        (root / "source/flashinfer/version.py").write_text("")
        (root / "aot/module_single/module_single.so").write_text("brought")
        self._pack(root / "source", "part-00")
        if brought:
            self._pack(root / "aot", "part-aot")
        (root / "runs").write_text("\n".join(WAYS) + "\n")
        python = root / "bin" / "python3"
        python.write_text(PYTHON)
        python.chmod(0o755)

    def _pack(self, folder: Path, name: str) -> None:
        with tarfile.open(self.root / "parts/flashinfer" / name, "w") as packed:
            for path in folder.iterdir():
                packed.add(path, path.name)

    def run(self, **settings: str) -> subprocess.CompletedProcess[str]:
        told = {
            **os.environ, "PATH": f"{self.root}/bin:{os.environ['PATH']}", "LEASE_ROOT": str(self.root),
            "ROOT": str(self.root), "REAL": sys.executable, "FLASHINFER_S": "30", **settings,
        }  # fmt: skip
        return subprocess.run(
            ["bash", str(SCRIPT)], env=told, capture_output=True, text=True, timeout=60, check=False
        )

    def told(self) -> list[str]:
        return sorted((self.root / "told").read_text().splitlines())

    def ready(self) -> list[str]:
        return sorted((self.root / "flashinfer/ready").read_text().split())

    def modules(self) -> dict[str, str]:
        found = (self.root / "flashinfer/flashinfer/data/aot").glob("*/*.so")
        return {path.stem: path.read_text().strip() for path in found}


def test_every_way_is_compiled_once_and_its_module_put_where_it_is_loaded(tmp_path: Path) -> None:
    """A second call finds them ready and runs nothing."""
    host = Host(tmp_path, brought=False)
    ended = host.run()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert host.ready() == WAYS and host.told() == [f"{name} aot=0" for name in WAYS]
    assert host.modules() == {f"module_{name}": "built" for name in WAYS}
    assert (host.root / "flashinfer/flashinfer/version.py").exists()
    assert host.run().returncode == 0 and len(host.told()) == 3


@pytest.mark.parametrize("loads", [True, False])
def test_brought_modules_are_used_and_given_up_where_they_do_not_load(tmp_path: Path, loads: bool) -> None:
    host = Host(tmp_path, brought=True)
    if not loads:
        (tmp_path / "breaks-aot").write_text("")
    ended = host.run()
    assert ended.returncode == 0 and host.ready() == WAYS, ended.stdout + ended.stderr
    first = [f"{name} aot=1" for name in WAYS]
    assert host.told() == (first if loads else sorted(first + [f"{name} aot=0" for name in WAYS]))
    assert ("undefined symbol" in ended.stdout) != loads
    assert host.modules()["module_single"] == ("brought" if loads else "built")


def test_what_does_not_run_is_named_and_the_others_stay(tmp_path: Path) -> None:
    """Without any the job fails, and says so at once when asked again."""
    host = Host(tmp_path, brought=False)
    (tmp_path / "runs").write_text("single\n")
    ended = host.run()
    assert ended.returncode == 0 and host.ready() == ["single"]
    assert "paged-tensor-cores: no such kernel" in ended.stdout
    other = Host(tmp_path / "other", brought=False)
    (other.root / "runs").write_text("")
    assert other.run().returncode == 1 and other.run().returncode == 1
    assert len(other.told()) == 3


def test_it_ends_in_time_and_names_a_missing_part(tmp_path: Path) -> None:
    host = Host(tmp_path, brought=False)
    (tmp_path / "hangs").write_text("")
    ended = host.run(FLASHINFER_S="6")
    assert ended.returncode == 1 and not (tmp_path / "flashinfer/ready").exists()
    (tmp_path / "parts/flashinfer/part-00").unlink()
    missing = host.run()
    assert missing.returncode == 2 and "carry the part flashinfer first" in missing.stderr
