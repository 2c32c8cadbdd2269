"""What a verb prints: sentences for a person, and with --json one JSON object as the last line.

The one place that writes to standard output, and the one that turns errors into exit codes.
"""

from __future__ import annotations

import errno
import functools
import inspect
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.errors import DependencyUnreachable, DysraError, StoppedEarly, UsageError

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="configuration file (TOML or YAML); see `dysra config`")
]
JsonFlag = Annotated[
    bool, typer.Option("--json", help="print the figures as one JSON object on the last line")
]

Seed = Annotated[int, typer.Option("--seed", min=0, max=(1 << 32) - 1, help="of everything that is drawn")]
"""What every generator takes: numpy's refuse less than 0, products with a part's number stay below 2^63."""

Figures = dict[str, Any]
_OUT_OF_ORDER = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
"""What a disk says that is full or broken: an outage, and no mistake of ours that a traceback would help with."""
_VerbT = TypeVar("_VerbT", bound=Callable[..., Figures | None])


class _State:
    """Where sentences go: standard error while standard output is kept for JSON."""

    json_mode = False


def say(*parts: Any) -> None:
    """Print for a person (rich markup allowed)."""
    _console().print(*parts)


def verb(function: _VerbT) -> _VerbT:
    """Make `function` a verb: its returned figures are printed with --json, its errors become exit codes.

    The function must take a parameter `json_output: JsonFlag`.
    """
    if "json_output" not in inspect.signature(function).parameters:
        raise AssertionError(f"verb {function.__name__} lacks the parameter json_output")

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        _State.json_mode = bool(kwargs.get("json_output"))
        try:
            figures = function(*args, **kwargs)
        except DysraError as error:
            _fail(str(error), error.exit_code, getattr(error, "figures", None))
        except (FileExistsError, NotADirectoryError) as error:
            _fail(
                f"{error.filename} cannot be made: a file stands where a folder is needed; give another path",
                UsageError.exit_code,
            )
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            _fail(f"cannot read {error.filename}: {error.strerror}", UsageError.exit_code)
        except OSError as error:
            if error.errno not in _OUT_OF_ORDER:
                raise
            where = f" {error.filename}" if error.filename else ""
            _fail(f"the disk cannot be used{where}: {error.strerror}", DependencyUnreachable.exit_code)
        except ValueError as error:
            _fail(str(error), UsageError.exit_code)
        except Exception as error:
            if (number := _told_by_a_library(error)) not in _OUT_OF_ORDER:
                raise
            _fail(f"the disk cannot be used: {os.strerror(number)}", DependencyUnreachable.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted", StoppedEarly.exit_code)
        if _State.json_mode and figures is not None:
            _write(figures)

    return wrapper  # type: ignore[return-value]


@dataclass
class Steps:
    """Progress of one long task: a bar on a terminal, one line every few seconds elsewhere."""

    label: str
    total: int | None
    interval_s: float = 5.0
    done: int = 0
    _bar: Any = None
    _task: Any = None
    _last: float = 0.0
    _started: float = 0.0

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more units as done."""
        self.update(self.done + amount)

    def update(self, done: int) -> None:
        """Set the number of units done."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            return
        now = time.monotonic()
        if now - self._last >= self.interval_s:
            self._last = now
            of = f" of {self.total:,}" if self.total else ""
            say(f"  {self.label}: {done:,}{of} ({now - self._started:.0f} s)")


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Steps]:
    """Show progress of a task with `total` units (None: unknown)."""
    steps = Steps(label=label, total=total)
    steps._started = steps._last = time.monotonic()
    console = _console()
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            steps._bar, steps._task = bar, bar.add_task(label, total=total)
            yield steps
    else:
        yield steps


_JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def _console() -> Console:
    width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "110"))
    return Console(stderr=_State.json_mode, highlight=False, soft_wrap=True, width=width)


def run_command(app: typer.Typer, arguments: list[str]) -> int:
    """Run the command line and return its exit code; with --json a wrong option is one JSON object too."""
    _State.json_mode = "--json" in arguments
    try:
        code = app(arguments, standalone_mode=False)
    except typer.Abort:
        return StoppedEarly.exit_code
    except Exception as error:
        # typer brings a click of its own whose exceptions have no public name: what shows itself is one of them
        if not hasattr(error, "show") or not hasattr(error, "format_message"):
            raise
        error.show()
        if _State.json_mode:
            _write({"error": error.format_message(), "exit_code": UsageError.exit_code})
        return UsageError.exit_code
    return code if isinstance(code, int) else 0


def _write(body: Figures) -> None:
    sys.stdout.write(orjson.dumps(body, option=_JSON_OPTIONS, default=str).decode() + "\n")
    sys.stdout.flush()


def _told_by_a_library(error: Exception) -> int:
    """The system's number in the words of an error whose kind is a library's own, as safetensors raises; else 0."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found.group(1)) if found else 0


def _fail(message: str, exit_code: int, figures: Figures | None = None) -> None:
    sys.stderr.write(f"dysra: {message}\n")
    if _State.json_mode:
        _write({"error": message, "exit_code": exit_code, **(figures or {})})
    raise typer.Exit(exit_code)
