"""kvpress' presses on the cases of the cache table, as rows beside ours, on a host without a network.

    python -m infra.bench.peers.kvpress_rows --model FOLDER --cases DIR --site SITE --out DIR [--seconds 100]

`--model` is the folder that infra/training/reader_parts.py made, `--cases` what infra/bench/cache_methods_pack.py
wrote (needle*.jsonl, qa_*.jsonl), `--site` a folder with kvpress and the transformers that it wants. Contexts are
taken from all files in turn, so that a run cut short has some of all; OUT/kvpress.jsonl has rows for
`cache_methods report` from the first second on, and a second call goes on. Its worker_*.jsonl hold the same as
token ids: where only they came home, `--seconds 0` starts no worker and makes rows of them. `--known ROWS` names
kept rows (.gz too), the newest first, ours among them: a context of which they have all cells, soundly, is not read
again, and at the end is told how many cases the peer misread. Questions
are answered greedily through kvpress' cache, as ours are (24 tokens, to the end of the line): rows have nats,
needles and F1, and no attention error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from infra.bench.cache_methods_collect import sound
from infra.bench.cache_methods_table import read_rows, unique
from infra.bench.peers.kvpress_peer import FULL, METHODS, WORKER
from infra.console import say
from infra.evaluation.cache_cases import Case
from infra.evaluation.cache_tasks import ANSWER_TOKENS, CacheCell, grouped, read_cases
from models.hf.loading import _TURN_ENDS
from pipeline.session.prompts import STOP_TEXTS, parse_answer
from pipeline.tasks.scores import answer_f1, exact_match

KEEPS = (0.5, 0.3, 0.1, 0.05)
ENDING_S = 8.0  # for the context that a worker is at when its time is over
MEMORY_GIB = 9.0  # six workers and their contexts of CUDA in 60 GB


class Coder(NamedTuple):
    """A model's tokenizer: `begin` is the first token of a text, `stop` are those that end an answer."""

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    begin: int
    stop: list[int]


def in_turn(counts: Sequence[int]) -> list[tuple[int, int]]:
    """(file, place) of all, every file spread evenly over the whole order."""
    found = sorted(
        ((place + 0.5) / count, file, place) for file, count in enumerate(counts) for place in range(count)
    )
    return [(file, place) for _, file, place in found]


def coder(folder: Path) -> Coder:
    """The tokenizer of the model in `folder`, its vocabulary cut or whole."""
    from tokenizers import Tokenizer

    from models.hf.cut import cut_tokenizer, is_cut

    whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole.encode_special_tokens = True
    known = cut_tokenizer(folder, whole) if is_cut(folder) else whole
    begin = known.token_to_id("<bos>")
    if begin is None:
        raise ValueError(f"the tokenizer in {folder} has no <bos>; give a folder of Gemma 3")
    size = int(json.loads((folder / "config.json").read_text())["vocab_size"])
    stop = [token for token in range(size) if any(end in known.decode([token]) for end in STOP_TEXTS)]
    stop += [token for end in _TURN_ENDS if (token := known.token_to_id(end)) is not None]
    return Coder(
        lambda text: list(known.encode(text, add_special_tokens=False).ids), known.decode, begin, stop
    )


def contexts(files: Sequence[Path], coded: Coder) -> list[dict[str, Any]]:
    """What the worker reads, a context of each file in turn."""
    encode = coded.encode
    by_file = [
        list(grouped(read_cases(CacheCell(task=_task(file), method="full", data=file, keep=1.0))).items())
        for file in files
    ]

    def one(case: Case) -> dict[str, Any]:
        gold = encode(f" {case.answers[0]}")
        return {"id": case.case_id, "asked": encode(case.asked), "gold": gold, "answers": list(case.answers)}

    return [
        {
            "name": files[file].name,
            "ids": [coded.begin, *encode(by_file[file][place][0])],
            "answer": ANSWER_TOKENS if _task(files[file]) == "qa" else 0,
            "cases": [one(case) for case in by_file[file][place][1]],
        }
        for file, place in in_turn([len(found) for found in by_file])
    ]


def _task(file: Path) -> str:
    return "needle" if file.name.startswith("needle") else "qa"


def rows_of(
    told: Iterable[dict[str, Any]], given: Sequence[dict[str, Any]], coded: Coder
) -> list[dict[str, Any]]:
    """The worker's lines as rows of the cache table; `given` are the contexts that it read."""
    decode = coded.decode
    cases = {(each["name"], case["id"]): case for each in given for case in each["cases"]}
    lines = list(told)
    whole = {
        (line["context"], line["case"]): line["kept_bytes"] * line["tokens"] // line["kept"] for line in lines
    }
    found = []
    for line in lines:
        at = line["context"], line["case"]
        shown = [i for i, token in enumerate(cases[at]["gold"]) if any(c.isdigit() for c in decode([token]))]
        shown = shown or list(range(len(line["right"])))
        found.append(
            {
                "reader": "base",
                "task": _task(Path(line["context"])),
                "data": line["context"],
                "case": line["case"],
                **{
                    name: line[name]
                    for name in ("tokens", "method", "keep", "sliding_bytes", "exact", "nats")
                },
                "kv_bytes": line["kept_bytes"],
                "full_bytes": whole[at],
                "digits": sum(line["right"][i] for i in shown) / len(shown),
                "answer_tokens": len(line["right"]),
                "attention_error": None,
                **({} if "said" not in line else _answered(decode(line["said"]), cases[at]["answers"])),
            }
        )
    return found


def _answered(text: str, answers: Sequence[str]) -> dict[str, Any]:
    said = parse_answer(text).text
    return {"f1": answer_f1(said, answers), "em": exact_match(said, answers), "said": said}


def read_lines(paths: Iterable[Path], places: dict[Path, int] | None = None) -> list[dict[str, Any]]:
    """The workers' lines; a torn last one is left out.

    With `places` those since the last call, which it keeps up to date.
    """
    found = []
    for path in paths:
        with path.open("rb") as file:
            file.seek((places or {}).get(path, 0))
            whole, end, _ = file.read().rpartition(b"\n")
        if places is not None:
            places[path] = places.get(path, 0) + len(whole + end)
        for line in whole.splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return found


class Joined:
    """OUT/kvpress.jsonl: a row for each new line of the workers, each cell once."""

    def __init__(self, folder: Path, every: Sequence[dict[str, Any]], coded: Coder) -> None:
        self.folder, self.every, self.coded = folder, every, coded
        self.path = folder / "kvpress.jsonl"
        self.places: dict[Path, int] = {}
        self.cells: set[tuple[Any, ...]] = set()
        self.path.unlink(missing_ok=True)  # its last row may be torn; the workers' lines tell all of it again
        self.follow()

    def follow(self) -> None:
        """Append what workers have written since."""
        lines = read_lines(sorted(self.folder.glob("worker_*.jsonl")), self.places)
        with self.path.open("a") as out:
            for row in rows_of(lines, self.every, self.coded):
                if (cell := cell_of(row)) not in self.cells:
                    self.cells.add(cell)
                    out.write(json.dumps(row) + "\n")


def cell_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a row from the others."""
    return tuple(row[name] for name in ("data", "case", "method", "keep"))


def misread(made: Sequence[dict[str, Any]], kept: Sequence[dict[str, Any]]) -> int:
    """Cases on which the peer's full cache is not ours of `kept`; one read anew is judged by what is `made` now."""
    return sound(unique([*made, *kept]))[1]


def run(given: argparse.Namespace) -> int:
    """Start the workers, write rows as theirs come, up to the limit; 0 where all contexts are judged."""
    began = time.monotonic()
    given.out.mkdir(parents=True, exist_ok=True)
    coded = coder(given.model)
    files = sorted([*given.cases.glob("needle*.jsonl"), *given.cases.glob("qa_*.jsonl")])
    if not files:
        raise ValueError(f"{given.cases} has no needle*.jsonl or qa_*.jsonl; make it by cache_methods_pack")
    every = contexts(files, coded)
    joined = Joined(given.out, every, coded)
    kept = unique(row for path in given.known for row in read_rows(path))
    known = {
        cell_of(row)
        for row in sound(kept)[0]
        if row["reader"] == "base" and (row["task"] == "needle" or "f1" in row)
    }
    cells = [(name, keep) for name in given.methods for keep in ([1.0] if name == FULL else given.keeps)]

    def lacking() -> list[dict[str, Any]]:
        had = joined.cells | known
        return [
            each
            for each in every
            if any((each["name"], case["id"], *cell) not in had for case in each["cases"] for cell in cells)
        ]

    running = _started(given, lacking(), coded, began) if given.seconds > 0 else []
    until = began + given.seconds
    while any(process.poll() is None for process in running) and time.monotonic() < until:
        time.sleep(0.2)
        joined.follow()
    for at, process in enumerate(running):
        if process.poll() is None:
            process.kill()
        if code := process.wait(timeout=10):
            say(f"worker {at} ended with {code}: {(given.out / f'worker_{at}.log').read_text()[-800:]}")
        (given.out / f"cases_{at}.json").unlink()
    joined.follow()
    left = lacking()
    say(
        f"{len(every) - len(left)} of {len(every)} contexts, {len(joined.cells)} rows after "
        f"{time.monotonic() - began:.0f} s"
    )
    if kept:
        number = misread(read_rows(joined.path), kept)
        say(f"{number} cases on which the peer's full cache is not what ours of --known says")
    return 5 if left else 0


def _started(
    given: argparse.Namespace, missing: Sequence[dict[str, Any]], coded: Coder, began: float
) -> list[subprocess.Popen[bytes]]:
    """A process a share of the contexts that are missing; each writes a file of its own."""
    told = len(list(given.out.glob("worker_*.jsonl")))
    running = []
    for at in range(given.workers):
        source = given.out / f"cases_{at}.json"
        share = {
            "model": str(given.model.resolve()), "device": given.device, "threads": 1,
            "memory_gib": given.memory_gib, "methods": given.methods, "stop": coded.stop,
            "keeps": given.keeps, "seconds": given.seconds - (time.monotonic() - began) - ENDING_S,
            "contexts": missing[at :: given.workers],
        }  # fmt: skip
        source.write_text(json.dumps(share))
        with (given.out / f"worker_{at}.log").open("a") as log:
            running.append(
                subprocess.Popen(
                    [sys.executable, str(WORKER), str(source), str(given.out / f"worker_{told + at}.jsonl")],
                    stdout=log, stderr=subprocess.STDOUT,
                    env={
                        # batches of ever other lengths leave holes otherwise: 16 to 33 GB a worker were held
                        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
                        **os.environ, "PYTHONPATH": str(given.site.resolve()), "OMP_NUM_THREADS": "1",
                    },
                )
            )  # fmt: skip
    return running


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, told in (
        ("model", "folder of the reader"),
        ("cases", "folder of the files of cases"),
        ("site", "folder with kvpress, for PYTHONPATH"),
        ("out", "folder of rows"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, help=told)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--keep", default=",".join(map(str, KEEPS)))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=100.0, help="in all; 0: no worker")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--memory-gib", type=float, default=MEMORY_GIB, help="of the GPU, a worker")
    parser.add_argument("--known", type=Path, nargs="*", default=[], help="rows of earlier runs (.gz too)")
    given = parser.parse_args(arguments)
    given.keeps = [float(part) for part in given.keep.split(",")]
    given.methods = given.methods.split(",")
    if unknown := sorted(set(given.methods) - set(METHODS)):
        parser.error(f"--methods: unknown {', '.join(unknown)}; allowed: {', '.join(METHODS)}")
    for path in given.known:
        if not path.is_file():
            parser.error(f"--known: {path} is not there")
    return run(given)


if __name__ == "__main__":
    raise SystemExit(main())
