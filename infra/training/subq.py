"""Training a sub-quadratic backbone from scratch: language modelling, needles, contrastive landmarks, one device.

Imports only torch, numpy, tokenizers and safetensors beside `models` and `pipeline`: it runs on a bare GPU host.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infra.training.subq_data import SubqData, batches
from infra.training.subq_measures import measured, questions_of, told_at
from infra.training.subq_optim import build_optimizers, learning_rate
from models.formats import FORMAT, KEY, check_format
from models.subq import SubqConfig, SubqModel
from models.subq.chunks import ChunkCodes
from models.subq.hindsight import hindsight_loss, overlap, rarity
from models.subq.losses import (
    LandmarkBank,
    LossTerms,
    LossWeights,
    Questions,
    choice_terms,
    info_nce,
    language_terms,
    negatives,
)
from models.subq.model import Output
from models.subq.router import Forced
from pipeline.prepare.needle_stream import NeedleBatch, NeedleStreamConfig

STATE = "trainer.pt"
CURVE = "curve.jsonl"
READ_EVERY = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class SubqTrainConfig:
    """Everything that a run depends on, beside its model and its data."""

    lr: float = field(default=1.5e-3, metadata={"help": "largest learning rate"})
    muon: bool = field(default=True, metadata={"help": "Muon for the matrices of blocks, AdamW for the rest"})
    weight_decay: float = field(default=0.01, metadata={"help": "of both optimizers"})
    warmup: int = field(default=80, metadata={"help": "steps until the learning rate is reached"})
    decay_from: float = field(
        default=0.5, metadata={"help": "share of the run after which the rate falls linearly"}
    )
    clip: float = field(default=1.0, metadata={"help": "largest norm of all gradients together"})
    losses: LossWeights = field(default=LossWeights(), metadata={"help": "weight of every term"})
    contrastive_until: tuple[float, float] = field(
        default=(1.0, 1.0),
        metadata={"help": "shares of the run between which the contrastive term fades to nothing"},
    )
    contrastive_apart: bool = field(
        default=False,
        metadata={
            "help": "the contrastive term teaches the chunk encoder alone: its gradient ends before the blocks"
        },
    )
    hindsight: float = field(
        default=0.0,
        metadata={
            "help": "weight, inside the contrastive term, of choosing what ordinary text would have liked to read "
            "(models.subq.hindsight; chunk queries only)"
        },
    )
    closed: bool = field(
        default=False,
        metadata={"help": "chunks hold values of zero at first, so that reading begins as nothing"},
    )
    answers_from: float = field(
        default=0.0, metadata={"help": "share of the run before which the term on answers does not count"}
    )
    routing_first: float = field(
        default=0.0,
        metadata={
            "help": "share of the run in which the choice is taught first (MSA, arXiv 2603.23516): until then the "
            "loss on tokens counts a tenth, afterwards the contrastive term counts `routing_after` (0: both whole "
            "throughout)"
        },
    )
    routing_after: float = field(
        default=0.1, metadata={"help": "weight of the contrastive term after the first stage"}
    )
    forced_until: float = field(
        default=0.4, metadata={"help": "share of the run over which forcing fades to nothing"}
    )
    cross: float = field(default=0.5, metadata={"help": "share of sequences that may read others' chunks"})
    bank: int = field(default=262_144, metadata={"help": "landmarks of earlier steps kept as negatives"})
    limit_s: float = field(
        default=0.0, metadata={"help": "seconds of training at most, all calls together (0: none)"}
    )
    joined: bool = field(
        default=False,
        metadata={
            "help": "run the blocks over a batch as one sequence: one shape to compile for all lengths"
        },
    )
    compiled: bool = field(default=False, metadata={"help": "compile blocks and the encoder (CUDA)"})
    workers: int = field(default=0, metadata={"help": "processes that make batches (0: this one)"})
    save_every: int = field(default=100, metadata={"help": "steps between saved states"})
    seed: int = field(default=0, metadata={"help": "weights, forcing, and which sequences read others"})

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.warmup < 1 or self.clip <= 0 or self.save_every < 1:
            raise ValueError(
                f"lr, warmup, clip, save_every: given {self.lr}, {self.warmup}, {self.clip}, {self.save_every}; "
                "allowed: above 0"
            )
        for name in ("decay_from", "forced_until", "cross", "answers_from", "routing_first", "routing_after"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 0 to 1")
        first, last = self.contrastive_until
        if not 0.0 <= first <= last <= 1.0:
            raise ValueError(
                f"contrastive_until: given {(first, last)}; allowed: two shares, 0 to 1, in order"
            )
        if self.bank < 0 or self.workers < 0 or self.limit_s < 0 or self.hindsight < 0:
            raise ValueError(
                f"bank {self.bank}, workers {self.workers}, limit_s {self.limit_s}, hindsight {self.hindsight}; "
                "allowed: 0 or more"
            )


@dataclass(frozen=True, slots=True)
class Figures:
    """What a step measured, still on the device."""

    known: dict[str, float]
    names: tuple[str, ...]
    values: Tensor

    def read(self) -> dict[str, float]:
        """All figures as numbers; waits until the step is computed."""
        return self.known | dict(zip(self.names, self.values.tolist(), strict=True))


class SubqTrainer:
    """One run. `state_dir` keeps its state and its curve; a trainer made over an old state goes on from there."""

    def __init__(
        self,
        model: SubqConfig,
        data: SubqData,
        stream: NeedleStreamConfig,
        config: SubqTrainConfig,
        state_dir: Path,
        device: str = "cpu",
    ) -> None:
        if stream.chunk != model.chunk:
            raise ValueError(
                f"chunk: given {stream.chunk} for the data and {model.chunk} for the model; give one"
            )
        if len(data.tokens) and int(data.tokens.max()) >= model.vocabulary:
            raise ValueError(
                f"vocabulary: given {model.vocabulary}, but the text holds id {int(data.tokens.max())}; give the "
                "tokenizer's number of ids"
            )
        if config.hindsight and model.retrieval == "token":
            raise ValueError(
                f"hindsight: given {config.hindsight} with retrieval 'token'; allowed: 0, or retrieval 'chunk', "
                "whose labels they are"
            )
        self.data, self.stream, self.config, self.state_dir = data, stream, config, state_dir
        self.device = torch.device(device)
        counts = (
            np.bincount(data.tokens.astype(np.int64), minlength=model.vocabulary)
            if config.hindsight
            else None
        )
        self._rare = None if counts is None else rarity(torch.from_numpy(counts).to(self.device))
        torch.manual_seed(config.seed)
        self.model = SubqModel(model).to(self.device)
        if config.closed:
            self.model.close_readers()
        if config.compiled:
            for block in [*self.model.lower_blocks, *self.model.upper_blocks, self.model.encoder]:
                if block is not None:
                    block.compile(dynamic=False)
        self.optimizers = build_optimizers(self.model, config.lr, config.weight_decay, config.muon)
        self.bank = LandmarkBank(config.bank, model.landmark_dim, self.device)
        self.step, self.seconds = 0, 0.0
        state_dir.mkdir(parents=True, exist_ok=True)
        self._made_from = {
            "model": model.to_dict(),
            "stream": asdict(stream),
            "train": {
                k: v for k, v in asdict(config).items() if k not in ("workers", "save_every", "compiled")
            },
        }
        if (state_dir / STATE).exists():
            self._load()

    @property
    def progress(self) -> float:
        """Share of the run that is over, by steps or by time, whichever is further."""
        by_steps = self.step / self.stream.batches
        return max(by_steps, self.seconds / self.config.limit_s) if self.config.limit_s else by_steps

    def run(self, until_s: float = float("inf")) -> list[dict[str, float]]:
        """Train to the end, or for `until_s` seconds, at least one step; save the state. Returns the curve."""
        began, before, first = time.monotonic(), self.seconds, self.step
        curve: list[dict[str, float]] = []
        waiting: list[Figures] = []
        with (self.state_dir / CURVE).open("a", encoding="utf-8") as lines:
            for batch in self._batches():
                if self.progress >= 1 or (self.step > first and time.monotonic() - began >= until_s):
                    break
                waiting.append(self._update(batch))
                self.seconds = before + time.monotonic() - began
                # reading figures waits for the device, so several steps are read at once
                if len(waiting) == READ_EVERY or self.step % self.config.save_every == 0:
                    self._read(waiting, curve, lines)
                if self.step % self.config.save_every == 0:
                    self.save()
            self._read(waiting, curve, lines)
        self.save()
        return curve

    def _read(self, waiting: list[Figures], curve: list[dict[str, float]], lines: IO[str]) -> None:
        rows = [figures.read() for figures in waiting]
        for row in rows:
            curve.append(row | {"seconds": round(self.seconds, 3)})
            lines.write(json.dumps(curve[-1]) + "\n")
        lines.flush()
        waiting.clear()

    def train_step(self, batch: NeedleBatch) -> dict[str, float]:
        """One update; what was measured in it."""
        return self._update(batch).read()

    def _update(self, batch: NeedleBatch) -> Figures:
        config, progress = self.config, self.progress
        rate = learning_rate(config.lr, self.step, progress, config.warmup, config.decay_from)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            terms, row, codes = self._terms(batch, progress)
        weights = self._weights(progress)
        loss = terms.total(weights)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if codes is not None and self.step >= config.warmup:
            # not before: early landmarks are noise and would only be easy negatives
            self.bank.add(codes.landmarks.flatten(0, 1), self._moved(batch.anonymous))
        self.step += 1
        shown = {
            "loss": loss.detach(),
            "norm": norm,
            **{k: v.detach() for k, v in terms._asdict().items()},
            **row,
        }
        values = torch.stack([value.float().to(self.device) for value in shown.values()])
        return Figures({"step": self.step, "lr": rate}, tuple(shown), values)

    def _moved(self, array: np.ndarray[Any, Any]) -> Tensor:
        """The array on the device; on a GPU without waiting for what is computed there."""
        tensor = torch.from_numpy(array)
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _terms(
        self, batch: NeedleBatch, progress: float
    ) -> tuple[LossTerms, dict[str, Tensor], ChunkCodes | None]:
        model, size = self.model, self.model.config.chunk
        ids, anonymous = self._moved(batch.ids), self._moved(batch.anonymous)
        questions = questions_of(self._moved(batch.questions))
        chance = np.random.default_rng([self.config.seed, self.step])
        cross = self._moved(chance.random(len(ids)) < self.config.cross)
        share = max(0.0, 1 - progress / self.config.forced_until) if self.config.forced_until else 0.0
        pick = self._moved(np.flatnonzero(chance.random(len(batch.questions)) < share))
        asking = questions.position if model.config.retrieval == "token" else questions.asking
        forced = Forced(asking[pick], questions.gold[pick]) if len(pick) else None
        out = model(ids, cross=cross, hidden_from_others=anonymous, forced=forced, joined=self.config.joined)
        at = self._moved(batch.at)
        logits = model.logits(out.hidden.flatten(0, 1).index_select(0, at))
        targets = self._moved(batch.targets)
        is_answer = self._moved(batch.is_answer)
        told = self._with_copies(out, ids, at, logits, targets) if model.copier is not None else None
        text, answers, right = language_terms(logits, targets, is_answer, told)
        if told is not None:
            right = self._right_with_copies(out, ids, batch, right)
        chosen = choice_terms(out.routing, size, ids.numel())
        contrastive = text.new_zeros(())
        if out.codes is not None and (len(asking) or self._rare is not None):
            taught = self._taught_apart(out) if self.config.contrastive_apart else out
            with torch.autocast(self.device.type, enabled=False):
                if len(asking):
                    contrastive = self._contrastive(taught, questions, anonymous)
                if self._rare is not None:
                    contrastive = contrastive + self.config.hindsight * self._hindsight(taught, ids)
        row = measured(out, questions, asking, at, right, is_answer, ids.numel())
        terms = LossTerms(text, answers, contrastive, *(term.to(text.device) for term in chosen))
        return terms, row | {"scale": model.scale}, out.codes

    def _with_copies(self, out: Output, ids: Tensor, at: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """Nats [M] of the targets at flat positions `at` [M] with what is copied; others are passed over."""
        own = F.cross_entropy(logits.float(), targets, reduction="none")
        whole, wanted = own.new_zeros(ids.numel()), torch.zeros_like(ids.flatten())
        whole = whole.index_copy(0, at, own).view_as(ids)
        losses = self.model.token_losses(out, ids, whole, wanted.index_copy(0, at, targets).view_as(ids))
        return losses.flatten().index_select(0, at)

    @torch.no_grad()
    def _right_with_copies(self, out: Output, ids: Tensor, batch: NeedleBatch, right: Tensor) -> Tensor:
        """Which targets were likeliest [M]: of answers with what is copied, of other text by the logits alone."""
        asked = np.flatnonzero(batch.is_answer)  # counted here: counting on the device would wait for it
        told = told_at(self.model, out, ids, self._moved(batch.at[asked])).argmax(-1)
        return right.index_copy(0, self._moved(asked), told == self._moved(batch.targets[asked]))

    def _taught_apart(self, out: Output) -> Output:
        """The same chunks encoded again, from hidden states that pass no gradient on to what made them."""
        assert out.lower is not None
        # a leaf with a gradient of its own: the compiled encoder is the one of the first pass
        lower = out.lower.detach().requires_grad_()
        return out._replace(codes=self.model.encode(lower), lower=lower)

    def _contrastive(self, out: Output, questions: Questions, anonymous: Tensor) -> Tensor:
        assert out.codes is not None
        model = self.model
        landmarks = out.codes.landmarks
        flat = landmarks.flatten(0, 1)
        if model.config.retrieval == "token":
            assert model.encoder is not None and out.lower is not None
            queries = model.encoder.token_queries(out.lower).flatten(0, 1).index_select(0, questions.position)
        else:  # the chunk before asks
            queries = out.codes.queries.flatten(0, 1).index_select(0, questions.asking - 1)
        wrong = negatives(questions, len(flat), landmarks.shape[1], model.config.near, anonymous)
        held = self.bank.rows[: len(self.bank)]
        return info_nce(
            queries, flat, questions.gold, wrong, model.scale, held, self.bank.negative(questions)
        ).mean()

    def _hindsight(self, out: Output, ids: Tensor) -> Tensor:
        """Of every chunk of ids [B, T] that brings up rare words: the choice of earlier chunks that hold them."""
        assert out.codes is not None and self._rare is not None
        model = self.model
        with torch.no_grad():
            wanted = overlap(ids, self._rare, model.config.chunk, model.config.near)
        queries, _ = model.queries(ids[..., None], out.codes)
        return hindsight_loss(queries, out.codes.landmarks, wanted, model.config.near, model.scale)

    def _weights(self, progress: float) -> LossWeights:
        first, last = self.config.contrastive_until
        fade = 1.0 if progress <= first else max(0.0, (last - progress) / max(last - first, 1e-9))
        losses = self.config.losses
        values = asdict(losses) | {"contrastive": losses.contrastive * fade}
        if progress < self.config.answers_from:
            values["answers"] = 0.0
        if self.config.routing_first:
            if progress < self.config.routing_first:
                less = dict.fromkeys(("language", "answers"), 0.1)
            else:
                less = {"contrastive": self.config.routing_after}
            values |= {name: share * values[name] for name, share in less.items()}
        return LossWeights(**values)

    def _batches(self) -> Iterator[NeedleBatch]:
        return batches(self.data, self.stream, self.step, self.config.workers)

    def save(self) -> None:
        """Write the state under another name, then put it in place: a kill leaves the old one or the new one."""
        state = {
            KEY: FORMAT,
            "made_from": json.dumps(self._made_from, sort_keys=True),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "bank": self.bank.state_dict(),
        }
        temporary = self.state_dir / f".{STATE}.partial"
        with temporary.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, self.state_dir / STATE)

    def _load(self) -> None:
        state = torch.load(self.state_dir / STATE, map_location=self.device, weights_only=True)
        check_format(state, self.state_dir / STATE)
        if state["made_from"] != json.dumps(self._made_from, sort_keys=True):
            raise ValueError(
                f"{self.state_dir} holds the state of another run; give another folder, or remove it"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.bank.load_state_dict(state["bank"])
        self.step, self.seconds = state["step"], state["seconds"]
        curve = self.state_dir / CURVE
        if curve.exists():  # steps after the saved state are done again
            lines = curve.read_text(encoding="utf-8").splitlines()[: self.step]
            curve.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
