"""Score what `reader_gpu` brought back: one table a set, and the figures by name.

python -m infra.training.reader_report --triples build/reader --pack build/carry --results OUT
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from infra.console import say
from infra.training.reader_pack import triples_of
from models.hf.gemma_gguf import prepared
from pipeline.prepare.triples import Triple
from pipeline.session.prompts import parse_answer
from pipeline.tasks.scores import Reading, score_readings


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--triples", type=Path, required=True, nargs="+", help="as packed, in the same order")
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True, help="the folder with <run>.json")
    parser.add_argument("--out", type=Path, help="where the figures go (JSON)")
    given = parser.parse_args()
    triples = triples_of(given.triples, "judged")
    vocabulary = np.load(given.pack / "vocabulary.npy")
    tokenizer = Tokenizer.from_file(str(prepared() / "tokenizer.json"))
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(given.results.glob("*.json")):
        record = json.loads(path.read_text())
        if "judged" not in record:
            continue
        read = [triples[at] for at in record["judged"].get("rows", range(len(record["judged"]["ids"])))]
        readings = answers_of(record["judged"], read, vocabulary, tokenizer)
        scores[path.stem] = table(read, readings)
        say(f"\n[bold]{path.stem}[/bold] {record.get('steps', '')} steps, dev {record.get('dev', '')}")
        for name, row in scores[path.stem].items():
            say(
                f"  {name:24} n {row['n']:4} EM {_p(row['em'])} F1 {_p(row['f1'])} "
                f"forced F1 {_p(row['forced_f1'])} "
                f"gave up wrongly {_p(row['gave_up_wrongly'])} rightly {_p(row['gave_up_rightly'])}"
            )
    if given.out:
        given.out.write_text(json.dumps(scores, indent=1))


def answers_of(
    judged: dict[str, Any], triples: Sequence[Triple], vocabulary: np.ndarray[Any, Any], tokenizer: Tokenizer
) -> list[Reading]:
    """One reading a triple, from the ids that a run wrote."""
    texts = tokenizer.decode_batch([vocabulary[ids].tolist() for ids in judged["ids"]])
    forced_at = [int(at) for at in judged["forced"]]
    forced = tokenizer.decode_batch([vocabulary[ids].tolist() for ids in judged["forced"].values()])
    said = dict(zip(forced_at, forced, strict=True))
    readings = []
    for at, (triple, text) in enumerate(zip(triples, texts, strict=True)):
        parsed = parse_answer(text)
        readings.append(
            Reading(
                answer=parsed.text,
                given_up=parsed.given_up,
                golds=triple.answers,
                tells=triple.tells,
                forced=parse_answer(said.get(at, "")).text,
            )
        )
    return readings


def table(triples: Sequence[Triple], readings: Sequence[Reading]) -> dict[str, dict[str, Any]]:
    """Scores by "set/kind of context"; unanswerable questions of a set stand under "set!/kind"."""
    groups: dict[str, list[Reading]] = defaultdict(list)
    for triple, reading in zip(triples, readings, strict=True):
        mark = "" if triple.answers else "!"
        groups[f"{triple.dataset}{mark}/{triple.kind}"].append(reading)
    return {name: asdict(score_readings(group)) for name, group in sorted(groups.items())}


def _p(value: float | None) -> str:
    return "    -" if value is None else f"{value:5.1f}"


if __name__ == "__main__":
    main()
