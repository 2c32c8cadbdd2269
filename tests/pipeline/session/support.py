"""Sessions over a tiny real model and a real shard, without Kafka and Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from models.cache import CacheConfig
from models.hf import HfBackbone, HfConfig
from pipeline.article import Article, ArticleLimits, parse_article
from pipeline.session import SessionConfig
from pipeline.session.asking import AskParts
from pipeline.session.chooser import HybridChooser
from pipeline.session.one_shard import OneShardLibrary
from pipeline.session.ports import InlineRunner, Query
from pipeline.session.session import Session, SessionParts
from pipeline.session.state import SessionKey
from pipeline.source import Record
from pipeline.store import Chunk, Coordinate, Delete, Passage, Shard, StoreConfig, Upsert
from tests.tiny_model import save_tiny_model

STREAM = "harbour"
KEY = SessionKey("local", STREAM)
CONFIG = SessionConfig(max_article_tokens=64, max_new_tokens=8, start="earliest", dense_sentences=0)
CACHE = CacheConfig(sinks=2, ring=64, read_block=16, evict_block=16, rank=4, latent_blocks=3)
_DIM = 4


@lru_cache(maxsize=2)
def backbone(seed: int = 0) -> HfBackbone:
    """The tiny backbone, loaded once for all tests."""
    with TemporaryDirectory() as folder:
        save_tiny_model(Path(folder) / f"tiny{seed}", seed=seed)
        return HfBackbone.load(HfConfig(model=f"{folder}/tiny{seed}", device="cpu"))


def parts(**changes: Any) -> SessionParts:
    """What sessions share; `changes` are fields of SessionConfig."""
    config = replace(CONFIG, **changes)
    return SessionParts(config=config, cache=CACHE, limits=ArticleLimits(), backbone=backbone())


def new_session(**changes: Any) -> Session:
    """A session that has read nothing."""
    return Session.new(KEY, parts(**changes))


def article(number: int = 1, *, text: str | None = None, **fields: Any) -> Article:
    """An article of the stream, its text about its own number."""
    value = {
        "id": f"a{number}",
        "published": f"2024-03-{1 + number % 28:02d}T08:00:00Z",
        "source": "Daily Courier",
        "title": f"Pier {number} opens",
        "text": text
        or f"Pier {number} opened on Monday. The mayor of quay {number} said that trade will grow.",
        "stream": STREAM,
    }
    return parse_article({**value, **fields})


def record(offset: int, value: Article | bytes | None, *, key: bytes | None = None) -> Record:
    """A Kafka record at an offset of partition 0."""
    body = value.to_json() if isinstance(value, Article) else value
    key = value.id.encode() if isinstance(value, Article) else key
    return Record("news", 0, offset, 1_700_000_000_000 + offset, key, body, ())


class ShardLibrary(OneShardLibrary):
    """The store of a session, on one shard in a folder, searched by keywords."""

    def __init__(self, root: Path) -> None:
        config = StoreConfig(path=root, lexical_commit_ms=0)
        super().__init__(Shard.open(root, config, 0, 1, "none", _DIM))
        self._offset = 0
        self.partial = False

    def add(self, *articles: Article) -> None:
        """Store articles, each as one chunk."""
        self._append(
            Upsert(
                coordinate=Coordinate("news", 0, self._offset + i),
                article=one,
                chunks=[Chunk(0, one.text, len(one.text.split()), 0, len(one.text))],
                vectors=np.eye(1, _DIM, dtype=np.float16),
            )
            for i, one in enumerate(articles)
        )

    def delete(self, article_id: str) -> None:
        """Withdraw an article."""
        self._append([Delete(coordinate=Coordinate("news", 0, self._offset), article_id=article_id)])

    def search(self, query: Query, deadline_s: float) -> tuple[list[Passage], bool]:
        """What the shard finds, told to be a part where a test says so."""
        return super().search(query, deadline_s)[0], self.partial

    def _append(self, records: Any) -> None:
        batch = list(records)
        self._offset += len(batch)
        self._shard.append(batch, {("news", 0): self._offset}, 1)


@contextlib.contextmanager
def stocked(root: Path, *articles: Article) -> Iterator[ShardLibrary]:
    """A store in `root` that holds these articles; closed on leaving."""
    shelf = ShardLibrary(root)
    try:
        shelf.add(*articles)
        yield shelf
    finally:
        shelf.close()


def ask_parts(library: Any, **changes: Any) -> AskParts:
    """What answering needs, all work in the calling thread."""
    return AskParts(
        config=replace(CONFIG, **changes),
        backbone=backbone(),
        library=library,
        chooser=HybridChooser(),
        runner=InlineRunner(),
        adapted=False,
    )
