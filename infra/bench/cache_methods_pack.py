"""Carry the cache table to a GPU host without a network: cases, tokenizer, and Gemma with a cut vocabulary.

    python -m infra.bench.cache_methods_pack --data FOLDER --out build/cache

Writes OUT/carried, to be packed as a folder (docs/cache-methods.md): cases as JSON lines, `weights.npz` still in
its GGUF quantisation, config, tokenizer and `vocabulary.npy` (new id to Gemma's id). The embedding is two thirds
of the model: only rows of tokens that the cases use, and of the commonest ASCII ones, travel. A cut softmax has
fewer rivals, so nats differ a little from the whole model's; differences between methods do not depend on it.
`unpack` makes a folder of it that HfBackbone reads.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infra.console import say
from infra.evaluation.cache_cases import Case, lm_texts, needle_cases, qa_cases, qa_rows
from infra.evaluation.needle_file import counter, read_texts, write
from models.hf import gemma_gguf
from models.hf.cut import CUT, VOCABULARY
from models.hf.question_bank import recorded_texts
from pipeline.tasks.needles import NeedleConfig

DIGITS = (5, 7, 10, None)
NEEDLES = (
    ("needle4k_known", NeedleConfig(length=4096, count=60, digits=DIGITS, split="train", distractors=1)),
    ("needle4k_held", NeedleConfig(length=4096, count=60, digits=DIGITS, split="held_out", distractors=1)),
    ("needle16k_known", NeedleConfig(length=16384, count=52, digits=DIGITS, split="train", distractors=1)),
    ("needle16k_held", NeedleConfig(length=16384, count=52, digits=DIGITS, split="held_out", distractors=1)),
)
QUESTIONS = (("squad2", 200), ("nq_open", 200), ("hotpotqa", 160), ("realtimeqa", 160))
PASSAGES = 24
LM_TEXTS, LM_TOKENS = 40, 4352


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


def texts_of(files: Sequence[Path]) -> list[str]:
    """All texts that the run will encode: cases in both prompt forms, texts, the question bank."""
    found: list[str] = list(recorded_texts())
    for path in files:
        if path.name.startswith("lm"):
            found += lm_texts(path)
            continue
        cases: list[Case] = [*needle_cases(path, "base"), *needle_cases(path, "adapted")]
        for case in cases:
            found += [case.context, case.asked, *(f" {answer}" for answer in case.answers)]
    return list(dict.fromkeys(found))


def pack(out: Path, files: Sequence[Path], common: int, identity: str) -> None:
    """Write the cut model and the tokenizer beside the cases."""
    from infra.training.reader_pack import _pack_weights, _tokenizer, cut_vocabulary

    carried = out / "carried"
    tokenizer = _tokenizer()
    encoded = tokenizer.encode_batch(texts_of(files), add_special_tokens=False)
    turn_end = tokenizer.token_to_id("<end_of_turn>")
    vocabulary = cut_vocabulary(tokenizer, [*(each.ids for each in encoded), [turn_end]], common)
    _pack_weights(carried, vocabulary)
    np.save(carried / VOCABULARY, vocabulary.astype(np.int32))
    source = gemma_gguf.prepared()
    shutil.copy2(source / "tokenizer.json", carried / "tokenizer.json")
    (carried / CUT).write_text(json.dumps({"identity": identity, "of": gemma_gguf.NAME}))
    say(f"{len(vocabulary):,} of {tokenizer.get_vocab_size():,} tokens kept")


def unpack(carried: Path) -> Path:
    """Dequantise the carried weights to float32, once; returns the model's folder."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize
    from safetensors.numpy import save_file

    target = carried / "model.safetensors"
    if not target.exists():
        kinds = json.loads((carried / "kinds.json").read_text())
        with np.load(carried / "weights.npz") as packed:
            tensors = {
                name: np.ascontiguousarray(dequantize(packed[name], GGMLQuantizationType[kind]), np.float32)
                for name, kind in kinds.items()
            }
        save_file(tensors, target.with_suffix(".part"), metadata={"format": "pt"})
        target.with_suffix(".part").rename(target)
    return carried


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--common", type=int, default=40_000, help="ASCII tokens from the head of the vocabulary"
    )
    parser.add_argument("--count", type=int, default=0, help="cases a file, for a miniature (0: all)")
    parser.add_argument("--length", type=int, default=0, help="tokens of a needle's context, likewise")
    given = parser.parse_args(arguments)
    from models.cache.ranker import base_identity
    from models.hf import HfBackbone, HfConfig

    carried = given.out / "carried"
    carried.mkdir(parents=True, exist_ok=True)
    files = write_cases(given.data, carried / "cases", gemma_gguf.NAME, given.count, given.length)
    pack(given.out, files, given.common, base_identity(HfBackbone.load(HfConfig(adapter="none")).identity))
    total = sum(path.stat().st_size for path in carried.rglob("*") if path.is_file())
    say(f"{total / 2**20:.1f} MiB before compression in {carried}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
