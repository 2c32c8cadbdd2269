"""kvpress' presses as outside peers on the same files as our cells, in an environment of their own.

    python -m infra.bench.peers.kvpress_peer --task needle|qa --data FILE [--limit 5] [--keep 0.5,0.1]

kvpress 0.5.5 needs transformers below 5.3, we run a later one: the first call makes an environment with both,
`.venv-kvpress` in a checkout, else under the cache folder (DYSRA_CACHE, else ~/.cache/dysra); it borrows torch and
all else from the running one.
Tokens, cases and scores are ours (exact and nats teacher-forced); compression is kvpress' own, by its own hooks, on
full-attention layers only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.console import say
from infra.evaluation.cache_cases import Case
from infra.evaluation.cache_tasks import CacheCell, grouped, read_cases
from pipeline.errors import UsageError

PACKAGES = ("kvpress==0.5.5", "transformers==5.2.0")
WITH_DEPENDENCIES = (
    "datasets<5", "fire<0.7", "cachetools<6", "requests<3", "pandas<3", "numpy<3",
    "tokenizers>=0.22,<0.23", "huggingface-hub>=1.3,<2",
)  # fmt: skip
FULL = "kvpress_full"
METHODS = (
    FULL,
    "kvpress_snapkv",
    "kvpress_expected_attention",
    "kvpress_key_difference",
    "kvpress_key_norm",
    "kvpress_window_sinks",
    "kvpress_tova",
)
WORKER = Path(__file__).with_name("kvpress_worker.py")
INSTALL_S, RUN_S = 600.0, 3000.0


def environment_folder() -> Path:
    """Where the peer's environment is: beside pyproject.toml in a checkout, else in the cache folder."""
    root = Path(__file__).resolve().parents[3]
    if (root / "pyproject.toml").is_file() and os.access(root, os.W_OK):
        return root / ".venv-kvpress"
    cache = Path(os.environ.get("DYSRA_CACHE") or Path.home() / ".cache" / "dysra")
    return cache / "peers" / "kvpress-0.5.5"


def environment() -> Path:
    """The python of the peer's environment, made if need be; raises RuntimeError with the installer's words."""
    folder = environment_folder()
    python = folder / "bin" / "python"
    if (folder / "ready").is_file():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    say(f"making {folder} (once)")
    uv = shutil.which(
        "uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    if uv is None:
        raise RuntimeError("uv is not installed; pip install uv, then call again")
    _call([uv, "venv", "--python", sys.executable, str(folder)])
    _call([uv, "pip", "install", "--python", str(python), *WITH_DEPENDENCIES])
    # without their dependencies: torch and all else come from the environment that runs this
    _call([uv, "pip", "install", "--python", str(python), "--no-deps", *PACKAGES])
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "zz_borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    _call([str(python), "-c", "import kvpress, transformers; assert transformers.__version__ == '5.2.0'"])
    (folder / "ready").touch()
    return python


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    if done.returncode:
        told = (done.stderr or done.stdout)[-1500:]
        raise RuntimeError(f"{' '.join(map(str, command[:4]))} … ended with {done.returncode}: {told}")


def run(
    cell: CacheCell, keeps: Sequence[float], methods: Sequence[str], threads: int = 1
) -> list[dict[str, Any]]:
    """A cell a press and budget, in the keys of `dysra evaluate`; raises UsageError, RuntimeError."""
    if unknown := sorted(set(methods) - set(METHODS)):
        raise UsageError(f"--methods: unknown {', '.join(unknown)}; allowed: {', '.join(METHODS)}")
    from tokenizers import Tokenizer

    from models.hf import gemma_gguf

    folder = gemma_gguf.prepared() if cell.model == gemma_gguf.NAME else Path(cell.model)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    begin = tokenizer.token_to_id("<bos>")
    cases = read_cases(cell)
    contexts = [
        {
            "name": str(at),
            "ids": [*([begin] if begin is not None else []), *encode(text)],
            "cases": [_ids(case, encode) for case in group],
        }
        for at, (text, group) in enumerate(grouped(cases).items())
    ]
    given = {
        "model": str(folder),
        "device": "cpu",
        "threads": threads,
        "seconds": RUN_S,
        "methods": list(methods),
        "keeps": list(keeps),
        "contexts": contexts,
    }
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "cases.json", Path(scratch) / "rows.jsonl"
        source.write_text(json.dumps(given))
        python = environment()
        done = subprocess.run(
            [str(python), str(WORKER), str(source), str(target)],
            capture_output=True, text=True, timeout=RUN_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"kvpress ended with {done.returncode}: {done.stderr[-1500:]}")
        rows = [json.loads(line) for line in target.read_text().splitlines()]
    return cells(cell, rows, contexts)


def _ids(case: Case, encode: Any) -> dict[str, Any]:
    return {"id": case.case_id, "asked": encode(case.asked), "gold": encode(f" {case.answers[0]}")}


def cells(
    cell: CacheCell, rows: Sequence[dict[str, Any]], contexts: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The worker's rows as cells: exact in percent, nats a token; tokens kept in a full layer as the cost."""
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["method"], row["keep"]), []).append(row)
    read = sum(len(context["ids"]) * len(context["cases"]) for context in contexts)
    num = sum(len(context["cases"]) for context in contexts)
    return [
        {
            "task": cell.task,
            "method": method,
            "keep": keep,
            "n": len(given),
            "scores": {
                "exact": round(100 * sum(row["exact"] for row in given) / len(given), 2),
                "tokens": round(
                    100 * sum(sum(row["right"]) / len(row["right"]) for row in given) / len(given), 2
                ),
                "nats": round(sum(row["nats"] for row in given) / sum(len(row["right"]) for row in given), 4),
            },
            "cost": {
                "tokens_read": round(read / num, 1),
                "kept_tokens": round(sum(row["kept"] for row in given) / len(given), 1),
            },
            "seed": cell.seed,
            "model": cell.model,
        }
        for (method, keep), given in found.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=["needle", "qa"], required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--keep", default="0.5,0.1")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    cell = CacheCell(
        task=given.task, method="full", data=given.data, model=given.model, limit=given.limit, keep=1.0
    )
    keeps = [float(part) for part in given.keep.split(",")]
    found = run(cell, keeps, given.methods.split(","), given.threads)
    for each in found:
        say(json.dumps(each))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
