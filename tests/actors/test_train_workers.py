"""actors/train_workers.py: what a worker refuses comes back as itself, without a restart."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from actors.train_workers import _fit, _refusal, _worker
from pipeline.errors import BadData, DependencyUnreachable, StoppedEarly, UsageError


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (ValueError("steps: given 0"), UsageError),
        (UsageError("no folder"), UsageError),
        (BadData("damaged\nin line 2"), BadData),
        (DependencyUnreachable("no server"), DependencyUnreachable),
    ],
)
def test_errors_of_ours_leave_a_worker_as_themselves(
    raised: Exception, kind: type[Exception], tmp_path: Path
) -> None:
    """Wrong settings, damaged data and a server that is gone: the same kind and words in the driver."""

    def function(settings: Mapping[str, object], device: str, report: object) -> None:
        raise raised

    refused = tmp_path / "refused.txt"
    _worker({"function": function, "settings": {}, "gpu": False, "refused": str(refused)})
    found = _refusal(refused)
    assert type(found) is kind and str(found) == str(raised)


def test_another_error_ends_the_worker(tmp_path: Path) -> None:
    """What is no error of ours is raised, so that Ray Train starts the worker again."""

    def function(settings: Mapping[str, object], device: str, report: object) -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        _worker({"function": function, "settings": {}, "gpu": False, "refused": str(tmp_path / "r")})
    assert not (tmp_path / "r").exists()


def test_ctrl_c_says_that_the_same_command_goes_on() -> None:
    """Ray Train handles it by the end of the process, and leaves its handler behind; ours is put back."""

    class Interrupted:
        def fit(self) -> None:
            signal.signal(signal.SIGINT, lambda _number, _frame: sys.exit(0))
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedEarly, match="the same command goes on"):
        _fit(Interrupted())
    assert signal.getsignal(signal.SIGINT) is before
