"""Make the material that a retriever's policy is trained and judged on: candidates, features, vectors, labels.

    python -m infra.training.policy_data --data $DYSRA_DATA/qa/nq_open.jsonl.zst $DYSRA_DATA/qa/squad2.jsonl.zst \\
        --out build/policy --train 600 --test 200

One folder of material a file (`pipeline.tasks.material`). Vectors of what was embedded once are kept in the cache
folder, so a run that was ended (--seconds) goes on where it was when started again. Training questions and their
candidates never come from under a test question's gold title.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.console import say
from infra.evaluation.hybrid_pool import HybridPool
from infra.evaluation.qa_sources import QaSource, open_source
from infra.evaluation.vector_cache import VectorCache
from infra.training.reader_data import gemma_counter
from models.embed import EmbedderConfig, load_embedder
from models.embed.artifacts import cache_folder
from models.retriever.table import CandidateTable, TableBatch
from pipeline.candidate_features import Encode
from pipeline.tasks.choices import UNITS, cut, material_of
from pipeline.tasks.contexts import CountTokens
from pipeline.tasks.material import ChoiceQuestion, Material
from pipeline.tasks.qa import Question, read_questions, test_title_keys, title_key


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyDataConfig:
    """How material is made of a file of questions."""

    train: int = field(default=600, metadata={"help": "training questions of a file, at most (0: none)"})
    test: int = field(default=200, metadata={"help": "test questions of a file, at most (0: none)"})
    passages: int = field(default=12, metadata={"help": "texts of the search that are cut into candidates"})
    candidates: int = field(default=48, metadata={"help": "candidates of a question, 2 to 64"})
    unit: str = field(default="sentence", metadata={"help": "sentence, span or passage"})
    span_tokens: int = field(default=32, metadata={"help": "tokens of a span"})
    reach: int = field(
        default=100, metadata={"help": "BM25's best texts that the embedder ranks too; 0: all"}
    )
    embedder: str = field(default="minilm", metadata={"help": "minilm, static or a folder"})
    seed: int = field(default=0, metadata={"help": "which questions are taken"})
    unanswerable: bool = field(
        default=False, metadata={"help": "keep questions that their texts do not answer"}
    )
    words: bool = field(default=False, metadata={"help": "hashed words too, for encoders that read words"})

    def __post_init__(self) -> None:
        for name in ("train", "test", "reach"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 0 or more")
        if self.passages < 1 or self.span_tokens < 1:
            raise ValueError(
                f"passages: given {self.passages}, span_tokens {self.span_tokens}; allowed: 1 or more"
            )
        if not 2 <= self.candidates <= 64:
            raise ValueError(f"candidates: given {self.candidates}; allowed: 2 to 64")
        if self.unit not in UNITS:
            raise ValueError(f"unit: given {self.unit!r}; allowed: {', '.join(UNITS)}")


def make(
    source: QaSource,
    config: PolicyDataConfig,
    encode: Encode,
    count: CountTokens,
    *,
    held_back: frozenset[str] | None = None,
    until: float = float("inf"),
) -> tuple[Material | None, bool]:
    """Material of a source's questions, and whether all of them were done before `until` (monotonic seconds).

    `held_back` are the title keys that training must not read; default: those of the source's test questions.
    """
    keys = test_title_keys(source.questions) if held_back is None else held_back
    pool = HybridPool(source, encode, config.reach)
    rows: list[tuple[ChoiceQuestion, CandidateTable]] = []
    wanted = picked(source.questions, config)
    for question in wanted:
        if time.monotonic() > until:
            return None, False
        texts = pool(question, config.passages * (2 if question.split == "train" else 1))
        if question.split == "train":
            texts = [text for text in texts if title_key(text.title) not in keys]
        choices = cut(texts[: config.passages], config.unit, count, config.span_tokens)
        if len(choices) < 2:
            continue
        made, table, _ = material_of(
            question, choices, encode, count, most=config.candidates, with_words=config.words
        )
        rows.append((made, table))
    if not rows:
        return None, True
    tables = TableBatch.stack([table for _, table in rows])
    return Material(tuple(made for made, _ in rows), tables), True


def picked(questions: Sequence[Question], config: PolicyDataConfig) -> list[Question]:
    """The questions of a run, training ones first, by a hash of their ids."""
    order = sorted(
        questions,
        key=lambda q: hashlib.blake2b(f"{config.seed}:{q.question_id}".encode(), digest_size=8).digest(),
    )
    usable = [q for q in order if config.unanswerable or q.answerable]
    train = [q for q in usable if q.split == "train"][: config.train]
    test = [q for q in usable if q.split == "test"][: config.test]
    return [*train, *test]


def cached_encode(config: PolicyDataConfig, threads: int = 0) -> Encode:
    """An embedder that keeps what it has embedded in the cache folder."""
    embedder = load_embedder(EmbedderConfig(model=config.embedder, threads=threads))
    return VectorCache(cache_folder("") / "policy-vectors", embedder).encode


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files of questions")
    parser.add_argument("--corpus", type=Path, help="their texts; default: where the data folder has them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after this long; start again to go on"
    )
    parser.add_argument("--threads", type=int, default=0, help="of the embedder; 0: every core")
    for name, entry in PolicyDataConfig.__dataclass_fields__.items():
        flag, text = f"--{name.replace('_', '-')}", entry.metadata["help"]
        if isinstance(entry.default, bool):
            parser.add_argument(flag, action="store_true", help=text)
        else:
            parser.add_argument(flag, type=type(entry.default), default=entry.default, help=text)
    given = parser.parse_args()
    until = time.monotonic() + given.seconds
    config = PolicyDataConfig(
        **{name: getattr(given, name) for name in PolicyDataConfig.__dataclass_fields__}
    )
    encode, count = cached_encode(config, given.threads), gemma_counter()
    for path in given.data:
        folder = given.out / path.name.split(".")[0]
        if (folder / "manifest.json").exists():
            say(f"{folder} is there")
            continue
        material, whole = make(
            open_source(path, given.corpus),
            config,
            encode,
            count,
            held_back=_held_back(path, given.data),
            until=until,
        )
        if not whole:
            say(f"{path.name}: stopped after {given.seconds:.0f} s; start again to go on")
            return
        if material is None:
            say(f"{path.name}: no question of it can be used")
            continue
        made_from: dict[str, Any] = {name: getattr(config, name) for name in config.__dataclass_fields__}
        material.save(folder, made_from | {"data": path.name, "embedder": config.embedder})
        say(f"{folder}: {len(material):,} questions, {material.tables.num_candidates} candidates at most")


def _held_back(path: Path, others: Sequence[Path]) -> frozenset[str] | None:
    """The titles of test questions of all Wikipedia sets together, where the file is one of several."""
    from infra.evaluation.qa_sources import beside
    from pipeline.tasks.qa import assign_splits, read_passages

    wiki = [
        each for each in others if each.name.split(".")[0] in ("squad2", "nq_open", "hotpotqa", "musique")
    ]
    if path not in wiki or len(wiki) < 2:
        return None
    texts = read_passages(beside(path.parent.parent / "corpus" / "x", "passages_wiki"))
    return test_title_keys(assign_splits([q for each in wiki for q in read_questions(each)], texts))


if __name__ == "__main__":
    main()
