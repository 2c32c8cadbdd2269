"""A reader that learns to read its compressed cache: answers over contexts held as a session holds them.

Each part is one context of `infra.training.reader_latents_data` with its questions, held in a form and at a share
of the bytes that are drawn by the part's number (`models/reader_latents.py`); a share of the contexts is held in
full, so that the reader does not forget how to read those. LoRA, begun with the reader's own adapter.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from infra.training.learners.adapting import (
    go_on,
    known_ids,
    load_named,
    named_state,
    scheduled_step,
    write_adapted,
)
from infra.training.reader_latents_data import Group, load_groups
from models.cache.ranker import Ranker, find_ranker
from models.data_parallel import Group as Workers
from models.hf.adapter import adapter_folder
from models.hf.computed_again import compute_layers_again
from models.hf.config import HfConfig
from models.hf.loading import Loaded, layer_specs, load, pick_device
from models.reader_latents import FORMS, Squeeze, held_answer_loss, latent_answer_loss, read_context
from models.reader_training import Batch, ReaderTrainConfig, ReadingRows, add_lora, collate
from pipeline.session.prompts import reader_prompt, target_text

STOP = "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentsSpec:
    """One run."""

    data: Path = field(metadata={"help": "folder that infra.training.reader_latents_data wrote"})
    backbone: HfConfig = field(default_factory=HfConfig, metadata={"help": "the reader, with its adapter"})
    forms: tuple[str, ...] = field(
        default=("latents", "hitters"), metadata={"help": f"how contexts are held: {', '.join(FORMS)}"}
    )
    keeps: tuple[float, ...] = field(
        default=(0.05, 0.1, 0.2), metadata={"help": "shares of the full layers' bytes that are kept"}
    )
    full_share: float = field(default=0.25, metadata={"help": "share of contexts that are held in full"})
    passages: tuple[int, ...] = field(default=(8, 16, 24), metadata={"help": "passages of a context"})
    ranker: str = field(default="shipped", metadata={"help": "for hitters: shipped, or a folder"})
    steps: int = field(default=300, metadata={"help": "updates of the whole run"})
    accumulate: int = field(default=4, metadata={"help": "contexts of an update"})
    lr: float = field(default=2e-4, metadata={"help": "peak learning rate"})
    rank: int = field(default=16, metadata={"help": "rank of a new adapter; one begun with keeps its own"})
    checkpointing: bool = field(
        default=False,
        metadata={
            "help": "layers are computed again for the gradient: a fraction of the memory, a third more time"
        },
    )
    judged: int = field(default=120, metadata={"help": "test contexts that are judged, at most"})
    seed: int = field(default=0, metadata={"help": "of everything"})

    def __post_init__(self) -> None:
        for form in self.forms:
            for keep in self.keeps:
                Squeeze(form=form, keep=keep)
        for name in ("forms", "keeps", "passages"):
            if not getattr(self, name):
                raise ValueError(f"{name}: given none; allowed: one or more")
        for name in ("steps", "accumulate", "rank", "judged"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        if not 0 <= self.full_share <= 1:
            raise ValueError(f"full_share: given {self.full_share}; allowed: 0 to 1")


class Part(NamedTuple):
    """One context's ids [N], its questions, and how it is held."""

    context: Tensor
    questions: Batch
    squeeze: Squeeze


class LatentsLearner:
    """See infra.training.backbone_loop.Learner."""

    def __init__(
        self, loaded: Loaded, train: Sequence[Group], test: Sequence[Group], spec: LatentsSpec, device: str
    ) -> None:
        torch.manual_seed(spec.seed)
        if not train:
            raise ValueError(f"{spec.data}: no group of questions to train on")
        self.spec, self.device = spec, torch.device(device)
        self.train, self.test = list(train), list(test)
        self._loaded = loaded
        self._begin = [
            i for i in loaded.tokenizer.encode("", add_special_tokens=True).ids if i not in loaded.end_ids
        ]
        model: nn.Module = loaded.model.to(self.device)
        self._specs = layer_specs(model)
        self._ranker: Ranker | None = None
        if "hitters" in spec.forms:
            self._ranker = find_ranker(spec.ranker, loaded.identity)
        begin = adapter_folder(spec.backbone)
        rank, alpha = spec.rank, 2 * spec.rank
        if begin is not None:
            told = json.loads((begin / "adapter_config.json").read_text())
            rank, alpha = int(told["r"]), int(told["lora_alpha"])
        self.model = add_lora(model, rank, alpha, 0.0).eval()
        if begin is not None:
            go_on(self.model, begin)
        if spec.checkpointing:
            compute_layers_again(self.model)
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self._names = [name for name, _ in named]
        self.parameters: Sequence[nn.Parameter] = [parameter for _, parameter in named]
        self._schedule = ReaderTrainConfig(steps=spec.steps, lr=spec.lr)
        self._optimizer = torch.optim.AdamW(self.parameters, lr=spec.lr, betas=(0.9, 0.98), weight_decay=0.01)

    def parts(self, numbers: Sequence[int]) -> Iterator[Part]:
        """A context by the part's number; every group once in an epoch, each time held differently."""
        spec, count = self.spec, len(self.train)
        for number in numbers:
            order = np.random.default_rng([spec.seed, number // count]).permutation(count)
            chance = random.Random(f"{spec.seed}:{number}")
            full = chance.random() < spec.full_share
            squeeze = Squeeze(form=chance.choice(spec.forms), keep=chance.choice(spec.keeps))
            passages = chance.choice((1, *spec.passages) if full else spec.passages)
            yield self._part(
                self.train[order[number % count]], passages, f"{spec.seed}:{number}",
                Squeeze(form="full", keep=1.0) if full else squeeze,
            )  # fmt: skip

    def loss(self, part: Part, number: int, progress: float) -> tuple[Tensor, dict[str, Tensor], int]:
        """Cross entropy of the answers' tokens over the context as it is held."""
        with self._autocast():
            loss, right = latent_answer_loss(
                self.model, self._specs, part.context, part.questions, part.squeeze, self._ranker
            )
        count = int(part.context.numel() + part.questions.ids.numel())
        return loss, {"answers": loss, "tokens_right": right}, count

    def update(self, step: int, progress: float, group: Workers) -> dict[str, float]:
        """One step of AdamW."""
        return scheduled_step(self._optimizer, self._schedule, step, progress, self.spec.steps)

    def state(self) -> dict[str, Any]:
        """The adapter and the optimizer."""
        return named_state(self._names, self.parameters, self._optimizer)

    def load(self, state: dict[str, Any]) -> None:
        """See Learner."""
        load_named(state, self._names, self.parameters, self._optimizer)

    def flops_per_token(self) -> float:
        """Two a weight forward and two backward through all, two more a trained weight; the embedding apart."""
        whole = sum(parameter.numel() for parameter in self.model.parameters())
        spared = sum(m.weight.numel() for m in self.model.modules() if isinstance(m, nn.Embedding))
        return 4.0 * (whole - spared) + 2.0 * sum(parameter.numel() for parameter in self.parameters)

    @torch.no_grad()
    def judge(self) -> dict[str, dict[str, float]]:
        """Nats an answer token and share of tokens right on the test groups, by how their contexts are held.

        `full`, each form and share, and `golds` (few passages, in full); means over contexts, all and by set.
        """
        width = max(self.spec.passages)
        whole = Squeeze(form="full", keep=1.0)
        wide: dict[str, Squeeze] = {"full": whole}
        for form in self.spec.forms:
            if form != "full":
                wide |= {f"{form}_{keep:g}": Squeeze(form=form, keep=keep) for keep in self.spec.keeps}
        cells = ((width, wide), (1, {"golds": whole}))  # a context is read once for all forms
        found: dict[str, dict[str, list[tuple[float, float]]]] = {
            name: {} for _, forms in cells for name in forms
        }
        several = sorted({group.dataset for group in self.test})
        by_set = [[g for g in self.test if g.dataset == name] for name in several]
        each = max(1, self.spec.judged // max(1, len(several)))
        for group in (group for some in by_set for group in some[:each]):
            for passages, forms in cells:
                part = self._part(group, passages, f"judge:{group.asked[0]}", whole)
                with self._autocast():
                    layers = read_context(self.model, self._specs, part.context)
                    for name, squeeze in forms.items():
                        answers, right = held_answer_loss(
                            self.model, layers, part.questions, squeeze, self._ranker
                        )
                        for key in ("all", group.dataset):
                            found[name].setdefault(key, []).append((float(answers), float(right)))
        return {
            name: {
                f"{what}_{key}": round(float(np.mean([pair[at] for pair in pairs])), 4)
                for key, pairs in by_key.items()
                for at, what in enumerate(("nats", "right"))
            }
            for name, by_key in found.items()
        }

    def write(self, folder: Path, about: dict[str, Any]) -> list[Path]:
        """The adapter as peft reads it; what was judged goes to figures.json and the card."""
        judged = self.judge()
        about |= {"groups": len(self.train)}
        about |= {f"nats_{name}": figures.get("nats_all") for name, figures in judged.items()}
        write_adapted(self.model, self._loaded.tokenizer, "lora", folder)
        (folder / "figures.json").write_text(json.dumps({"about": about, "judged": judged}, default=str))
        return sorted(folder.iterdir())

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _part(self, group: Group, passages: int, seed: str, squeeze: Squeeze) -> Part:
        pairs = [
            (self._ids(reader_prompt((), asked)), self._ids(target_text(answers[0]) + STOP))
            for asked, answers in zip(group.asked, group.answers, strict=True)
        ]
        rows = ReadingRows.of(pairs)
        context = [*self._begin, *self._ids(group.context(passages, seed))]
        return Part(
            torch.tensor(context, device=self.device),
            collate(rows, np.arange(len(rows)), self.device),
            squeeze,
        )

    def _ids(self, text: str) -> list[int]:
        return known_ids(self._loaded.tokenizer, text)


def build_latents(spec: LatentsSpec, out: Path, device: str) -> LatentsLearner:
    """The learner over a folder of groups."""
    del out
    for name in ("train", "test"):
        if not (spec.data / f"{name}.json.xz").is_file():
            raise ValueError(
                f"{spec.data} holds no {name}.json.xz; make it: python -m infra.training.reader_latents_data --help"
            )
    # the saved adapter stands for itself: it begins with the reader's own and is not put on top of it
    loaded = load(replace(spec.backbone, adapter="none", device=device, dtype="float32"))
    train, test = (load_groups(spec.data / f"{name}.json.xz") for name in ("train", "test"))
    return LatentsLearner(loaded, train, test, spec, str(pick_device(device)))
