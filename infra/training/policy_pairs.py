"""The pair readers trained beside the policy's material, and the scores of one put among the features.

Kinds (`--pair-base`, several joined by "+"): over MiniLM, in OUT/pairs, over the encoders of twice its layers that
`encoders` fetches, in OUT/pairs_e5 and OUT/pairs_bge, over these by two vectors, in OUT/pairs_e5_dual and
OUT/pairs_bge_dual, adapters over MPNet, in OUT/pairs_mpnet, and over the reader's own decoder, in
OUT/pairs_decoder. What `policy_both` makes of all that a run has lies in OUT/pairs_both.

Scores of training questions come from a reader that was not trained on them (two folds, by the title of the first
gold candidate); those of dev and test questions from the one trained on all training questions, in the 8 bits in
which it is saved. Else the policy would trust the score more than it deserves.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.training.policy_made import MADE, UNMADE, begun
from models.retriever.around import with_around
from models.retriever.pair_reader import CONFIG, PairScorer, from_minilm, load_pair_reader, save_pair_reader
from models.retriever.pair_training import PairTexts, PairTrainConfig, train_pairs
from models.retriever.table import FEATURES, GOLD
from pipeline.tasks.material import ChoiceQuestion, Material

FOLDS = ("fold0", "fold1", "whole")
MINILM, DECODER, E5, BGE = "minilm", "decoder", "e5", "bge"
MPNET = "mpnet"
E5_DUAL, BGE_DUAL = "e5_dual", "bge_dual"
"""The same encoders by the cosine of two vectors, as their makers trained them (`dual_pair`)."""
DUALS = {E5_DUAL: E5, BGE_DUAL: BGE}
BOTH = "both"
"""The decoder's and MiniLM's."""
KINDS = (DECODER, MPNET, E5, E5_DUAL, BGE, BGE_DUAL, MINILM)
"""Every kind; policies see the scores of a run's first one, or the weighted sum of all its kinds'."""
PLACES = {kind: "pairs" if kind == MINILM else f"pairs_{kind}" for kind in KINDS}
"""Where each kind lies under OUT."""
PAIRS_BOTH = "pairs_both"
"""Where lies what all kinds of a run say together."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PairBase:
    """A kind of pair reader, and the folder of the weights that it begins with."""

    kind: str
    folder: Path
    around: bool = False
    """Whether the reader reads the sentences around a candidate."""

    def new(self, device: str) -> PairScorer:
        """An untrained reader; the decoder's begins with the plain base: the adapter knows training questions."""
        reader = self._new(device)
        reader.around = self.around
        return reader

    def _new(self, device: str) -> PairScorer:
        if self.kind == MPNET:
            from models.retriever.encoder_pair import from_encoder_folder

            return from_encoder_folder(self.folder, device)
        if self.kind in DUALS:
            from infra.training.encoders import ENCODERS
            from models.retriever.dual_pair import from_encoder

            known = ENCODERS[DUALS[self.kind]]
            return from_encoder(
                self.folder, device, asked=known.asked, told=known.told, pool=known.pool, offset=known.offset
            )
        if self.kind != DECODER:
            return from_minilm(self.folder, device)
        from models.retriever.decoder_pair import from_decoder

        return from_decoder(self.folder, device)

    def load(self, folder: Path, device: str, *, learns: bool = False) -> PairScorer:
        """A saved reader of this kind."""
        return load_pair_reader(folder, device, self.folder, learns=learns)[0]


def kinds_of(pair_base: str) -> tuple[str, ...]:
    """The kinds that are trained ("e5+minilm", or "both"), in the order of KINDS; ValueError for another name.

    Of several without a weighted sum, policies see the scores of the first.
    """
    names = {DECODER, MINILM} if pair_base == BOTH else set(pair_base.split("+"))
    if unknown := names - set(KINDS):
        raise ValueError(
            f"pair base: given {pair_base!r}, {', '.join(sorted(unknown))} of it unknown; allowed: {BOTH}, or "
            f"one or several of {', '.join(KINDS)} joined by +"
        )
    return tuple(kind for kind in KINDS if kind in names)


def made_kinds(given: Any) -> tuple[str, ...]:
    """The kinds that learn made questions first, where there are any: all of the run, or those that are named."""
    named = getattr(given, "made_kinds", None)
    return tuple(kind for kind in kinds_of(given.pair_base) if not named or kind in named)


def rate_of(given: Any, kind: str) -> float:
    """The peak learning rate of a kind but MiniLM's, by the options of a run."""
    if kind in (DECODER, MPNET):  # both train adapters
        return float(given.decoder_lr if kind == DECODER else given.mpnet_lr)
    return float(given.dual_lr if kind in DUALS else given.encoder_lr)


def pairs_seen(home: Path) -> Path:
    """Where the pair readers of a run lie whose scores its policies see."""
    places = [home / PAIRS_BOTH, *(home / PLACES[kind] for kind in KINDS)]
    return next((folder for folder in places if (folder / "whole" / CONFIG).exists()), places[-1])


def fold_of(material: Material, row: int) -> int:
    """0 or 1: the fold of a question, the same for all questions about one title."""
    gold = np.flatnonzero(material.tables.labels[row] == GOLD)
    question = material.questions[row]
    key = question.sentences[int(gold[0])][0] if len(gold) else question.question_id
    return hashlib.blake2b(key.encode(), digest_size=1).digest()[0] % 2


def fold_rows(material: Material, fold: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows that a reader is trained on, and those that it scores."""
    train = material.rows("train", answerable=True)
    if fold in ("whole", MADE, UNMADE):
        return train, np.setdiff1d(np.arange(len(material)), material.rows("train"))
    at = np.array([fold_of(material, int(row)) for row in material.rows("train")], np.int64)
    other = material.rows("train")[at != int(fold[-1])]
    return np.setdiff1d(train, other), other


def train_fold(
    material: Material, base: PairBase, fold: str, out: Path, config: PairTrainConfig, device: str, say: Say,
    after_made: bool = False,
) -> None:  # fmt: skip
    """Train one reader, save it (8 bits), score its rows with what was saved: OUT/<fold>/scores.npz.

    One that is trained and saved already only scores. `after_made`: it goes on from OUT/made.
    """
    folder = out / fold
    if (folder / "scores.npz").exists():
        return
    began = time.monotonic()
    rows, scored = fold_rows(material, fold)
    if not (folder / CONFIG).exists():
        start = begun(base, out, device) if after_made else base.new(device)
        _train(material, start, base.kind, fold, rows, folder, config, say, after_made)
    trained_s = time.monotonic() - began
    columns = pair_features(base.load(folder, device), material, scored)
    part = folder / "scores.part.npz"
    np.savez(part, rows=scored, columns=columns)
    part.rename(folder / "scores.npz")
    say(
        f"pair reader {base.kind} {fold}: trained in {trained_s:.0f} s, {len(scored):,} questions scored in "
        f"{time.monotonic() - began - trained_s:.0f} s, hit@1 {hit_of(material, scored, columns[..., 0]):.1f}"
    )


def _train(
    material: Material, reader: PairScorer, kind: str, fold: str, rows: npt.NDArray[np.int64], folder: Path,
    config: PairTrainConfig, say: Say, after_made: bool,
) -> None:  # fmt: skip
    began = time.monotonic()
    texts = texts_of(reader, material)
    say(f"pair reader {kind} {fold}: begins after {time.monotonic() - began:.0f} s")

    def tell(step: dict[str, float]) -> None:
        if int(step["step"]) % 40 == 0:
            figures = {name: round(value, 5) for name, value in step.items()}
            say(f"pair reader {kind} {fold} {time.monotonic() - began:.0f} s {json.dumps(figures)}")

    records = train_pairs(reader, material.tables, texts, rows, config, on_step=tell)
    last = records[-5:]
    about = {
        "trained_on": f"{len(rows):,} training questions of NQ-open, SQuAD 2 and HotpotQA",
        "steps": int(records[-1]["step"]) + 1,
        "steps_planned": math.ceil(config.epochs * len(rows) / config.questions),
        "loss": round(float(np.mean([each["loss"] for each in last])), 4),
        "right": round(float(np.mean([each["right"] for each in last])), 4),
        "fold": fold,
        "after_made": after_made,
        "seconds": round(time.monotonic() - began, 1),
        **asdict(config),
    }
    save_pair_reader(reader, folder, about)
    told = {name: about[name] for name in ("steps", "steps_planned", "loss", "right", "seconds")}
    say(f"pair reader {kind} {fold}: {json.dumps(told)}")


def texts_of(reader: PairScorer, material: Material) -> PairTexts:
    """The token ids of all questions and candidates."""
    return PairTexts.of(
        reader,
        [question.text for question in material.questions],
        [_texts(question, reader.around) for question in material.questions],
    )


def pair_features(
    reader: PairScorer, material: Material, rows: npt.NDArray[np.int64], batch: int = 512
) -> npt.NDArray[np.float32]:
    """The pair features of some rows, padded as their tables. [N, K, 6]"""
    width = material.tables.num_candidates
    out = np.zeros((len(rows), width, 6), np.float32)
    for start in range(0, len(rows), batch):
        asked = texts_asked(material, rows[start : start + batch], around=reader.around)
        for at, columns in enumerate(reader.features_of(asked), start):
            out[at, : len(columns)] = columns
    return out


def texts_asked(
    material: Material, rows: npt.NDArray[np.int64], *, around: bool = False
) -> list[tuple[str, list[str]]]:
    """The question and the candidates of some rows, as a pair reader reads them; `around`: `with_around`."""
    asked = [material.questions[int(row)] for row in rows]
    return [(question.text, _texts(question, around)) for question in asked]


def hit_of(material: Material, rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]) -> float:
    """Percent of the rows with a telling candidate where the best score [R, K] is one's; NaN without such rows."""
    told = (material.tables.labels[rows] == GOLD) & material.tables.present[rows]
    known = told.any(1)
    best = np.where(material.tables.present[rows], scores, -np.inf).argmax(1)
    return 100 * float(told[np.arange(len(rows)), best][known].mean()) if known.any() else math.nan


def with_scores(material: Material, folder: Path) -> Material:
    """The material with the pair features that the folds left in `folder`; FileNotFoundError where one did not."""
    width = len(FEATURES)
    columns = np.zeros((*material.tables.present.shape, width + 6), np.float32)
    columns[..., :width] = material.tables.features[..., :width]
    columns[..., width:] = scores_in(material, folder)
    return Material(material.questions, replace(material.tables, features=columns))


def scores_in(material: Material, folder: Path) -> npt.NDArray[np.float32]:
    """The pair features that the folds left; FileNotFoundError where one did not. [N, K, 6]"""
    columns = np.zeros((*material.tables.present.shape, 6), np.float32)
    known = np.zeros(len(material), bool)
    for fold in FOLDS:
        path = folder / fold / "scores.npz"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run the stage pairs to its end first")
        with np.load(path) as packed:
            columns[packed["rows"]] = packed["columns"]
            known[packed["rows"]] = True
    if not known.all():
        raise ValueError(
            f"{folder}: {int((~known).sum())} questions have no score; it is of another material"
        )
    return columns


def _texts(question: ChoiceQuestion, around: bool) -> list[str]:
    """Each candidate under its title; `around`: with the candidates that stand before and after it in its text."""
    alone = [f"{title}: {text}" for title, _, text in question.sentences]
    if not around:
        return alone
    said = {place: text for place, (_, _, text) in zip(question.places, question.sentences, strict=True)}
    return [with_around(text, place, said) for text, place in zip(alone, question.places, strict=True)]
