"""Pack material, the reader and its tokenizer for a GPU host without a network, in parts small enough to carry.

    python -m infra.training.policy_pack --material build/policy/nq_open build/policy/squad2 --out build/carry

Writes OUT/carried. Vectors are turned onto their main directions (`--dim`, 0: kept whole) and packed in 8 bits;
what is trained on them is folded back to the embedder's own width when saved (`unfold` in `policy_stages`). The
reader's vocabulary is cut to the tokens that the material uses, as `reader_pack` does.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infra.console import say
from infra.training.reader_pack import cut_vocabulary
from models.hf.gemma_gguf import prepared
from models.shipped import READER_LORA
from pipeline.session.prompts import GIVEN_UP, article_head, target_text
from pipeline.tasks.material import Material

MIB = 1 << 20


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--material", type=Path, nargs="+", required=True, help="folders of material")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--dim", type=int, default=128, help="directions of the vectors that are kept (0: all)"
    )
    parser.add_argument("--most-mib", type=float, default=40.0, help="what material and tokenizer may take")
    parser.add_argument("--common", type=int, default=40_000, help="ASCII tokens kept beside those in use")
    parser.add_argument("--no-weights", action="store_true", help="without the reader's weights")
    given = parser.parse_args()
    carried: Path = given.out / "carried"
    carried.mkdir(parents=True, exist_ok=True)
    material = Material.join([Material.load(folder) for folder in given.material])
    projection = main_directions(material, given.dim)
    turned = turn(material, projection)
    turned.save(carried / "material", {"from": [str(folder.name) for folder in given.material]}, int8=True)
    np.save(carried / "projection.npy", projection.astype(np.float32))
    _pack_reader(material, carried, given)
    sizes = {p.relative_to(carried).as_posix(): p.stat().st_size for p in carried.rglob("*") if p.is_file()}
    packed = sum(size for name, size in sizes.items() if not name.startswith(("weights", "reader-lora")))
    say(
        f"{len(material):,} questions: {packed / MIB:.1f} MiB, with the reader {sum(sizes.values()) / MIB:.1f} MiB"
    )
    if packed > given.most_mib * MIB:
        raise SystemExit(f"over {given.most_mib} MiB: take fewer questions, or --dim {given.dim // 2 or 192}")


def main_directions(material: Material, dim: int) -> np.ndarray[Any, Any]:
    """The `dim` orthonormal directions [D, dim] that keep most of the vectors; the unit matrix for 0."""
    whole = material.tables.dim
    if dim <= 0 or dim >= whole:
        return np.eye(whole, dtype=np.float32)
    vectors = material.tables.vectors[material.tables.present]
    if len(vectors) > 50_000:
        vectors = vectors[np.random.default_rng(0).choice(len(vectors), 50_000, replace=False)]
    wide = vectors.astype(np.float32)
    _, directions = np.linalg.eigh(wide.T @ wide)
    return np.ascontiguousarray(directions[:, ::-1][:, :dim], np.float32)


def turn(material: Material, projection: np.ndarray[Any, Any]) -> Material:
    """The material with its vectors along the given directions."""
    tables = material.tables
    turned = replace(
        tables,
        query=(tables.query @ projection).astype(np.float32),
        vectors=(tables.vectors.astype(np.float32) @ projection).astype(np.float16),
    )
    return Material(material.questions, turned)


def _pack_reader(material: Material, carried: Path, given: argparse.Namespace) -> None:
    """The tokenizer whole, the vocabulary cut, the weights in their quantisation, the adapter."""
    from infra.training.reader_pack import _pack_weights, _tokenizer

    tokenizer = _tokenizer()
    texts = {"\nQuestion: \nAnswer: unknown", GIVEN_UP}
    for question in material.questions:
        texts.add(f"Question: {question.text}\nAnswer:")
        texts.update(target_text(answer) + "\n" for answer in question.answers)
        for title, date, text in question.sentences:
            texts.add(f"{article_head(title, date)}: {text}\n")
            texts.add(f" {text} {text}")
    used = [each.ids for each in tokenizer.encode_batch(sorted(texts))]
    vocabulary = cut_vocabulary(tokenizer, used, given.common)
    np.save(carried / "vocabulary.npy", vocabulary)
    (carried / "tokenizer.json.xz").write_bytes(
        lzma.compress((prepared() / "tokenizer.json").read_bytes(), preset=6)
    )
    (carried / "names.json").write_text(json.dumps({"vocab_size": len(vocabulary)}))
    if not given.no_weights:
        _pack_weights(carried, vocabulary)
        shutil.copytree(READER_LORA, carried / "reader-lora", dirs_exist_ok=True)
    say(f"{len(vocabulary):,} tokens of the vocabulary kept")


if __name__ == "__main__":
    main()
