"""Compare readers by what `reader_judge` brought back: tables, differences with paired intervals, figures by name.

    python -m infra.training.reader_compare --results OUT --runs base lora near full \\
        --bench infra/bench/results/2026-11-29_reader_h200

Every reader answered the same readings. Three scores of each: as sessions answer (giving up only where the margin
is above 1.5), greedy (above 0), and made to answer. A reader that gives up more loses F1 by that alone: beside them
stands the gain where ours gives up as often on contexts that do not tell as theirs does. `near` names the run that
was chosen by dev F1.
"""

from __future__ import annotations

import argparse
import json
import lzma
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.console import say
from infra.training.kept_page import keep_as
from pipeline.session.prompts import parse_answer
from pipeline.tasks.scores import answer_f1, exact_match

MARGINS = {"session": 1.5, "greedy": 0.0, "forced": float("inf")}
SETS = ("nq", "squad", "hotpot", "timeqa", "rtqa", "newswire", "demo")
KINDS = (
    "oracle", "near", "oracle+", "hybrid128", "hybrid256", "dense128", "dense256", "sentences128", "sentences256",
    "gold", "gold+", "full20", "silent128",
)  # fmt: skip
DRAWS = 2000
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Judged:
    """One reader's answers: F1 and EM when made to answer, margins of giving up; all [n]."""

    f1: Floats
    em: Floats
    margins: Floats

    def score(self, rule: str) -> Floats:
        """F1 of each reading by a rule of giving up; given up counts 0."""
        return self.score_at(MARGINS[rule])

    def score_at(self, margin: float) -> Floats:
        """The same, given up where the margin is above `margin`."""
        return np.where(self.margins > margin, 0.0, self.f1)


def read_judged(path: Path, about: Sequence[Sequence[Any]], tokenizer: Any) -> tuple[list[int], Judged]:
    """The rows that a reader answered, and its scores there."""
    with np.load(path) as packed:
        rows = packed["rows"].tolist()
        ends = np.cumsum(packed["lengths"].astype(np.int64))
        texts = tokenizer.decode_batch([ids.tolist() for ids in np.split(packed["ids"], ends[:-1])])
        margins = packed["margins"].astype(float)
    said = [parse_answer(text).text for text in texts]
    told = [tuple(about[row][4]) for row in rows]
    f1 = np.array([answer_f1(text, gold) if gold else 0.0 for text, gold in zip(said, told, strict=True)])
    em = np.array([exact_match(text, gold) if gold else 0.0 for text, gold in zip(said, told, strict=True)])
    return rows, Judged(f1, em, margins)


def paired(ours: Floats, theirs: Floats, seed: int = 0) -> tuple[float, float, float]:
    """Mean difference in points and its 95% bootstrap interval over the readings."""
    apart = 100 * (ours - theirs)
    chance = np.random.default_rng(seed)
    means = np.sort([apart[chance.integers(0, len(apart), len(apart))].mean() for _ in range(DRAWS)])
    return float(apart.mean()), float(means[int(0.025 * DRAWS)]), float(means[int(0.975 * DRAWS) - 1])


def equal_margin(ours: Judged, theirs: Judged, tells: npt.NDArray[np.bool_]) -> float:
    """The margin at which `ours` gives up on the share of silent contexts that `theirs` does as sessions answer."""
    silent = ~tells
    if not silent.any():
        return MARGINS["session"]
    share = float((theirs.margins[silent] > MARGINS["session"]).mean())
    return float(np.quantile(ours.margins[silent], 1 - share))


def groups_of(about: Sequence[Sequence[Any]], rows: Sequence[int]) -> dict[str, list[int]]:
    """Places among `rows` by "set/kind"; the newswire's kinds of question stand together."""
    found: dict[str, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        _, dataset, kind, *_ = about[row]
        found[f"{dataset}/{kind.split(':')[-1]}"].append(at)
    return found


def table(
    readers: Mapping[str, Judged],
    groups: Mapping[str, Sequence[int]],
    answerable: npt.NDArray[np.bool_],
    tells: npt.NDArray[np.bool_],
    ours: str,
    theirs: str,
) -> list[dict[str, Any]]:
    """One row a set and kind of context: every reader's scores, and ours minus theirs."""
    rows = []
    equal = equal_margin(readers[ours], readers[theirs], tells)
    for dataset in SETS:
        for kind in KINDS:
            every = np.array(groups.get(f"{dataset}/{kind}", []), np.int64)
            asked = every[answerable[every]] if len(every) else every
            silent = every[~tells[every]] if len(every) else every
            telling = asked[tells[asked]] if len(asked) else asked
            if not len(every):
                continue
            row: dict[str, Any] = {"set": dataset, "read": kind, "n": len(asked), "silent": len(silent)}
            row["holds"] = round(100 * float(tells[asked].mean()), 1) if len(asked) else None
            for name, judged in readers.items():
                scores = {rule: _mean(judged.score(rule)[asked]) for rule in MARGINS}
                row[name] = scores | {
                    "em_forced": _mean(judged.em[asked]),
                    "gave_up_wrongly": _mean((judged.margins > MARGINS["session"])[telling]),
                    "gave_up_rightly": _mean((judged.margins > MARGINS["session"])[silent]),
                }
            if len(asked):
                for rule in MARGINS:
                    found = paired(readers[ours].score(rule)[asked], readers[theirs].score(rule)[asked])
                    row[f"gain_{rule}"] = [round(value, 2) for value in found]
                found = paired(readers[ours].score_at(equal)[asked], readers[theirs].score("session")[asked])
                row["gain_equal"] = [round(value, 2) for value in found]
            rows.append(row)
    return rows


def figures(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Figures by name: reader_f1_<run>_<set>[_<kind>][_forced] (as sessions answer), and reader_gain_…[_equal]."""
    named: dict[str, float] = {}
    for row in rows:
        if not row["n"]:
            continue
        end = "" if row["read"] == "oracle" else f"_{row['read'].replace('+', '_among')}"
        for name in names:
            named[f"reader_f1_{name}_{row['set']}{end}"] = row[name]["session"]
            named[f"reader_f1_{name}_{row['set']}{end}_forced"] = row[name]["forced"]
        named[f"reader_gain_{row['set']}{end}"] = row["gain_session"][0]
        named[f"reader_gain_{row['set']}{end}_forced"] = row["gain_forced"][0]
        named[f"reader_gain_{row['set']}{end}_equal"] = row["gain_equal"][0]
    return named


def markdown(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    records: Mapping[str, dict[str, Any]],
    equal: float,
) -> str:
    """The page for a person; `equal` is the margin of equal rightful giving up."""
    lines = ["# A reader that is harder to mislead", ""]
    for name, record in records.items():
        best = max((each.get("score", 0.0) for each in record["dev"]), default=0.0)
        lines.append(
            f"* `{name}` ({record['run']['name']}): {record['steps']} steps, {record['tokens'] / 1e6:.1f}M tokens, "
            f"{record['train_seconds']:.0f} s beside others on one {record['device']} "
            f"({record['tokens_per_second']:,.0f} tokens/s, {record['attention']}, "
            f"{'compiled' if record['compiled'] else 'not compiled'}); best dev F1 {best:.1f}"
        )
    for rule, title in (
        ("session", "F1 as sessions answer (given up where the margin is above 1.5)"),
        ("forced", "F1, made to answer"),
    ):
        lines += ["", f"## {title}", ""]
        session = rule == "session"
        last = f" gain at equal rightful giving up (margin {equal:.1f}) |" if session else ""
        lines += [f"| set | read | tokens | n | holds % | {' | '.join(names)} | gain (95%) |{last}"]
        lines += ["|---" * (6 + session + len(names)) + "|"]
        for row in rows:
            if row["n"]:
                cells = " | ".join(f"{row[name][rule]:.1f}" for name in names)
                gains = " | ".join(_interval(row[f"gain_{each}"]) for each in (rule, "equal")[: 1 + session])
                head = (
                    f"| {row['set']} | {row['read']} | {row['tokens']:.0f} | {row['n']} | {row['holds']:.0f} "
                )
                lines.append(f"{head}| {cells} | {gains} |")
    lines += ["", "## Giving up, as sessions do: wrongly (the text tells) / rightly (it does not), %", ""]
    lines += [f"| set | read | n | silent | {' | '.join(names)} |", "|---" * (4 + len(names)) + "|"]
    for row in rows:
        pairs = [(row[name]["gave_up_wrongly"], row[name]["gave_up_rightly"]) for name in names]
        cells = " | ".join(f"{_shown(wrong)} / {_shown(right)}" for wrong, right in pairs)
        lines.append(f"| {row['set']} | {row['read']} | {row['n']} | {row['silent']} | {cells} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    from tokenizers import Tokenizer

    from models.hf.gemma_gguf import prepared

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="the job's OUT")
    parser.add_argument("--runs", nargs="+", default=["base", "lora", "near", "full"])
    parser.add_argument("--ours", default="near")
    parser.add_argument("--theirs", default="lora")
    parser.add_argument(
        "--chosen", default="near16", help="the run that `near` stands for (WORK/adapter.done)"
    )
    parser.add_argument("--bench", type=Path, help="write <this>.json and <this>.md")
    parser.add_argument("--commit", default="", help="of what ran; default: of this checkout")
    given = parser.parse_args(arguments)
    about = json.loads(lzma.decompress((given.results / "judged-about.json.xz").read_bytes()))
    tokenizer = Tokenizer.from_file(str(prepared() / "tokenizer.json"))
    file_of = {name: given.chosen if name == "near" else name for name in given.runs}
    readers: dict[str, Judged] = {}
    rows: list[int] = []
    for name in given.runs:
        found, readers[name] = read_judged(given.results / f"judged-{file_of[name]}.npz", about, tokenizer)
        if rows and found != rows:
            raise SystemExit(f"--runs: {name} answered other readings than {given.runs[0]}; judge both again")
        rows = found
    answerable = np.array([bool(about[row][4]) for row in rows])
    tells = np.array([bool(about[row][3]) for row in rows])
    groups = groups_of(about, rows)
    made = table(readers, groups, answerable, tells, given.ours, given.theirs)
    tokens = np.array([about[row][5] for row in rows], float)
    for row in made:
        row["tokens"] = round(float(tokens[groups[f"{row['set']}/{row['read']}"]].mean()), 1)
    records = {
        name: json.loads(path.read_text())
        for name in given.runs
        if (path := given.results / f"{file_of[name]}.json").exists()
    }
    equal = equal_margin(readers[given.ours], readers[given.theirs], tells)
    page = markdown(made, given.runs, records, equal)
    say(page)
    if given.bench:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        kept = {name: _kept(record) for name, record in records.items()}
        speed = given.results / "reader-speed.json"
        body = {
            "bench": "reader",
            "device": next((record["device"] for record in records.values()), ""),
            "commit": given.commit or commit.stdout.strip(),
            "chosen": given.chosen,
            "equal_margin": round(equal, 3),
            "speed": json.loads(speed.read_text()) if speed.exists() else None,
            "runs": kept,
            "rows": made,
            "ratios": figures(made, given.runs),
        }
        keep_as(given.bench, body, page)


def _kept(record: dict[str, Any]) -> dict[str, Any]:
    """A run's record with a fourth of its curve."""
    curve = [{key: round(value, 6) for key, value in point.items()} for point in record["curve"]]
    return {**record, "curve": curve[::4]}


def _mean(values: npt.NDArray[Any]) -> float | None:
    return round(100 * float(values.mean()), 2) if len(values) else None


def _interval(found: Sequence[float]) -> str:
    return f"{found[0]:+.1f} ({found[1]:+.1f} to {found[2]:+.1f})"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    main()
