"""An open shard for the tests of the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.store import make


@pytest.fixture
def shard(tmp_path: Path):
    """An open, empty shard."""
    opened = make.open_shard(tmp_path)
    yield opened
    opened.close()
