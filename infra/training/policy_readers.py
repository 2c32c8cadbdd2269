"""Who reads what in a policy run: the shipped reader everything, or fold readers what they do not know.

    python3 -m infra.training.policy_readers --material state/material --reader /tmp/reader \\
        --fold-readers folds --out equal.json

Cross-fitted (`--fold-readers`, a folder of `reader_folds`): a training or dev question is read by the reader that
was trained without its fold, so neither rewards nor dev questions know an answer by heart; test questions are read
by the shipped one, which knows none of them. As a program: all three read the same test questions, to tell how
equal they are, and the telling sentence among none to nine others (`--slopes`), to tell how alike they bear text.
Imports nothing that a GPU host lacks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from infra.evaluation.policy_judge import choose
from infra.training.policy_voice import open_voice
from models.retriever.table import FEATURES, GOLD
from pipeline.tasks.material import Material
from pipeline.tasks.reading import MaterialReader, Spoken, Voice
from rl.episodes import Request, fingerprint

FOLDS = ("fold0", "fold1")
"""Folders of the fold readers' adapters; fold0 is the reader that does not know fold 0."""
FOLDS_FILE = "folds.json"
SHIPPED = "shipped"
OWN_WORLDS = ("newswire", "rtqa")
"""Sets that no fold reader was trained on the questions of: any of the two may read them."""
JUDGED_MOST = 250
SIZES = (1, 2, 4, 7, 10)
"""Numbers of sentences that readers are compared over."""


class TextReader(Protocol):
    """What `MaterialReader` does."""

    def outcomes(self, requests: Sequence[Request]) -> list[tuple[float, float, float]]: ...

    def spoken(self, requests: Sequence[Request]) -> list[Spoken]: ...


class FoldedReader:
    """Reads every request by the reader of its row, in order; `names` [N] are those of the rows.

    `make` opens a reader by its name when it is first needed: a process that trains never needs the shipped one.
    """

    def __init__(self, names: Sequence[str], make: Callable[[str], TextReader]) -> None:
        self._names, self._make = list(names), make
        self._open: dict[str, TextReader] = {}

    def outcomes(self, requests: Sequence[Request]) -> list[tuple[float, float, float]]:
        """(f1, loss, margin) of each request, in order."""
        return self._dealt(requests, lambda reader, part: reader.outcomes(part))

    def spoken(self, requests: Sequence[Request]) -> list[Spoken]:
        """What is said over each request, in order."""
        return self._dealt(requests, lambda reader, part: reader.spoken(part))

    def _dealt(
        self, requests: Sequence[Request], read: Callable[[TextReader, list[Request]], list[Any]]
    ) -> list[Any]:
        parts: dict[str, list[int]] = {}
        for at, (row, _) in enumerate(requests):
            parts.setdefault(self._names[row], []).append(at)
        found: list[Any] = [None] * len(requests)
        for name, places in parts.items():
            if name not in self._open:
                self._open[name] = self._make(name)
            said = read(self._open[name], [requests[at] for at in places])
            for at, each in zip(places, said, strict=True):
                found[at] = each
        return found


def reader_names(material: Material, folder: Path) -> list[str]:
    """Which reader reads each question: the one that was trained without its fold, the shipped one in test.

    Raises ValueError for a training or dev question whose fold is not told: a reader may know it.
    """
    folds: dict[str, int] = json.loads((folder / FOLDS_FILE).read_text())
    found = []
    for question in material.questions:
        fold = folds.get(question.question_id)
        if question.split == "test":
            found.append(SHIPPED)
            continue
        if fold is None:
            if question.dataset not in OWN_WORLDS:
                raise ValueError(
                    f"{folder / FOLDS_FILE} has no fold for {question.dataset} question {question.question_id}; "
                    "make the fold readers from the files that the material was made from"
                )
            fold = hashlib.blake2b(question.question_id.encode(), digest_size=1).digest()[0] % 2
        found.append(FOLDS[fold])
    return found


def open_readers(given: Any, material: Material) -> Callable[[bool], TextReader]:
    """`make(want_loss)`: a reader of the material by the run's options (reader, adapter, fold_readers).

    Readers made by the same function share their models.
    """
    voices: dict[str, Voice] = {}
    folder: Path | None = given.fold_readers

    def voice(name: str) -> Voice:
        if name not in voices:
            adapter = given.adapter if name == SHIPPED or folder is None else folder / name
            voices[name] = open_voice(given.reader or given.carried, given.device, adapter)
        return voices[name]

    if folder is None:
        return lambda want_loss: MaterialReader(material, voice(SHIPPED), want_loss)
    names = reader_names(material, folder)
    return lambda want_loss: FoldedReader(
        names, lambda name: MaterialReader(material, voice(name), want_loss)
    )


def readings_of(given: Any, material: Material) -> str:
    """What readings of a run are known by: the material, and whether fold readers read it."""
    return fingerprint(material) + ("" if given.fold_readers is None else "+folds")


def equals(
    material: Material, readers: dict[str, TextReader], most: int = JUDGED_MOST, budget: int = 128
) -> dict[str, Any]:
    """F1 (percent, made to answer) of several readers on the same test questions: {set: {context: {reader: F1}}}.

    Contexts: the sentences that tell, and hybrid ranking within the budget.
    """
    found: dict[str, Any] = {}
    for dataset in sorted({q.dataset for q in material.questions if q.split == "test"}):
        rows = material.rows("test", dataset, answerable=True)[:most]
        for method in ("oracle", "hybrid"):
            chosen = choose(material.take(rows), method, budget)
            asked = [(int(row), tuple(one.picks)) for row, one in zip(rows, chosen, strict=True)]
            told = {
                name: round(100 * float(np.mean([f1 for f1, _, _ in reader.outcomes(asked)])), 2)
                for name, reader in readers.items()
            }
            found.setdefault(dataset, {})[method] = {"n": len(rows)} | told
    return found


def slopes(
    material: Material, readers: dict[str, TextReader], most: int = JUDGED_MOST, sizes: Sequence[int] = SIZES
) -> dict[str, Any]:
    """F1 (percent, made to answer) over the number of sentences read: {set: {number: {reader: F1}}}.

    Test questions whose telling sentence is a candidate (one, not several hops); it is read among the best others
    by hybrid ranking, so what falls with the number is what distraction costs each reader.
    """
    tables = material.tables
    fused = tables.features[:, :, FEATURES.index("fused")]
    found: dict[str, Any] = {}
    for dataset in sorted({q.dataset for q in material.questions if q.split == "test"}):
        rows = [
            int(row)
            for row in material.rows("test", dataset, answerable=True)
            if (tables.labels[row] == GOLD).any() and not tables.needs_all[row]
        ][:most]
        for size in sizes if rows else ():
            asked = []
            for row in rows:
                order = np.argsort(-np.where(tables.present[row], fused[row], -1.0), kind="stable").tolist()
                order = order[: int(tables.present[row].sum())]
                first = next(at for at in order if tables.labels[row, at] == GOLD)
                others = [at for at in order if tables.labels[row, at] == 0][: size - 1]
                asked.append((row, (first, *others)))
            told = {
                name: round(100 * float(np.mean([f1 for f1, _, _ in reader.outcomes(asked)])), 2)
                for name, reader in readers.items()
            }
            found.setdefault(dataset, {})[str(size)] = {"n": len(rows)} | told
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("material", "reader", "fold-readers", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--slopes", type=Path, help="also write F1 over the number of sentences here")
    parser.add_argument("--most", type=int, default=JUDGED_MOST, help="test questions of a set")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    material = Material.load(given.material)
    adapters = {SHIPPED: None} | {name: given.fold_readers / name for name in FOLDS}
    readers: dict[str, TextReader] = {
        name: MaterialReader(material, open_voice(given.reader, given.device, adapter), want_loss=False)
        for name, adapter in adapters.items()
    }
    found = equals(material, readers, given.most)
    given.out.write_text(json.dumps(found))
    print(f"{time.monotonic() - began:.0f} s: {json.dumps(found)}", flush=True)  # noqa: T201
    if given.slopes:
        given.slopes.write_text(json.dumps(slopes(material, readers, given.most)))
        print(f"{time.monotonic() - began:.0f} s: {given.slopes.read_text()}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
