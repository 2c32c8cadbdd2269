"""What a plain learning loop of `train-retriever` leaves while it runs: a run that was killed goes on where it was.

Kept beside the policy until that is written: the loop's checkpoint, and a note of the run with the curves so far.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.out_folder import refuse_other
from infra.training.side_by_side import read_json, write_whole
from pipeline.errors import UsageError
from rl.loops import PolicyLoop

Rows = Sequence[Mapping[str, float]]
EVERY_S = 20.0


class LoopPlace:
    """A folder that holds at most one unfinished run; `made_from` names it."""

    def __init__(self, folder: Path, made_from: Mapping[str, Any], every_s: float = EVERY_S) -> None:
        self._checkpoint, self._note = folder / "loop.pt", folder / "loop.json"
        self._made_from, self._every_s = json.loads(json.dumps(made_from, default=str)), every_s
        self._kept_at = -every_s

    def begun(self) -> dict[str, Any] | None:
        """The note of an unfinished run: its rows `warm` and `learned`. UsageError where it is another run's."""
        note = read_json(self._note)
        if note is None or not self._checkpoint.is_file():
            return None
        told = note.get("made_from")
        kept = told if isinstance(told, dict) else {}
        refuse_other(self._note.parent, kept, self._made_from)
        if kept != self._made_from:
            raise UsageError(
                f"{self._note.parent} holds an unfinished run of another version, whose settings are others; give "
                "another --out, or remove the folder"
            )
        return note

    def restore(self, loop: PolicyLoop) -> None:
        """Put the loop where the unfinished run was."""
        try:
            loop.restore(self._checkpoint)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def keep(self, loop: PolicyLoop, warm: Rows, learned: Rows) -> bool:
        """Keep the run as it is now, if it was not kept just before; whether it was.

        The note comes last and counts no row behind the checkpoint: rows that a kill left out of it are made again.
        """
        if time.monotonic() - self._kept_at < self._every_s:
            return False
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        loop.save(self._checkpoint)
        told = {"made_from": self._made_from, "warm": list(warm), "learned": list(learned)}
        write_whole(self._note, json.dumps(told))
        self._kept_at = time.monotonic()
        return True

    def done(self) -> None:
        """The policy is written: nothing is left to go on with."""
        for path in (self._note, self._checkpoint):
            path.unlink(missing_ok=True)
