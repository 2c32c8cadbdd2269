"""Who reads what in a policy run: the shipped reader everything, or fold readers what they do not know.

    python3 -m infra.training.policy_readers --material state/material --reader /tmp/reader \\
        --fold-readers folds --out equal.json

Cross-fitted (`--fold-readers`, a folder of `reader_folds`): a training or dev question is read by the reader that
was trained without its fold, so neither rewards nor dev questions know an answer by heart. Test questions are read
by the shipped one, which knows none of them; so are the training and dev questions that it provably does not know,
as the folder's shipped_reads.json names them: there level and slope are those of the reader in service. As a
program: all readers read the same test questions, to tell how equal they are, and the telling sentence among none
to nine others (`--slopes`), to tell how alike they bear text. Imports nothing that a GPU host lacks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from infra.evaluation.policy_judge import choose
from infra.training.policy_voice import open_voice
from infra.training.side_by_side import codes_by
from models.retriever.table import FEATURES, GOLD
from pipeline.tasks.material import Material
from pipeline.tasks.reading import MaterialReader, Spoken, Voice
from rl.episodes import Request, fingerprint

FOLDS_FILE = "folds.json"
SHIPPED_READS = "shipped_reads.json"
"""Ids of the training and dev questions that the shipped reader provably does not know, and so reads."""
WHO_FILE = "who_reads.json"
"""Questions of each split and set that each reader reads."""
SHIPPED = "shipped"
ADAPTER = "adapter_model.safetensors"
OWN_WORLDS = ("newswire", "newswire_cached", "rtqa")
"""Sets that no fold reader was trained on the questions of: any of them may read these."""
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


def fold_names(folds: Mapping[str, int]) -> list[str]:
    """Folders of the fold readers' adapters, by the folds of all questions; fold0 does not know fold 0."""
    return [f"fold{at}" for at in range(max(2, 1 + max(folds.values(), default=0)))]


def load_folds(folder: Path) -> dict[str, int]:
    """The fold of each question, as `reader_folds` wrote them."""
    found: dict[str, int] = json.loads((folder / FOLDS_FILE).read_text())
    return found


def reader_names(material: Material, folder: Path) -> list[str]:
    """Which reader reads each question: the one that was trained without its fold; the shipped one in test.

    It reads, too, what SHIPPED_READS names where the folder has one. Raises ValueError for another training or dev
    question whose fold is not told, and for one of a fold that is said to be unknown to the shipped reader: a
    reader may know it.
    """
    folds = load_folds(folder)
    names = fold_names(folds)
    path = folder / SHIPPED_READS
    unknown = frozenset(json.loads(path.read_text())) if path.exists() else frozenset()
    found = []
    for question in material.questions:
        fold = folds.get(question.question_id)
        if question.question_id in unknown and fold is not None:
            raise ValueError(
                f"{path}: {question.dataset} question {question.question_id} has fold {fold}, so the shipped "
                "reader may have been trained on it; make the fold readers' rows again"
            )
        if question.split == "test" or question.question_id in unknown:
            found.append(SHIPPED)
            continue
        if fold is None:
            if question.dataset not in OWN_WORLDS:
                raise ValueError(
                    f"{folder / FOLDS_FILE} has no fold for {question.dataset} question {question.question_id}; "
                    "make the fold readers from the files that the material was made from"
                )
            digest = hashlib.blake2b(question.question_id.encode(), digest_size=1).digest()
            fold = digest[0] % len(names)
        found.append(names[fold])
    return found


def who_reads(material: Material, folder: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Questions of each split and set that each reader reads: {split: {set: {reader: number}}}."""
    found: dict[str, dict[str, Counter[str]]] = {}
    for question, name in zip(material.questions, reader_names(material, folder), strict=True):
        found.setdefault(question.split, {}).setdefault(question.dataset, Counter())[name] += 1
    return {
        split: {dataset: dict(sorted(sets[dataset].items())) for dataset in sorted(sets)}
        for split, sets in sorted(found.items())
    }


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
    """What readings of a run are known by: the material, and which fold reader read which question."""
    if given.fold_readers is None:
        return fingerprint(material)
    names = ",".join(reader_names(material, given.fold_readers))
    return f"{fingerprint(material)}+folds-{hashlib.blake2b(names.encode(), digest_size=4).hexdigest()}"


def paid_by(given: Any, material: Material) -> dict[str, str]:
    """SHA-256 of the adapter of each reader that reads training questions, by the reader's name: whose readings
    what learns by reward was paid by. A reader without an adapter is not named."""
    folder: Path | None = given.fold_readers
    names = {SHIPPED}
    if folder is not None:
        read_by = zip(material.questions, reader_names(material, folder), strict=True)
        names = {name for question, name in read_by if question.split == "train"}
    found = {}
    for name in sorted(names):
        own = given.adapter or (given.reader or given.carried) / "reader-lora"
        path = (own if name == SHIPPED or folder is None else folder / name) / ADAPTER
        if path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


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


def own_device(at: int) -> dict[str, str]:
    """What process number `at` sees of the devices in CUDA_VISIBLE_DEVICES: one, dealt in turn; {} without any."""
    devices = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    return {"CUDA_VISIBLE_DEVICES": devices[at % len(devices)]} if devices else {}


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of several readers over the same questions as one: {set: {context: {"n": n, reader: F1}}}."""
    found: dict[str, Any] = {}
    for part in parts:
        for dataset, contexts in part.items():
            for context, told in contexts.items():
                found.setdefault(dataset, {}).setdefault(context, {}).update(told)
    return found


def _apart(given: argparse.Namespace, names: Sequence[str]) -> None:
    """Every reader in a process of its own, side by side; their figures are put together."""
    paths = {name: [given.out.with_suffix(f".{name}{end}") for end in ("", ".slopes")] for name in names}
    children = []
    for at, name in enumerate(names):
        command = [
            sys.executable, "-m", "infra.training.policy_readers", "--only", name,
            "--material", str(given.material), "--reader", str(given.reader),
            "--fold-readers", str(given.fold_readers), "--most", str(given.most),
            "--device", given.device, "--out", str(paths[name][0]),
            *(["--slopes", str(paths[name][1])] if given.slopes else []),
        ]  # fmt: skip
        children.append(subprocess.Popen(command, env=os.environ | own_device(at)))
    codes = codes_by(children, time.monotonic() + given.limit)
    if any(codes):
        raise SystemExit(f"readers {dict(zip(names, codes, strict=True))}: 0 is well, 124 out of time")
    for at, out in enumerate((given.out, given.slopes)):
        if out is not None:
            out.write_text(json.dumps(merged([json.loads(paths[name][at].read_text()) for name in names])))
        for name in names:
            paths[name][at].unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("material", "reader", "fold-readers", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--slopes", type=Path, help="also write F1 over the number of sentences here")
    parser.add_argument("--most", type=int, default=JUDGED_MOST, help="test questions of a set")
    parser.add_argument("--only", help="one reader, in this process (default: all, each in its own)")
    parser.add_argument("--limit", type=float, default=400, help="seconds that all readers have")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    names = [SHIPPED, *fold_names(load_folds(given.fold_readers))]
    if given.only is not None and given.only not in names:
        raise SystemExit(f"--only: given {given.only}; allowed: {', '.join(names)}")
    if given.only is None:
        told = json.dumps(who_reads(Material.load(given.material), given.fold_readers))
        (given.out.parent / WHO_FILE).write_text(told)
        print(f"who reads what: {told}", flush=True)  # noqa: T201
        _apart(given, names)
        print(f"{time.monotonic() - began:.0f} s: {given.out.read_text()}", flush=True)  # noqa: T201
        return
    material = Material.load(given.material)
    adapter = None if given.only == SHIPPED else given.fold_readers / given.only
    voice = open_voice(given.reader, given.device, adapter)
    readers: dict[str, TextReader] = {given.only: MaterialReader(material, voice, want_loss=False)}
    given.out.write_text(json.dumps(equals(material, readers, given.most)))
    if given.slopes:
        given.slopes.write_text(json.dumps(slopes(material, readers, given.most)))


if __name__ == "__main__":
    main()
