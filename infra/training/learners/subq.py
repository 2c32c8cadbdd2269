"""The sub-quadratic backbone as a learner of the data-parallel loop: the terms of `infra.training.subq`.

A part is a batch of `pipeline.prepare.needle_stream`. Routing across sequences and contrastive negatives stay
inside a part; the bank of landmarks is the same in every worker: all parts' landmarks go in, in their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infra.training.subq import SubqTrainConfig, SubqTrainer
from infra.training.subq_data import SubqData, batches
from infra.training.subq_optim import learning_rate
from infra.training.subq_recipe import recipe_data, recipe_stream, tiny_form
from models.data_parallel import Group
from models.subq import SubqConfig
from models.subq.checkpoint import save_checkpoint
from pipeline.prepare.needle_stream import NeedleBatch, NeedleStreamConfig


class SubqLearner:
    """See infra.training.backbone_loop.Learner."""

    def __init__(
        self,
        model: SubqConfig,
        data: SubqData,
        stream: NeedleStreamConfig,
        config: SubqTrainConfig,
        folder: Path,
        device: str,
        checkpointing: bool = False,
    ) -> None:
        # the loop keeps the state and limits the time
        self._trainer = SubqTrainer(
            model, data, stream, replace(config, limit_s=0.0), folder / "subq", device
        )
        self._trainer.model.checkpointing = checkpointing
        self.config, self.data = config, data
        self.parameters: Sequence[nn.Parameter] = list(self._trainer.model.parameters())
        self._codes: list[tuple[Tensor, Tensor]] = []

    def parts(self, numbers: Sequence[int]) -> Iterator[NeedleBatch]:
        """Batches of needles; `workers` processes make them ahead."""
        return batches(self.data, self._trainer.stream, 0, self.config.workers, numbers)

    def loss(self, part: NeedleBatch, number: int, progress: float) -> tuple[Tensor, dict[str, Tensor], int]:
        """The hybrid loss; chance (forcing, reading of others) is drawn from the part's number."""
        trainer = self._trainer
        trainer.step = number
        device = trainer.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            terms, row, codes = trainer._terms(part, progress)
        if codes is not None:
            marks = torch.from_numpy(part.anonymous).to(trainer.device)
            self._codes.append((codes.landmarks.detach().flatten(0, 1).float(), marks))
        loss = terms.total(trainer._weights(progress))
        return loss, {**terms._asdict(), **row}, int(part.ids.size)

    def update(self, step: int, progress: float, group: Group) -> dict[str, float]:
        """The optimizers' step, then the bank takes the landmarks of every worker's parts."""
        config, trainer = self.config, self._trainer
        rate = learning_rate(config.lr, step, progress, config.warmup, config.decay_from)
        for optimizer in trainer.optimizers:
            for settings in optimizer.param_groups:
                settings["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if config.bank and step >= config.warmup:
            for landmarks, marks in self._codes:
                told = group.gather(torch.cat((landmarks, marks[:, None].float()), 1))
                for rows in told:
                    trainer.bank.add(rows[:, :-1], rows[:, -1] > 0.5)
        self._codes = []
        return {"lr": rate}

    def state(self) -> dict[str, Any]:
        """Weights, optimizers and bank."""
        trainer = self._trainer
        return {
            "model": trainer.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "bank": trainer.bank.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """See Learner."""
        trainer = self._trainer
        trainer.model.load_state_dict(state["model"])
        for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        trainer.bank.load_state_dict(state["bank"])

    def flops_per_token(self) -> float:
        """Six a weight of the blocks; the output layer only for the positions that are learned."""
        whole, embedding = self._trainer.model.num_parameters()
        stream = self._trainer.stream
        return 6.0 * (whole - embedding) + 6.0 * embedding * stream.targets / stream.tokens

    def write(self, folder: Path, about: dict[str, Any]) -> list[Path]:
        """The model as a checkpoint that `models.subq` loads."""
        return save_checkpoint(self._trainer.model, folder, tokenizer=self.data.tokenizer, about=about)


@dataclass(frozen=True, kw_only=True, slots=True)
class SubqSpec:
    """A subq run as plain values; `tiny` takes sizes that a CPU can train for a try."""

    data: Path = field(metadata={"help": "folder that infra.training.subq_pack or `dysra prepare` wrote"})
    steps: int = field(default=2_600, metadata={"help": "updates of the whole run"})
    accumulate: int = field(default=1, metadata={"help": "parts of an update"})
    model: SubqConfig | None = field(default=None, metadata={"help": "None: the recipe's"})
    stream: NeedleStreamConfig | None = field(default=None, metadata={"help": "None: the recipe's"})
    train: SubqTrainConfig = field(
        default=SubqTrainConfig(joined=True), metadata={"help": "see SubqTrainConfig"}
    )
    copies: bool = field(
        default=False, metadata={"help": "a head copies from the chunks that were chosen (SubqConfig.copies)"}
    )
    tiny: bool = field(default=False, metadata={"help": "a model and batches for a try on a CPU"})
    checkpointing: bool = field(
        default=False,
        metadata={"help": "blocks are computed again for the gradient: less memory, about a third more time"},
    )
    seed: int = field(default=0, metadata={"help": "of everything"})


def build_subq(spec: SubqSpec, out: Path, device: str) -> SubqLearner:
    """The learner of a run; phases of the stream are stretched over the parts of all steps."""
    data = recipe_data(spec.data)
    model, stream, train = spec.model, spec.stream, spec.train
    model = model or SubqConfig(vocabulary=data.tokenizer.vocabulary, kernel="plain", rerank=True)
    if spec.copies:
        model = replace(model, copies=True)
    stream = stream or recipe_stream(spec.seed)
    if spec.tiny:
        model, stream, train = tiny_form(model, stream, train)
    stream = replace(stream, seed=spec.seed, phases=stretched(stream.phases, spec.steps * spec.accumulate))
    train = replace(train, seed=spec.seed)
    return SubqLearner(model, data, stream, train, out, device, checkpointing=spec.checkpointing)


def stretched(phases: Sequence[tuple[int, int]], parts: int) -> tuple[tuple[int, int], ...]:
    """The phases with their shares kept, `parts` batches in all; phases left without any are dropped."""
    whole = sum(count for _, count in phases)
    ends = [round(parts * sum(n for _, n in phases[: at + 1]) / whole) for at in range(len(phases))]
    counts = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    return tuple((length, count) for (length, _), count in zip(phases, counts, strict=True) if count)
