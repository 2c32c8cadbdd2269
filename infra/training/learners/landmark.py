"""The landmark head of a decoder as a learner: questions and the texts that tell lie close together (InfoNCE).

Made of the triples: a question, the sentence that tells, and sentences read with it that do not. The head
(`models/hf/landmark_head.py`) pools the hidden states of a text's tokens after a middle layer. The decoder is
frozen (its hidden states are then computed once) or adapted by LoRA beside the head.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infra.training.learners.landmark_peers import peers_recall
from infra.training.learners.reader import triples_in
from models.cache.ranker import base_identity
from models.data_parallel import Group
from models.hf.config import HfConfig
from models.hf.landmark_head import LandmarkHead, LandmarkHeadConfig, Side
from models.hf.loading import Loaded, load, pick_device
from models.reader_training import add_lora, save_adapter
from models.subq.losses import info_nce
from pipeline.prepare.triples import Triple
from pipeline.session.prompts import GIVEN_UP, article_head
from pipeline.tasks.scores import holds_answer

METHODS = ("frozen", "lora")


@dataclass(frozen=True, kw_only=True, slots=True)
class LandmarkSpec:
    """One landmark head."""

    data: Path = field(metadata={"help": "folder of triples, or a folder of such folders"})
    backbone: HfConfig = field(default_factory=HfConfig, metadata={"help": "the decoder, with its adapter"})
    method: str = field(default="frozen", metadata={"help": ", ".join(METHODS)})
    dim: int = field(default=128, metadata={"help": "width of a landmark"})
    layer: int = field(default=-1, metadata={"help": "layer that the head listens to; -1: two thirds up"})
    steps: int = field(default=1000, metadata={"help": "updates of the whole run"})
    accumulate: int = field(default=1, metadata={"help": "parts of an update"})
    questions: int = field(default=64, metadata={"help": "questions of a part; each other's texts are wrong"})
    hard: int = field(default=2, metadata={"help": "texts a question that nearly tell"})
    lr: float = field(default=2e-3, metadata={"help": "peak learning rate of the head; of LoRA a tenth"})
    scale: float = field(default=20.0, metadata={"help": "first factor of the cosines"})
    rank: int = field(default=16, metadata={"help": "rank of the adapter (lora)"})
    most_tokens: int = field(default=96, metadata={"help": "tokens of a text that are read"})
    embedder: str = field(default="", metadata={"help": "embedder that recall is compared with; empty: none"})
    seed: int = field(default=0, metadata={"help": "of everything"})

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: given {self.method!r}; allowed: {', '.join(METHODS)}")
        for name in ("dim", "steps", "accumulate", "questions", "rank", "most_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        if self.hard < 0:
            raise ValueError(f"hard: given {self.hard}; allowed: 0 or more")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Texts, and of each question its own place among them, the telling text's, and those that nearly tell."""

    texts: tuple[str, ...]
    questions: tuple[tuple[int, int, tuple[int, ...]], ...]


class LandmarkLearner:
    """See infra.training.backbone_loop.Learner."""

    def __init__(
        self, loaded: Loaded, train: Pairs, held_out: Pairs, spec: LandmarkSpec, device: str,
    ) -> None:  # fmt: skip
        torch.manual_seed(spec.seed)
        self.spec, self.device = spec, torch.device(device)
        self.train, self.held_out = train, held_out
        if not train.questions:
            raise ValueError(f"{spec.data}: no question with a telling sentence to train on")
        self._loaded = loaded
        model: nn.Module = loaded.model.to(self.device)
        if spec.method == "lora":
            model = add_lora(model, spec.rank, 2 * spec.rank, 0.0)
        self.model = model.eval()
        width = int(loaded.model.config.get_text_config(decoder=True).hidden_size)
        layers = len(loaded.model.get_decoder().layers)
        layer = spec.layer if spec.layer >= 0 else 2 * layers // 3
        if layer >= layers:
            raise ValueError(f"layer: given {layer}; allowed: 0 to {layers - 1}, or -1 for two thirds up")
        shape = LandmarkHeadConfig(
            width=width, layer=layer, landmark=spec.dim, weights_of=base_identity(loaded.identity)
        )
        self.head = LandmarkHead(shape).to(self.device)
        self._begin = [
            i for i in loaded.tokenizer.encode("", add_special_tokens=True).ids if i not in loaded.end_ids
        ]
        self.log_scale = nn.Parameter(torch.tensor(math.log(spec.scale), device=self.device))
        inner = [parameter for parameter in model.parameters() if parameter.requires_grad]
        outer = [*self.head.parameters(), self.log_scale]
        self.parameters: Sequence[nn.Parameter] = [*outer, *inner]
        groups = [{"params": outer, "share": 1.0}, *([{"params": inner, "share": 0.1}] if inner else [])]
        self._optimizer = torch.optim.AdamW(groups, lr=spec.lr, weight_decay=0.01)
        self._known = self._hidden_of(train.texts) if spec.method == "frozen" else None

    def parts(self, numbers: Sequence[int]) -> Iterator[list[tuple[int, int, tuple[int, ...]]]]:
        """Questions by the part's number; every question once in an epoch."""
        spec, count = self.spec, len(self.train.questions)
        size = min(spec.questions, count)
        an_epoch = count // size
        for number in numbers:
            order = np.random.default_rng([spec.seed, number // an_epoch]).permutation(count)
            at = number % an_epoch * size
            yield [self.train.questions[row] for row in order[at : at + size]]

    def loss(
        self, part: list[tuple[int, int, tuple[int, ...]]], number: int, progress: float
    ) -> tuple[Tensor, dict[str, Tensor], int]:
        """InfoNCE of each question against all texts of the part."""
        chance = random.Random(f"{self.spec.seed}:{number}")
        asked = [question for question, _, _ in part]
        told = [gold for _, gold, _ in part]
        near = [
            text for _, _, wrong in part for text in chance.sample(wrong, min(len(wrong), self.spec.hard))
        ]
        places = list(dict.fromkeys([*told, *near]))
        hidden = self._hidden([*asked, *places])
        queries = self._vectors(hidden[: len(asked)], "question")
        landmarks = self._vectors(hidden[len(asked) :], "chunk")
        gold = torch.tensor([[places.index(text)] * 2 for text in told], device=self.device)
        wrong = torch.ones(len(asked), len(places), dtype=torch.bool, device=self.device)
        scale = self.log_scale.exp().clamp(max=100.0)
        loss = info_nce(queries, landmarks, gold, wrong, scale).mean()
        first = ((queries @ landmarks.T).argmax(1) == gold[:, 0]).float().mean()
        count = sum(len(self._ids(self.train.texts[at])) for at in (*asked, *places))
        return loss, {"contrastive": loss, "first": first, "scale": scale}, count

    def update(self, step: int, progress: float, group: Group) -> dict[str, float]:
        """One step of AdamW; the rate rises over 5% of the run and falls to nothing."""
        rate = self.spec.lr * min(1.0, (step + 1) / max(1, 0.05 * self.spec.steps)) * max(0.02, 1 - progress)
        for settings in self._optimizer.param_groups:
            settings["lr"] = rate * settings["share"]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return {"lr": rate}

    def state(self) -> dict[str, Any]:
        """The trained weights and the optimizer."""
        return {"weights": [p.detach() for p in self.parameters], "optimizer": self._optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """See Learner."""
        with torch.no_grad():
            for parameter, saved in zip(self.parameters, state["weights"], strict=True):
                parameter.copy_(saved)
        self._optimizer.load_state_dict(state["optimizer"])

    def flops_per_token(self) -> float:
        """Of the decoder where it is trained too, else nothing worth counting."""
        whole = sum(parameter.numel() for parameter in self.model.parameters())
        return 4.0 * whole if self.spec.method == "lora" else 0.0

    @torch.no_grad()
    def recall(self, ks: Sequence[int] = (1, 5, 20)) -> dict[str, float]:
        """Share of held-out questions whose telling text is among the best k of all held-out texts; BM25's too."""
        pairs = self.held_out
        if not pairs.questions:
            return {}
        asked = {question for question, _, _ in pairs.questions}
        places = [at for at in range(len(pairs.texts)) if at not in asked]
        hidden = self._hidden_of(pairs.texts)
        queries = self._vectors([hidden[question] for question, _, _ in pairs.questions], "question")
        scores = queries @ self._vectors([hidden[at] for at in places], "chunk").T
        gold = torch.tensor([places.index(text) for _, text, _ in pairs.questions], device=scores.device)
        rank = (scores > scores.gather(1, gold[:, None])).sum(1)
        found = {f"recall_{k}": round(float((rank < k).float().mean()), 4) for k in ks}
        encode = self._embedder()
        peers = peers_recall(
            pairs.texts, pairs.questions, places, ks, encode, self.train.texts, self.spec.dim
        )
        return found | peers

    def _embedder(self) -> Any:
        if not self.spec.embedder:
            return None
        from models.embed import EmbedderConfig, load_embedder

        return load_embedder(EmbedderConfig(model=self.spec.embedder)).encode

    def write(self, folder: Path, about: dict[str, Any]) -> list[Path]:
        """The head (and its adapter) as safetensors; recall goes into what the card tells."""
        about |= {
            "training_questions": len(self.train.questions),
            "held_out": len(self.held_out.questions),
            **self.recall(),
        }
        paths = [self.head.save(folder)]
        if self.spec.method == "lora":
            save_adapter(self.model, folder / "adapter")
        return paths

    def _ids(self, text: str) -> list[int]:
        return list(self._loaded.tokenizer.encode(text, add_special_tokens=False).ids)[
            : self.spec.most_tokens
        ] or [0]

    def _vectors(self, hidden: Sequence[Tensor], side: Side) -> Tensor:
        """The head's unit vectors of texts whose tokens' hidden states are given [n, r]."""
        offsets = torch.tensor([0, *np.cumsum([len(each) for each in hidden])], device=self.device)
        return self.head(torch.cat(list(hidden)).to(self.device, torch.float32), offsets, side)  # type: ignore[no-any-return]

    def _hidden(self, places: Sequence[int]) -> list[Tensor]:
        """Hidden states of texts' tokens: looked up where the decoder is frozen."""
        if self._known is not None:
            return [self._known[at] for at in places]
        return self._encode([self.train.texts[at] for at in places])

    @torch.no_grad()
    def _hidden_of(self, texts: Sequence[str], batch: int = 64) -> list[Tensor]:
        """Of all texts, in half precision beside the device: a text takes 2 * tokens * width bytes."""
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        found: list[Tensor] = [torch.zeros(0)] * len(texts)
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            for at, rows in zip(some, self._encode([texts[at] for at in some]), strict=True):
                found[at] = rows.bfloat16().cpu()  # float16 overflows: some tokens of Gemma pass 65,504
        return found

    def _encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Hidden states [tokens, d] of each text after the head's layer; the opening token is left out."""
        rows = [self._ids(text) for text in texts]
        ids = torch.zeros(len(rows), max(map(len, rows)) + len(self._begin), dtype=torch.long)
        for at, row in enumerate(rows):
            ids[at, : len(self._begin) + len(row)] = torch.tensor([*self._begin, *row])
        heard: list[Tensor] = []
        model: Any = self.model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        hook = (
            base.get_decoder()
            .layers[self.head.config.layer]
            .register_forward_hook(
                lambda _, __, output: heard.append(output[0] if isinstance(output, tuple) else output)
            )
        )
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                # right-padded and causal: no token sees the padding behind it
                base.model(input_ids=ids.to(self.device), use_cache=False)
        finally:
            hook.remove()
        first = len(self._begin)
        return [heard[0][at, first : first + len(row)] for at, row in enumerate(rows)]


def build_landmark(spec: LandmarkSpec, out: Path, device: str) -> LandmarkLearner:
    """The learner over a folder of triples; dev and test questions are held out."""
    del out
    adapter = "none" if spec.method == "lora" else spec.backbone.adapter
    loaded = load(replace(spec.backbone, adapter=adapter, device=device, dtype="float32"))
    triples = triples_in(spec.data)
    train = pairs_of([triple for triple in triples if triple.split == "train"])
    held_out = pairs_of([triple for triple in triples if triple.split != "train"])
    return LandmarkLearner(loaded, train, held_out, spec, str(pick_device(device)))


def pairs_of(triples: Sequence[Triple], most_hard: int = 8) -> Pairs:
    """Question, telling sentence and sentences that do not tell, of every question that has an `oracle` triple."""
    texts: dict[str, int] = {}
    by_question: dict[str, list[Triple]] = {}
    for triple in triples:
        by_question.setdefault(triple.question_id, []).append(triple)
    found = []
    for group in by_question.values():
        oracle = next((t for t in group if t.kind == "oracle" and t.tells and t.target != GIVEN_UP), None)
        if oracle is None:
            continue
        golds = {_text(sentence) for sentence in oracle.sentences}
        other = dict.fromkeys(_text(s) for triple in group if triple is not oracle for s in triple.sentences)
        near = [t for t in other if t not in golds and not holds_answer(t, oracle.answers)][:most_hard]
        places = [
            texts.setdefault(t, len(texts)) for t in (oracle.question, _text(oracle.sentences[0]), *near)
        ]
        found.append((places[0], places[1], tuple(places[2:])))
    return Pairs(tuple(texts), tuple(found))


def _text(sentence: tuple[str, str, str]) -> str:
    return f"{article_head(sentence[0], sentence[1])}: {sentence[2]}"
