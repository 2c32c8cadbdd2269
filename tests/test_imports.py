"""The import table of the architecture: who may import whom, and what has only one home."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("models", "pipeline", "rl", "actors", "infra")
MAY_IMPORT = {
    "models": set(),
    "pipeline": {"models"},
    "rl": {"models", "pipeline"},
    "actors": {"models", "pipeline"},
    "infra": {"models", "pipeline", "rl", "actors"},
}
ONLY_HOME = {
    "triton": "models",
    "fla": "models",
    "kafka": "pipeline",
    "faiss": "pipeline",
    "gymnasium": "rl",
    "ray.rllib": "rl",
    "ray.serve": "actors",
    "ray.train": "actors",
    "ray.data": "actors",
    "mlflow": "infra",
    "typer": "infra",
}
LIGHT = ("serve_app", "ingest", "ingest_job", "coordinator", "shard", "near_duplicates", "embedder")
"""Actors without a model."""


@cache  # eighteen tests look at the same 500 files
def _imports(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)


@cache
def _files(folder: str) -> tuple[Path, ...]:
    return tuple(sorted((ROOT / folder).rglob("*.py")))


@pytest.mark.parametrize("folder", OURS)
def test_folder_imports_only_the_folders_below_it(folder: str) -> None:
    """A folder imports of ours only what the table allows."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _files(folder)
        for name in _imports(path)
        if name.split(".")[0] in OURS
        and name.split(".")[0] != folder
        and name.split(".")[0] not in MAY_IMPORT[folder]
    ]
    assert wrong == []


@pytest.mark.parametrize("library", ONLY_HOME)
def test_library_has_one_home(library: str) -> None:
    """Each of these libraries is imported in one folder only, so that it can be replaced there."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for folder in OURS
        if folder != ONLY_HOME[library]
        for path in _files(folder)
        for name in _imports(path)
        if name == library or name.startswith(f"{library}.")
    ]
    assert wrong == []


def test_pipeline_does_not_know_ray() -> None:
    """The data path runs without Ray."""
    wrong = [
        str(path.relative_to(ROOT))
        for folder in ("pipeline", "models")
        for path in _files(folder)
        if any(name == "ray" or name.startswith("ray.") for name in _imports(path))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(f"import actors.{', actors.'.join(LIGHT)}", id="actors"),
        pytest.param("from infra.cli import build; build()", id="every verb"),
    ],
)
def test_processes_without_a_model_load_no_torch(load: str) -> None:
    """Who deploys, Serve's way in, the actors of ingest and the command line: each would pay seconds for it."""
    heavy = ("torch", "transformers")
    code = f"{load}; import sys; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr
