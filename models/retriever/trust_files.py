"""What a policy that reads apart brings in its folder: `trust.json`, and `verifier` where its weights ask for one.

`trust.json` is a `Combination` and `enough`, the trust at which reading ends; `verifier` is a folder of
`save_pair_reader`. `infra.training.policy_ship` writes both beside a policy's own files.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.formats import FORMAT, KEY, NewerFormat
from models.retriever.files import put_json
from models.retriever.table import ALL_FEATURES, FEATURES
from models.retriever.trust import ALONE, OWN_PROBABILITY, Combination

TRUST, VERIFIER = "trust.json", "verifier"


@dataclass(frozen=True, slots=True)
class Trust:
    """Weights of readings, the trust at which reading ends (1: never), the verifier's folder where one looks."""

    combination: Combination = OWN_PROBABILITY
    enough: float = 1.0
    verifier: Path | None = None


def trust_beside(policy: Path, num_features: int) -> Trust:
    """What lies beside a policy of so many features; the reader's own probability where there is no `trust.json`.

    ValueError where the file cannot be read, or where its weights ask for what the policy or its folder lacks.
    """
    path = policy / TRUST
    if not path.exists():
        return Trust()
    try:
        combination = Combination.load(path)
        enough = float(json.loads(path.read_text(encoding="utf-8")).get("enough", 1.0))
    except NewerFormat:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"trust: {path} cannot be read: {error}; write it with infra.training.policy_ship"
        ) from None
    check(combination, enough, num_features, str(path))
    verifier = policy / VERIFIER if "verified" in combination.names else None
    if verifier is not None and not (verifier / "config.json").is_file():
        raise ValueError(
            f"trust: {path} weighs a verifier's score, and {verifier} holds none; put it there "
            "(infra.training.policy_ship), or take a trust without it (plain.json or paired.json of the run)"
        )
    return Trust(combination, enough, verifier)


def put_trust(
    policy: Path, combination: Combination, enough: float, verifier: Path | None, num_features: int
) -> None:
    """Write a trust beside a policy, the verifier first: what is half there is not served."""
    check(combination, enough, num_features, "the combination")
    if "verified" in combination.names:
        if verifier is None or not (verifier / "config.json").is_file():
            raise ValueError(
                f"verifier: given {verifier}; allowed: a folder of save_pair_reader, as the combination weighs "
                "a verifier's score"
            )
        part = policy / f".{VERIFIER}.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(verifier, part, ignore=shutil.ignore_patterns("*.npz"))
        shutil.rmtree(policy / VERIFIER, ignore_errors=True)
        os.replace(part, policy / VERIFIER)
    body: dict[str, Any] = {
        KEY: FORMAT, "names": combination.names, "weights": combination.weights, "constant": combination.constant,
        "enough": enough,
    }  # fmt: skip
    put_json(body, policy / TRUST, indent=None)


def check(combination: Combination, enough: float, num_features: int, where: str) -> None:
    """ValueError where a combination weighs what a policy of so many features does not know."""
    known = ALL_FEATURES if num_features > len(FEATURES) else FEATURES
    allowed = (*ALONE, "verified", *known)
    if unknown := [name for name in combination.names if name not in allowed]:
        raise ValueError(
            f"trust: {where} weighs {', '.join(unknown)}, which a policy of {num_features} features does not know; "
            f"allowed: {', '.join(allowed)}"
        )
    if not 0 < enough <= 1:
        raise ValueError(
            f"enough: given {enough} in {where}; allowed: above 0, at most 1 (reading never ends)"
        )
