"""JAX, which bm25s tries where it is installed, never sees the GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# stands in for JAX, of which only the moment of its import matters here: it tells what JAX would obey
JAX = """import os, pathlib
pathlib.Path(os.environ["TOLD"]).write_text(os.environ.get("JAX_PLATFORMS", "not set"))
"""


@pytest.mark.parametrize(("given", "told"), [(None, "cpu"), ("cuda,cpu", "cuda,cpu")])
def test_jax_is_told_to_stay_on_the_cpu_before_it_is_loaded(
    tmp_path: Path, given: str | None, told: str
) -> None:
    """A process that imports our index: the variable stands when JAX loads; one that was set before is kept."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text(JAX)
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    environment |= {"PYTHONPATH": f"{tmp_path}:{ROOT}", "TOLD": str(tmp_path / "told")}
    if given is not None:
        environment["JAX_PLATFORMS"] = given
    code = "import pipeline.prepare.pools"
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, timeout=240)
    assert (tmp_path / "told").read_text() == told


def test_bm25s_is_imported_at_one_place_only() -> None:
    """Any other import would load JAX as it is."""
    found = [
        str(path.relative_to(ROOT))
        for folder in ("actors", "infra", "models", "pipeline", "rl", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^\s*(import|from) bm25s\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert found == ["pipeline/prepare/bm25_on_cpu.py"]
