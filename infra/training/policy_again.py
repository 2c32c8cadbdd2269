"""Choices of an earlier run, read where the run itself had no time: which readings lack, and doing them on a host.

    python -m infra.training.policy_again wanted --judged HOME/judged --carried build/carry/whole \\
        --folds HOME/folds --out build/policy-again                                      # here
    python3 -m infra.training.policy_again read --wanted policy-again --folds policy-again \\
        --material work/policy/material --reader /tmp/reader --out out --seconds 120     # on a GPU host
    python3 -m infra.training.policy_again bare --material work/policy/material --out out/material [--vectors]
    python -m infra.training.policy_again joined --judged HOME/judged --again HOME/out/policy_again \\
        --material HOME/out/material --folds HOME/folds --out RUN     # here: `policy_gpu --stage report --out RUN`

A run that was ended behind its dev readings left what every policy chose of every test question. Nothing need be
trained to judge it: the material is made again, and the readings that lack are done, most wanted first: the points
that dev questions choose, then all others. What is chosen is known by its place among the candidates, so each
choice is held against the tokens that the run told of it: a question whose candidates are others now is left out.
`bare`: the material small enough to be carried home, without its vectors or (`--vectors`) with them in 8 bits: that
one can be carried to the next host instead of being made again (policy.sh). `known`: what an earlier run read, put
where another's stage `read` finds it. Imports nothing that the host lacks.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from infra.training.policy_evaluation import LEARNED, Curves, at_equal_f1, at_no_more_tokens, best_simple
from infra.training.policy_halves_dev import Places, places_of, readings_in
from infra.training.policy_points import (
    SIMPLE,
    Point,
    is_policy,
    kind_of,
    load_points,
    points_in,
    rows_of,
    save_points,
)
from infra.training.side_by_side import codes_by
from pipeline.tasks.material import Material
from rl.episodes import Outcome, Readings, Request, mask_of, picks_of

WANTED = "wanted.npz"
TOLD = "again.json"
"""What the host says of the material: whether it is the run's own, and which rows it left out."""
FIRST, SECOND, REST = 0, 1, 2
"""How much a reading is wanted: for points that dev questions choose, for other points of these policies, else."""
JUDGED = ("supervised", "supervised_longer", "supervised_rewarded", *LEARNED)
CHECKED = 600
"""Known readings that are done again, to tell whether reader and material are those of the run."""
CHUNK = 2_048
Rows = npt.NDArray[np.int64]


class Reads(Protocol):
    """What `MaterialReader` does."""

    def outcomes(self, requests: Sequence[Request]) -> list[tuple[float, float, float]]: ...


def curves_without_material(
    points: Sequence[Point], places: Places, known: Mapping[tuple[int, int], float]
) -> Curves:
    """Curves from choices and readings alone: F1 (made to answer) and tokens, question by question where all of a
    point was read. ValueError where a point's choices are not as many as its rows."""
    found = Curves()
    for point in points:
        rows = places.get((point.split, point.dataset), ())
        if len(rows) != len(point.chosen):
            raise ValueError(
                f"{point.name}: given {len(point.chosen)} choices of {len(rows)} {point.split} questions of "
                f"{point.dataset}; take the material that the run was made of"
            )
        each = [known.get((row, mask_of(one.picks))) for row, one in zip(rows, point.chosen, strict=True)]
        read = np.array(each, np.float64) if all(f1 is not None for f1 in each) else None
        figures = {
            "name": point.name, "budget": point.budget, "stop_bias": point.stop_bias,
            "tokens": round(float(np.mean([one.tokens for one in point.chosen])), 1),
            "forced_f1": None if read is None else round(100 * float(read.mean()), 2),
        }  # fmt: skip
        found.add(point.dataset, point.split, figures, read)
    return found


def wanted(
    points: Sequence[Point], places: Places, known: Mapping[tuple[int, int], float]
) -> dict[str, npt.NDArray[Any]]:
    """The readings of test questions that lack, most wanted first: rows, masks, tokens told, rank; and some known.

    `rank` is FIRST for the points that dev questions choose (at no more tokens, at equal F1, by their own STOP).
    `checked_*`: known readings of the best choices of simple methods and the oracle, with their F1.
    """
    curves = curves_without_material(points, places, known)
    named: set[tuple[str, str, int, float]] = set()
    for dataset in curves.sets:
        dev, test = curves.of(dataset, "dev"), curves.of(dataset, "test")
        simple = best_simple(test)
        largest = max(p["budget"] for p in test)
        for name in {p["name"] for p in test if kind_of(p["name"]) in JUDGED and is_policy(p["name"])}:
            named.add((name, dataset, largest, 0.0))
            for choose in (at_no_more_tokens, at_equal_f1):
                if (chosen := choose(name, dev, test, simple)) is not None:
                    named.add((name, dataset, chosen["budget"], chosen["stop_bias"]))
    ranked: dict[tuple[int, int], tuple[int, int]] = {}
    checked: dict[tuple[int, int], int] = {}
    for point in points:
        if point.split != "test":
            continue
        own = (point.name, point.dataset, point.budget, point.stop_bias)
        rank = FIRST if own in named else SECOND if kind_of(point.name) in JUDGED else REST
        for row, one in zip(places[point.split, point.dataset], point.chosen, strict=True):
            key = (row, mask_of(one.picks))
            if key not in known:
                ranked[key] = min(ranked.get(key, (REST, one.tokens)), (rank, one.tokens))
            elif point.name in (*SIMPLE, "oracle"):
                checked[key] = one.tokens
    order = sorted(ranked, key=lambda key: (ranked[key][0], key))
    some = sorted(checked)[:: max(1, len(checked) // CHECKED)]
    return {
        "rows": np.array([row for row, _ in order], np.int32),
        "masks": np.array([mask for _, mask in order], np.uint64),
        "tokens": np.array([ranked[key][1] for key in order], np.int32),
        "rank": np.array([ranked[key][0] for key in order], np.uint8),
        "checked_rows": np.array([row for row, _ in some], np.int32),
        "checked_masks": np.array([mask for _, mask in some], np.uint64),
        "checked_tokens": np.array([checked[key] for key in some], np.int32),
        "checked_f1": np.array([known[key] for key in some], np.float16),
    }


def tokens_of(material: Material, row: int, picks: Iterable[int]) -> int:
    """What a choice costs: its sentences, and the head of each text that they are of, once."""
    tables, chosen = material.tables, list(picks)
    heads = {int(tables.groups[row, at]): int(tables.heads[row, at]) for at in chosen}
    return int(tables.tokens[row, chosen].sum()) + sum(heads.values())


def others_now(
    material: Material, rows: Iterable[int], masks: Iterable[int], tokens: Iterable[int]
) -> set[int]:
    """The rows of which any choice names no candidate, or costs other tokens than were told: others stand there."""
    found: set[int] = set()
    for row, mask, told in zip(rows, masks, tokens, strict=True):
        if row in found:
            continue
        picks = picks_of(int(mask))
        there = row < len(material) and all(
            at < material.tables.num_candidates and bool(material.tables.present[row, at]) for at in picks
        )
        if not there or tokens_of(material, int(row), picks) != told:
            found.add(int(row))
    return found


def read_part(reader: Reads, kind: str, asked: Sequence[Request], out: Path, until: float) -> int:
    """Read in order and keep as it comes (`readings-*.npz` at `out`), until `until` (monotonic); how many."""
    readings = Readings(None, kind)
    done = 0
    for at in range(0, len(asked), CHUNK):
        if time.monotonic() > until:
            break
        part = asked[at : at + CHUNK]
        found = [Outcome(*each) for each in reader.outcomes(part)]
        readings.add([row for row, _ in part], [mask_of(picks) for _, picks in part], found)
        readings.save(out)
        done += len(part)
    return done


def read(given: argparse.Namespace, until: float) -> None:
    """This worker's readings; the first also does some known ones again and says what it found (TOLD)."""
    from infra.training.policy_readers import readings_of
    from infra.training.policy_voice import open_voice
    from pipeline.tasks.reading import MaterialReader

    material = Material.load(given.material)
    with np.load(given.wanted / WANTED) as packed:
        asked: dict[str, Any] = {name: packed[name].tolist() for name in packed.files}
    left_out = others_now(
        material,
        [*asked["rows"], *asked["checked_rows"]],
        [*asked["masks"], *asked["checked_masks"]],
        [*asked["tokens"], *asked["checked_tokens"]],
    )
    kind = readings_of(SimpleNamespace(fold_readers=given.folds), material)
    reader = MaterialReader(material, open_voice(given.reader, given.device), want_loss=False)
    wanted_here = [
        (int(row), picks_of(int(mask)))
        for row, mask in zip(asked["rows"], asked["masks"], strict=True)
        if row not in left_out
    ]
    mine = wanted_here[given.worker :: given.workers]
    if given.worker == 0:
        told = _checked(asked, left_out, reader)
        told |= {"material": kind, "of_the_run": asked.get("material"), "wanted": len(wanted_here)}
        told["rows_left_out"] = sorted(left_out)
        (given.out / TOLD).write_text(json.dumps(told))
        shown = told | {"rows_left_out": len(left_out)}
        print(f"{time.strftime('%H:%M:%S')} {json.dumps(shown)}", flush=True)  # noqa: T201
    done = read_part(reader, kind, mine, given.out / f"readings-again-{given.worker}.npz", until)
    print(f"{time.strftime('%H:%M:%S')} worker {given.worker}: {done:,} of {len(mine):,} read", flush=True)  # noqa: T201


def _checked(asked: Mapping[str, list[Any]], left_out: set[int], reader: Reads) -> dict[str, Any]:
    """Known readings done again: how many, how many have the F1 that they had, and the means."""
    rows = [
        (int(row), picks_of(int(mask)), float(f1))
        for row, mask, f1 in zip(
            asked["checked_rows"], asked["checked_masks"], asked["checked_f1"], strict=True
        )
        if row not in left_out
    ]
    now = [f1 for f1, _, _ in reader.outcomes([(row, picks) for row, picks, _ in rows])]
    then = [f1 for *_, f1 in rows]
    same = [abs(a - b) < 2e-3 for a, b in zip(now, then, strict=True)]
    return {
        "checked": len(rows), "same": sum(same),
        "f1_now": round(100 * float(np.mean(now or [0.0])), 2),
        "f1_then": round(100 * float(np.mean(then or [0.0])), 2),
    }  # fmt: skip


def put_wanted(judged: Path, carried: Path, folds: Path, out: Path) -> int:
    """Write OUT/wanted.npz and what names the readers of questions (no adapters); how many readings it wants."""
    who = json.loads((folds / "who_reads.json").read_text())
    found = wanted(load_points(judged), places_of(carried, who), readings_in(judged))
    with np.load(next(judged.glob("readings-*.npz"))) as packed:
        found["material"] = packed["material"]
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / WANTED, **found)  # type: ignore[arg-type]
    for name in ("folds.json", "shipped_reads.json"):
        shutil.copy(folds / name, out / name)
    return len(found["rows"])


def save_bare(folder: Path, out: Path, vectors: bool = False) -> None:
    """The material of a folder made small: vectors of one zero each, or in 8 bits; whole or not at all."""
    material = Material.load(folder)
    tables = material.tables
    if not vectors:
        query, none = np.zeros((len(material), 1)), np.zeros((*tables.present.shape, 1))
        tables = replace(tables, query=query.astype(np.float32), vectors=none.astype(np.float16))
    told = json.loads((folder / "manifest.json").read_text())
    part = out.with_name(f"{out.name}.part")
    Material(material.questions, tables).save(part, told, int8=True)
    for name in ("projection.npy", "prompts.npy") if vectors else ():
        shutil.copy(folder / name, part / name)
    part.rename(out)


def put_known(judged: Path, material: Path, folds: Path, out: Path) -> int:
    """Copy an earlier run's readings to OUT where material and readers are the same; how many files are.

    Others are left, and said: by any other reader, or of other candidates, they would be wrong.
    """
    from infra.training.policy_readers import readings_of

    kind = readings_of(SimpleNamespace(fold_readers=folds), Material.load(material))
    out.mkdir(parents=True, exist_ok=True)
    taken = 0
    for path in sorted(judged.glob("readings-*.npz")):
        with np.load(path) as packed:
            told = str(packed["material"])
        if told != kind:
            print(f"{path.name}: readings of {told}, this is {kind}; left out", flush=True)  # noqa: T201
            continue
        part = out / f"known-{path.name}.part"
        shutil.copy(path, part)
        part.rename(out / path.name.replace("readings-", "readings-known-"))
        taken += 1
    return taken


def join_again(judged: Path, again: Path, material: Path, folds: Path, out: Path) -> int:
    """A folder as a run leaves it, for the stage report: its choices and readings with what was read again.

    A test question that was left out is one that nobody is judged by: it has no answers there, no choice is of it.
    How many readings there are.
    """
    from infra.training.policy_readers import readings_of

    made = Material.load(material)
    left_out = frozenset(json.loads((again / TOLD).read_text())["rows_left_out"])
    told = json.loads((material / "manifest.json").read_text())
    kept = tuple(
        replace(question, answers=()) if row in left_out else question
        for row, question in enumerate(made.questions)
    )
    rows = {place: rows_of(made, *place) for place in {(q.split, q.dataset) for q in made.questions}}
    Material(kept, made.tables).save(out / "material", told, int8=True)
    readings = Readings(None, readings_of(SimpleNamespace(fold_readers=folds), made))
    for folder in (judged, again):
        for path in sorted(folder.glob("readings-*.npz")):
            with np.load(path) as packed:
                parts = [packed[name].tolist() for name in ("rows", "masks", "f1", "loss", "margin")]
            keep = [each for each in zip(*parts, strict=True) if each[0] not in left_out]
            readings.add([e[0] for e in keep], [e[1] for e in keep], [Outcome(*e[2:]) for e in keep])
    (out / "judged").mkdir(parents=True, exist_ok=True)
    readings.save(out / "judged" / "readings-joined.npz")
    for path in sorted(judged.glob("*.points.json")):
        found = []
        for point in points_in(path):
            asked = rows[point.split, point.dataset]
            chosen = (one for row, one in zip(asked, point.chosen, strict=True) if int(row) not in left_out)
            found.append(replace(point, chosen=tuple(chosen)))
        save_points(found, out / "judged" / path.name)
    return len(readings)


def _side_by_side(given: argparse.Namespace) -> None:
    """One process a worker, each ended 30 s after the time is over; SystemExit where any failed."""
    own = [sys.executable, "-m", "infra.training.policy_again", *sys.argv[1:]]
    children = [
        subprocess.Popen([*own, "--worker", str(at)], env=os.environ | {"OMP_NUM_THREADS": "1"})
        for at in range(given.workers)
    ]
    codes = codes_by(children, time.monotonic() + given.seconds + 30)
    if any(codes):
        raise SystemExit(
            f"policy_again: workers ended with {codes}; what they had read is kept in {given.out}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    here = verbs.add_parser("wanted", help="which readings lack, from what came home")
    for name in ("judged", "carried", "folds", "out"):
        here.add_argument(f"--{name}", type=Path, required=True)
    there = verbs.add_parser("read", help="do them on a host")
    for name in ("wanted", "material", "folds", "reader", "out"):
        there.add_argument(f"--{name}", type=Path, required=True)
    there.add_argument("--seconds", type=float, default=120.0)
    there.add_argument("--workers", type=int, default=8)
    there.add_argument("--worker", type=int, default=-1, help="(its own) which worker this process is")
    there.add_argument("--device", default="cuda")
    bare = verbs.add_parser("bare", help="the material as small as it can be")
    bare.add_argument("--vectors", action="store_true", help="with its vectors, in 8 bits")
    for name in ("material", "out"):
        bare.add_argument(f"--{name}", type=Path, required=True)
    known = verbs.add_parser("known", help="what an earlier run read, for another over the same material")
    for name in ("judged", "material", "folds", "out"):
        known.add_argument(f"--{name}", type=Path, required=True)
    joined = verbs.add_parser("joined", help="the run with what was read again, for the stage report")
    for name in ("judged", "again", "material", "folds", "out"):
        joined.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args(arguments)
    if given.verb == "joined":
        count = join_again(given.judged, given.again, given.material, given.folds, given.out)
        print(f"{given.out}: {count:,} readings")  # noqa: T201
        return
    if given.verb == "known":
        taken = put_known(given.judged, given.material, given.folds, given.out)
        print(f"{taken} files of known readings in {given.out}", flush=True)  # noqa: T201
        return
    if given.verb == "bare":
        save_bare(given.material, given.out, given.vectors)
        return
    if given.verb == "wanted":
        count = put_wanted(given.judged, given.carried, given.folds, given.out)
        print(f"{given.out}: {count:,} readings wanted")  # noqa: T201
        return
    given.out.mkdir(parents=True, exist_ok=True)
    if given.worker < 0:
        _side_by_side(given)
    else:
        read(given, time.monotonic() + given.seconds)


if __name__ == "__main__":
    main()
