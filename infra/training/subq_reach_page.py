"""The page of what far text could tell: files of `infra.training.subq_reach`, one beside the other.

python -m infra.training.subq_reach_page --found REACH.json … --bench infra/bench/results/NAME --commit COMMIT
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.training.kept_page import keep
from infra.training.subq_reach import BUCKETS, EDGES

Found = Sequence[dict[str, Any]]
_HELD = ("chosen", "by_chance", "best")


def page(found: Found) -> str:
    """Tables: a column a file."""
    near, far = EDGES
    places = {
        "near": f"up to {near:,} tokens back", "middle": f"up to {far:,}", "far": f"beyond {far:,}",
        "never": "nowhere",
    }  # fmt: skip
    heads = [f"{row['model']} on {row['data']}, {row['sequences']} sequences" for row in found]
    lines = [
        "# What far text could tell a language model", "",
        f"Unseen sequences of {found[0]['length']:,} tokens each, in the model's tokenizer. "
        "Tokens by the last place in the sequence that held them behind the same two tokens: their share / their "
        "part of all nats without reading / nats a token that reading gains on them.", "",
        "| last place | " + " | ".join(heads) + " |", "|" + " --- |" * (1 + len(found)),
    ]  # fmt: skip
    for name in BUCKETS:
        cells = [_bucket(row["by_last_repetition"].get(name)) for row in found]
        lines.append(f"| {places[name]} | {' | '.join(cells)} |")
    lines += ["", "| nats a token | " + " | ".join(heads) + " |", "|" + " --- |" * (1 + len(found))]
    table: dict[str, list[str]] = {
        "the model without reading": [f"{row['unread']:.4f}" for row in found],
        "reading gains": [f"{row['gain_of_reading']:+.4f}" for row in found],
        f"a cache of n-grams of the last {far:,} tokens gains": [
            f"{row['cache']['near']:+.4f}" for row in found
        ],
        "beside both, a cache of what stands farther gains": [
            f"{row['cache']['far_beside_near']:+.4f}" for row in found
        ],
        "rare words to come, held by the best chunk chosen / the best of as many by chance / the best on offer": [
            " / ".join(f"{row['rare_words_held'][key]:.2f}" for key in _HELD if row["rare_words_held"])
            for row in found
        ],
    }
    lines += [f"| {title} | {' | '.join(cells)} |" for title, cells in table.items()]
    return "\n".join(lines) + "\n"


def _bucket(told: dict[str, float] | None) -> str:
    if told is None:
        return ""
    shares = f"{100 * told['share']:.1f}% / {100 * told['part_of_all_nats']:.1f}%"
    return f"{shares} / {told['gain_of_reading']:+.4f}"


def ratios(found: Found) -> dict[str, float]:
    """What far n-grams gain, and how much more than chance the chosen chunks hold, by model and text."""
    told: dict[str, float] = {}
    for row in found:
        name = f"{row['model']}_{row['data']}".replace("-", "_")
        told[f"far_cache_gain_{name}"] = row["cache"]["far_beside_near"]
        if row["rare_words_held"]:
            held = row["rare_words_held"]
            told[f"rare_words_chosen_over_chance_{name}"] = round(held["chosen"] / held["by_chance"], 3)
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--found", type=Path, nargs="+", required=True, help="what subq_reach wrote")
    parser.add_argument("--bench", type=Path, required=True, help="where results go, without ending")
    parser.add_argument("--commit", default="", help="that was run")
    parser.add_argument("--note", default="", help="added at the page's end")
    given = parser.parse_args(arguments)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in given.found]
    result = {
        "bench": "subq-reach", "device": "cpu", "commit": given.commit, "rows": found, "ratios": ratios(found),
    }  # fmt: skip
    keep(given, result, page(found))


if __name__ == "__main__":
    main()
