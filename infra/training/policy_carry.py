"""Everything that the policy's run on a GPU host needs, in parts small enough to carry, and joined again there.

    python -m infra.training.policy_carry --data $DYSRA_DATA --wheels build/wheels/* --out build/carry   # here
    python3 -m infra.training.policy_carry --join build/carry/part-* --out carried   # there

Carried: questions and passages, RealTimeQA's questions with what BM25 finds for them, MiniLM in half precision,
the reader's tokenizer. The reader itself comes from `reader_parts`, which other jobs share; with `--reader` it is
carried too, in its own quantisation, its vocabulary cut to what questions and passages use, with the shipped
adapter. Material is made there (`policy_material`): embedding 90,000 texts takes seconds on a GPU and an hour here.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infra.training.reader_gpu import unpack_weights
from models.shipped import READER_LORA

MIB = 1 << 20
SETS = ("nq_open", "squad2", "hotpotqa", "musique")
CORPUS = "passages_wiki"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the data folder")
    parser.add_argument("--wheels", type=Path, nargs="*", default=[], help="packed trees of packages (tar)")
    parser.add_argument("--join", type=Path, nargs="+", help="on the host: the parts that were carried")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part-mib", type=float, default=49.0)
    parser.add_argument("--reader", action="store_true", help="carry the reader too (else: reader_parts)")
    parser.add_argument("--news", type=int, default=400, help="questions of RealTimeQA (0: none)")
    parser.add_argument("--news-dev", type=int, default=150, help="others of them to choose on (0: none)")
    parser.add_argument("--common", type=int, default=40_000, help="ASCII tokens kept beside those in use")
    given = parser.parse_args()
    if given.join:
        join(given.join, given.out)
        if (given.out / "weights.npz").exists():
            shutil.copytree(READER_LORA, given.out / "reader-lora", dirs_exist_ok=True)
            sys.path.insert(0, str(given.out / "site"))
            unpack_weights(given.out)
        return
    if given.data is None:
        raise SystemExit("--data: give the data folder (or --join PARTS on the host)")
    whole: Path = given.out / "whole"
    whole.mkdir(parents=True, exist_ok=True)
    pack_texts(given.data, whole)
    pack_minilm(whole / "minilm")
    news, others = (whole / "pools" / f"{name}.json.xz" for name in ("rtqa", "rtqa_dev"))
    if given.news and not (news.exists() and (others.exists() or not given.news_dev)):
        from infra.training.policy_pools import pack_news

        news.parent.mkdir(exist_ok=True)
        test, dev = pack_news(given.data, given.news, given.news_dev)
        test.save(news)
        if given.news_dev:
            dev.save(others)
    pack_tokenizer(whole)
    if given.reader:
        pack_reader(given.data, whole, given.common)
    for path in given.wheels:
        (whole / "wheels").mkdir(exist_ok=True)
        shutil.copy(path, whole / "wheels" / path.name)
    sizes = split(whole, given.out, int(given.part_mib * MIB))
    for name, size in sizes.items():
        print(f"{name}: {size / MIB:.1f} MiB")  # noqa: T201


def pack_texts(data: Path, whole: Path) -> None:
    """The files of questions and their passages, as they are."""
    for folder, names in (("qa", SETS), ("corpus", (CORPUS,))):
        (whole / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(data / folder / f"{name}.jsonl.zst", whole / folder / f"{name}.jsonl.zst")


def pack_minilm(target: Path) -> None:
    """MiniLM with its configuration and tokenizer, weights in float16."""
    import torch
    from safetensors.torch import load_file, save_file

    from models.embed.minilm import minilm_folder

    source = minilm_folder()
    target.mkdir(parents=True, exist_ok=True)
    state = load_file(source / "model.safetensors")
    halves = {
        name: tensor.to(torch.float16) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    save_file(halves, target / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(source / name, target / name)


def pack_tokenizer(whole: Path) -> None:
    """The reader's tokenizer, whole: costs are counted by it before the reader is there."""
    from models.hf.gemma_gguf import prepared

    packed = whole / "tokenizer.json.xz"
    if not packed.exists():
        packed.write_bytes(lzma.compress((prepared() / "tokenizer.json").read_bytes(), preset=6))


def pack_reader(data: Path, whole: Path, common: int) -> None:
    """The reader's vocabulary cut, its weights in their quantisation."""
    from infra.training.reader_pack import _pack_weights, _tokenizer, cut_vocabulary

    tokenizer = _tokenizer()
    used: set[int] = set()
    texts = list(reader_texts(data))
    for at in range(0, len(texts), 20_000):
        for each in tokenizer.encode_batch(texts[at : at + 20_000], add_special_tokens=False):
            used.update(each.ids)
    vocabulary = cut_vocabulary(tokenizer, [sorted(used)], common)
    np.save(whole / "vocabulary.npy", vocabulary)
    (whole / "names.json").write_text(json.dumps({"vocab_size": len(vocabulary)}))
    _pack_weights(whole, vocabulary)


def reader_texts(data: Path) -> Sequence[str]:
    """What the reader may be given: heads, sentences with and without a space before, questions, answers."""
    from pipeline.session.prompts import GIVEN_UP, article_head, target_text
    from pipeline.session.sentences import split_sentences
    from pipeline.tasks.qa import read_passages, read_questions

    found = {"\nQuestion: \nAnswer: unknown", GIVEN_UP}
    for name in SETS:
        for question in read_questions(data / "qa" / f"{name}.jsonl.zst"):
            found.add(f"Question: {question.text}\nAnswer:")
            found.update(target_text(answer) + "\n" for answer in question.answers)
    for text in read_passages(data / "corpus" / f"{CORPUS}.jsonl.zst").values():
        found.add(f"{article_head(text.title, text.date)}: {text.text}\n")
        found.update(f"{sentence}\n" for sentence in split_sentences(text.text))
    return sorted(found)


def split(whole: Path, out: Path, most: int) -> dict[str, int]:
    """Deal the files over OUT/part-0, part-1, ..., cut where a part is full. Bytes of each part."""
    if most < 1:
        raise ValueError(f"most: given {most}; allowed: 1 byte or more")
    for old in out.glob("part-*"):
        shutil.rmtree(old)
    sizes: dict[str, int] = {}
    at, room = 0, most
    for path in sorted(p for p in whole.rglob("*") if p.is_file()):
        name, left, start = path.relative_to(whole).as_posix(), path.stat().st_size, 0
        while left or not start:
            if not room:
                at, room = at + 1, most
            size = min(left, room)
            target = out / f"part-{at}" / f"{name}.from-{start:012d}"
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as file:
                file.seek(start)
                target.write_bytes(file.read(size))
            sizes[f"part-{at}"] = sizes.get(f"part-{at}", 0) + size
            room, left, start = room - size, left - size, start + size
            if not left:
                break
    return sizes


def join(parts: Sequence[Path], out: Path) -> None:
    """Put the files of all parts together, packages into OUT/site; FileNotFoundError where a piece is missing."""
    found: dict[str, dict[int, Path]] = {}
    for part in parts:
        for path in part.rglob("*.from-*"):
            name, _, place = path.relative_to(part).as_posix().rpartition(".from-")
            found.setdefault(name, {})[int(place)] = path
    for name, pieces in found.items():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for start in sorted(pieces):
                if file.tell() != start:
                    raise FileNotFoundError(
                        f"{name}: bytes {file.tell()} to {start} are in none of the parts given"
                    )
                file.write(pieces[start].read_bytes())
    for archive in sorted((out / "wheels").glob("*")):
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(out / "site")  # noqa: S202  (wheels that whoever packed has chosen)
            continue
        with tarfile.open(archive) as tar:
            tar.extractall(out / "site", filter="data")


if __name__ == "__main__":
    main()
