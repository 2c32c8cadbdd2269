"""The whole table of cache methods on one GPU within a lease: needles of 4k and 16k, several hundred questions.

    python -m infra.bench.cache_methods_gpu pack --data FOLDER --cases DIR          # anywhere: writes the cases
    python -m infra.bench.cache_methods_gpu run --cases DIR --out DIR --model FOLDER [--limit 440] [--workers 10]

One process a share of the contexts; all write rows as they go, so that a time limit loses nothing: call again with
the same --out and it goes on. At the end (or after --limit seconds) --out holds rows/*.jsonl, `cache_methods.json`
and `.md`. `run` needs torch, transformers, typer and orjson (carry its wheel where the host has none), and Gemma's
converted folder as --model. In float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from infra.bench import cache_methods
from infra.console import say
from infra.evaluation.cache_cases import qa_cases, qa_rows
from infra.evaluation.needle_file import counter, write
from models.compared import METHODS
from pipeline.tasks.needles import NeedleConfig

KEEPS = "0.5,0.3,0.1,0.05"
SLOW = ("h2o", "kv_compress")  # every query's attention: left out at 16k
NEEDLES = (
    (
        "needle4k",
        NeedleConfig(length=4096, count=60, digits=(5, 10, None), split="held_out_forms", distractors=1),
    ),
    (
        "needle16k",
        NeedleConfig(length=16384, count=30, digits=(5, 10, None), split="held_out_forms", distractors=1),
    ),
)
QUESTIONS = (("squad2", 200), ("nq_open", 160))


def jobs(cases: Path, folder: Path, model: str, device: str, workers: int, seconds: float) -> list[list[str]]:
    """The commands, a process each, needles and questions side by side."""
    streaming = [name for name in METHODS if name.endswith("_streaming")]
    plain = [name for name in METHODS if name not in (*streaming, "full_cache")]
    made: list[list[str]] = []

    def add(task: str, file: Path, shards: int, methods: Sequence[str]) -> None:
        for at in range(shards):
            rows = folder / "rows" / f"{task}_{file.name.split('.')[0]}_{at}_of_{shards}.jsonl"
            settings = {
                "task": task, "data": file, "rows": rows, "methods": ",".join(methods), "keep": KEEPS,
                "model": model, "device": device, "threads": 1, "seconds": seconds, "shard": f"{at}/{shards}",
            }  # fmt: skip
            given = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
            made.append([sys.executable, "-m", "infra.bench.cache_methods", "run", *given])

    share = max(1, workers // 5)
    add("needle", cases / "needle4k.jsonl", share, plain)
    add("needle", cases / "needle16k.jsonl", share, [name for name in plain if name not in SLOW])
    for name, _ in QUESTIONS:
        add("qa", cases / f"qa_{name}.jsonl", max(1, (workers - 2 * share) // 2), plain)
    return made


def pack(data: Path, folder: Path, model: str, cases: int = 0, length: int = 0) -> None:
    """Write the files of cases; `cases` and `length` make a miniature."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, config in NEEDLES:
        chosen = replace(config, count=cases or config.count, length=length or config.length)
        write(folder / f"{name}.jsonl", data / "longdoc" / "pg_essays.jsonl.zst", chosen, counter(model))
    for name, limit in QUESTIONS:
        found = qa_cases(data / "qa" / f"{name}.jsonl.zst", "base", limit=cases or limit)
        lines = [json.dumps(row) + "\n" for row in qa_rows(found, "base")]
        (folder / f"qa_{name}.jsonl").write_text("".join(lines))


def run(cases: Path, out: Path, model: str, device: str, name: str, limit_s: float, workers: int) -> int:
    """Start the workers, wait for them up to the limit, write the table."""
    began = time.monotonic()
    (out / "rows").mkdir(parents=True, exist_ok=True)
    running = []
    for number, command in enumerate(jobs(cases, out, model, device, workers, max(1.0, limit_s - 60))):
        log = (out / f"worker{number}.log").open("w")
        running.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
    for process in running:
        try:
            process.wait(timeout=max(0.1, began + limit_s - 15 - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)
    rows = sorted((out / "rows").glob("*.jsonl"))
    if not rows:
        say(f"no worker has written a row; see {out}/worker0.log")
        return 1
    told = [
        "--device",
        name,
        "--model",
        Path(model).name,
        "--command",
        "python -m infra.bench.cache_methods_gpu",
    ]
    cache_methods.main(["report", "--out", str(out / "cache_methods"), *told, "--rows", *map(str, rows)])
    say(f"{out}/cache_methods.md after {time.monotonic() - began:.0f} s")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["pack", "run"])
    parser.add_argument("--data", type=Path, help="pack: the data folder")
    parser.add_argument("--cases", type=Path, required=True, help="folder of the files of cases")
    parser.add_argument("--out", type=Path, help="run: folder of rows and table")
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--name", default="one GPU", help="the device's name in the table")
    parser.add_argument("--limit", type=float, default=440.0, help="run: seconds in all")
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--count", type=int, default=0, help="pack: cases a file, for a miniature (0: all)")
    parser.add_argument("--length", type=int, default=0, help="pack: tokens of a needle's context, likewise")
    given = parser.parse_args(arguments)
    if given.verb == "pack":
        if given.data is None:
            parser.error("pack needs --data, the data folder")
        pack(given.data, given.cases, given.model, given.count, given.length)
        return 0
    if given.out is None:
        parser.error("run needs --out, a folder for rows and table")
    return run(given.cases, given.out, given.model, given.device, given.name, given.limit, given.workers)


if __name__ == "__main__":
    raise SystemExit(main())
