"""A policy's folder as sessions serve it, made of what a GPU run left: weights, STOP's bias, trust and verifier.

    python -m infra.training.policy_ship --home build/policy-home --policy reinforce_apart-0 --trust verified \\
        --enough 0.85 --stop-bias -4 --out build/policy-apart

HOME is what `policy_collect` unpacked, or a run's own folder. `--trust` names the combination of a policy that
reads apart (as sessions then do by default); `verified` takes the run's verifier along. `--pair-reader` takes the
run's pair reader along too (else the shipped one serves). `--small` leaves the vectors of words of both to MiniLM's
wheel (11 MB each instead of 22). Every file is checked by loading it as a session does.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.training.policy_pairs import pairs_seen
from models.retriever.pair_reader import BESIDE, load_pair_reader, save_pair_reader
from models.retriever.storage import load_policy, save_policy
from models.retriever.trust import KINDS, Combination
from models.retriever.trust_files import put_trust, trust_beside
from pipeline.errors import UsageError


def ship(
    home: Path, policy: str, out: Path, *, trust: str | None = None, enough: float = 1.0,
    stop_bias: float = 0.0, pair_reader: bool = False, small: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write the folder; what is in it. UsageError where the run lacks what is asked for."""
    source = home / "policies" / policy / "policy"
    if not source.is_dir():
        known = sorted(path.parent.name for path in home.glob("policies/*/policy"))
        raise UsageError(f"--policy: given {policy!r}; {home} has {', '.join(known) or 'none'}")
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"--out {out} is not empty; give a new folder, sessions may be reading this one")
    try:
        network, about = load_policy(source)
        told = {**about, "stop_bias": stop_bias, "reading": "apart" if trust else "together"}
        if trust:
            told |= {"trust": trust, "enough": enough}
        save_policy(network, out, told)
        if pair_reader:
            _copied(pairs_seen(home) / "whole", out / BESIDE, small)
        if trust:
            combination = Combination.load(home / "trust" / f"{trust}.json")
            with tempfile.TemporaryDirectory() as held:
                verifier = None
                if "verified" in combination.names:
                    verifier = _copied(home / "trust" / "whole", Path(held) / "verifier", small)
                put_trust(out, combination, enough, verifier, network.config.num_features)
            trust_beside(out, network.config.num_features)
    except (OSError, KeyError, ValueError) as error:
        shutil.rmtree(out, ignore_errors=True)
        raise UsageError(f"{home}, policy {policy}: {error}") from None
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {
        "policy": str(out),
        "files": [path.relative_to(out).as_posix() for path in files],
        "bytes": sum(path.stat().st_size for path in files),
    }


def _copied(source: Path, target: Path, small: bool) -> Path:
    """A pair reader or verifier, copied and loaded once."""
    reader, about = load_pair_reader(source)
    if small:
        save_pair_reader(reader, target, about, own_words=False)
    else:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.npz"))
    load_pair_reader(target)
    return target


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True, help="what policy_collect unpacked")
    parser.add_argument("--policy", required=True, help="its name in the run, as reinforce-0")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--trust", choices=list(KINDS), help="of a policy that reads apart")
    parser.add_argument("--enough", type=float, default=1.0, help="trust at which reading ends (1: never)")
    parser.add_argument("--stop-bias", type=float, default=0.0, help="added to STOP's logit")
    parser.add_argument("--pair-reader", action="store_true", help="with the run's own pair reader")
    parser.add_argument("--small", action="store_true", help="words of both by MiniLM's wheel")
    given = parser.parse_args(arguments)
    try:
        told = ship(
            given.home, given.policy, given.out, trust=given.trust, enough=given.enough,
            stop_bias=given.stop_bias, pair_reader=given.pair_reader, small=given.small,
        )  # fmt: skip
    except UsageError as error:
        raise SystemExit(str(error)) from None
    print(f"{told['policy']}: {', '.join(told['files'])}; {told['bytes'] / (1 << 20):.1f} MiB")  # noqa: T201


if __name__ == "__main__":
    main()
