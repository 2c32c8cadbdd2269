"""Runs that a script starts as processes of their own, in the test's process: torch is there already."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any


def processes_here(events: list[tuple[str, str]]) -> Any:
    """What a script finds as `subprocess`; `events` is told who began and who was waited for, by --run.

    A process `python -m MODULE ARGUMENTS` does its work when it is first waited for; what fails in it is raised.
    """

    class Here:
        def __init__(self, command: Sequence[str], **_given: Any) -> None:
            _, dash_m, self.module, *arguments = command
            self.arguments = list(arguments)
            assert dash_m == "-m", command
            self.run = self.arguments[self.arguments.index("--run") + 1]
            self.returncode: int | None = None
            events.append(("began", self.run))

        def wait(self, timeout: float | None = None) -> int:
            events.append(("waited for", self.run))
            if self.returncode is None:
                self.returncode = import_module(self.module).main(self.arguments) or 0
            return self.returncode

    return SimpleNamespace(Popen=Here, STDOUT=subprocess.STDOUT, TimeoutExpired=subprocess.TimeoutExpired)
