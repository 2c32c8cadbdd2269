"""Supervised policies over kept scores of pair readers: trained, chosen and read on a few cores, by one command.

    python -m infra.training.policy_kept --kept infra/bench/results/2026-12-01_policy_pairs_mpnet_h200_scores.npz \\
        --material build/policy-material --known build/policy-read --folds build/fold-adapters \\
        --reader build/reader-whole --adapter models/weights/reader-lora --out build/policy-kept \\
        --bench infra/bench/results/2026-12-01_policy_kept_scores_cpu

Puts the scores under the material (`policy_pairs_kept`: both passes of a weighted sum), trains a policy a seed,
reads what its points choose of dev questions (each by the reader that does not know it), names the point of each
seed by dev questions alone (`at_no_more_tokens`), and reads test questions there and at SHOWN, where nothing is
chosen. A reading costs a second of a core, so it is bounded (`--most`): dev points that lack few readings are read
first, and one that was not read whole is not chosen. Policies and readings are kept under --out as they are made;
what is known from an earlier run (`--known`, files or folders of readings by the same readers over the same texts;
others are refused) is not read again, so a second call reads nothing.

Networks see the best `--candidates` of each question by the sum: the cost of a step on a core. Needs no GPU; the
material is that of a run (`policy_gpu --stage material`, or part policy-material).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from infra.training import policy_evaluation as judging
from infra.training.kept_page import keep_lines
from infra.training.policy_kept_page import page, result_of, ways_of
from infra.training.policy_learned import PAIRS_LEARNED, put_learned
from infra.training.policy_opened import say
from infra.training.policy_pairs import PAIRS_BOTH, with_scores
from infra.training.policy_pairs_kept import put
from infra.training.policy_points import Point, choices_of, is_policy, requests_of
from infra.training.policy_ranks import pair_orders
from infra.training.policy_readers import open_readers, readings_of
from infra.training.policy_stages import PolicyJob, train_one
from infra.training.policy_work import training_rows
from models.retriever.table import ALL_FEATURES, GOLD
from pipeline.tasks.material import Material
from rl.episodes import OutcomeReader, Readings, Request

BUDGETS = (64, 96, 128, 192)
SIMPLE_BUDGETS = (64, 96, 128, 192, 256)
METHODS = ("bm25", "dense", "hybrid", "oracle")
"""What policies stand beside: a run's simple methods but chance, which never is the best."""
BIASES = (-4.0, -1.5, 0.0)
SHOWN = (128, -4.0)
"""Budget and STOP's bias that every seed is read at in test, whatever dev questions say."""
DEV_SHARE = 0.6
"""Of the readings that may be done, what dev questions may take."""
TOGETHER = 16
"""Readings between two saves."""
KEPT, LEARNED, READ = "kept.json", "learned.json", "readings-kept.npz"
SET_ASIDE = "aside"
Scores = npt.NDArray[np.float32]


def narrowed(material: Material, scores: Scores, most: int) -> Material:
    """Tables of the best `most` candidates by scores [N, K], what tells always among them: for training alone.

    Candidates stand in the order of their scores; texts stay as they were, so it is no material to read.
    """
    tables = material.tables
    wanted = np.where(tables.labels == GOLD, np.float32(1e6), 0) + scores
    order = np.argsort(-np.where(tables.present, wanted, -np.inf), axis=1, kind="stable")[:, :most]
    arrays = tables.arrays()
    for name in ("vectors", "features", "tokens", "groups", "heads", "labels", "present"):
        at = order if arrays[name].ndim == 2 else order[..., None]
        arrays[name] = np.take_along_axis(arrays[name], at, axis=1)
    words = arrays["words"]
    of_texts = np.take_along_axis(words[:, 1:], order[..., None], axis=1)
    arrays["words"] = np.concatenate([words[:, :1], of_texts], axis=1)
    return Material(material.questions, replace(tables, **arrays))


def only_best(material: Material, scores: Scores, most: int) -> Material:
    """The material with only the best `most` candidates of each question to be chosen; places stay."""
    tables = material.tables
    order = np.argsort(-np.where(tables.present, scores, -np.inf), axis=1, kind="stable")[:, :most]
    best = np.zeros_like(tables.present)
    np.put_along_axis(best, order, True, axis=1)
    return Material(material.questions, replace(tables, present=tables.present & best))


def asked_of(material: Material, sets: Sequence[str]) -> Material:
    """The material with the questions of other sets set aside: rows, texts and readings stay what they are."""
    return Material(
        tuple(q if q.dataset in sets else replace(q, split=SET_ASIDE) for q in material.questions),
        material.tables,
    )


def load_known(paths: Iterable[Path], readings: Readings) -> int:
    """Readings of earlier runs, files or folders of them; BadData where they are of other readers or texts."""
    count = 0
    for path in paths:
        for file in sorted(path.glob("readings-*.npz")) if path.is_dir() else [path]:
            count += readings.load(file)
    return count


def trained(material: Material, scores: Scores, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """The record of one seed's policy, trained and saved under OUT/policies where it is not there."""
    projection = given.material / "projection.npy"
    return train_one(
        narrowed(material, scores, given.candidates), training_rows(material), Readings(None),
        PolicyJob(kind="supervised", algorithm="supervised", seed=seed), out=_policies(given),
        seconds=given.seconds, device="cpu", say=say, width=given.width, layers=given.layers,
        projection=np.load(projection) if projection.is_file() else None, warm_steps=given.steps,
        command=_command(),
    )  # fmt: skip


def chosen_by(
    material: Material, shown: Material, orders: dict[str, Scores], given: argparse.Namespace
) -> list[Point]:
    """Points of the simple methods, the orders and every seed's policy, on dev and test questions of the sets."""
    asked, best = asked_of(material, given.sets), asked_of(shown, given.sets)
    policies = _policies(given)
    found = []
    for name in (*METHODS, *orders):
        found += choices_of(
            name, asked, policies, device="cpu", budgets=SIMPLE_BUDGETS, orders=orders
        )  # fmt: skip
    for seed in given.seeds:
        found += choices_of(
            f"supervised-{seed}", best, policies, device="cpu", budgets=given.budgets, biases=given.biases
        )
    return found


class Bounded:
    """Reads what is not known, at most `left` more, and saves after every TOGETHER."""

    def __init__(self, readings: Readings, material: Material, path: Path, left: int) -> None:
        self.readings, self.left, self.done = readings, left, 0
        self._material, self._path = material, path
        self._new = Readings(readings, readings.material)
        if path.exists():
            self._new.load(path)
            readings.load(path)

    def lacking(self, points: Sequence[Point]) -> list[Request]:
        """What is not known of these points."""
        asked = requests_of(points, self._material)
        return [each for each in asked if not self.readings.knows(*each)]

    def read(self, points: Sequence[Point], most: int) -> bool:
        """Read whole what these points lack, if it is at most `most` and what is left; whether all is known."""
        asked = self.lacking(points)
        if len(asked) > min(most, self.left):
            return False
        for at in range(0, len(asked), TOGETHER):
            part = asked[at : at + TOGETHER]
            self._new.read(part)
            self._new.save(self._path)
            self.left, self.done = self.left - len(part), self.done + len(part)
            say(f"{self.done:,} read, {self.left:,} left")
        return True


def read_dev(points: Sequence[Point], bounded: Bounded) -> int:
    """Read simple methods and the oracle, then dev points of policies, those that lack least first, within
    DEV_SHARE; how many of the latter are known whole."""
    for point in sorted(points, key=lambda p: p.name != "oracle"):
        if point.name in METHODS:
            bounded.read([point], bounded.left)
    wanted = [p for p in points if p.split == "dev" and is_policy(p.name)]
    most, before = round(DEV_SHARE * bounded.left), bounded.done
    known = 0
    while wanted:
        point = min(wanted, key=lambda p: len(bounded.lacking([p])))
        wanted.remove(point)
        known += bounded.read([point], most - (bounded.done - before))
    return known


def read_test(points: Sequence[Point], bounded: Bounded, curves: judging.Curves) -> None:
    """Read the test points of policies that dev questions name, and those at SHOWN."""
    named = {
        (dataset, p["name"], p["budget"], p["stop_bias"])
        for dataset in curves.sets
        for told in ways_of(curves, dataset, SHOWN).values()
        for p in told
    }
    for point in points:
        at = (point.dataset, point.name, point.budget, point.stop_bias)
        if point.split == "test" and at in named and not bounded.read([point], bounded.left):
            say(f"{at}: {len(bounded.lacking([point]))} readings lack; raise --most")


def options() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("kept", "material", "folds", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--reader", type=Path, help="the reader's base, as `reader_parts unpack` leaves it")
    parser.add_argument("--adapter", type=Path, default=Path("models/weights/reader-lora"))
    parser.add_argument("--known", type=Path, nargs="*", default=[], help="readings of earlier runs")
    parser.add_argument("--bench", type=Path, help="where the result goes, without ending")
    parser.add_argument("--note", default="", help="added at the page's end")
    parser.add_argument("--sets", nargs="+", default=["nq"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seconds", type=float, default=1800.0, help="that one training may take")
    parser.add_argument(
        "--learned", action="store_true", help="over the score that policy_learned makes of all"
    )
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=16, help="that policies see of each question")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--biases", type=float, nargs="+", default=BIASES)
    parser.add_argument("--most", type=int, default=1200, help="readings that are done, at most; 0: none")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    given = options().parse_args(arguments)
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    material = Material.load(given.material)
    if not (given.out / KEPT).exists():
        told = put(given.kept, material, given.out, both=True)
        (given.out / KEPT).write_text(json.dumps(told))
    told = json.loads((given.out / KEPT).read_text())
    place = PAIRS_BOTH
    if given.learned:
        place = PAIRS_LEARNED
        path = given.out / LEARNED
        if not path.exists():
            kinds = list(told["weights"])
            path.write_text(json.dumps(put_learned(material, given.out, kinds, given.sets)))
        told["learned"] = json.loads(path.read_text())
    seen = with_scores(material, given.out / place)
    # not "pair" itself: scores beyond the limit would be one
    scores = seen.tables.features[..., ALL_FEATURES.index("pair_rank")]
    records = {f"supervised-{seed}": trained(seen, scores, seed, given) for seed in given.seeds}
    for name, record in records.items():
        say(f"{name}: {record['steps']} steps, loss {record['warm_loss']:.4f}, {record['seconds']} s")
    orders = pair_orders(material, given.out)
    if given.learned:
        orders["pair_learned"] = seen.tables.features[..., ALL_FEATURES.index("pair")]
    points = chosen_by(material, only_best(seen, scores, given.candidates), orders, given)
    who = SimpleNamespace(
        fold_readers=given.folds, reader=given.reader, carried=None, adapter=given.adapter, device="cpu"
    )
    # readers are opened at their first reading: a call that reads nothing needs none
    readings = Readings(OutcomeReader(open_readers(who, material)(False)), readings_of(who, material))
    known = load_known(given.known, readings)
    bounded = Bounded(readings, material, given.out / READ, given.most)
    say(f"{known:,} readings known, {len(readings):,} with what this command read before")
    whole = read_dev(points, bounded)
    if not all(
        readings.knows(*each) for each in requests_of([p for p in points if p.name == "oracle"], material)
    ):
        raise SystemExit(
            "the oracle sentence is not read whole: name --known readings, or --reader and a larger --most"
        )
    curves = judging.curves_of(points, [], material, readings, None)
    read_test(points, bounded, curves)
    curves = judging.curves_of(points, [], material, readings, None)
    about = {
        "command": _command(), "kept": told, "records": records, "dev_points_known": whole,
        "readings_done": bounded.done, "candidates": given.candidates,
    }  # fmt: skip
    result = result_of(curves, given.sets, SHOWN, about)
    if given.bench is None:
        say(json.dumps({name: found["ways"] for name, found in result["sets"].items()}))
        return
    keep_lines(given.bench, result, page(result) + (f"\n{given.note}\n" if given.note else ""))


def _policies(given: argparse.Namespace) -> Path:
    """Where the policies over these scores lie."""
    return Path(given.out / ("policies_learned" if given.learned else "policies"))


def _command() -> str:
    return f"python -m infra.training.policy_kept {shlex.join(sys.argv[1:])}"


if __name__ == "__main__":
    main()
