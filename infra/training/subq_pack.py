"""Write the token files of a backbone's training and test: one tokenizer, two texts, names for needles.

    python -m infra.training.subq_pack --out build/subq-data

Reads the folder that DYSRA_DATA names. Trained weights are shipped, so the training text is of open licence only:
Gutenberg books, Wikipedia passages, and newswire of our own. The test text is disjoint: other books, other
passages, scientific articles under CC BY. Out: tokenizer.json, names.json, train-<n>.bin.xz, test-<n>.bin.xz
(uint16 ids, each file under 16 MiB), real.json.xz (needles of real questions, split by title), manifest.json.
The same arguments give the same files; a call that ended early is made again and goes on behind what is whole
(packing.json says what is).
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from infra.training.side_by_side import tell
from infra.training.subq_encode import Ids, encoded
from models.subq.tokenizer import SubqTokenizer
from pipeline.newswire.simulate import generate
from pipeline.prepare.real_needles import real_needles
from pipeline.tasks.contexts import WordWeights
from pipeline.tasks.qa import assign_splits, read_passages, read_questions, test_title_keys, title_key

PART_TOKENS = 7_000_000  # 14 MB even where nothing can be compressed
PIECE_CHARS = 40_000
TOKENIZER = "tokenizer.json"
QUESTION_SETS = ("squad2", "nq_open")
MOST_TOKENS = 110  # of a real sentence: trials write needles of up to 128
SOURCES = {
    "train": (("pretrain/gutenberg", 0.0, 0.6), ("corpus/passages_wiki", 0.0, 0.75)),
    "test": (
        ("pretrain/gutenberg", 0.6, 1.0),
        ("corpus/passages_wiki", 0.75, 1.0),
        ("longdoc/scisumm", 0.0, 1.0),
    ),
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=16_384)
    parser.add_argument("--share", type=float, default=1.0, help="share of every source, for a try")
    parser.add_argument(
        "--newswire-articles", type=int, default=6_000, help="articles of our own in the training text"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = os.environ.get("DYSRA_DATA")
    if not folder or not Path(folder).is_dir():
        parser.error("DYSRA_DATA names no folder of real text")
    pack(Path(folder), given.out, given.vocabulary, given.share, given.newswire_articles, given.seed)


def pack(
    data: Path, out: Path, vocabulary: int, share: float, newswire_articles: int, seed: int
) -> dict[str, Any]:
    """Write everything, manifest.json last; returns it. What an ended call of the same arguments left is kept."""
    out.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "sources": SOURCES, "share": share, "newswire_articles": newswire_articles, "seed": seed,
        "vocabulary_wanted": vocabulary,
    }  # fmt: skip
    stages = Stages(out, about)
    texts = read_texts(data, share, newswire_articles, seed)
    stages.make(
        "tokenizer", lambda: SubqTokenizer.train(texts["train"][::4], vocabulary).save(out / TOKENIZER)
    )
    tokenizer = SubqTokenizer.load(out / TOKENIZER)

    def names() -> None:
        (out / "names.json").write_text(json.dumps(owner_words(texts["train"], seed)), encoding="utf-8")

    def real() -> dict[str, int]:
        rows = {
            part: [row for row in rows if len(tokenizer.encode(row[0])) <= MOST_TOKENS]
            for part, rows in real_questions(data).items()
        }
        (out / "real.json.xz").write_bytes(lzma.compress(json.dumps(rows).encode(), preset=6))
        return {part: len(found) for part, found in rows.items()}

    stages.make("names", names)
    counted = stages.make("real", real)

    def tokens(part: str) -> dict[str, int]:
        return write_tokens(with_ends(encoded(tokenizer, texts.pop(part))), out, part)

    parts = {part: stages.make(part, partial(tokens, part)) for part in SOURCES}
    del about["vocabulary_wanted"]
    manifest = {"real": counted, **about, "vocabulary": tokenizer.vocabulary, "tokenizer": tokenizer.identity}
    manifest |= parts
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    stages.end()
    return manifest


class Stages:
    """What of a folder is done, and what each stage gave: a call with the same settings passes over it."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._path = folder / "packing.json"
        (folder / "manifest.json").unlink(missing_ok=True)
        self._state: dict[str, Any] = {"settings": json.loads(json.dumps(settings)), "done": {}}
        if self._path.exists():
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if found["settings"] == self._state["settings"]:
                self._state = found

    def make(self, name: str, stage: Callable[[], Any]) -> Any:
        """What the stage gives, or gave in an earlier call; noted when it is whole."""
        done: dict[str, Any] = self._state["done"]
        if name not in done:
            began = time.process_time()
            done[name] = stage()
            temporary = self._path.with_suffix(".partial")
            temporary.write_text(json.dumps(self._state), encoding="utf-8")
            temporary.replace(self._path)
            tell(f"{name}: {time.process_time() - began:.1f} s of a processor")
        return done[name]

    def end(self) -> None:
        """Everything is made: there is nothing to go on with."""
        self._path.unlink(missing_ok=True)


def read_texts(data: Path, share: float, newswire_articles: int, seed: int) -> dict[str, list[str]]:
    """The pieces of both parts, shuffled."""
    texts: dict[str, list[str]] = {part: [] for part in SOURCES}
    for part, sources in SOURCES.items():
        for name, first, last in sources:
            texts[part] += pieces(_between(documents(data / f"{name}.jsonl.zst"), first, last, share, seed))
    events = islice(generate(seed, newswire_articles), newswire_articles)
    records = [event.record for event in events if event.record.get("text")]
    texts["train"] += pieces(f"{record['title']}\n{record['text']}" for record in records)
    for part in texts:
        random.Random(f"{seed}:{part}").shuffle(texts[part])
    return texts


def with_ends(texts: Iterable[Ids]) -> Ids:
    """Ids of texts one behind the other, each with the end of a text behind it."""
    end = np.array([SubqTokenizer.end_id], np.uint16)
    return np.concatenate([part for ids in texts for part in (ids, end)])


def real_questions(data: Path) -> dict[str, list[tuple[str, str, str, str]]]:
    """(sentence, question, answer, question id) by part; no title of a test needle stands in training."""
    passages = read_passages(data / "corpus/passages_wiki.jsonl.zst")
    asked = [q for name in QUESTION_SETS for q in read_questions(data / f"qa/{name}.jsonl.zst")]
    split = assign_splits(asked, passages)
    held_back = test_title_keys(split)
    weights = WordWeights(text.text for text in passages.values())
    parts: dict[str, list[tuple[str, str, str, str]]] = {}
    for part in ("train", "test"):
        needles = real_needles([q for q in split if q.split == part], passages, weights)
        if part == "train":
            needles = [n for n in needles if title_key(n.sentence.split(":")[0]) not in held_back]
        parts[part] = [(n.sentence, n.question, n.answer, n.name) for n in needles]
    return parts


def documents(path: Path) -> Iterator[str]:
    """The texts of a file of JSON lines."""
    with path.open("rb") as raw:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), encoding="utf-8"):
            record = json.loads(line)
            yield f"{record['title']}\n{record['text']}" if record.get("title") else record["text"]


def pieces(texts: Iterable[str]) -> Iterator[str]:
    """Texts cut, and short ones joined, to about 40,000 characters, so that shuffling them mixes the sources."""
    joined: list[str] = []
    size = 0
    for text in texts:
        for at in range(0, len(text), PIECE_CHARS):
            joined.append(text[at : at + PIECE_CHARS])
            size += len(joined[-1])
            if size >= PIECE_CHARS:
                yield "\n\n".join(joined)
                joined, size = [], 0
    if joined:
        yield "\n\n".join(joined)


def owner_words(texts: Sequence[str], seed: int, common: int = 20, most: int = 8_000) -> dict[str, list[str]]:
    """Common words with a capital, two of which name an owner; those of the test are never trained on."""
    counts = Counter(word for text in texts for word in re.findall(r"\b[a-z]{4,10}\b", text))
    words = sorted(word for word, count in counts.items() if count >= common)
    random.Random(f"{seed}:names").shuffle(words)
    named = [word.capitalize() for word in words[:most]]
    cut = max(1, len(named) * 7 // 8)
    return {"train": named[:cut], "test": named[cut:] or named[:1]}


def write_tokens(ids: np.ndarray[Any, Any], out: Path, part: str) -> dict[str, int]:
    """Token files of at most 16 MiB; older ones of the part are removed."""
    for old in out.glob(f"{part}-*.bin.xz"):
        old.unlink()
    count = 0
    for count, start in enumerate(range(0, len(ids), PART_TOKENS), 1):
        packed = lzma.compress(ids[start : start + PART_TOKENS].astype(np.uint16).tobytes(), preset=1)
        (out / f"{part}-{count - 1:03d}.bin.xz").write_bytes(packed)
    return {"tokens": len(ids), "files": count}


def _between(texts: Iterator[str], first: float, last: float, share: float, seed: int) -> list[str]:
    """Texts from one share of all to another, in a seeded order; the first `share` of those."""
    found = list(texts)
    random.Random(seed).shuffle(found)
    part = found[int(first * len(found)) : int(last * len(found))]
    return part[: max(1, int(share * len(part)))]


if __name__ == "__main__":
    main()
