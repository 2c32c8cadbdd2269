"""The reader's whole run in one lease: rows, runs side by side on one GPU, the chosen adapter, the judging.

    python3 -m infra.training.reader_job --carried carried --reader /tmp/reader --work "$WORK" --out "$OUT" \\
        --adapter-by 420 --limit 540

Each stage is a process of its own and is passed over where its result is there already. WORK/adapter is complete
when WORK/adapter.done is there. Exit code 0: all was done; 3: the adapter is there, but a run or a judging is
missing.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.training.reader_fast_run import FastRun, read_runs
from models.shipped import READER_LORA

SHIPPABLE_RANK = 16


class Stage:
    """A child process with its log and its deadline."""

    def __init__(self, name: str, command: Sequence[str], logs: Path) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        with self.log.open("w") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", *command], stdout=log, stderr=subprocess.STDOUT
            )

    def tail(self, size: int = 400) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-size:]


def wait(stages: Sequence[Stage], until: float, began: float) -> list[str]:
    """Wait for the stages, at most until that time; the names of those that failed or were ended."""
    left, failed = list(stages), []
    while left and time.monotonic() < until:
        time.sleep(0.5)
        for stage in [stage for stage in left if stage.child.poll() is not None]:
            left.remove(stage)
            _say(f"{stage.name} ended with {stage.child.returncode}: {stage.tail(300).strip()}", began)
            if stage.child.returncode:
                failed.append(stage.name)
                print(stage.tail(3000), flush=True)  # noqa: T201
    for stage in left:
        stage.child.kill()
        stage.child.wait(timeout=20)
        failed.append(stage.name)
        _say(f"{stage.name} was ended at its limit: {stage.tail()}", began)
    return failed


def chosen_run(runs: Sequence[FastRun], out: Path) -> str | None:
    """The run with the best dev score among those that may ship: of low rank, never trained on dev titles."""
    scores: dict[str, float] = {}
    for run in runs:
        path = out / f"{run.name}.json"
        if run.method != "lora" or run.init or run.rank > SHIPPABLE_RANK or not path.exists():
            continue
        dev = json.loads(path.read_text())["dev"]
        scores[run.name] = max((each.get("score", 0.0) for each in dev), default=0.0)
    return max(scores, key=lambda name: scores[name]) if scores else None


def hand_over(work: Path, out: Path, name: str) -> None:
    """Make WORK/adapter of a run's folder; `adapter.done` last."""
    if (work / "adapter.done").exists():
        return
    staged = work / "adapter.partial"
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(work / name, staged)
    shutil.rmtree(work / "adapter", ignore_errors=True)
    staged.rename(work / "adapter")
    shutil.copytree(work / "adapter", out / "adapter", dirs_exist_ok=True)
    (work / "adapter.done").write_text(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("carried", "reader", "work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path(__file__).parent / "runs/reader_near.json")
    parser.add_argument("--adapter-by", type=float, default=420, help="seconds from the start")
    parser.add_argument("--limit", type=float, default=540, help="seconds from the start, for everything")
    parser.add_argument("--least-training", type=float, default=60)
    parser.add_argument("--most-training", type=float, default=300)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--try", dest="few", type=int, default=0, help="questions and judged rows, for a try")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    given.work.mkdir(parents=True, exist_ok=True)
    given.out.mkdir(parents=True, exist_ok=True)
    runs = read_runs(given.runs)
    rows = given.work / "rows"
    on = ["--device", given.device]
    places = ["--reader", str(given.reader), "--rows", str(rows)]
    fast = ["infra.training.reader_fast", *places, "--runs", str(given.runs), "--out", str(given.out)]
    fast += ["--work", str(given.work), *on]

    if not (rows / "names.json").exists():
        hard = ["infra.training.reader_hard", "--carried", str(given.carried), "--reader", str(given.reader)]
        hard += ["--out", str(rows), "--limit", str(given.few), *on]
        hard += ["--passages", "3", "--cloze", "8", "--processes", "2"] if given.few else []
        made = Stage("rows", hard, given.work)
        warming = Stage("warm", [*fast, "--run", runs[0].name, "--warm"], given.work)
        if wait([made], began + given.adapter_by - given.least_training, began):
            warming.child.kill()
            return 1
        wait([warming], time.monotonic() + 30, began)
    about = given.out / "judged-about.json.xz"
    if not about.exists():
        about.write_bytes(lzma.compress((rows / "judged.json").read_bytes()))

    missing = [run for run in runs if not (given.out / f"{run.name}.json").exists()]
    if missing and not (given.work / "adapter.done").exists():
        # compiling and the last dev answers come on top of a run's own seconds
        seconds = max(given.least_training, began + given.adapter_by - time.monotonic() - 45)
        seconds = min(seconds, given.most_training)
        _say(f"{len(missing)} runs of {seconds:.0f} s", began)
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        trained = [
            Stage(run.name, [*fast, "--run", run.name, "--seconds", f"{seconds:.0f}"], given.work)
            for run in missing
        ]
        wait(trained, began + given.adapter_by + 20, began)
    if (best := chosen_run(runs, given.out)) is None:
        _say("no adapter run was finished", began)
        return 1
    hand_over(given.work, given.out, best)
    _say(f"{given.work / 'adapter'} is {best}", began)
    judged = _judge_all(given, runs, places, on, began)
    complete = judged and all((given.out / f"{run.name}.json").exists() for run in runs)
    return 0 if complete else 3


def _judge_all(
    given: Any, runs: Sequence[FastRun], places: Sequence[str], on: Sequence[str], began: float
) -> bool:
    """Judge base, shipped and every run that is there; all side by side."""
    name = (given.work / "adapter.done").read_text()
    found = [run.name for run in runs if (given.out / f"{run.name}.json").exists()]
    adapters: dict[str, Path | None] = {name: given.work / name, "lora": READER_LORA, "base": None}
    adapters |= {each: given.work / each for each in sorted(found, key=lambda each: each != "full")}
    waiting = [each for each in adapters if not (given.out / f"judged-{each}.npz").exists()]
    stages = []
    for each in waiting:
        command = ["infra.training.reader_judge", *places, "--name", each, "--out", str(given.out), *on]
        command += ["--most", str(given.few)] if given.few else []
        command += ["--adapter", str(adapters[each])] if adapters[each] else []
        stages.append(Stage(f"judge-{each}", command, given.work))
    failed = wait(stages, began + given.limit, began)
    return not failed


def _say(what: str, began: float) -> None:
    print(f"[{time.monotonic() - began:6.1f} s] {what}", flush=True)  # noqa: T201


if __name__ == "__main__":
    raise SystemExit(main())
