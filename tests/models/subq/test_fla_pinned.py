"""models/subq/mixers/fla_pinned.py: fla's configuration is asked for before its kernels are imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from models.subq.mixers import fla_pinned
from models.subq.mixers.fla_pinned import PINNED, write_configs

CACHE = """
import os, sys
def configure_fla_cache_autotune():
    sys.said = ["kernels" in sys.modules or "fla.ops.gla" in sys.modules, os.environ["FLA_CACHE_MODE"]]
def restore_autotune_backend():
    sys.said.append("fla.ops.gla" in sys.modules)
"""
SCRIPT = """
import runpy, sys
from pathlib import Path
pin = runpy.run_path(sys.argv[2])["pin"]  # without torch, which its package imports
assert pin(Path(sys.argv[1]))
assert sys.said == [False, "default", True], sys.said
import fla.ops.utils.cache as cache
assert cache is sys.modules["fla.ops.utils.cache"] and hasattr(cache, "restore_autotune_backend")
try:
    pin(Path(sys.argv[1]))
except RuntimeError as error:
    assert "imported already" in str(error)
else:
    raise AssertionError("pinned twice")
"""


def test_every_kernel_has_a_file_that_says_how_it_is_run(tmp_path: Path) -> None:
    """In the form that fla-core 0.6 reads: tiles, warps, stages."""
    write_configs(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{kernel}.json" for kernel in PINNED}
    told = json.loads((tmp_path / "chunk_bwd_kernel_dh.json").read_text())["default_config"]
    assert told == {"kwargs": {"BK": 32, "BV": 32}, "num_warps": 4, "num_stages": 3, "num_ctas": 1}


def test_configurations_are_asked_for_before_the_kernels_are_imported(tmp_path: Path) -> None:
    """As a process sees it: two of fla's kernels choose their autotuner when they are imported."""
    ops = tmp_path / "site" / "fla" / "ops"
    for folder in (ops / "utils", ops / "gla"):
        folder.mkdir(parents=True)
    for package in (ops.parent, ops, ops / "utils", ops / "gla"):
        (package / "__init__.py").write_text("")
    # as fla has it: the package imports all kernels
    (ops / "__init__.py").write_text("import fla.ops.utils\nimport fla.ops.gla\n")
    (ops / "utils" / "cache.py").write_text(CACHE)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "configs"), fla_pinned.__file__]
    given = {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "configs").iterdir())) == len(PINNED)
