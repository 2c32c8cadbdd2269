"""Carry Gemma-3-270M to a GPU host without a network, in parts, once for everything that runs there.

    python -m infra.training.reader_parts pack --data $DYSRA_DATA --out build            # build/reader-1, -2, …
    python3 -m infra.training.reader_parts unpack --part build/reader-1 --to /tmp/reader   # there, one call a part

Where another pack of the same reader is there already (infra/training/policy_carry.py), only the rows of the
embedding that it lacks need to travel:

    python -m infra.training.reader_parts supplement --whole build/reader-whole --other THAT --out build/rows.npz
    python3 -m infra.training.reader_parts adopt --other /tmp/carried --supplement build/rows.npz --to /tmp/reader

The embedding, two thirds of the model, is cut to the tokens that the data folder's questions, passages and
essays use (and further texts, `--texts`) and the commonest ASCII ones. Weights travel in their GGUF
quantisation. When the last part has come, `--to` holds a folder that `HfBackbone` reads (`model.safetensors`,
`vocabulary.npy`, `cut.json`) and that `policy_stages.open_voice` and `reader_gpu.load_base` read too
(`base.safetensors` in bf16, `tokenizer.json.xz`, `reader-lora`), and `site`: a folder for PYTHONPATH with the
few packages that the host lacks (`--wheels`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.console import say
from models.hf.cut import CUT, VOCABULARY
from models.shipped import READER_LORA

MIB = 1 << 20
PART_MIB = 48.0
DATA = (
    "qa/squad2.jsonl.zst", "qa/nq_open.jsonl.zst", "qa/hotpotqa.jsonl.zst", "qa/realtimeqa.jsonl.zst",
    "longdoc/pg_essays.jsonl.zst", "corpus/passages_wiki.jsonl.zst",
)  # fmt: skip
_EMBEDDING = "model.embed_tokens.weight"
MANIFEST, PIECE, STAGED = "manifest.json", "reader.tar", "parts"
READY = "ready.json"


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a JSON value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from texts_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from texts_in(part)


def used_tokens(tokenizer: Any, files: Iterable[Path]) -> set[int]:
    """The ids of all tokens in the texts of JSON-lines files (.zst or plain)."""
    from pipeline.tasks.qa import read_lines

    used: set[int] = set()
    for path in files:
        batch: list[str] = []
        for row in read_lines(path):
            batch += texts_in(row)
            if len(batch) >= 2000:
                used |= _ids(tokenizer, batch)
                batch = []
        used |= _ids(tokenizer, batch)
        say(f"  {path.name}: {len(used):,} tokens in use")
    return used


def _ids(tokenizer: Any, texts: Sequence[str]) -> set[int]:
    # a text after a space begins with other tokens than at the start of a line
    both = [*texts, *(f" {text}" for text in texts if len(text) < 400)]
    return {i for each in tokenizer.encode_batch(both, add_special_tokens=False) for i in each.ids}


def pack(files: Sequence[Path], out: Path, common: int, wheels: Path | None, part_mib: float) -> list[Path]:
    """Write the parts, folders OUT/reader-<number>, and return them."""
    from infra.training.reader_pack import _pack_weights, _tokenizer, cut_vocabulary
    from models.cache.ranker import base_identity
    from models.hf import HfBackbone, HfConfig, gemma_gguf
    from models.hf.question_bank import recorded_texts

    tokenizer = _tokenizer()
    turn_end = tokenizer.token_to_id("<end_of_turn>")
    used = used_tokens(tokenizer, files) | _ids(tokenizer, list(recorded_texts())) | {turn_end}
    vocabulary = cut_vocabulary(tokenizer, [sorted(used)], common)
    whole = out / "reader-whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir(parents=True)
    _pack_weights(whole, vocabulary)
    (out / "gemma-3-270m-q4_k_m.gguf").unlink(missing_ok=True)
    np.save(whole / VOCABULARY, vocabulary.astype(np.int32))
    identity = base_identity(HfBackbone.load(HfConfig(adapter="none")).identity)
    (whole / CUT).write_text(json.dumps({"identity": identity, "of": gemma_gguf.NAME}))
    (whole / "names.json").write_text(json.dumps({"vocab_size": len(vocabulary)}))
    plain = (gemma_gguf.prepared() / "tokenizer.json").read_bytes()
    (whole / "tokenizer.json.xz").write_bytes(lzma.compress(plain, preset=6))
    if wheels:
        shutil.copytree(wheels, whole / "wheels")
    say(f"{len(vocabulary):,} of {tokenizer.get_vocab_size():,} tokens kept")
    return split(whole, out, part_mib)


def split(whole: Path, out: Path, part_mib: float) -> list[Path]:
    """The folder `whole` as one archive cut into parts of at most `part_mib`, each with the list of all."""
    archive = out / PIECE
    with tarfile.open(archive, "w") as tar:
        tar.add(whole, ".")
    data = archive.read_bytes()
    archive.unlink()
    number = max(1, -(-len(data) // int(part_mib * MIB)))
    size = -(-len(data) // number)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    manifest = {"sha256": [hashlib.sha256(piece).hexdigest() for piece in pieces]}
    found = []
    for at, piece in enumerate(pieces):
        folder = out / f"reader-{at + 1}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / f"{PIECE}.{at + 1}").write_bytes(piece)
        (folder / MANIFEST).write_text(json.dumps(manifest))
        say(f"{folder}: {len(piece) / MIB:.1f} MiB")
        found.append(folder)
    return found


def unpack(part: Path, to: Path) -> bool:
    """Put one part where the others are; with the last one, make the reader. True when it is ready.

    Raises ValueError for a part that is damaged or of another pack.
    """
    if (to / READY).is_file():
        return True
    staged = to / STAGED
    staged.mkdir(parents=True, exist_ok=True)
    manifest = (part / MANIFEST).read_text()
    known = staged / MANIFEST
    if known.exists() and known.read_text() != manifest:
        raise ValueError(f"{part} belongs to another pack than the parts in {staged}; empty {to} first")
    known.write_text(manifest)
    wanted: list[str] = json.loads(manifest)["sha256"]
    for piece in part.glob(f"{PIECE}.*"):
        at = int(piece.suffix[1:])
        found = hashlib.sha256(piece.read_bytes()).hexdigest()
        if found != wanted[at - 1]:
            raise ValueError(f"{piece} is damaged: sha256 {found[:12]}…, packed as {wanted[at - 1][:12]}…")
        shutil.copy2(piece, staged / piece.name)
    paths = [staged / f"{PIECE}.{at + 1}" for at in range(len(wanted))]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        say(f"{len(wanted) - len(missing)} of {len(wanted)} parts here; still to come: {', '.join(missing)}")
        return False
    archive = staged / PIECE
    with archive.open("wb") as joined:
        for path in paths:
            joined.write(path.read_bytes())
    with tarfile.open(archive) as tar:
        tar.extractall(to, filter="data")
    make_ready(to)
    shutil.rmtree(staged)
    return True


def supplement(whole: Path, other: Path, out: Path) -> int:
    """Write what `whole` has and the folder `other` lacks: rows of the embedding, the vocabulary. How many rows."""
    wanted, there = np.load(whole / VOCABULARY), np.load(other / VOCABULARY)
    missing = ~np.isin(wanted, there)
    with np.load(whole / "weights.npz") as packed:
        rows = packed[_EMBEDDING][missing]
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, vocabulary=wanted, rows=rows, cut=(whole / CUT).read_text())
    return int(missing.sum())


def adopt(other: Path, supplement: Path, to: Path) -> None:
    """Make the reader in `to` from another pack's folder and the rows that it lacks.

    Raises ValueError where the two do not fit together.
    """
    if (to / READY).is_file():
        return
    to.mkdir(parents=True, exist_ok=True)
    there = np.load(other / VOCABULARY)
    with np.load(supplement) as given, np.load(other / "weights.npz") as packed:
        wanted, rows = given["vocabulary"], given["rows"]
        known = np.isin(wanted, there)
        if int((~known).sum()) != len(rows) or rows.shape[1:] != packed[_EMBEDDING].shape[1:]:
            raise ValueError(
                f"{supplement} brings {len(rows)} rows of {rows.shape[1:]}; {other} lacks {int((~known).sum())} of "
                f"{packed[_EMBEDDING].shape[1:]}: make the supplement for this pack again"
            )
        embedding = np.empty((len(wanted), *rows.shape[1:]), rows.dtype)
        embedding[known] = packed[_EMBEDDING][np.searchsorted(there, wanted[known])]
        embedding[~known] = rows
        np.savez(to / "weights.npz", **{**packed, _EMBEDDING: embedding})
        (to / CUT).write_text(str(given["cut"]))
    np.save(to / VOCABULARY, wanted)
    config = json.loads((other / "config.json").read_text()) | {"vocab_size": len(wanted)}
    (to / "config.json").write_text(json.dumps(config))
    (to / "names.json").write_text(json.dumps({"vocab_size": len(wanted)}))
    for name in ("kinds.json", "tokenizer.json.xz"):
        shutil.copy2(other / name, to / name)
    for name in ("wheels", "site"):
        if (other / name).is_dir():
            shutil.copytree(other / name, to / name, dirs_exist_ok=True)
    make_ready(to)


def make_ready(to: Path) -> None:
    """Dequantise: `model.safetensors` in float32 and `base.safetensors` in bf16; the tokenizer unpacked."""
    for wheel in sorted((to / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(to / "site")  # noqa: S202  (wheels that whoever packed has chosen)
    sys.path.append(str(to / "site"))
    shutil.copytree(READER_LORA, to / "reader-lora", dirs_exist_ok=True)
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    kinds = json.loads((to / "kinds.json").read_text())
    with np.load(to / "weights.npz") as packed:
        tensors = {
            name: torch.from_numpy(np.array(dequantize(packed[name], GGMLQuantizationType[kind]), np.float32))
            for name, kind in kinds.items()
        }
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    save_file({name: each.to(torch.bfloat16) for name, each in tensors.items()}, to / "base.safetensors")
    (to / "tokenizer.json").write_bytes(lzma.decompress((to / "tokenizer.json.xz").read_bytes()))
    (to / READY).write_text(json.dumps({"tokens": len(np.load(to / "vocabulary.npy"))}))
    say(f"{to} is ready")


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    packs = verbs.add_parser("pack")
    packs.add_argument("--data", type=Path, required=True, help="the data folder")
    packs.add_argument("--texts", type=Path, nargs="*", default=[], help="JSON lines with further texts")
    packs.add_argument("--out", type=Path, required=True, help="folder of the parts")
    packs.add_argument("--wheels", type=Path, help="folder of wheels for the host, unpacked into site")
    packs.add_argument("--common", type=int, default=40_000, help="ASCII tokens from the vocabulary's head")
    packs.add_argument("--part-mib", type=float, default=PART_MIB)
    unpacks = verbs.add_parser("unpack")
    unpacks.add_argument("--part", type=Path, nargs="+", required=True)
    unpacks.add_argument("--to", type=Path, required=True)
    supplements, adopts = verbs.add_parser("supplement"), verbs.add_parser("adopt")
    supplements.add_argument("--whole", type=Path, required=True, help="OUT/reader-whole of `pack`")
    supplements.add_argument("--out", type=Path, required=True)
    adopts.add_argument("--supplement", type=Path, required=True)
    adopts.add_argument("--to", type=Path, required=True)
    for each in (supplements, adopts):
        each.add_argument("--other", type=Path, required=True, help="the other pack's folder, unpacked")
    given = parser.parse_args(arguments)
    if given.verb == "supplement":
        rows = supplement(given.whole, given.other, given.out)
        say(f"{given.out}: {rows:,} rows, {given.out.stat().st_size / MIB:.1f} MiB")
        return 0
    if given.verb == "adopt":
        adopt(given.other, given.supplement, given.to)
        return 0
    if given.verb == "pack":
        files = [given.data / name for name in DATA] + given.texts
        pack(files, given.out, given.common, given.wheels, given.part_mib)
        return 0
    for part in given.part:
        unpack(part, given.to)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
