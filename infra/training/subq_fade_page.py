"""The page of a faded run: needles and losses before, after fading, and after as many updates without it.

python -m infra.training.subq_fade_page --found OUT --bench infra/bench/results/NAME

OUT holds what `infra.training.subq_fade` wrote: fade-SEED.json and needles-<arm>-SEED.json. An arm that was cut off
is said to be so; what it has not got is left out.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.training.kept_page import keep
from infra.training.subq_report import short

ARMS = {
    "before": "before",
    "fade": "faded",
    "kept": "kept",
    "alike": "kept, harder needles",
    "namesakes": "kept, twins of namesakes",
}
KEPT = ("step", "language", "answers", "contrastive", "exact", "recall", "gold_weight")
"""Of a curve: what the page's JSON keeps."""


def found_in(folder: Path) -> dict[str, Any]:
    """{seed, arms: {arm: about}, needles: {arm: rows}, …} of one run; ValueError where there is none."""
    path = next(iter(sorted(folder.glob("fade-*.json"))), None)
    if path is None:
        raise ValueError(f"{folder} holds no fade-SEED.json; give the OUT of infra.training.subq_fade")
    body = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, Any] = {"seed": body["seed"], "arms": {}, "needles": {}, "language": {}, "done": {}}
    for arm in ARMS:
        if (about := body["arms"].get(arm)) is not None:
            curve = [{key: row[key] for key in KEPT if key in row} for row in about["curve"]]
            found["arms"][arm] = about | {"curve": curve}
        asked = folder / f"needles-{arm}-{body['seed']}.json"
        if asked.exists():
            record = json.loads(asked.read_text(encoding="utf-8"))
            found["needles"][arm] = record["rows"]
            found["language"][arm] = record.get("language", {})
            found["done"][arm] = bool(record.get("done"))
            found["device"] = record["device"]
    return found


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """Exact match in percent by arm, wording and length, the mean over keys; nats that reading gains by arm."""
    named: dict[str, float] = {}
    for arm, rows in found["needles"].items():
        for kind, length in sorted({(_kind(row), row["length"]) for row in rows}):
            named[f"fade_{arm}_exact_{kind}_{short(length)}"] = _mean(rows, kind, length)
        nats = found["language"][arm]
        if nats:
            named[f"fade_{arm}_gain_of_reading"] = round(nats["without"] - nats["with_retrieval"], 4)
    return named


def page(found: dict[str, Any]) -> str:
    """The figures as tables."""
    trained = found["arms"]
    first = next(iter(trained.values()))
    lines = [
        f"# The contrastive loss faded away ({found['device']})", "",
        f"Weights of `{first['from']}` trained on, each arm with the weight of the contrastive term at "
        f"{first.get('contrastive', 1.0):g} of the recipe's, seed {found['seed']}. Command: the head of "
        "`infra/training/subq_fade.py`. Faded: over the first 40% of the updates to nothing.", "",
        "| arm | updates | seconds | nats, text | answers | contrastive | exact in training, % | ended |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for arm, about in trained.items():
        last = about["curve"][-1]
        lines.append(
            f"| {ARMS[arm]} | {about['steps']} | {about['seconds']:.0f} | {last['language']:.3f} | "
            f"{last['answers']:.3f} | {last['contrastive']:.3f} | {100 * last['exact']:.1f} | "
            f"{'yes' if about['done'] else 'cut off'} |"
        )
    arms = [arm for arm in ARMS if arm in found["needles"]]
    head = " | ".join(ARMS[arm] + ("" if found["done"][arm] else " (not all asked)") for arm in arms)
    told_nats = [
        f"{ARMS[arm]} {nats['with_retrieval']} ({nats['without']})"
        for arm in arms
        if (nats := found["language"][arm])
    ]
    shown = "Nats a token of unseen text with reading (without), a quarter of the context left out: "
    lines += ["", shown + ", ".join(told_nats) + "."]
    lines += [
        "",
        "Exact match / every gold chunk read, %:",
        "",
        f"| cell | tokens | n | {head} |",
    ]
    lines.append("| --- | --- | --- |" + " --- |" * len(arms))
    cells = dict.fromkeys(
        (row["cell"], row["length"], row["n"]) for arm in arms for row in found["needles"][arm]
    )
    for cell, length, trials in sorted(cells, key=lambda each: (each[1], "alone" in each[0], each[0])):
        told = [_told(found["needles"][arm], cell, length) for arm in arms]
        lines.append(f"| {cell} | {short(length)} | {trials} | {' | '.join(told)} |")
    lines += _wrong_table(found, arms)
    return "\n".join(lines) + "\n"


def wrong(found: dict[str, Any]) -> dict[tuple[str, int, str], dict[str, int]]:
    """Trials answered wrong by (kind, length, arm), over the keys: `wrong` of `n`; of these those that were right
    before (`broken`), and the ones that were wrong before and are right (`mended`).

    Arms are asked the same needles. Rows that do not keep their misses, or were not asked before, are left out.
    """
    missed = {
        arm: {(row["cell"], row["length"]): row for row in rows if "misses" in row}
        for arm, rows in found["needles"].items()
    }
    counted: dict[tuple[str, int, str], dict[str, int]] = {}
    for arm, cells in missed.items():
        for (cell, length), row in cells.items():
            begun = missed.get("before", {}).get((cell, length))
            if begun is None or begun["n"] != row["n"]:
                continue
            ours, theirs = ({miss["trial"] for miss in each["misses"]} for each in (row, begun))
            some = counted.setdefault(
                (_kind(row), length, arm), dict.fromkeys(("n", "wrong", "mended", "broken"), 0)
            )
            some["n"] += row["n"]
            some["wrong"] += len(ours)
            some["mended"] += len(theirs - ours)
            some["broken"] += len(ours - theirs)
    return counted


def _wrong_table(found: dict[str, Any], arms: Sequence[str]) -> list[str]:
    counted = wrong(found)
    if not counted:
        return []
    lines = [
        "", "Answered wrong, all keys of a length together; in brackets, on the same needles, those that were "
        "wrong before and are right / those that were right and are wrong:", "",
        f"| wording | tokens | n | {' | '.join(ARMS[arm] for arm in arms)} |",
        "| --- | --- | --- |" + " --- |" * len(arms),
    ]  # fmt: skip
    for kind, length in sorted({(kind, length) for kind, length, _ in counted}, key=lambda each: each[::-1]):
        cells = {arm: counted[kind, length, arm] for arm in arms if (kind, length, arm) in counted}
        trials = max(cell["n"] for cell in cells.values())
        told = []
        for arm in arms:
            cell = cells.get(arm)
            if cell is None:
                told.append("")
            elif arm == "before":
                told.append(str(cell["wrong"]))
            else:
                told.append(f"{cell['wrong']} ({cell['mended']} / {cell['broken']})")
        lines.append(f"| {kind.replace('_', ' ')} | {short(length)} | {trials} | {' | '.join(told)} |")
    return lines


def _told(rows: Sequence[dict[str, Any]], cell: str, length: int) -> str:
    row = next((row for row in rows if (row["cell"], row["length"]) == (cell, length)), None)
    return "" if row is None else f"{row['exact']} / {row['recall']}"


def _kind(row: dict[str, Any]) -> str:
    """What a cell asks, whatever the key's length: known, known_alone, heldout_forms, …"""
    return re.sub(r"-\d+", "", str(row["cell"])).replace("-", "_")


def _mean(rows: Sequence[dict[str, Any]], kind: str, length: int) -> float:
    exact = [float(row["exact"]) for row in rows if _kind(row) == kind and row["length"] == length]
    return round(sum(exact) / len(exact), 2)


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--found", type=Path, required=True, help="OUT of infra.training.subq_fade")
    parser.add_argument("--bench", type=Path, required=True, help="where results go, without ending")
    parser.add_argument("--commit", default="", help="that was run")
    parser.add_argument("--note", default="", help="added at the page's end")
    given = parser.parse_args(arguments)
    found = found_in(given.found)
    result = {"bench": "subq_fade", "commit": given.commit, **found, "ratios": ratios(found)}
    keep(given, result, page(found))


if __name__ == "__main__":
    main()
