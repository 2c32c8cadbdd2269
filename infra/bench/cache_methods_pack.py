"""The cases of the cache table, for a GPU host without a network.

    python -m infra.bench.cache_methods_pack --data $DYSRA_DATA --out build/cache [--reader build/reader-whole]

Writes OUT/cases (JSON lines: needles of 4k and 16k tokens, questions over 24 passages, news texts) and
OUT/carried/cases.tar.xz, which travels; the reader travels in parts of its own (infra/training/reader_parts.py,
`--texts OUT/cases/*.jsonl`). Where it was packed without them, `--reader` names the packed folder: the rows of the
embedding that the cases need beside it are written to OUT/carried/rows.npz, for `reader_parts adopt`. A softmax
over a cut vocabulary has fewer rivals, so nats differ a little from the whole model's; differences between methods
do not depend on it.
"""

from __future__ import annotations

import argparse
import json
import random
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infra.console import say
from infra.evaluation.cache_cases import qa_cases, qa_rows
from infra.evaluation.needle_file import counter, read_texts, write
from infra.training.reader_pack import _pack_weights, _tokenizer
from infra.training.reader_parts import used_tokens
from models.hf import gemma_gguf
from models.hf.cut import CUT, VOCABULARY
from pipeline.tasks.needles import NeedleConfig

DIGITS = (5, 7, 10, None)
NEEDLES = (
    ("needle4k_known", NeedleConfig(length=4096, count=60, digits=DIGITS, split="train", distractors=1)),
    ("needle4k_held", NeedleConfig(length=4096, count=60, digits=DIGITS, split="held_out", distractors=1)),
    ("needle16k_known", NeedleConfig(length=16384, count=60, digits=DIGITS, split="train", distractors=1)),
    ("needle16k_held", NeedleConfig(length=16384, count=60, digits=DIGITS, split="held_out", distractors=1)),
)
QUESTIONS = (("squad2", 120), ("nq_open", 120), ("hotpotqa", 120), ("realtimeqa", 120))
PASSAGES = 24
LM_TEXTS, LM_TOKENS = 12, 4352
ARCHIVE = "cases.tar.xz"


def write_cases(data: Path, folder: Path, model: str, cases: int = 0, length: int = 0) -> list[Path]:
    """Write the files of cases that are not there yet, and return all; `cases` and `length` make a miniature."""
    folder.mkdir(parents=True, exist_ok=True)
    count = counter(model)
    for name, config in NEEDLES:
        if (folder / f"{name}.jsonl").exists():
            continue
        chosen = replace(config, count=cases or config.count, length=length or config.length)
        write(folder / f"{name}.jsonl", data / "longdoc" / "pg_essays.jsonl.zst", chosen, count)
        say(f"  {name}: {chosen.count} cases")
    for name, limit in QUESTIONS:
        if (folder / f"qa_{name}.jsonl").exists():
            continue
        found = qa_cases(
            data / "qa" / f"{name}.jsonl.zst",
            "base",
            passages=8 if length else PASSAGES,
            limit=cases or limit,
        )
        _lines(folder / f"qa_{name}.jsonl", list(qa_rows(found, "base")))
        say(f"  qa_{name}: {len(found)} questions")
    texts = _later_texts(
        data / "news" / "reuters_2009_2012.jsonl.zst",
        cases or LM_TEXTS,
        max(length, 800) if length else LM_TOKENS,
    )
    _lines(folder / "lm_reuters.jsonl", [{"text": text} for text in texts])
    return sorted(folder.glob("*.jsonl"))


def _later_texts(path: Path, number: int, tokens: int) -> list[str]:
    """Runs of news that follow each other, about `tokens` tokens each, from all over the file."""
    articles = read_texts(path)
    wanted = 4 * tokens  # characters; a token of news has a little over four
    starts = random.Random(0).sample(range(len(articles) - 400), number)
    found = []
    for start in sorted(starts):
        text = ""
        for article in articles[start:]:
            text += article.strip() + "\n\n"
            if len(text) >= wanted:
                break
        found.append(text[:wanted])
    return found


def _lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pack(folder: Path, carried: Path) -> Path:
    """The cases as one archive; contexts repeat each other's text, which packs well."""
    carried.mkdir(parents=True, exist_ok=True)
    path = carried / ARCHIVE
    with tarfile.open(path, "w:xz", preset=6) as tar:
        for file in sorted(folder.glob("*.jsonl")):
            tar.add(file, file.name)
    return path


def missing_rows(files: Sequence[Path], reader: Path, out: Path) -> int:
    """Write the embedding's rows that the texts of `files` need beside the cut vocabulary of `reader`; how many.

    The form of `reader_parts supplement`: the joint vocabulary, and the rows that the reader lacks.
    """
    there = np.load(reader / VOCABULARY)
    tokenizer = _tokenizer()
    wanted = np.array(sorted(set(there.tolist()) | used_tokens(tokenizer, files)), there.dtype)
    missing = wanted[~np.isin(wanted, there)]
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "rows"
        whole.mkdir()
        _pack_weights(whole, missing.astype(np.int64))
        with np.load(whole / "weights.npz") as packed:
            rows = packed["model.embed_tokens.weight"]
    np.savez_compressed(out, vocabulary=wanted, rows=rows, cut=(reader / CUT).read_text())
    return len(missing)


def unpack(carried: Path, to: Path) -> Path:
    """The folder of cases `to`, unpacked once."""
    if not to.is_dir():
        part = to.with_name(to.name + ".part")
        with tarfile.open(carried / ARCHIVE) as tar:
            tar.extractall(part, filter="data")
        part.rename(to)
    return to


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=0, help="cases a file, for a miniature (0: all)")
    parser.add_argument("--length", type=int, default=0, help="tokens of a needle's context, likewise")
    parser.add_argument(
        "--reader", type=Path, help="a packed reader (reader_parts) that lacks the cases' tokens"
    )
    given = parser.parse_args(arguments)
    write_cases(given.data, given.out / "cases", gemma_gguf.NAME, given.count, given.length)
    packed = pack(given.out / "cases", given.out / "carried")
    say(f"{packed}: {packed.stat().st_size / 2**20:.1f} MiB")
    if given.reader:
        rows = given.out / "carried" / "rows.npz"
        found = missing_rows(sorted((given.out / "cases").glob("*.jsonl")), given.reader, rows)
        say(f"{rows}: {found} rows, {rows.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
