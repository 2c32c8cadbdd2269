"""The scores of a run's pair readers, kept small: what the next lease trains policies over without any pair reader.

    python -m infra.training.policy_pairs_kept keep --material HOME/policy-material --pairs HOME/policy_mpnet \\
        --kinds mpnet e5_dual --file NAME_scores.npz                                        # here
    python3 -m infra.training.policy_pairs_kept put --file NAME_scores.npz --material state/material \\
        --out state --both                                # on a host, before `policy_gpu --stage teach`

Scores of both passes are kept in steps of 1/64, with a hash of each question and of its candidates. The material
may have been made anew: a candidate is known by the hash of its text, so a question whose candidates stand in
another order keeps its scores, and a new candidate has the least of its question's; both are told. The fold that
scored a question is kept too, so nothing was trained on what it scores. `--both` also makes the weighted sum of the
kinds; its second pass is the sum of each kind's own (each behind its own first pick), so policies over it are
trained and judged, and not shipped. Imports nothing that a GPU host lacks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.training.policy_both import first_scores, fit_weights
from infra.training.policy_pairs import FOLDS, KINDS, PAIRS_BOTH, PLACES, hit_of, scores_in
from models.retriever.pair_base import NEXT_CANDIDATES, SCORE_LIMIT, pair_columns
from pipeline.tasks.material import ChoiceQuestion, Material

STEP = 64
"""Steps of a score that are told apart, a nat."""
NONE = np.int16(-32768)
"""Where no score is known."""
Floats = npt.NDArray[np.float32]


def keep(material: Material, pairs: Path, kinds: Sequence[str], file: Path) -> int:
    """Write the scores of these kinds, found under `pairs` as a run leaves them; the bytes of the file.

    FileNotFoundError where a fold has not scored its questions, ValueError where they are of another material.
    """
    count, width = material.tables.present.shape
    texts = np.zeros((count, width), np.uint8)
    for row, question in enumerate(material.questions):
        texts[row, : len(question.sentences)] = _texts(question)
    arrays: dict[str, npt.NDArray[Any]] = {
        "questions": np.array([_hash(question.question_id) for question in material.questions], np.uint32),
        "texts": texts,
        "folds": _folds(pairs / PLACES[kinds[0]], count),
        "kinds": np.array(json.dumps(list(kinds))),
    }
    for kind in kinds:
        columns = scores_in(material, pairs / PLACES[kind])
        if not np.array_equal(_folds(pairs / PLACES[kind], count), arrays["folds"]):
            raise ValueError(f"{pairs / PLACES[kind]}: its folds are not those of {kinds[0]}")
        first = first_scores(columns)
        second = columns[..., 3] * np.float32(SCORE_LIMIT / 2)
        order = np.argsort(-np.where(material.tables.present, first, -np.inf), axis=1, kind="stable")
        asked = np.zeros((count, width), bool)
        np.put_along_axis(asked, order[:, 1:NEXT_CANDIDATES], True, axis=1)
        arrays[f"first_{kind}"] = np.where(material.tables.present, _steps(first), NONE)
        arrays[f"second_{kind}"] = np.where(material.tables.present & asked, _steps(second), NONE)
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.stat().st_size


def put(file: Path, material: Material, out: Path, both: bool = False) -> dict[str, Any]:
    """Write OUT/<place>/<fold>/scores.npz of every kind, as the stage pairs leaves them (`both`: of their sum too).

    Says how many questions have their candidates in another order, how many candidates are new, and each order's
    hit at 1. ValueError where a question has no scores: other questions were picked.
    """
    with np.load(file) as packed:
        arrays = {name: packed[name] for name in packed.files}
    kinds = list(json.loads(str(arrays["kinds"])))
    place = {int(key): at for at, key in enumerate(arrays["questions"])}
    rows = [place.get(_hash(question.question_id), -1) for question in material.questions]
    if (lacking := rows.count(-1)) or len(place) != len(arrays["questions"]):
        raise ValueError(
            f"{file}: given no scores for {lacking} of {len(rows)} questions; allowed: the same questions"
        )
    moved = fresh = 0
    count, width = material.tables.present.shape
    source = np.full((count, width), -1, np.int64)
    for row, question in enumerate(material.questions):
        known, now = arrays["texts"][rows[row]], _texts(question)
        there = arrays[f"first_{kinds[0]}"][rows[row]] != NONE
        same = len(now) == int(there.sum()) and np.array_equal(known[: len(now)], now)
        found = np.arange(len(now)) if same else _aligned(known, there, now)
        source[row, : len(now)] = found
        moved, fresh = moved + (not same), fresh + int((found < 0).sum())
    folds = arrays["folds"][rows]
    told: dict[str, Any] = {"questions": count, "moved": moved, "new_candidates": fresh, "hit_1": {}}
    scores = {kind: _found(arrays, kind, rows, source) for kind in kinds}
    for kind in kinds:
        told["hit_1"][kind] = _write(material, out / PLACES[kind], folds, *scores[kind])
    if both:
        ordered = [kind for kind in KINDS if kind in kinds]
        weights = fit_weights(material, out, ordered)
        parts = [(np.float32(w), *scores[kind]) for w, kind in zip(weights, ordered, strict=True)]
        first: Floats = np.stack([w * one for w, one, _ in parts]).sum(0).astype(np.float32)
        second: Floats = np.stack([w * one for w, _, one in parts]).sum(0).astype(np.float32)
        told["weights"] = dict(zip(ordered, (round(weight, 4) for weight in weights), strict=True))
        told["hit_1"]["both"] = _write(material, out / PAIRS_BOTH, folds, first, second)
    return told


def _found(
    arrays: dict[str, npt.NDArray[Any]], kind: str, rows: Sequence[int], source: npt.NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """First and second scores [N, K] of the material's candidates; a new one has the least of its question."""
    known = [arrays[f"{name}_{kind}"][list(rows)] for name in ("first", "second")]
    first, second = (
        np.take_along_axis(np.where(each == NONE, np.nan, each / STEP), np.maximum(source, 0), axis=1)
        for each in known
    )
    least = np.nanmin(np.where(known[0] == NONE, np.nan, known[0] / STEP), axis=1, keepdims=True)
    first, second = np.where(source < 0, least, first), np.where(source < 0, np.nan, second)
    return first.astype(np.float32), second.astype(np.float32)


def _write(
    material: Material, folder: Path, folds: npt.NDArray[np.uint8], first: Floats, second: Floats
) -> float:
    """Each fold's features of its questions; how often (%) a telling candidate is first in test."""
    count, width = first.shape
    columns = np.zeros((count, width, 6), np.float32)
    for row in range(count):
        here = np.flatnonzero(material.tables.present[row])
        columns[row, here] = pair_columns(first[row, here], second[row, here])
    for at, fold in enumerate(FOLDS):
        rows = np.flatnonzero(folds == at)
        (folder / fold).mkdir(parents=True, exist_ok=True)
        part = folder / fold / "scores.part.npz"
        np.savez(part, rows=rows, columns=columns[rows])
        part.rename(folder / fold / "scores.npz")
    return round(hit_of(material, material.rows("test"), columns[material.rows("test"), :, 0]), 2)


def _folds(folder: Path, count: int) -> npt.NDArray[np.uint8]:
    """The place in FOLDS of the fold that scored each question."""
    found = np.full(count, 255, np.uint8)
    for at, fold in enumerate(FOLDS):
        with np.load(folder / fold / "scores.npz") as packed:
            found[packed["rows"]] = at
    return found


def _aligned(
    known: npt.NDArray[np.uint8], there: npt.NDArray[np.bool_], now: npt.NDArray[np.uint8]
) -> npt.NDArray[np.int64]:
    """The place of each text of now among the known ones by its hash, each once, in order; -1 for a new one."""
    free = {
        int(key): [at for at in np.flatnonzero(there).tolist() if known[at] == key]
        for key in set(now.tolist())
    }
    return np.array([free[key].pop(0) if free[key] else -1 for key in now.tolist()], np.int64)


def _steps(scores: Floats) -> npt.NDArray[np.int16]:
    return np.round(scores * STEP).astype(np.int16)


def _texts(question: ChoiceQuestion) -> npt.NDArray[np.uint8]:
    """A hash of each candidate's text."""
    return np.array([_hash("\0".join(sentence)) & 255 for sentence in question.sentences], np.uint8)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    here, there = verbs.add_parser("keep", help="scores of a run"), verbs.add_parser("put", help="for a run")
    for verb in (here, there):
        verb.add_argument("--file", type=Path, required=True)
        verb.add_argument("--material", type=Path, required=True)
    here.add_argument("--pairs", type=Path, required=True, help="folder with pairs_<kind>/<fold>/scores.npz")
    here.add_argument("--kinds", nargs="+", required=True, choices=KINDS)
    there.add_argument("--out", type=Path, required=True)
    there.add_argument("--both", action="store_true", help="the weighted sum of the kinds too")
    given = parser.parse_args(arguments)
    material = Material.load(given.material)
    if given.verb == "keep":
        size = keep(material, given.pairs, given.kinds, given.file)
        print(f"{given.file}: {size / (1 << 20):.2f} MiB")  # noqa: T201
    else:
        print(json.dumps(put(given.file, material, given.out, given.both)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
