"""Write a news stream in time order as token files: text where what came hours ago comes back, to measure with.

    python -m infra.training.subq_news_pack --tokens-of build/subq-data --out build/subq-news

Reads one file of the folder that DYSRA_DATA names, with the tokenizer of what `infra.training.subq_pack` wrote.
Articles follow each other as they were published; the test text is what came last. Models trained on it are
measured and thrown away: its text is not ours to ship in weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from infra.training.subq_pack import documents, write_tokens
from models.subq.tokenizer import SubqTokenizer

CHARS_A_TOKEN = 6
"""More than a token of news has on average (some 4.5), so that enough is kept."""


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens-of", type=Path, required=True, help="folder that holds tokenizer.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--stream", default="news/reuters_2009_2012", help="file of DYSRA_DATA, without ending"
    )
    parser.add_argument("--train", type=int, default=24_000_000, help="tokens, the newest before the test")
    parser.add_argument("--test", type=int, default=2_000_000, help="tokens, the newest of all")
    given = parser.parse_args()
    folder = os.environ.get("DYSRA_DATA")
    if not folder or not Path(folder).is_dir():
        parser.error("DYSRA_DATA names no folder of real text")
    source = Path(folder) / f"{given.stream}.jsonl.zst"
    if not source.is_file():
        parser.error(
            f"--stream: given {given.stream!r}; allowed: a file of {folder}, e.g. news/reuters_2009_2012"
        )
    pack_stream(source, given.tokens_of, given.out, given.train, given.test)


def pack_stream(source: Path, tokens_of: Path, out: Path, train: int, test: int) -> dict[str, Any]:
    """Write train-*, test-*, tokenizer, (no) names and the manifest; returns it. ValueError: too short a stream."""
    tokenizer = SubqTokenizer.load(tokens_of / "tokenizer.json")
    ids = np.concatenate(
        [
            np.array([*row, SubqTokenizer.end_id], np.uint16)
            for row in tokenizer.encode_many(
                newest(documents(source), CHARS_A_TOKEN * (max(train, test) + test))
            )
        ]
    )
    if len(ids) < 2 * test:
        raise ValueError(
            f"test: given {test}; the stream holds {len(ids)} tokens, allowed: at most half of them"
        )
    out.mkdir(parents=True, exist_ok=True)
    split = len(ids) - test
    manifest: dict[str, Any] = {
        "source": source.name, "tokenizer": tokenizer.identity, "order": "as published",
        "train": write_tokens(ids[max(0, split - train) : split], out, "train"),
        "test": write_tokens(ids[split:], out, "test"),
    }  # fmt: skip
    shutil.copyfile(tokens_of / "tokenizer.json", out / "tokenizer.json")
    # no needles are written into it, so nobody owns any
    (out / "names.json").write_text(json.dumps({"train": [], "test": []}), encoding="utf-8")
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return manifest


def newest(texts: Iterable[str], chars: int) -> list[str]:
    """The last of the texts that have so many characters together, or all: the others are not made tokens of."""
    kept: deque[str] = deque()
    held = 0
    for text in texts:
        kept.append(text)
        held += len(text)
        while held - len(kept[0]) >= chars:
            held -= len(kept.popleft())
    return list(kept)


if __name__ == "__main__":
    main()
