"""How readers of chunks are told what to read: arms of `infra.training.subq_backbones`.

On 2026-12-01 the contrastive term, a quarter of the loss, cost `subq` half a nat of 4.3 on news. Each arm takes one
road around that; all have the shape of `subq` but the last, which is the one that a language model would take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from infra.training.subq import SubqTrainConfig
from models.subq.baselines import baseline, widened
from models.subq.config import SubqConfig


def _weighing(weight: float) -> Callable[[SubqTrainConfig], SubqTrainConfig]:
    return lambda run: replace(run, losses=replace(run.losses, contrastive=weight))


def _by_hindsight(run: SubqTrainConfig) -> SubqTrainConfig:
    return replace(run, contrastive_apart=True, closed=True, cross=0.0, hindsight=1.0)


ARMS: dict[str, tuple[str, Callable[[SubqTrainConfig], SubqTrainConfig]]] = {
    "subq-sixteenth": ("subq", _weighing(1 / 16)),
    "subq-faded": ("subq", lambda run: replace(run, contrastive_until=(0.1, 0.5))),
    "subq-apart": ("subq", lambda run: replace(run, contrastive_apart=True)),
    "subq-lean-apart": ("subq-lean", lambda run: replace(run, contrastive_apart=True, closed=True, cross=0.0)),
    "subq-lean-hindsight": ("subq-lean", _by_hindsight),
    "subq-lean-copies": ("subq-lean", _by_hindsight),
    "subq-lean-copies-even": (
        "subq-lean",
        lambda run: _by_hindsight(replace(run, losses=replace(run.losses, answers=run.losses.answers / 10))),
    ),
    "subq-lean-copies-late": ("subq-lean", lambda run: replace(_by_hindsight(run), answers_from=0.5)),
}  # fmt: skip
"""Shape and change of the run. sixteenth: a quarter of the weight. faded: whole for a tenth of the run, nothing
from half on. apart: its gradient ends before the backbone's states. lean-apart: that with subq-lean's few
parameters, values that begin as zero, and no other sequence's chunks on offer. lean-hindsight: as that, and
ordinary text tells too what it would have liked to read. lean-copies: that with a head that copies from what was
chosen (models/subq/copying.py). Two that tell why it lost on news, where an answer token weighs some ten times a
token of text and only a model that reads can lower it: copies-even, in which an answer token weighs about as much
as any other, and copies-late, which is not paid for answers before half of the run."""
COPIES = ("subq-lean-copies", "subq-lean-copies-even", "subq-lean-copies-late")


def shaped(method: str, sizes: SubqConfig) -> SubqConfig:
    """The shape of an arm, or of any other method, at `sizes` and with as many parameters."""
    shape = baseline(ARMS[method][0] if method in ARMS else method, sizes)
    return widened(replace(shape, copies=True), sizes) if method in COPIES else shape


def taught(method: str, run: SubqTrainConfig) -> SubqTrainConfig:
    """The run of an arm; gca's, which is told nothing, as its paper trains it; any other as it is."""
    if method == "gca":
        return replace(_weighing(0.0)(run), forced_until=0.0, cross=0.0, bank=0)
    return ARMS[method][1](run) if method in ARMS else run
