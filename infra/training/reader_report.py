"""Score what `reader_gpu` brought back: a table of every set and context, and the figures by name.

    python -m infra.training.reader_report --triples build/reader --pack build/carry --results OUT1 OUT2 \\
        --runs base full lora_a lora --bench infra/bench/results/2026-11-22_reader_h200

All runs are scored on the same readings: those that every one of them was judged by.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from infra.console import say
from infra.training.kept_page import keep_as
from infra.training.reader_pack import triples_of
from models.hf.gemma_gguf import prepared
from pipeline.prepare.triples import Triple
from pipeline.session.prompts import parse_answer
from pipeline.tasks.scores import Reading, score_readings

SHOWN = ("none", "oracle", "sentences64", "sentences128", "sentences256", "gold", "full20", "silent128")
SETS = ("squad", "nq", "hotpot", "timeqa", "rtqa", "newswire", "demo")
Table = dict[str, dict[str, Any]]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--triples", type=Path, required=True, nargs="+", help="as packed, in the same order")
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True, nargs="+", help="folders with <run>.json")
    parser.add_argument("--runs", nargs="+", required=True, help="which runs, in the order shown")
    parser.add_argument("--bench", type=Path, help="write <this>.json and <this>.md")
    given = parser.parse_args()
    triples = triples_of(given.triples, "judged")
    vocabulary = np.load(given.pack / "vocabulary.npy")
    tokenizer = Tokenizer.from_file(str(prepared() / "tokenizer.json"))
    records = {name: _record(given.results, name) for name in given.runs}
    readings = {
        name: answers_of(record["judged"], triples, vocabulary, tokenizer) for name, record in records.items()
    }
    common = sorted(set.intersection(*(set(found) for found in readings.values())))
    tables = {name: table([(triples[at], found[at]) for at in common]) for name, found in readings.items()}
    page = markdown(tables, records)
    say(page)
    if given.bench:
        figures = bench_figures(tables, records)
        keep_as(given.bench, figures, page)


def answers_of(
    judged: dict[str, Any], triples: Sequence[Triple], vocabulary: np.ndarray[Any, Any], tokenizer: Tokenizer
) -> dict[int, Reading]:
    """What a run said, by place of the triple among the judged ones."""
    rows = judged.get("rows") or range(len(judged["ids"]))
    texts = tokenizer.decode_batch([vocabulary[ids].tolist() for ids in judged["ids"]])
    forced = tokenizer.decode_batch([vocabulary[ids].tolist() for ids in judged["forced"].values()])
    said = dict(zip(map(int, judged["forced"]), forced, strict=True))
    readings = {}
    for at, (row, text) in enumerate(zip(rows, texts, strict=True)):
        parsed = parse_answer(text)
        readings[row] = Reading(
            answer=parsed.text,
            given_up=parsed.given_up,
            golds=triples[row].answers,
            tells=triples[row].tells,
            forced=parse_answer(said.get(at, "")).text,
        )
    return readings


def table(read: Sequence[tuple[Triple, Reading]]) -> Table:
    """Scores by "set/kind of context"; unanswerable questions of a set stand under "set!/kind".

    The newswire's kinds of question are scored together under "newswire/…" and apart under "newswire/kind:…".
    """
    groups: dict[str, list[Reading]] = defaultdict(list)
    for triple, reading in read:
        name = f"{triple.dataset}{'' if triple.answers else '!'}"
        groups[f"{name}/{triple.kind}"].append(reading)
        if ":" in triple.kind:
            groups[f"{name}/{triple.kind.split(':')[1]}"].append(reading)
    return {name: asdict(score_readings(group)) for name, group in sorted(groups.items())}


def bench_figures(tables: dict[str, Table], records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The kept result: rows, and ratios by name (reader_f1_<run>_<set>: with the oracle sentence)."""
    named = {}
    for run, scores in tables.items():
        for dataset in SETS:
            for kind in ("oracle", "sentences128", "gold", "full20"):
                row = scores.get(f"{dataset}/{kind}")
                if row is not None:
                    end = "" if kind == "oracle" else f"_{kind}"
                    named[f"reader_f1_{run}_{dataset}{end}"] = row["f1"]
                    named[f"reader_f1_{run}_{dataset}{end}_forced"] = row["forced_f1"]
    rows = [
        {"run": run, "set": name, **row} for run, scores in tables.items() for name, row in scores.items()
    ]
    trained = {
        run: {
            key: record.get(key)
            for key in ("run", "device", "steps", "tokens", "train_seconds", "peak_bytes", "dev")
        }
        | {"curve": [{k: round(v, 5) for k, v in point.items()} for point in record.get("curve", [])][::4]}
        for run, record in records.items()
    }
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    device = next(iter(records.values()))["device"]
    return {
        "bench": "reader",
        "device": device,
        "commit": commit,
        "runs": trained,
        "rows": rows,
        "ratios": named,
    }


def markdown(tables: dict[str, Table], records: dict[str, dict[str, Any]]) -> str:
    """The tables for a person."""
    lines = ["# The reader: what is answered, by what is read", ""]
    for run, record in records.items():
        if record.get("steps"):
            lines.append(
                f"* `{run}`: {record['steps']} steps, {record['tokens'] / 1e6:.1f}M tokens (padding included), "
                f"{record['train_seconds']:.0f} s on one {record['device']}; dev {record['dev']}"
            )
    for title, key in (("EM / F1 (giving up counts 0)", ""), ("EM / F1, made to answer", "forced_")):
        lines += [
            "",
            f"## {title}",
            "",
            f"| set | read | n | {' | '.join(tables)} |",
            "|---" * (3 + len(tables)) + "|",
        ]
        for name, row in _shown_rows(tables):
            cells = [f"{t[name][f'{key}em']:.1f} / {t[name][f'{key}f1']:.1f}" for t in tables.values()]
            lines.append(f"| {name.replace('/', ' | ')} | {row['n']} | {' | '.join(cells)} |")
    lines += ["", "## Giving up: wrongly (the text tells) / rightly (it does not), %", ""]
    lines += [f"| set | read | n (silent) | {' | '.join(tables)} |", "|---" * (3 + len(tables)) + "|"]
    for name, row in _shown_rows(tables, unanswerable=True):
        cells = [
            f"{_p(t[name]['gave_up_wrongly'])} / {_p(t[name]['gave_up_rightly'])}" for t in tables.values()
        ]
        lines.append(
            f"| {name.replace('/', ' | ')} | {row['n']} ({row['num_silent']}) | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def _shown_rows(tables: dict[str, Table], unanswerable: bool = False) -> list[tuple[str, dict[str, Any]]]:
    first = next(iter(tables.values()))
    names = [f"{dataset}/{kind}" for dataset in SETS for kind in (*SHOWN, "oracle+", "gold+", "silent")]
    names += [
        name for name in first if name.startswith("newswire/") and name.endswith((":oracle", ":sentences128"))
    ]
    if unanswerable:
        names += [name for name in first if "!/" in name and ":" not in name]
    return [
        (name, first[name])
        for name in names
        if name in first and (unanswerable or first[name]["em"] is not None)
    ]


def _record(folders: Sequence[Path], name: str) -> dict[str, Any]:
    for folder in folders:
        if (folder / f"{name}.json").exists():
            record: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
            return record
    raise SystemExit(f"no {name}.json in {', '.join(map(str, folders))}")


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    main()
