"""Which arms of pair readers a run has (`policy_rewarded` trains them): options, stages, trainings and a table.

An arm is a form of the objective and a seed: `log`, `log-1`. `shares` says what seconds its trainings may take.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any, cast

from infra.training.policy_opened import LABELS, Given, best_arm
from infra.training.policy_pairs import DECODER, FOLDS, MINILM, kinds_of
from infra.training.policy_ranks import table_of as ranks_table
from models.retriever.pair_rewarded import FORMS, Form

Work = tuple[str, str, str]
"""(arm, kind, fold)."""


def form_of(arm: str) -> tuple[Form, int]:
    """The form and the seed of an arm; ValueError for a name that is none."""
    form, _, seed = arm.partition("-")
    if form not in FORMS or (seed and not seed.isdigit()):
        raise ValueError(
            f"arm: given {arm!r}; allowed: {', '.join(FORMS)}, with -1, -2, ... for another seed"
        )
    return cast(Form, form), int(seed or 0)


def rewarded_kinds(given: Given) -> tuple[str, ...]:
    """The kinds that are trained by reward: those that policies see, or the ones of these that are named."""
    kinds: tuple[str, ...] = kinds_of(given.pair_base)
    seen = kinds if given.pair_features == "both" else kinds[:1]
    if unknown := set(given.rewarded_kinds) - set(seen):
        raise ValueError(
            f"--rewarded-kinds: given {', '.join(sorted(unknown))}; allowed: what policies see, {', '.join(seen)}"
        )
    return tuple(kind for kind in seen if not given.rewarded_kinds or kind in given.rewarded_kinds)


def folds_first(given: Given) -> list[Work]:
    """The trainings of the stage `rewarded`, the longest kind first."""
    return [(arm, kind, fold) for kind in rewarded_kinds(given) for arm in given.arms for fold in FOLDS[:2]]


def folds_then(given: Given) -> list[Work]:
    """Those of `rewarded_whole`: the best form's and `labels`' whole, and further seeds of the best form."""
    best = best_arm(given.out)
    arms = [best, *([LABELS] if LABELS in given.arms else [])]
    more = [f"{best}-{seed}" for seed in range(1, given.arm_seeds)]
    return [
        *((arm, kind, FOLDS[-1]) for kind in rewarded_kinds(given) for arm in arms),
        *((arm, kind, fold) for kind in rewarded_kinds(given) for arm in more for fold in reversed(FOLDS)),
    ]


def combined_arms(given: Given) -> list[tuple[str, str]]:
    """(arm, fold) of each weighted sum of an arm's kinds."""
    arms = list(dict.fromkeys(arm for arm, _, _ in folds_then(given)))
    return [(arm, fold) for arm in arms for fold in reversed(FOLDS)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the stages here."""
    parser.add_argument(
        "--arms", nargs="*", default=[],
        help=f"pair readers trained on by reward too: {', '.join(FORMS)} (labels: as many steps without reward)",
    )  # fmt: skip
    parser.add_argument("--arm-seeds", type=int, default=1, help="seeds of the best form's pair readers")
    parser.add_argument(
        "--rewarded-kinds",
        nargs="*",
        default=[],
        help="kinds trained by reward (none: all that policies see)",
    )
    parser.add_argument("--alone", type=int, default=10, help="candidates of a question that are read alone")
    parser.add_argument("--twos", type=int, default=3, help="of these, the best that are read in twos")
    parser.add_argument("--alone-made", type=int, default=1500, help="made questions that are read (0: none)")
    parser.add_argument("--rewarded-epochs", type=float, default=3.0, help="passes over the questions read")
    parser.add_argument(
        "--rewarded-lr", type=float, default=1.2e-4, help="of MiniLM's, others' in proportion"
    )
    parser.add_argument("--reward-weight", type=float, default=1.0)
    parser.add_argument("--label-weight", type=float, default=0.25)
    parser.add_argument("--likelihood-temperature", type=float, default=0.3)


def shares(given: Given) -> dict[str, int]:
    """Seconds that the trainings here may take of a whole run, by how many there are and of which kinds."""
    if not given.arms:
        return {}
    work = sum({MINILM: 1, DECODER: 4}.get(kind, 2) for kind in rewarded_kinds(given))
    return {
        "rewarded": 15 + 14 * work * len(given.arms),
        "rewarded_whole": 15 + 10 * work * min(2, len(given.arms)) + 20 * work * (given.arm_seeds - 1),
    }


def checked(given: Given, error: Callable[[str], Any]) -> None:
    """Tell `error` of options that do not go together."""
    if not given.arms:
        return
    try:
        forms = [form_of(arm)[0] for arm in given.arms]
        rewarded_kinds(given)
    except ValueError as wrong:
        error(str(wrong))
        return
    if not given.together:
        error("--arms wants --together: nothing of theirs is read apart")
    if all(form == LABELS for form in forms):
        error(f"--arms: given {', '.join(given.arms)}; allowed: one form of reward at least")


def with_arms(stages: list[str], given: Given) -> list[str]:
    """The stages with `alone` and those of arms before `teach` where there are arms, and without them else."""
    own = ["alone", "rewarded", "rewarded_whole", "rewarded_both"]
    if not given.arms:
        return [stage for stage in stages if stage not in own]
    if given.pair_features != "both":
        own.remove("rewarded_both")
        stages = [stage for stage in stages if stage != "rewarded_both"]
    if "teach" not in stages or any(stage in stages for stage in own):
        return stages
    at = stages.index("teach")
    return [*stages[:at], *own, *stages[at:]]


def table(found: Mapping[str, Any]) -> list[str]:
    """The arms' first picks, and how early their orders find what tells, in Markdown."""
    if not found:
        return []
    lines = [
        "", "What the first pick of each pair reader is worth, read alone, on training questions that its fold did "
        f"not see (policies see `{found['best']}` as `rewarded`):", "",
        "| trained on by | questions | F1 | hit at 1 |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    lines += [
        f"| {name} | {told['n']} | {told['f1']} | {told['hit@1']} |"
        for name, told in found["first_picks"].items()
    ]
    if found.get("ranks", {}).get("test"):
        lines += ["", ranks_table(found["ranks"])]
    return lines
