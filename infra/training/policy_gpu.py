"""The retriever's policy on a GPU host without Ray or MLflow: material, pair reader, readings, learning, judging.

    python3 -m infra.training.policy_gpu --carried carried --reader reader --out state --seconds 840   # all stages
    python3 -m infra.training.policy_gpu --carried carried --out state --stage material pairs teach --seconds 260
    python3 -m infra.training.policy_gpu --out state --stage collect --collect "$OUT"

`carried` is what `infra.training.policy_carry --join` put together, `reader` what `reader_parts unpack` made.
Nothing before `readings` needs the reader, but a pair reader over its decoder does (`--pair-base`). Everything is
kept under --out as it is made: a stage that is done is passed over, one that was ended goes on. Processes share the
GPU (`--workers` of them): the small networks are bound by launches. What each stage's processes do is in
`policy_work`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from infra.training import policy_arms
from infra.training import policy_points as points
from infra.training.policy_alone import readers_at_once
from infra.training.policy_apart import CHUNK
from infra.training.policy_collect import collect
from infra.training.policy_made import MADE, STEPS
from infra.training.policy_opened import ARMS, say
from infra.training.policy_pairs import (
    BOTH,
    DECODER,
    FOLDS,
    KINDS,
    MINILM,
    PAIRS_BOTH,
    PLACES,
    kinds_of,
    made_kinds,
)
from infra.training.policy_work import WORK, jobs_of, trainings
from models.retriever.pair_reader import CONFIG

SHARES = {
    "material": 110, "made": 110, "pairs": 150, "both": 50, "alone": 80, "rewarded": 90, "rewarded_whole": 60,
    "rewarded_both": 60, "teach": 80, "readings": 150, "trust": 100,
    "reward": 200, "choose": 60, "read": 130, "report": 40,
}  # fmt: skip
"""Seconds that each stage of a whole run may take where `--seconds` is their sum; else in proportion."""
STAGES = tuple(SHARES)
TOGETHER = {"reward": 290, "choose": 45, "read": 130, "report": 25}
"""The same for policies that are read together only (`--together`): no single readings, trust or routers."""
WITH_DECODER = {"made": 200, "pairs": 280}
"""The shares where a decoder's pair readers are among them."""
WITH_ENCODERS = {"pairs": 230}
"""The shares where E5's or BGE's are: six beside other jobs took 206 s on 2026-12-01."""
NEEDED = (
    "material", "made", "pairs", "both", "alone", "rewarded", "rewarded_whole", "rewarded_both", "teach",
    "readings", "trust",
)  # fmt: skip
"""Stages without whose end the next cannot begin; after others the run goes on and its exit code tells."""
LEAST_LEFT_S = 30.0
"""Seconds of the whole run that must be left for a needed stage that its share cut short to go on once."""


def main() -> None:
    """Entry point: start the workers of each stage and wait for them; or be one (--worker)."""
    given = _given()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.worker >= 0:
        WORK[given.stage[0]](given, time.monotonic() + given.seconds)
        return
    stages = list(dict.fromkeys(stage for name in given.stage for stage in _meant(name)))
    if given.together:
        stages = [stage for stage in stages if stage not in ("readings", "trust")]
    stages = _with_both(_with_made(stages, given.made is not None), given.pair_features == BOTH)
    stages = policy_arms.with_arms(stages, given)
    began = time.monotonic()
    failed: list[str] = []
    for at, stage in enumerate(stages):
        if stage == "collect":
            for name, size in collect(given.out, given.collect or given.out / "collected").items():
                say(f"{name}: {size / (1 << 20):.1f} MiB")
            continue
        if is_done(given, stage):
            say(f"{stage}: done before")
            continue
        until = began + given.seconds
        good, cut = _timed(given, stage, _share(given, stages[at:], until))
        if cut and stage in NEEDED and until - time.monotonic() >= LEAST_LEFT_S:
            say(f"{stage}: cut at its share; goes on once, as the whole run has time left")
            good, cut = _timed(given, stage, _share(given, stages[at:], until))
        if not good:
            say(f"{stage} did not end well: see the lines above; start again with --stage {stage}")
            failed.append(stage)
            if stage in NEEDED:
                break
    if failed:
        raise SystemExit(1)


def _share(given: argparse.Namespace, stages: list[str], until: float) -> float:
    """The first stage's part of the seconds that are left; where `--leave` names it, all but what it leaves."""
    if stages[0] in given.leave:
        return max(LEAST_LEFT_S, until - time.monotonic() - float(given.leave[stages[0]]))
    shares = SHARES | (TOGETHER if given.together else {})
    kinds = kinds_of(given.pair_base)
    if set(kinds) - {DECODER, MINILM}:
        shares |= WITH_ENCODERS
    if DECODER in kinds:
        shares |= WITH_DECODER
    shares |= policy_arms.shares(given)
    return (until - time.monotonic()) * shares[stages[0]] / sum(shares.get(name, 0) for name in stages)


def _timed(given: argparse.Namespace, stage: str, share: float) -> tuple[bool, bool]:
    """Run a stage; whether it ended well, and whether it was the end of its share that ended it."""
    started = time.monotonic()
    good = run_stage(given, stage, share)
    took = time.monotonic() - started
    say(f"{stage}: {took:.0f} s of {share:.0f}")
    return good, not good and took >= share


def _with_made(stages: list[str], made: bool) -> list[str]:
    """The stages with `made` before `pairs` where made questions are given, and without it where they are not."""
    rest = [stage for stage in stages if stage != "made"]
    at = rest.index("pairs") if "pairs" in rest else len(rest) if "made" in stages else -1
    return [*rest[:at], "made", *rest[at:]] if made and at >= 0 else rest


def _with_both(stages: list[str], both: bool) -> list[str]:
    """The stages with `both` behind `pairs` where policies see both readers' scores, and without it else."""
    rest = [stage for stage in stages if stage != "both"]
    at = rest.index("pairs") + 1 if "pairs" in rest else 0 if "both" in stages else -1
    return [*rest[:at], "both", *rest[at:]] if both and at >= 0 else rest


def _meant(name: str) -> tuple[str, ...]:
    meant = {"all": STAGES, "judge": ("choose", "read", "report"), "readings": ("readings", "trust")}
    return meant.get(name, (name,))


def is_done(given: argparse.Namespace, stage: str) -> bool:
    """Whether a stage that leaves nothing to go on with is over."""
    out = given.out
    if stage in ("teach", "trust"):
        jobs = jobs_of(given, stage)
        learned = all((out / "policies" / job.name / "record.json").exists() for job in jobs)
        return learned and (stage == "teach" or (out / "trust" / "verified.json").exists())
    manifest = out / "material" / "manifest.json"
    if stage == "readings":
        count = int(json.loads(manifest.read_text())["questions"]) if manifest.exists() else 0
        shards = [out / "readings" / f"singles-{at:06d}.npz" for at in range(0, count, CHUNK)]
        return bool(shards) and all(path.exists() for path in shards)
    left = {
        "material": [manifest],
        "made": [out / PLACES[kind] / MADE / CONFIG for kind in made_kinds(given)],
        "pairs": [out / PLACES[kind] / fold / "scores.npz" for kind, fold in trainings(given)],
        "both": [out / PAIRS_BOTH / fold / "scores.npz" for fold in FOLDS],
        "rewarded": [out / ARMS],
    }.get(stage)
    return left is not None and all(path.exists() for path in left)


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--stage", nargs="+", choices=("all", "judge", "collect", *STAGES), default=["all"],
        help="one or more, in order",
    )  # fmt: skip
    parser.add_argument("--carried", type=Path, default=Path("carried"))
    parser.add_argument("--reader", type=Path, help="folder of the reader (default: --carried)")
    parser.add_argument("--adapter", type=Path, help="the reader's adapter (default: the shipped one)")
    parser.add_argument(
        "--fold-readers",
        type=Path,
        help="folder of reader_folds: training and dev questions are read by the reader that does not know them",
    )
    parser.add_argument(
        "--together", action="store_true", help="nothing is read apart: no readings, no trust"
    )
    parser.add_argument("--shipped", type=Path, help="a saved policy that is judged too, as shipped-0")
    parser.add_argument(
        "--multi-hop",
        type=int,
        default=1,
        help="reinforce_hops too: meets HotpotQA's and MuSiQue's questions so often (1: none)",
    )
    parser.add_argument("--out", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--collect", type=Path, help="where `collect` puts what is to be carried home")
    parser.add_argument("--seconds", type=float, default=840.0)
    parser.add_argument(
        "--leave", nargs="*", default=[], metavar="STAGE=SECONDS",
        help="a stage ends so many seconds before --seconds are over (others: in proportion), e.g. reward=200",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prices", type=float, nargs="*", default=[], help="gammas tried beside 0.0005")
    parser.add_argument("--worlds", type=int, default=-1, help="newswire worlds, at most (-1: all)")
    parser.add_argument(
        "--cache", type=int, default=0,
        help="newest articles of a cache that half of newswire's questions bring beside what the search finds",
    )  # fmt: skip
    parser.add_argument(
        "--pair-base", default=MINILM,
        help=f"what pair readers are trained over: {', '.join(KINDS)}, several joined by + (both: decoder+minilm); "
        "of several, policies see the scores of the first of these",
    )  # fmt: skip
    parser.add_argument(
        "--pair-features", choices=("one", BOTH), default="one",
        help="both: policies see a weighted sum of all pair readers' scores (wants several in --pair-base)",
    )  # fmt: skip
    parser.add_argument(
        "--around", nargs="*", default=[], choices=KINDS,
        help="kinds that read the sentences before and after a candidate too",
    )  # fmt: skip
    parser.add_argument(
        "--encoders",
        type=Path,
        help="folder with e5, bge, mpnet, as `encoders --join` left it (default: --carried)",
    )
    parser.add_argument("--pair-epochs", type=float, default=4.0, help="passes of MiniLM's")
    parser.add_argument("--decoder-epochs", type=float, default=3.0, help="passes of the decoder's")
    parser.add_argument("--decoder-candidates", type=int, default=24, help="candidates of a question in one")
    parser.add_argument("--decoder-lr", type=float, default=3e-4)
    parser.add_argument(
        "--encoder-epochs", type=float, default=4.0, help="passes of e5's, bge's, mpnet's, their duals'"
    )
    parser.add_argument("--encoder-candidates", type=int, default=20, help="candidates of a question in one")
    parser.add_argument("--encoder-lr", type=float, default=8e-5)
    parser.add_argument("--mpnet-lr", type=float, default=3e-4, help="of the adapters over MPNet")
    parser.add_argument("--dual-lr", type=float, default=3e-5, help="of e5_dual's and bge_dual's")
    parser.add_argument(
        "--made", type=Path, help="folder of made_questions: pair readers learn these first, then each fold"
    )
    parser.add_argument(
        "--made-kinds",
        nargs="+",
        choices=KINDS,
        help="kinds that learn these first (default: all of --pair-base)",
    )
    parser.add_argument("--made-steps", type=int, default=STEPS, help="of that, at most (0: one whole pass)")
    parser.add_argument(
        "--unmade", action="store_true",
        help="beside --made also a pair reader of each kind that does without, for ranks.json",
    )  # fmt: skip
    parser.add_argument("--verify-epochs", type=float, default=2.0)
    parser.add_argument("--warm-steps", type=int, default=1500)
    parser.add_argument("--iterations", type=int, default=1_000_000, help="of learning by reward, at most")
    parser.add_argument("--most", type=int, default=0, help="questions of a set and split (0: as built in)")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(points.BUDGETS))
    parser.add_argument("--apart-budgets", type=int, nargs="+", default=list(points.APART_BUDGETS))
    parser.add_argument("--biases", type=float, nargs="+", default=list(points.BIASES))
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--worker", type=int, default=-1, help="(its own) which worker this process is")
    parser.add_argument(
        "--crowded", action="store_true",
        help="(its own) several pair readers over the decoder are trained on one device",
    )  # fmt: skip
    policy_arms.add_arguments(parser)
    given = parser.parse_args()
    try:
        given.leave = {name: float(seconds) for name, seconds in (each.split("=") for each in given.leave)}
    except ValueError:
        parser.error(f"--leave: given {' '.join(given.leave)}; allowed: STAGE=SECONDS, e.g. reward=200")
    if unknown := set(given.leave) - set(STAGES):
        parser.error(f"--leave: given {', '.join(sorted(unknown))}; allowed: {', '.join(STAGES)}")
    policy_arms.checked(given, parser.error)
    try:
        kinds = kinds_of(given.pair_base)
    except ValueError as error:
        parser.error(f"--pair-base: {error}")
    if unknown := set(given.made_kinds or ()) - set(kinds):
        parser.error(
            f"--made-kinds: given {', '.join(sorted(unknown))}; allowed: kinds of --pair-base {given.pair_base}"
        )
    if given.pair_features == BOTH and len(kinds) < 2:
        parser.error(
            f"--pair-features both wants several kinds of pair readers: given --pair-base {given.pair_base}; "
            "add --pair-base both"
        )
    return given


def run_stage(given: argparse.Namespace, stage: str, seconds: float) -> bool:
    """Start a stage's processes, wait for them, and end those that outlive it; whether all ended well."""
    own = [sys.executable, "-m", "infra.training.policy_gpu", *sys.argv[1:]]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(given.carried / "site"), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "PYTORCH_CUDA_ALLOC_CONF": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),
        "TOKENIZERS_PARALLELISM": "true"
        if stage
        in ("material", "made", "pairs", "both", "rewarded", "rewarded_whole", "rewarded_both", "trust")
        else "false",
    }
    tail = ["--stage", stage, "--seconds", f"{seconds:.0f}"]
    gpus = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    dealt = places(given, stage, len(gpus) or 1)
    if stage in ("made", "pairs") and crowded(given, stage, dealt):
        tail.append("--crowded")
    children = []
    for at, place in enumerate(dealt):
        # several devices are dealt among the workers; each sees one
        own_gpu = {"CUDA_VISIBLE_DEVICES": gpus[place]} if gpus else {}
        children.append(subprocess.Popen([*own, *tail, "--worker", str(at)], env=environment | own_gpu))
    # what everything later waits for is given more than its share before it is ended
    limit = time.monotonic() + seconds + (max(40.0, seconds) if stage in NEEDED else 40.0)
    good = True
    for at, child in enumerate(children):
        try:
            good &= child.wait(timeout=max(1.0, limit - time.monotonic())) == 0
        except subprocess.TimeoutExpired:
            child.kill()
            say(f"{stage}: worker {at} was ended at the limit")
            good &= stage in ("reward", "read")  # these keep what they have
    return good


def places(given: argparse.Namespace, stage: str, devices: int) -> list[int]:
    """The device of each process of a stage: in turn; MiniLM's pair readers keep off the decoder's if they can."""
    count = processes(given, stage)
    if stage not in ("made", "pairs"):
        return [at % devices for at in range(count)]
    kinds = _kinds(given, stage)
    heavy = kinds.count(DECODER)
    rest = list(range(heavy, devices)) or list(range(devices))[::-1]
    light = iter(range(count))
    return [
        at % devices if kind == DECODER else rest[next(light) % len(rest)] for at, kind in enumerate(kinds)
    ]


def crowded(given: argparse.Namespace, stage: str, dealt: list[int]) -> bool:
    """Whether a device has two trainings over the decoder: each then makes its gradient in halves, for memory."""
    heavy = [place for place, kind in zip(dealt, _kinds(given, stage), strict=True) if kind == DECODER]
    return len(set(heavy)) < len(heavy)


def _kinds(given: argparse.Namespace, stage: str) -> list[str]:
    """The kind of pair reader that each process of the stage trains, the decoder's first."""
    return list(made_kinds(given)) if stage == "made" else [kind for kind, _ in trainings(given)]


def processes(given: argparse.Namespace, stage: str) -> int:
    """How many processes a stage has."""
    if stage in ("teach", "reward"):
        return len(jobs_of(given, stage))
    if stage.startswith("rewarded"):
        parts = {"rewarded": policy_arms.folds_first, "rewarded_whole": policy_arms.folds_then}
        return len(parts.get(stage, policy_arms.combined_arms)(given))
    fixed = {
        "material": 1,
        "made": len(made_kinds(given)),
        "report": 1,
        "alone": readers_at_once(given),
        "pairs": len(trainings(given)),
        "both": len(FOLDS),
        "trust": len(FOLDS) + len(given.seeds),
    }
    return int(fixed.get(stage, given.workers))


if __name__ == "__main__":
    main()
