"""`dysra …` in this process: the verbs, their exit codes and what they print, without an interpreter's start."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from infra.cli import build


def dysra(*arguments: str) -> Result:
    """Exit code, standard output and standard error of one command line."""
    return CliRunner().invoke(build(), arguments)
