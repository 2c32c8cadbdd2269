"""Adaptation of a decoder to read, as a learner of the data-parallel loop: LoRA or all weights, loss on answers.

Rows are triples (question, context, target) in the form of tuned readers. A part is a batch of rows of like length;
the batches of an epoch follow from the seed and the epoch alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infra.training.learners.adapting import (
    METHODS,
    go_on,
    known_ids,
    load_named,
    named_state,
    scheduled_step,
    write_adapted,
)
from models.data_parallel import Group
from models.hf.config import HfConfig
from models.hf.loading import Loaded, load, pick_device
from models.reader_training import (
    Batch,
    Ints,
    ReaderTrainConfig,
    ReadingRows,
    add_lora,
    answer_loss,
    collate,
    plan_batches,
)
from pipeline.prepare.files import MANIFEST, read_triples
from pipeline.prepare.triples import Triple
from pipeline.session.prompts import reader_prompt

STOP = "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderSpec:
    """One adaptation."""

    data: Path = field(metadata={"help": "folder of triples, or a folder of such folders"})
    backbone: HfConfig = field(
        default_factory=HfConfig,
        metadata={"help": "the decoder; its adapter counts only where all weights are tuned"},
    )
    method: str = field(default="lora", metadata={"help": ", ".join(METHODS)})
    steps: int = field(default=1000, metadata={"help": "updates of the whole run"})
    accumulate: int = field(default=1, metadata={"help": "parts of an update"})
    lr: float = field(default=8e-4, metadata={"help": "peak learning rate; full tuning wants a tenth"})
    tokens_per_batch: int = field(default=8192, metadata={"help": "tokens of a part, padding included"})
    most_tokens: int = field(default=1024, metadata={"help": "longer rows are left out"})
    begin_with: Path | None = field(default=None, metadata={"help": "adapter folder to go on from (lora)"})
    rank: int = field(default=32, metadata={"help": "rank of the adapter"})
    alpha: int = field(default=64, metadata={"help": "scale of the adapter, over its rank"})
    dropout: float = field(default=0.05, metadata={"help": "dropout before the adapter"})
    checkpointing: bool = field(
        default=False,
        metadata={
            "help": "layers are computed again for the gradient: a fraction of the memory, a third more time"
        },
    )
    judged: int = field(default=200, metadata={"help": "held-out rows whose loss is measured at the end"})
    seed: int = field(default=0, metadata={"help": "order, dropout and new weights"})

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: given {self.method!r}; allowed: {', '.join(METHODS)}")
        for name in ("steps", "accumulate", "tokens_per_batch", "most_tokens", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")


class ReaderLearner:
    """See infra.training.backbone_loop.Learner. `encode` gives ids without special tokens."""

    def __init__(
        self, loaded: Loaded, rows: ReadingRows, held_out: Ints, spec: ReaderSpec, device: str
    ) -> None:
        torch.manual_seed(spec.seed)
        self.spec, self.rows, self.device = spec, rows, torch.device(device)
        self._tokenizer = loaded.tokenizer
        if spec.checkpointing:
            loaded.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model: nn.Module = loaded.model.to(self.device)
        if spec.method == "lora":
            model = add_lora(model, spec.rank, spec.alpha, spec.dropout)
            if spec.begin_with is not None:
                go_on(model, spec.begin_with)
        else:
            model.requires_grad_(True)
        self.model = model
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._names = [name for name, _ in named]
        self.parameters: Sequence[nn.Parameter] = [parameter for _, parameter in named]
        self._schedule = ReaderTrainConfig(steps=spec.steps, lr=spec.lr)
        groups = [
            {
                "params": [p for p in self.parameters if p.ndim > 1],
                "weight_decay": self._schedule.weight_decay,
            },
            {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        fused = self.device.type == "cuda"
        self._optimizer = torch.optim.AdamW(groups, lr=spec.lr, betas=(0.9, 0.98), fused=fused)
        self._held_out = held_out
        self._trained = np.setdiff1d(np.arange(len(rows)), held_out)
        if not len(self._trained):
            raise ValueError(f"{spec.data} holds no row to train on; make more triples (`dysra prepare`)")
        model.train()

    def parts(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """Batches by number, epoch after epoch."""
        spec = self.spec
        epoch, first, plan = -1, 0, list[Ints]()
        for number in numbers:
            while number - first >= len(plan):
                epoch, first = epoch + 1, first + len(plan)
                seed = spec.seed * 1000 + epoch
                plan = plan_batches(self.rows.lengths, self._trained, spec.tokens_per_batch, seed)
            yield collate(self.rows, plan[number - first], self.device)

    def loss(self, part: Batch, number: int, progress: float) -> tuple[Tensor, dict[str, Tensor], int]:
        """Cross entropy of the answers' tokens; dropout is drawn from the part's number."""
        torch.manual_seed(self.spec.seed * 1_000_003 + number)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss, right = answer_loss(self.model, part)
        return loss, {"answers": loss, "tokens_right": right}, part.ids.numel()

    def update(self, step: int, progress: float, group: Group) -> dict[str, float]:
        """One step of AdamW."""
        return scheduled_step(self._optimizer, self._schedule, step, progress, self.spec.steps)

    def state(self) -> dict[str, Any]:
        """The trained weights alone, and the optimizer."""
        return named_state(self._names, self.parameters, self._optimizer)

    def load(self, state: dict[str, Any]) -> None:
        """See Learner."""
        load_named(state, self._names, self.parameters, self._optimizer)

    def flops_per_token(self) -> float:
        """Two a weight forward and two backward through all, two more a trained weight."""
        whole = sum(parameter.numel() for parameter in self.model.parameters())
        return 4.0 * whole + 2.0 * sum(parameter.numel() for parameter in self.parameters)

    @torch.no_grad()
    def judged(self) -> dict[str, float]:
        """Mean loss and share of tokens right on held-out questions."""
        few = self._held_out[: self.spec.judged]
        if not len(few):
            return {}
        self.model.eval()
        found, weight = np.zeros(2), 0
        for batch in plan_batches(self.rows.lengths, few, self.spec.tokens_per_batch, 0):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                loss, right = answer_loss(self.model, collate(self.rows, batch, self.device))
            found += len(batch) * np.array([loss.item(), right.item()])
            weight += len(batch)
        self.model.train()
        return {"held_out_loss": round(found[0] / weight, 4), "held_out_right": round(found[1] / weight, 4)}

    def write(self, folder: Path, about: dict[str, Any]) -> list[Path]:
        """The adapter as peft reads it, or the whole model as `transformers` does, in bf16."""
        about |= {"rows": len(self._trained), **self.judged()}
        write_adapted(self.model, self._tokenizer, self.spec.method, folder)
        return sorted(folder.iterdir())


def build_reader(spec: ReaderSpec, out: Path, device: str) -> ReaderLearner:
    """The learner over a folder of triples; dev questions are held out."""
    from dataclasses import replace

    del out
    adapter = "none" if spec.method == "lora" else spec.backbone.adapter
    plain = replace(spec.backbone, adapter=adapter, device=device, dtype="float32")
    loaded = load(plain)
    rows, held_out = rows_of(triples_in(spec.data), loaded, spec.most_tokens)
    return ReaderLearner(loaded, rows, held_out, spec, str(pick_device(device)))


def triples_in(folder: Path) -> list[Triple]:
    """The triples of a folder, or of all folders of triples inside it; ValueError where there is none."""
    inside = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []
    folders = [folder] if list(folder.glob("triples-*.parquet")) else [
        each for each in inside if list(each.glob("triples-*.parquet")) and "judged" not in each.name
    ]  # fmt: skip
    if not folders:
        raise ValueError(
            f"{folder} holds no triples; make them by `dysra prepare` or infra.training.reader_data"
        )
    return [triple for each in folders for triple in read_triples(each)]


def rows_of(triples: Sequence[Triple], loaded: Loaded, most_tokens: int) -> tuple[ReadingRows, Ints]:
    """Token rows of the triples, too long ones left out, and which rows are held out (split dev or test)."""
    tokenizer = loaded.tokenizer
    begin = [i for i in tokenizer.encode("", add_special_tokens=True).ids if i not in loaded.end_ids]
    pairs: list[tuple[list[int], list[int]]] = []
    held_out: list[int] = []
    for triple in triples:
        prompt = known_ids(tokenizer, reader_prompt(triple.sentences, triple.question))
        target = known_ids(tokenizer, triple.target + STOP)
        if len(begin) + len(prompt) + len(target) <= most_tokens:
            if triple.split != "train":
                held_out.append(len(pairs))
            pairs.append(([*begin, *prompt], target))
    if not pairs:
        raise ValueError(f"most_tokens: given {most_tokens}; every one of {len(triples)} rows is longer")
    return ReadingRows.of(pairs), np.array(held_out, np.int64)
