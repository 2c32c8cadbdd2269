"""The landmark head of a decoder as a learner: questions and the texts that tell lie close together (InfoNCE).

Made of the triples (a question, the sentence that tells, and sentences read with it that do not), or of the files
of `infra.training.landmark_data`. The head (`models/hf/landmark_head.py`) pools the hidden states of a text's
tokens after a middle layer; layers above it are not computed. The decoder is frozen (its hidden states are then
computed once) or adapted by LoRA beside the head.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infra.training.learners.adapting import known_ids
from infra.training.learners.landmark_encoder import LandmarkEncoder, by_length
from infra.training.learners.landmark_pairs import (
    ENDING,
    TRAIN,
    Pairs,
    judged_files,
    load_pairs,
    pairs_of,
)
from infra.training.learners.landmark_peers import Ranking, add_peers, in_8_bits
from infra.training.learners.landmark_spec import LandmarkSpec
from infra.training.learners.reader import triples_in
from models.cache.ranker import base_identity
from models.data_parallel import Group
from models.hf.landmark_head import LandmarkHead, LandmarkHeadConfig, Side
from models.hf.loading import Loaded, load, pick_device
from models.reader_training import save_adapter
from models.subq.losses import info_nce

__all__ = ["LandmarkLearner", "LandmarkSpec", "build_landmark"]


class LandmarkLearner:
    """See infra.training.backbone_loop.Learner. `held_out` names what recall is measured on."""

    def __init__(
        self, loaded: Loaded, train: Pairs, held_out: Mapping[str, Pairs], spec: LandmarkSpec, device: str,
    ) -> None:  # fmt: skip
        torch.manual_seed(spec.seed)
        self.spec, self.device = spec, torch.device(device)
        self.train, self.dev = train.split(spec.dev_share if spec.dev_every else 0.0, spec.seed)
        self.held_out = dict(held_out)
        self._best: tuple[float, list[Tensor]] = (-1.0, [])
        if not train.questions:
            raise ValueError(f"{spec.data}: no question with a telling sentence to train on")
        self._loaded = loaded
        self._encoder = LandmarkEncoder(loaded, spec, self.device)
        self.model, self.mixer = self._encoder.model, self._encoder.mixer
        shape = LandmarkHeadConfig(
            width=self._encoder.width, layer=self._encoder.layer, landmark=spec.dim,
            weights_of=base_identity(loaded.identity),
        )  # fmt: skip
        self.head = LandmarkHead(shape).to(self.device)
        self.log_scale = nn.Parameter(torch.tensor(math.log(spec.scale), device=self.device))
        outer = [*self.head.parameters(), self.log_scale]
        inner = self._encoder.trained()
        share = 0.3 if spec.method == "mixer" else 0.1
        self.parameters: Sequence[nn.Parameter] = [*outer, *inner]
        groups = [{"params": outer, "share": 1.0}, *([{"params": inner, "share": share}] if inner else [])]
        self._optimizer = torch.optim.AdamW(groups, lr=spec.lr, weight_decay=0.01)
        self._rows = [self._ids(text) for text in train.texts]
        once = spec.method == "frozen" and spec.taught is None
        self._known = self._hidden_of(self._rows) if once else None

    def parts(self, numbers: Sequence[int]) -> Iterator[list[tuple[int, int, tuple[int, ...]]]]:
        """Questions by the part's number; every question once in an epoch."""
        spec, count = self.spec, len(self.train.questions)
        size = min(spec.questions, count)
        an_epoch, epoch, order = count // size, -1, np.zeros(0, np.int64)
        for number in numbers:
            if number // an_epoch != epoch:
                epoch = number // an_epoch
                order = np.random.default_rng([spec.seed, epoch]).permutation(count)
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
        places = {text: at for at, text in enumerate(dict.fromkeys([*told, *near]))}
        queries = self._vectors(self._hidden(asked), "question")
        landmarks = self._vectors(self._hidden(list(places)), "chunk")
        gold = torch.tensor([[places[text]] * 2 for text in told], device=self.device)
        wrong = torch.ones(len(asked), len(places), dtype=torch.bool, device=self.device)
        same: dict[int, list[int]] = {}
        for question, text in zip(asked, told, strict=True):
            same.setdefault(question, []).append(places[text])
        for row, question in enumerate(asked):  # a question's other telling texts are not wrong
            if len(same[question]) > 1:
                wrong[row, same[question]] = False
        scale = self.log_scale.exp().clamp(max=100.0)
        loss = info_nce(queries, landmarks, gold, wrong, scale).mean()
        first = ((queries @ landmarks.T).argmax(1) == gold[:, 0]).float().mean()
        count = sum(len(self._rows[at]) for at in (*asked, *places))
        return loss, {"contrastive": loss, "first": first, "scale": scale}, count

    def update(self, step: int, progress: float, group: Group) -> dict[str, float]:
        """One step of AdamW; the rate rises over 5% of the run and falls to nothing."""
        rate = self.spec.lr * min(1.0, (step + 1) / max(1, 0.05 * self.spec.steps)) * max(0.02, 1 - progress)
        for settings in self._optimizer.param_groups:
            settings["lr"] = rate * settings["share"]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        told = {"lr": rate}
        if self.dev.questions and (step + 1) % self.spec.dev_every == 0:
            told["dev_recall_5"] = found = self.dev_recall()
            if found > self._best[0]:
                self._best = (found, [parameter.detach().clone() for parameter in self.parameters])
        return told

    @torch.no_grad()
    def dev_recall(self, k: int = 5, most: int = 4000) -> float:
        """Share of the questions kept back whose telling text is among the best k of some training texts."""
        golds = [gold for _, gold, _ in self.dev.questions]
        others = [at for at in self.dev.searched() if at not in set(golds)]
        places = [
            *dict.fromkeys(golds),
            *random.Random(self.spec.seed).sample(others, min(most, len(others))),
        ]
        at = {place: number for number, place in enumerate(places)}
        queries = self._known_vectors([question for question, _, _ in self.dev.questions], "question")
        scores = queries @ self._known_vectors(places, "chunk").T
        own = scores.gather(1, torch.tensor([[at[gold]] for gold in golds], device=scores.device))
        return float(((scores > own).sum(1) < k).float().mean())

    def state(self) -> dict[str, Any]:
        """The trained weights and the optimizer."""
        best = {"recall": self._best[0], "weights": self._best[1]}
        weights = [p.detach() for p in self.parameters]
        return {"weights": weights, "optimizer": self._optimizer.state_dict(), "best": best}

    def load(self, state: dict[str, Any]) -> None:
        """See Learner."""
        with torch.no_grad():
            for parameter, saved in zip(self.parameters, state["weights"], strict=True):
                parameter.copy_(saved)
        self._optimizer.load_state_dict(state["optimizer"])
        self._best = (state["best"]["recall"], state["best"]["weights"])

    def flops_per_token(self) -> float:
        """Of the decoder's layers where they are trained too, else nothing worth counting."""
        whole = sum(parameter.numel() for parameter in self.model.parameters())
        spared = sum(m.weight.numel() for m in self.model.modules() if isinstance(m, nn.Embedding))
        return 4.0 * (whole - spared) if self.spec.method == "lora" else 0.0

    def recall(self, ks: Sequence[int] = (1, 5, 20)) -> dict[str, float]:
        """Share of held-out questions whose telling text is among the best k of the searched ones; peers' too."""
        return {
            key if len(self.held_out) == 1 else f"{name}_{key}": value
            for name, (overall, _) in self.judged(ks).items()
            for key, value in overall.items()
        }

    @torch.no_grad()
    def judged(
        self, ks: Sequence[int] = (1, 5, 20)
    ) -> dict[str, tuple[dict[str, float], dict[str, dict[str, Any]]]]:
        """Recall by name of the held-out file: over all questions, and by their sets."""
        out = {}
        for name, pairs in self.held_out.items():
            if not pairs.questions:
                continue
            ranking = Ranking(pairs, self.device)
            asked = list(dict.fromkeys(question for question, _, _ in pairs.questions))
            at = {question: number for number, question in enumerate(asked)}
            queries = self._all_vectors([pairs.texts[q] for q in asked], "question")
            queries = queries[[at[question] for question, _, _ in pairs.questions]]
            landmarks = self._all_vectors([pairs.texts[place] for place in ranking.places], "chunk")
            ranking.add("", queries @ landmarks.T)
            ours = ranking.add("int8", queries @ in_8_bits(landmarks).T)
            lexical = add_peers(ranking, self._embedder(), self.train.texts, self.spec.dim)
            ranking.fuse("fused_ours", ours, lexical)
            overall = {key.removeprefix("_"): value for key, value in ranking.recalls(ks).items()}
            by_group = {
                group: {key.removeprefix("_"): value for key, value in found.items()}
                for group, found in ranking.by_group(ks).items()
            }
            out[name] = overall | {"searched": float(len(ranking.places))}, by_group
        return out

    def _embedder(self) -> Any:
        if not self.spec.embedder:
            return None
        from models.embed import EmbedderConfig, load_embedder

        return load_embedder(EmbedderConfig(model=self.spec.embedder)).encode

    def write(self, folder: Path, about: dict[str, Any]) -> list[Path]:
        """The head (and its adapter) as safetensors, figures.json; recall goes into what the card tells."""
        if self._best[1]:
            with torch.no_grad():
                for parameter, best in zip(self.parameters, self._best[1], strict=True):
                    parameter.copy_(best)
            about["dev_recall_5"] = round(self._best[0], 4)
        judged = self.judged()
        about |= {
            "training_questions": len(self.train.questions),
            "held_out": {name: len(pairs.questions) for name, pairs in self.held_out.items()},
            "bytes_a_text": {
                "ours": 4 * self.spec.dim, "int8": self.spec.dim, f"minilm{self.spec.dim}": self.spec.dim,
                "minilm": 4 * 384,
            },
        }  # fmt: skip
        for name, (overall, _) in judged.items():
            prefix = "" if len(judged) == 1 else f"{name}_"
            about |= {f"{prefix}{key}": value for key, value in overall.items()}
        paths = [self.head.save(folder)]
        figures = {name: {"all": overall, "sets": sets} for name, (overall, sets) in judged.items()}
        (folder / "figures.json").write_text(json.dumps({"about": about, "judged": figures}, default=str))
        if self.mixer is not None:
            paths.append(self.mixer.save(folder))
        if self.spec.method == "lora":
            save_adapter(self.model, folder / "adapter")
            (folder / "adapter" / "README.md").unlink(missing_ok=True)  # peft's own
        return paths

    def _ids(self, text: str) -> list[int]:
        return known_ids(self._loaded.tokenizer, text)[: self.spec.most_tokens] or [0]

    def _vectors(self, hidden: Sequence[Tensor], side: Side) -> Tensor:
        """The head's unit vectors of texts whose tokens' hidden states are given [n, r]."""
        offsets = torch.tensor([0, *np.cumsum([len(each) for each in hidden])], device=self.device)
        return self.head(torch.cat(list(hidden)).to(self.device, torch.float32), offsets, side)  # type: ignore[no-any-return]

    def _known_vectors(self, places: Sequence[int], side: Side, batch: int = 512) -> Tensor:
        """The head's vectors of training texts [N, r], in their order."""
        parts = [places[at : at + batch] for at in range(0, len(places), batch)]
        return torch.cat([self._vectors(self._hidden(part), side) for part in parts])

    def _hidden(self, places: Sequence[int]) -> list[Tensor]:
        """Hidden states of texts' tokens: looked up where the decoder is frozen."""
        if self._known is not None:
            return [self._known[at] for at in places]
        return self._encoder.encode_all([self._rows[at] for at in places])

    @torch.no_grad()
    def _hidden_of(self, rows: Sequence[list[int]]) -> list[Tensor]:
        """Of all texts, in half precision on the device: a text takes 2 * tokens * width bytes."""
        # float16 overflows: some tokens of Gemma pass 65,504
        return [each.bfloat16() for each in self._encoder.encode_all(rows)]

    @torch.no_grad()
    def _all_vectors(self, texts: Sequence[str], side: Side) -> Tensor:
        """The head's vectors of many texts [N, r], in their order; no hidden state is kept."""
        rows = [self._ids(text) for text in texts]
        found = torch.zeros(len(rows), self.spec.dim, device=self.device)
        for some in by_length(rows, self.spec.tokens_at_once):
            found[some] = self._vectors(self._encoder.encode([rows[at] for at in some]), side)
        return found


def build_landmark(spec: LandmarkSpec, out: Path, device: str) -> LandmarkLearner:
    """The learner over files of pairs, or over a folder of triples, whose dev and test questions are held out."""
    del out
    adapter = "none" if spec.method == "lora" else spec.backbone.adapter
    loaded = load(replace(spec.backbone, adapter=adapter, device=device, dtype="float32"))
    if (spec.data / f"{TRAIN}{ENDING}").is_file():
        train = load_pairs(spec.data / f"{TRAIN}{ENDING}").with_practice(spec.practice, spec.seed)
        held_out = {name: load_pairs(path) for name, path in judged_files(spec.data).items()}
    else:
        triples = triples_in(spec.data)
        train = pairs_of([triple for triple in triples if triple.split == "train"])
        held_out = {"held_out": pairs_of([triple for triple in triples if triple.split != "train"])}
    name = str(pick_device(device))
    if spec.taught is not None:
        from infra.training.learners.landmark_taught import TaughtLearner

        return TaughtLearner(loaded, train, held_out, spec, name, spec.taught)
    return LandmarkLearner(loaded, train, held_out, spec, name)
