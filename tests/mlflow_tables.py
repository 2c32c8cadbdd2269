"""MLflow's tables: made by its migrations once a worker (2 s of a processor, hundreds of commits), then copied."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

_USERS = ("mlflow.store.db.utils", "mlflow.store.model_registry.sqlalchemy_store")


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first empty database is kept."""
    return tmp_path_factory.mktemp("mlflow") / "tables.db"


@pytest.fixture(autouse=True)
def _tables_made_once(mlflow_template: Path) -> None:
    """From the first test on that finds MLflow imported; nothing is imported for it before."""
    if "mlflow.tracking" not in sys.modules:
        return
    for module in map(import_module, _USERS):
        if not isinstance(module._initialize_tables, _Once):
            module._initialize_tables = _Once(module._initialize_tables, mlflow_template)


class _Once:
    """Stands in for MLflow's `_initialize_tables(engine)`: a new SQLite file is a copy of the first one."""

    def __init__(self, make: Any, template: Path) -> None:
        self._make = make
        self.template = template

    def __call__(self, engine: Any) -> None:
        """See MLflow."""
        import sqlalchemy

        path = engine.url.database
        if engine.dialect.name != "sqlite" or not path or sqlalchemy.inspect(engine).get_table_names():
            self._make(engine)
        elif self.template.exists():
            _copy(self.template, Path(path))
        else:
            self._make(engine)
            _copy(Path(path), self.template)


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)
