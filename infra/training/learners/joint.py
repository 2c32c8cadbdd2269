"""Reader and chooser trained together: a Gumbel-softmax choice, straight through, weighted into the reader's loss.

A choice is one candidate, or STOP (nothing is read). Of each question some arms are drawn by Gumbel's top-k, so
they are samples of the policy; the first is the choice. The reader learns from the choice (to give up, where it
does not hold the answer); the chooser from sum_c w_c * loss_c, with w hard forward and soft backward (arXiv
1611.01144), and from the terms of the hybrid loss that concern the choice. Both read one choice: it is drawn once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infra.training.learners.adapting import (
    METHODS,
    go_on,
    known_ids,
    load_named,
    named_state,
    write_adapted,
)
from infra.training.learners.reader import STOP
from models.data_parallel import Group
from models.hf.adapter import adapter_folder
from models.hf.computed_again import compute_layers_again
from models.hf.config import HfConfig
from models.hf.loading import Loaded, load, pick_device
from models.reader_training import ReadingRows, add_lora, collate
from models.retriever.choosing import Choosing
from models.retriever.config import RetrieverConfig
from models.retriever.network import PolicyNetwork, as_tensors
from models.retriever.storage import load_policy_for, save_policy
from models.retriever.supervised import imitation_loss
from models.retriever.table import FEATURES, GOLD
from models.subq.losses import LossWeights
from pipeline.session.prompts import reader_prompt, target_text
from pipeline.tasks.contexts import text_of
from pipeline.tasks.material import Material
from pipeline.tasks.scores import holds_answer

POLICY = "policy"


@dataclass(frozen=True, kw_only=True, slots=True)
class JointSpec:
    """One joint run."""

    data: Path = field(metadata={"help": "folder of material (infra.training.policy_data)"})
    backbone: HfConfig = field(default_factory=HfConfig, metadata={"help": "the reader, with its adapter"})
    policy: Path | None = field(
        default=None, metadata={"help": "a saved policy to begin with; None: a new one"}
    )
    method: str = field(default="lora", metadata={"help": "how the reader is adapted: lora or full"})
    steps: int = field(default=500, metadata={"help": "updates of the whole run"})
    accumulate: int = field(default=1, metadata={"help": "parts of an update"})
    questions: int = field(default=16, metadata={"help": "questions of a part"})
    arms: int = field(
        default=4, metadata={"help": "actions a question that are read; the first is the choice"}
    )
    budget: int = field(default=128, metadata={"help": "tokens that a choice may cost"})
    temperature: float = field(default=1.0, metadata={"help": "of the soft weights, at the run's beginning"})
    cold: float = field(default=0.3, metadata={"help": "temperature at the run's end"})
    lr: float = field(default=2e-4, metadata={"help": "peak learning rate of the reader"})
    policy_lr: float = field(default=1e-3, metadata={"help": "peak learning rate of the chooser"})
    labels: float = field(default=0.0, metadata={"help": "weight of choosing what the labels name (0: off)"})
    losses: LossWeights = field(
        default=LossWeights(), metadata={"help": "answers, tokens, frobenius and operations are used here"}
    )
    rank: int = field(default=32, metadata={"help": "rank of the adapter"})
    checkpointing: bool = field(
        default=False,
        metadata={
            "help": "layers are computed again for the gradient: a fraction of the memory, a third more time"
        },
    )
    width: int = field(default=96, metadata={"help": "width of a new policy"})
    seed: int = field(default=0, metadata={"help": "of everything"})

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: given {self.method!r}; allowed: {', '.join(METHODS)}")
        if self.arms < 2:
            raise ValueError(f"arms: given {self.arms}; allowed: 2 or more, or there is nothing to compare")
        for name in ("steps", "accumulate", "questions", "budget", "rank", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        for name in ("lr", "policy_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: above 0")
        if not self.labels >= 0:
            raise ValueError(f"labels: given {self.labels}; allowed: 0 (off) or more")
        if not 0 < self.cold <= self.temperature:
            raise ValueError(
                f"cold: given {self.cold}; allowed: above 0, at most temperature ({self.temperature})"
            )


class JointLearner:
    """See infra.training.backbone_loop.Learner."""

    def __init__(
        self, loaded: Loaded, material: Material, network: PolicyNetwork, spec: JointSpec, device: str
    ) -> None:
        torch.manual_seed(spec.seed)
        self.spec, self.material, self.device = spec, material, torch.device(device)
        self._rows = material.rows("train", answerable=True)
        if not len(self._rows):
            raise ValueError(f"{spec.data} holds no training question with an answer")
        self._tokenizer, self._loaded = loaded.tokenizer, loaded
        self._begin = [
            i for i in loaded.tokenizer.encode("", add_special_tokens=True).ids if i not in loaded.end_ids
        ]
        model: nn.Module = loaded.model.to(self.device)
        if spec.method == "lora":
            model = add_lora(model, spec.rank, 2 * spec.rank, 0.0)
            begin = adapter_folder(spec.backbone)
            if begin is not None:
                go_on(model, begin)
        else:
            model.requires_grad_(True)
        # no dropout on either side: what is chosen and what is learned from are one policy
        self.model, self.network = model.eval(), network.to(self.device).eval()
        if spec.checkpointing:
            compute_layers_again(model)
        reader = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        chooser = list(network.named_parameters())
        self._names = [*(f"reader.{n}" for n, _ in reader), *(f"policy.{n}" for n, _ in chooser)]
        self.parameters: Sequence[nn.Parameter] = [p for _, p in (*reader, *chooser)]
        groups = [
            {"params": [p for _, p in reader], "peak": spec.lr},
            {"params": [p for _, p in chooser], "peak": spec.policy_lr},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=spec.lr, weight_decay=0.01)

    def parts(self, numbers: Sequence[int]) -> Iterator[Any]:
        """Rows of the material by the part's number; every question once in an epoch."""
        size = min(self.spec.questions, len(self._rows))
        an_epoch = len(self._rows) // size
        for number in numbers:
            order = np.random.default_rng([self.spec.seed, number // an_epoch]).permutation(self._rows)
            yield order[number % an_epoch * size : (number % an_epoch + 1) * size]

    def loss(self, part: Any, number: int, progress: float) -> tuple[Tensor, dict[str, Tensor], int]:
        """The reader's loss on what was chosen, the chooser's on all arms, and the terms of the choice."""
        spec = self.spec
        tables = self.material.tables
        state = Choosing(tables, part, spec.budget, 1)
        logits, _ = self.network(as_tensors(state.observe(), self.device))
        logits = logits.float()
        arms, weights = self.choose(logits, number, progress)
        legal = torch.from_numpy(state.legal()).to(self.device) > 0
        usable = legal.gather(1, arms)
        read = self._read(part, arms, usable)
        told = self._losses([(prompt, gold) for prompt, gold, _ in read], grad=False).view(arms.shape)
        honest = self._losses([(p, t) for p, _, t in read[:: spec.arms]], grad=True)
        probabilities = logits.softmax(-1)
        costs = torch.from_numpy(state.costs()).to(self.device)
        tokens = (probabilities[:, :-1] * torch.where(legal[:, :-1], costs, 0)).sum(1).mean()
        entropy = -(probabilities * probabilities.clamp_min(1e-9).log()).sum(1)
        frobenius = probabilities.square().sum(1).mean()
        operations = (1.0 + entropy.exp()).square().mean()
        chosen = (weights * torch.where(usable, told, 0.0)).sum(1).mean()
        use = spec.losses
        loss = use.answers * (honest.mean() + chosen) + use.tokens * tokens
        loss = loss + use.frobenius * frobenius + use.operations * operations
        terms = {
            "answers": honest.mean(), "chosen": chosen, "tokens": tokens, "frobenius": frobenius,
            "operations": operations, "gold_chosen": self._gold(part, arms[:, 0]), "entropy": entropy.mean(),
            "stop_rate": (arms[:, 0] == tables.num_candidates).float().mean(),
        }  # fmt: skip
        if spec.labels:
            terms["labels"] = imitation_loss(logits, self._goal(part))[0]
            loss = loss + spec.labels * terms["labels"]
        count = sum(len(prompt) + len(target) for prompt, target, _ in read)
        return loss, terms, count

    def choose(self, logits: Tensor, number: int, progress: float) -> tuple[Tensor, Tensor]:
        """Arms [B, arms], the choice first, and their weights: one-hot on the choice, gradient of the softmax."""
        spec = self.spec
        chance = torch.Generator().manual_seed(spec.seed * 1_000_003 + number)
        noise = torch.rand(logits.shape, generator=chance).clamp(1e-9, 1 - 1e-7).to(logits.device)
        drawn = logits - torch.log(-torch.log(noise))
        arms = drawn.topk(min(spec.arms, logits.shape[1]), 1).indices
        temperature = spec.temperature + (spec.cold - spec.temperature) * progress
        soft = (drawn.gather(1, arms) / temperature).softmax(1)
        hard = torch.zeros_like(soft)
        hard[:, 0] = 1.0
        return arms, hard + soft - soft.detach()

    def update(self, step: int, progress: float, group: Group) -> dict[str, float]:
        """One step of AdamW for both."""
        share = min(1.0, (step + 1) / max(1, 0.05 * self.spec.steps)) * max(0.05, 1 - progress)
        for settings in self._optimizer.param_groups:
            settings["lr"] = settings["peak"] * share
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return {"lr": self.spec.lr * share}

    def state(self) -> dict[str, Any]:
        """Both networks' trained weights and the optimizer."""
        return named_state(self._names, self.parameters, self._optimizer)

    def load(self, state: dict[str, Any]) -> None:
        """See Learner."""
        load_named(state, self._names, self.parameters, self._optimizer)

    def flops_per_token(self) -> float:
        """Every arm forward, one of them backward too."""
        whole = sum(parameter.numel() for parameter in self.model.parameters())
        return 2.0 * whole * (1 + 2.0 / self.spec.arms)

    def write(self, folder: Path, about: dict[str, Any]) -> list[Path]:
        """The reader (adapter, or whole model) and, in `policy`, the chooser."""
        write_adapted(self.model, self._tokenizer, self.spec.method, folder)
        save_policy(self.network, folder / POLICY, {"algorithm": "joint", "seed": self.spec.seed})
        return sorted(folder.iterdir())

    def _read(self, part: Any, arms: Tensor, usable: Tensor) -> list[tuple[list[int], list[int], list[int]]]:
        """Prompt, gold answer and honest target (giving up where the text does not tell) of every arm."""
        found = []
        for row, actions, allowed in zip(part, arms.tolist(), usable.tolist(), strict=True):
            question = self.material.questions[int(row)]
            gold = self._encode(target_text(question.answers[0]) + STOP)
            for action, may in zip(actions, allowed, strict=True):
                picks = () if action == self.material.tables.num_candidates or not may else (action,)
                sentences = question.chosen(picks)
                told = holds_answer(text_of(sentences), question.answers)
                prompt = [*self._begin, *self._encode(reader_prompt(sentences, question.text))]
                found.append((prompt, gold, gold if told else self._encode(target_text(None) + STOP)))
        return found

    def _losses(self, pairs: Sequence[tuple[list[int], list[int]]], *, grad: bool) -> Tensor:
        """Mean loss of each row's target [n]."""
        rows = ReadingRows.of(pairs)
        batch = collate(rows, np.arange(len(rows)), self.device)
        model: Any = self.model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        with (
            torch.set_grad_enabled(grad),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"),
        ):
            hidden = base.model(input_ids=batch.ids, use_cache=False).last_hidden_state
            logits = base.lm_head(hidden[batch.predicts]).float()
        losses = F.cross_entropy(logits, batch.ids[:, 1:][batch.predicts[:, :-1]], reduction="none")
        row = batch.predicts.nonzero()[:, 0]
        summed = losses.new_zeros(len(rows)).index_add(0, row, losses)
        return summed / batch.predicts.sum(1)

    def _gold(self, part: Any, chosen: Tensor) -> Tensor:
        return self._goal(part).gather(1, chosen[:, None]).float().mean()

    def _goal(self, part: Any) -> Tensor:
        """The actions that the labels name [B, K + 1]; STOP is none of them."""
        goal = self.material.tables.labels[part] == GOLD
        return torch.from_numpy(np.pad(goal, ((0, 0), (0, 1)))).to(self.device)

    def _encode(self, text: str) -> list[int]:
        return known_ids(self._tokenizer, text)


def build_joint(spec: JointSpec, out: Path, device: str) -> JointLearner:
    """The learner over a folder of material."""
    del out
    # the saved adapter stands for itself: it begins with the reader's own and is not put on top of it
    adapter = "none" if spec.method == "lora" else spec.backbone.adapter
    loaded = load(replace(spec.backbone, adapter=adapter, device=device, dtype="float32"))
    material = Material.load(spec.data)
    torch.manual_seed(spec.seed)
    if spec.policy is not None:
        network, _ = load_policy_for(spec.policy, material.tables)
    else:
        tables = material.tables
        names = FEATURES if tables.num_features == len(FEATURES) else ()
        network = PolicyNetwork(
            RetrieverConfig(
                dim=tables.dim, num_features=tables.num_features, feature_names=names, width=spec.width, layers=1
            )
        )  # fmt: skip
    return JointLearner(loaded, material, network, spec, str(pick_device(device)))
