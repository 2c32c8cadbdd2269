"""Errors that a user or operator can cause, each with the exit code that the command line returns for it.

Every message says what was given, what is allowed and what to change.
"""

from __future__ import annotations


class DysraError(Exception):
    """Base of all errors with a stated cause; `exit_code` is what `dysra` ends with."""

    exit_code = 1


class UsageError(DysraError):
    """Wrong arguments or configuration."""

    exit_code = 2


class DependencyUnreachable(DysraError):
    """A broker, cluster, tracking server or model cannot be reached or is not installed."""

    exit_code = 3


class BadData(DysraError):
    """Input data that cannot be used as given."""

    exit_code = 4


class StoppedEarly(DysraError):
    """Stopped before the end on request, with all finished work saved."""

    exit_code = 5
