"""What `tests/compiled.py` writes is what pytest's own import would have written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.compiled import rewrite


def test_rewritten_bytecode_is_taken_by_the_import_and_an_old_one_is_made_anew(
    tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asserts that tell what differs, read back by pytest's own reader; other text, other bytecode."""
    from _pytest.assertion import rewrite as hook

    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "test_some.py"
    path.write_text("def test_two():\n    two = 1 + 1\n    assert two == 3\n")
    compiled = rewrite(path, pytestconfig)
    code = hook._read_pyc(path, compiled)
    assert code is not None and "@pytest_ar" in code.co_names
    before = compiled.stat().st_mtime_ns
    assert rewrite(path, pytestconfig).stat().st_mtime_ns == before
    path.write_text("def test_two():\n    assert 1 + 1 == 2\n")
    assert hook._read_pyc(path, rewrite(path, pytestconfig)) is not None
