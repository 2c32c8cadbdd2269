"""The whole table of cache methods on one GPU within a lease: needles of 4k and 16k, questions, texts.

    python -m infra.bench.cache_methods_pack --data FOLDER --out build/cache      # anywhere: what is carried
    python -m infra.bench.cache_methods_gpu --carried build/cache/carried --model /tmp/reader --out DIR \\
        [--limit 480] [--workers 8]

`--model` is the folder that infra/training/reader_parts.py made there. One process a share of the contexts of one
reader (the model as it is; with `--readers base,adapted` also with the adapter), all files in turn; all write rows
as they go, so that a time limit loses nothing: call again with the same --out and it goes on. `--known ROWS` names
rows of earlier runs, which are not made again and stand in the table too. At the end --out
holds rows.jsonl.gz (of this run), `cache_methods.json` and `.md`. In float32.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from infra.bench import cache_methods, cache_methods_table
from infra.bench.cache_methods import Waiting
from infra.bench.cache_methods_pack import unpack
from infra.console import say
from infra.evaluation.cache_tasks import CacheCell
from models.cache import compressor
from models.hf import HfBackbone, HfConfig

KEEPS = (0.5, 0.3, 0.1, 0.05)
READERS = {"base": "none", "adapted": "models/weights/reader-lora"}


def task_of(file: Path) -> str:
    """The task that a file of cases is for, by its name."""
    return next(task for task in ("needle", "qa", "lm") if file.name.startswith(task))


def work(
    backbone: HfBackbone, files: Sequence[Path], adapter: str | None, at: int, of: int
) -> Iterator[Waiting]:
    """Every of-th context, the files in turn, so that a run cut short has some of all."""
    by_file = [
        cache_methods.contexts(
            backbone,
            CacheCell(task=task_of(file), method="full", data=file, adapter=adapter, keep=1.0),
        )
        for file in files
    ]
    # files of many contexts are spread over the whole run
    order = sorted(
        ((place + 0.5) / len(found), number, place)
        for number, found in enumerate(by_file)
        for place in range(len(found))
    )
    for _, number, place in itertools.islice(order, at, None, of):
        yield by_file[number][place]


def one_worker(given: argparse.Namespace, at: int, of: int) -> int:
    """The share `at` of `of`: one reader's cells of its contexts."""
    until = time.monotonic() + given.limit
    compressor.MOST_SOLVERS = max(1, 16 // of)  # the workers share the host
    backbone = HfBackbone.load(
        HfConfig(
            model=str(given.model), adapter=READERS[given.reader], device=given.device, threads=1,
            prompt_block=2048,
        )
    )  # fmt: skip
    share_bank(backbone, given.cases / f"bank_{given.reader}.safetensors")
    adapter = None if READERS[given.reader] == "none" else READERS[given.reader]
    files = sorted(given.cases.glob("*.jsonl"))
    rows = given.out / "rows" / f"{given.reader}_{at}.jsonl"
    finished = cache_methods.run(
        backbone,
        work(backbone, files, adapter, at, of),
        given.methods.split(","),
        given.keeps,
        rows,
        reader=given.reader,
        settings=cache_methods.settings_of(),
        until=until,
        known=[row for path in given.known for row in cache_methods_table.read_rows(path)],
    )
    return 0 if finished else 5


def share_bank(backbone: HfBackbone, path: Path) -> None:
    """The question bank, recorded by the first worker of a reader and read by the others."""
    from safetensors.torch import load_file, save_file

    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            bank = backbone.question_bank()
            save_file({str(index): each.contiguous() for index, each in bank.items()}, path)
            return
    known = load_file(path)
    backbone._bank = {int(index): each.to(backbone.device) for index, each in known.items()}


def run(given: argparse.Namespace) -> int:
    """Start the workers, wait for them up to the limit, write the table."""
    began = time.monotonic()
    unpack(given.carried, given.cases)
    (given.out / "rows").mkdir(parents=True, exist_ok=True)
    logs = given.cases / "logs"
    logs.mkdir(exist_ok=True)
    left = given.limit - 20 - (time.monotonic() - began)
    split = max(1, given.workers // len(given.readers))
    running = {}
    for reader, at in itertools.product(given.readers, range(split)):
        command = [
            sys.executable, "-m", "infra.bench.cache_methods_gpu", "--carried", str(given.carried), "--out",
            str(given.out), "--device", given.device, "--limit", str(left - 15), "--reader", reader, "--share",
            f"{at}/{split}", "--keep", ",".join(map(str, given.keeps)), "--model", str(given.model), "--cases",
            str(given.cases), "--methods", given.methods, "--known", *map(str, given.known),
        ]  # fmt: skip
        log = (logs / f"{reader}_{at}.log").open("a")
        running[reader, at] = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "OMP_NUM_THREADS": "1", **os.environ},
        )
    say(f"{len(running)} workers started after {time.monotonic() - began:.0f} s")
    for name, process in running.items():
        try:
            code = process.wait(timeout=max(0.1, began + given.limit - 12 - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait(timeout=10)
        if code:
            tail = (logs / f"{name[0]}_{name[1]}.log").read_text()[-800:]
            say(f"{name}: ended with {code} after {time.monotonic() - began:.0f} s: {tail}")
    return table(given, began)


def table(given: argparse.Namespace, began: float) -> int:
    """Write what the rows tell, and the rows themselves, packed."""
    files = sorted((given.out / "rows").glob("*.jsonl"))
    if not files:
        say("no worker has written a row; see the logs above")
        return 1
    with gzip.open(given.out / "rows.jsonl.gz", "wb") as packed:
        for file in files:
            packed.write(file.read_bytes())
    told = [
        "--device", given.name, "--command",
        "python -m infra.bench.cache_methods_gpu --carried DIR --out DIR (vocabulary cut)",
    ]  # fmt: skip
    cache_methods.main(
        [
            "report",
            "--out",
            str(given.out / "cache_methods"),
            *told,
            "--rows",
            *map(str, (*given.known, *files)),
        ]
    )
    say(f"{given.out}/cache_methods.md after {time.monotonic() - began:.0f} s")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--carried", type=Path, required=True, help="what cache_methods_pack wrote")
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of the reader with its cut vocabulary"
    )
    parser.add_argument(
        "--cases",
        type=Path,
        default=Path(tempfile.gettempdir(), "cache-cases"),
        help="where cases are unpacked",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of rows and table")
    parser.add_argument("--methods", default=",".join(cache_methods.plain_methods()))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--name", default="one GPU", help="the device's name in the table")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds in all")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--known", type=Path, nargs="*", default=[], help="rows of earlier runs (.gz too)")
    parser.add_argument("--readers", default="base", help=f"of {', '.join(READERS)}")
    parser.add_argument("--keep", default=",".join(map(str, KEEPS)))
    parser.add_argument("--reader", help="be one worker, for this reader")
    parser.add_argument("--share", default="0/1", help="a worker's share: AT/OF")
    given = parser.parse_args(arguments)
    given.keeps = [float(part) for part in given.keep.split(",")]
    given.readers = given.readers.split(",")
    for reader in (*given.readers, *([given.reader] if given.reader else [])):
        if reader not in READERS:
            parser.error(f"reader: given {reader!r}; allowed: {', '.join(READERS)}")
    if given.reader:
        at, of = (int(part) for part in given.share.split("/"))
        return one_worker(given, at, of)
    return run(given)


if __name__ == "__main__":
    raise SystemExit(main())
