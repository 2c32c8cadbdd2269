"""A landmark head taught by an embedder: its vectors are copied, its choices learned, labels trusted beside them.

A part is some leaves of near passages with a sentence and two made queries each, labelled questions with their
telling text and one that nearly tells, and questions without a label. Three terms: `direct`, one minus the cosine
of each landmark with the teacher's vector along its main directions (arXiv 1910.01108 has such a term beside two
others); `ranked`, the cross entropy of each query's choice among all texts of the part, against the teacher's own
(whole vectors, softmax of 20 times the cosine) mixed with what is known to tell, if anything is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from infra.training.landmark_taught import OF_A_PASSAGE, KnownVectors, Taught
from infra.training.learners.landmark import LandmarkLearner
from infra.training.learners.landmark_leaves import leaves
from infra.training.learners.landmark_pairs import Pairs
from infra.training.learners.landmark_spec import LandmarkSpec
from models.hf.landmark_head import Side
from models.hf.loading import Loaded

TEACHER_SCALE = 20.0
LEAF = 16


class TaughtPart(NamedTuple):
    """Rows of texts to be found [N] and of queries [Q]; of each query the texts known to tell, and their share."""

    texts: list[int]
    queries: list[int]
    golds: list[list[int]]
    trust: list[float]


class TaughtLearner(LandmarkLearner):
    """See infra.training.backbone_loop.Learner; judged and written as LandmarkLearner."""

    def __init__(
        self, loaded: Loaded, train: Pairs, held_out: dict[str, Pairs], spec: LandmarkSpec, device: str,
        folder: Path,
    ) -> None:  # fmt: skip
        super().__init__(loaded, train, held_out, spec, device)
        self._taught = taught = Taught.load(folder)
        if taught.labelled != len(train.texts):
            raise ValueError(
                f"taught: {folder} was made with {taught.labelled:,} labelled texts, {spec.data} has "
                f"{len(train.texts):,}; make it again from the same data"
            )
        self._known_teacher = KnownVectors(folder, dict(held_out), train.texts)
        self._directions = torch.from_numpy(np.array(taught.directions)).to(self.device)
        if self._directions.shape[1] != spec.dim:
            raise ValueError(
                f"dim: given {spec.dim}; {folder} was made for {self._directions.shape[1]}: give that, or make "
                "it again"
            )
        self._vectors_there = torch.from_numpy(np.array(taught.vectors)).to(self.device)
        passages = OF_A_PASSAGE * taught.passages
        self._heads = np.ascontiguousarray(taught.vectors[:passages:OF_A_PASSAGE])
        self._labelled = list(self.train.questions)
        self._orders: dict[int, list[np.ndarray[Any, Any]]] = {}

    def parts(self, numbers: Sequence[int]) -> Iterator[TaughtPart]:  # type: ignore[override]
        """Leaves, labelled questions and others by the part's number; every passage about once in an epoch."""
        spec, taught = self.spec, self._taught
        each = max(1, min(spec.passages, taught.passages) // LEAF)
        for number in numbers:
            an_epoch = max(1, len(self._order(0)) // each)
            order = self._order(number // an_epoch)
            at = number % an_epoch * each
            chance = random.Random(f"{spec.seed}:taught:{number}")
            passages = [int(p) for leaf in order[at : at + each] for p in leaf]
            yield self._part(passages, chance)

    def loss(  # type: ignore[override]
        self, part: TaughtPart, number: int, progress: float
    ) -> tuple[Tensor, dict[str, Tensor], int]:
        """The terms of the module's text; `first`: the share of queries that put a known text first."""
        spec = self.spec
        vectors = self._row_vectors([*part.texts, *part.queries], len(part.texts))
        landmarks, queries = vectors[: len(part.texts)], vectors[len(part.texts) :]
        rows = torch.tensor([*part.texts, *part.queries], device=self.device)
        teacher = self._vectors_there[rows].float()
        copied = normalize(teacher @ self._directions, dim=-1)
        direct = (1 - (vectors * copied).sum(-1)).mean()
        with torch.no_grad():
            told = teacher[: len(part.texts)]
            wanted = (TEACHER_SCALE * teacher[len(part.texts) :] @ told.T).softmax(-1)
            known, share = self._known_tell(part)
            wanted = (1 - share) * wanted + share * known
        scale = self.log_scale.exp().clamp(max=100.0)
        logits = scale * (queries @ landmarks.T)
        ranked = -(wanted * logits.log_softmax(-1)).sum(-1).mean()
        labelled = share[:, 0] > 0
        first = known.gather(1, logits.argmax(1, keepdim=True))[labelled, 0].gt(0).float().mean()
        loss = spec.direct * direct + ranked
        count = int(sum(self._size(row) for row in (*part.texts, *part.queries)))
        return loss, {"direct": direct, "ranked": ranked, "first": first, "scale": scale.detach()}, count

    def _part(self, passages: Sequence[int], chance: random.Random) -> TaughtPart:
        """What is read of some passages, with as many labelled questions as the settings ask for."""
        spec, taught = self.spec, self._taught
        texts: dict[int, int] = {}
        queries: list[int] = []
        golds: list[list[int]] = []
        trust: list[float] = []
        for passage in passages:
            base = OF_A_PASSAGE * passage
            own = [texts.setdefault(base, len(texts)), texts.setdefault(base + 1, len(texts))]
            queries += [base + 2, base + 3]
            golds += [own, own[:1]]  # the second query may be of another sentence
            trust += [spec.trust_made] * 2
        shift = taught.first_labelled
        for asked, gold, near in chance.sample(self._labelled, min(spec.questions, len(self._labelled))):
            hard = chance.sample(near, min(len(near), spec.hard))
            own = [texts.setdefault(shift + gold, len(texts))]
            for text in hard:
                texts.setdefault(shift + text, len(texts))
            queries.append(shift + asked)
            golds.append(own)
            trust.append(spec.trust_labels)
        for _ in range(min(spec.questions // 2, taught.asked)):
            queries.append(taught.first_asked + chance.randrange(taught.asked))
            golds.append([])
            trust.append(0.0)
        return TaughtPart(list(texts), queries, golds, trust)

    def _known_tell(self, part: TaughtPart) -> tuple[Tensor, Tensor]:
        """Known texts [Q, N] as shares that sum to one (none: zeros), and how far they are trusted [Q, 1]."""
        known = torch.zeros(len(part.queries), len(part.texts))
        for at, own in enumerate(part.golds):
            if own:
                known[at, own] = 1.0 / len(own)
        return known.to(self.device), torch.tensor(part.trust, device=self.device)[:, None]

    def _row_vectors(self, rows: Sequence[int], num_texts: int) -> Tensor:
        """Unit vectors [N, r] of rows, the first `num_texts` as texts, the others as questions.

        Texts and questions share batches of like length: fewer, larger steps of the decoder.
        """
        ids = [self._taught.row(row) for row in rows]
        sides: tuple[tuple[Side, range], ...] = (
            ("chunk", range(num_texts)), ("question", range(num_texts, len(rows))),
        )  # fmt: skip
        encoded = self._encoder.encode_all(ids)
        return torch.cat(
            [self._vectors([encoded[at] for at in places], side) for side, places in sides if len(places)]
        )

    def _order(self, epoch: int) -> list[np.ndarray[Any, Any]]:
        """The leaves of an epoch in random order; only the newest epoch's are kept."""
        if epoch not in self._orders:
            made = leaves(self._heads, LEAF, [self.spec.seed, epoch])
            at = np.random.default_rng([self.spec.seed, epoch, 1]).permutation(len(made))
            first = self._orders.get(0)
            self._orders = {epoch: [made[row] for row in at]}
            if first is not None:
                self._orders[0] = first
        return self._orders[epoch]

    def _size(self, row: int) -> int:
        return int(self._taught.starts[row + 1] - self._taught.starts[row])

    def write(self, folder: Path, about: dict[str, Any]) -> list[Path]:
        """See LandmarkLearner; how many texts were taught goes into what the card tells."""
        about |= {"taught_texts": len(self._taught.vectors)}
        return super().write(folder, about)

    def _embedder(self) -> Any:
        return self._known_teacher
