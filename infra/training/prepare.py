"""`dysra prepare`: tokenizer, token streams, relevance labels, triples and needles, as shards of Parquet.

    dysra prepare --texts news.jsonl.zst --questions qa/nq_open.jsonl.zst --out build/prepared

Everything follows from the settings, the files and the seed; a shard depends on its own task alone. So shards are
made in any order by any number of workers, a killed run makes only what is missing, and the bytes are the same.
OUT: tokenizer.json, tokens/, labels/, triples/, needles/ (each with manifest.json), subq/ (what the subq learner
reads), manifest.json.
"""

from __future__ import annotations

import hashlib
import lzma
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from infra.training.prepare_shards import PARTS, ShardMaker, open_maker
from models.subq.tokenizer import SubqTokenizer
from pipeline.errors import BadData, UsageError
from pipeline.prepare.documents import in_order, read_documents
from pipeline.prepare.shards import MANIFEST, begin, digest, finish, note_of
from pipeline.tasks.qa import read_questions, title_key

FIRST_WORLD, HELD_OUT_WORLD = 1001, 2001
"""Seeds of the newswire's worlds: those of `infra.training.reader_data`, so that the demo's own is in neither."""

OnShard = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """What is prepared, of what."""

    out: Path = field(metadata={"help": "folder that is written"})
    texts: tuple[Path, ...] = field(default=(), metadata={"help": "files of texts (JSON Lines, .zst too)"})
    questions: tuple[Path, ...] = field(default=(), metadata={"help": "files of questions"})
    corpus: Path | None = field(
        default=None, metadata={"help": "texts of the questions; default: the data folder's"}
    )
    vocabulary: int = field(default=32_768, metadata={"help": "ids of the tokenizer, 257 or more"})
    tokenizer_chars: int = field(
        default=30_000_000, metadata={"help": "characters that its merges are learned from"}
    )
    chunk_tokens: int = field(default=2_048, metadata={"help": "tokens of a chunk of a stream"})
    test_share: float = field(default=0.05, metadata={"help": "newest share of each stream that is held out"})
    hard: int = field(default=8, metadata={"help": "hard negatives a question, by BM25"})
    needles: int = field(default=2_000, metadata={"help": "needles by the grammar"})
    worlds: int = field(
        default=0, metadata={"help": "simulated newswire worlds to train on; one more is held out"}
    )
    world_articles: int = field(default=1_500, metadata={"help": "articles of a world"})
    texts_per_shard: int = field(default=2_000, metadata={"help": "texts of a shard of tokens"})
    questions_per_shard: int = field(
        default=500, metadata={"help": "questions of a shard of labels or triples"}
    )
    limit: int = field(default=0, metadata={"help": "texts and questions of a file, at most (0: all)"})
    subq: bool = field(default=True, metadata={"help": "write the token files of the subq learner too"})
    seed: int = field(default=0, metadata={"help": "of everything that is drawn"})

    def __post_init__(self) -> None:
        if not self.texts and not self.questions and not self.worlds:
            raise ValueError(
                "texts, questions, worlds: given none; allowed: files of texts, of questions, or worlds"
            )
        if self.vocabulary < 257:
            raise ValueError(
                f"vocabulary: given {self.vocabulary}; allowed: 257 or more (each byte has an id)"
            )
        if not 0 <= self.test_share < 1:
            raise ValueError(f"test_share: given {self.test_share}; allowed: 0 to below 1")
        for name in (
            "tokenizer_chars",
            "chunk_tokens",
            "texts_per_shard",
            "questions_per_shard",
            "world_articles",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        for name in ("hard", "needles", "limit", "worlds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 0 or more")


def prepare(config: PrepareConfig, workers: int = 0, on_shard: OnShard | None = None) -> dict[str, Any]:
    """Make everything that is missing; returns the manifest. `workers` 0: in this process, without Ray.

    Raises UsageError where the folder was begun from other settings, BadData for a file that cannot be read.
    """
    made_from = _made_from(config)
    begin(config.out, made_from)
    if config.texts and not (config.out / "tokenizer.json").exists():
        _train_tokenizer(config)
    tasks = list(_tasks(config))
    todo = [task for task in tasks if note_of(config.out / task["part"], task["name"]) is None]
    done = len(tasks) - len(todo)
    for note in _made(config, todo, workers):
        done += 1
        if on_shard is not None:
            on_shard(done, len(tasks))
        del note
    manifest: dict[str, Any] = {"made_from": made_from, "shards": len(tasks), "made_now": len(todo)}
    for part in PARTS:
        names = [task["name"] for task in tasks if task["part"] == part]
        if names:
            about = finish(config.out / part, made_from | {"part": part}, names)
            manifest[part] = {"rows": about["rows"], "shards": len(names)}
    if config.texts:
        tokenizer = SubqTokenizer.load(config.out / "tokenizer.json")
        manifest["tokenizer"] = {"ids": tokenizer.vocabulary, "identity": tokenizer.identity}
        if config.subq:
            manifest["subq"] = _write_subq(config)
    kept = {name: value for name, value in manifest.items() if name != "made_now"}
    _write_json(config.out / MANIFEST, kept)
    return manifest


def _made(config: PrepareConfig, todo: Sequence[dict[str, Any]], workers: int) -> Iterator[dict[str, Any]]:
    if not todo:
        return
    settings = asdict(config)
    if workers == 0:
        make = ShardMaker(settings)
        for task in todo:
            yield make(task)
        return
    from actors.prepare_job import make_shards
    from infra.cluster import connect_ray

    connect_ray()
    absolute = {
        name: value.absolute() if isinstance(value, Path)
        else tuple(path.absolute() for path in value) if name in ("texts", "questions") else value
        for name, value in settings.items()
    }  # fmt: skip
    yield from make_shards(partial(open_maker, absolute), todo, workers)


def _tasks(config: PrepareConfig) -> Iterator[dict[str, Any]]:
    """Every shard of the run, in the order of its folder."""
    count = 0
    for at, path in enumerate(config.texts):
        texts = sum(1 for _ in _first(read_documents(path), config.limit))
        for start in range(0, texts, config.texts_per_shard):
            yield {"part": "tokens", "name": f"tokens-{count:05d}.parquet", "file": at, "start": start}
            count += 1
    for part in ("labels", "triples"):
        count = 0
        for at, path in enumerate(config.questions):
            questions = len(read_questions(path))
            total = min(questions, config.limit) if config.limit else questions
            for start in range(0, total, config.questions_per_shard):
                yield {"part": part, "name": f"{part}-{count:05d}.parquet", "file": at, "start": start}
                count += 1
    for at in range(config.worlds):
        yield {"part": "triples", "name": f"triples-newswire-{at:02d}.parquet", "world": FIRST_WORLD + at}
    if config.worlds:
        yield {"part": "triples", "name": "triples-newswire-test.parquet", "world": HELD_OUT_WORLD}
    for split in ("train", "held_out", "held_out_kinds", "held_out_forms") if config.needles else ():
        yield {"part": "needles", "name": f"needles-{split}.parquet", "split": split}
    if config.questions:
        for at in range(len(config.questions)):
            yield {"part": "needles", "name": f"needles-real-{at:02d}.parquet", "file": at}


def _train_tokenizer(config: PrepareConfig) -> None:
    """Merges learned from texts drawn by hash, each file giving its share."""
    each = config.tokenizer_chars // len(config.texts)
    drawn: list[str] = []
    for path in config.texts:
        held_out = in_order(_first(read_documents(path), config.limit), config.test_share).held_out
        known = [
            (hashlib.blake2b(f"{config.seed}:{path.name}:{d.line}".encode()).digest(), d.text)
            for d in _first(read_documents(path), config.limit)
            if d.line not in held_out
        ]
        size = 0
        for _, text in sorted(known):
            drawn.append(text)
            size += len(text)
            if size >= each:
                break
    tokenizer = SubqTokenizer.train(drawn, config.vocabulary)
    temporary = config.out / ".tokenizer.json.partial"
    tokenizer.save(temporary)
    temporary.rename(config.out / "tokenizer.json")


def _write_subq(config: PrepareConfig) -> dict[str, Any]:
    """The streams' tokens as the subq learner reads them, with words that name owners."""
    import numpy as np
    import pyarrow.parquet as pq

    from infra.training.subq_pack import owner_words, write_tokens

    folder = config.out / "subq"
    if (folder / MANIFEST).exists():
        with suppress(orjson.JSONDecodeError):  # a damaged one is made again, as a damaged shard is
            found: dict[str, Any] = orjson.loads((folder / MANIFEST).read_bytes())
            return found
    folder.mkdir(parents=True, exist_ok=True)
    ids: dict[str, list[Any]] = {"train": [], "test": []}
    for name in sorted(path.name for path in (config.out / "tokens").glob("tokens-*.parquet")):
        table = pq.read_table(config.out / "tokens" / name, columns=["split", "ids"])
        for split, row in zip(table["split"].to_pylist(), table["ids"].combine_chunks(), strict=True):
            ids[split].append(row.values.to_numpy())
    known = {part: np.concatenate(rows) for part, rows in ids.items() if rows}
    if any(int(row.max()) >= 1 << 16 for row in known.values()):
        raise UsageError(f"vocabulary: given {config.vocabulary}; the subq files hold ids below 65,536")
    about: dict[str, Any] = {part: write_tokens(row, folder, part) for part, row in known.items()}
    (folder / "tokenizer.json").write_bytes((config.out / "tokenizer.json").read_bytes())
    texts = [
        d.text
        for path in config.texts
        for d in _first(read_documents(path), min(config.limit or 5_000, 5_000))
    ]
    random.Random(config.seed).shuffle(texts)
    words = owner_words(texts, config.seed, common=max(1, min(20, len(texts) // 100)))
    (folder / "names.json").write_bytes(orjson.dumps(words))
    if config.questions:
        about["real"] = _write_real(config, folder)
    _write_json(folder / MANIFEST, about)
    return about


def _write_json(path: Path, found: dict[str, Any]) -> None:
    """Whole or not at all: what comes last says that the rest is there."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2, default=str))
    partial.rename(path)


def _write_real(config: PrepareConfig, folder: Path) -> dict[str, int]:
    """The needles of real questions as the subq learner reads them; their number by part.

    No title of a test needle stands in training, and none is longer than the trials have room for.
    """
    import pyarrow.parquet as pq

    from infra.training.subq_pack import MOST_TOKENS

    tokenizer = SubqTokenizer.load(folder / "tokenizer.json")
    rows = [
        row
        for path in sorted((config.out / "needles").glob("needles-real-*.parquet"))
        for row in pq.read_table(path).to_pylist()
        if len(tokenizer.encode(row["sentence"])) <= MOST_TOKENS
    ]
    titled = [(title_key(row["sentence"].split(":")[0]), row) for row in rows]
    held_back = {title for title, row in titled if row["split"] == "test"}
    parts = {
        part: [
            (row["sentence"], row["question"], row["answer"], row["name"])
            for title, row in titled
            if row["split"] == part and (part == "test" or title not in held_back)
        ]
        for part in ("train", "test")
    }
    (folder / "real.json.xz").write_bytes(lzma.compress(orjson.dumps(parts), preset=6))
    return {part: len(found) for part, found in parts.items()}


def _made_from(config: PrepareConfig) -> dict[str, Any]:
    """The settings and the files by name and checksum: where they are does not matter."""
    plain = {n: v for n, v in asdict(config).items() if n not in ("out", "texts", "questions", "corpus")}
    if not config.worlds:  # a folder that was begun before there were worlds goes on
        plain = {n: v for n, v in plain.items() if n not in ("worlds", "world_articles")}
    files = [*config.texts, *config.questions, *([config.corpus] if config.corpus else [])]
    for path in files:
        if not path.is_file():
            raise UsageError(f"{path} is no file; give JSON Lines files (.jsonl, .jsonl.zst)")
        if sum(path.samefile(each) for each in files) > 1:
            raise UsageError(f"{path} is given twice; give each file once")
    for path in config.texts:
        if next(read_documents(path), None) is None:
            raise BadData(f"{path} holds no text; give lines of {{id, text}}")
    for path in config.questions:
        if not read_questions(path):
            raise BadData(f"{path} holds no question; leave it out")
    found: dict[str, str] = {}
    for path in files:  # two of one name are told apart by their order
        known = sum(name.partition("#")[0] == path.name for name in found)
        found[f"{path.name}#{known}" if known else path.name] = digest(path)
    return plain | {"files": found}


def _first(items: Any, limit: int) -> Iterator[Any]:
    for at, item in enumerate(items):
        if limit and at >= limit:
            return
        yield item
