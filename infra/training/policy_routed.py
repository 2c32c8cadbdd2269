"""What a router learns from in a run whose candidates were read alone by the stage `alone`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.retriever.table import TableBatch
from rl.episodes import Readings


def losses_alone(tables: TableBatch, readings: Readings) -> npt.NDArray[np.float32]:
    """The reader's loss of each candidate alone [N, K]; NaN where a question was not read.

    Only the best candidates of a question were read. Another one is taken for what reading nothing loses: a router
    that never met those below would be free to put them first.
    """
    losses = readings.singles(len(tables), tables.num_candidates, "loss")
    for row in range(len(tables)):
        read = ~np.isnan(losses[row])
        if read.any() and readings.knows(row, ()):
            nothing = readings.read([(row, ())])[0].loss
            losses[row, tables.present[row] & ~read] = nothing
    return losses
