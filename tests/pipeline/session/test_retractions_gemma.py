"""An answer that depends on a withdrawn fact, with the real model reading from the session's cache alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.cache import CacheConfig
from models.hf import HfBackbone, HfConfig
from pipeline.article import Article, ArticleLimits, parse_article
from pipeline.session import SessionConfig
from pipeline.session.ports import InlineRunner
from pipeline.session.prompts import reader_prompt
from pipeline.session.rebuild import Rebuild
from pipeline.session.session import Session, SessionParts
from tests.pipeline.session.support import KEY, STREAM, ShardLibrary, record

pytestmark = [pytest.mark.model, pytest.mark.slow]
QUESTION = "Who is the mayor of Port Alder?"


def news(number: int, title: str, text: str, updated: str | None = None) -> Article:
    """An article of the stream."""
    return parse_article(
        {
            "id": f"n{number}",
            "published": f"2024-03-{number + 1:02d}T08:00:00Z",
            "source": "Courier",
            "title": title,
            "text": text,
            "stream": STREAM,
            **({"updated": updated} if updated else {}),
        }
    )


def mayor(name: str, updated: str | None = None) -> Article:
    """The article that the answer depends on."""
    text = f"{name} was sworn in as mayor of Port Alder on Tuesday after the recount."
    return news(1, "Port Alder has a new mayor", text, updated)


NEWS = [
    news(0, "Ferry fares rise", "Ferry fares in Port Alder rise by four percent in June, the board said."),
    mayor("Odile Marsh"),
    news(2, "Storm closes coast road", "The coast road near Port Alder was closed by a storm until Monday."),
    news(3, "School wins prize", "A school in Port Alder won a science prize for its weather station."),
]


@pytest.fixture(scope="module")
def shared() -> Iterator[SessionParts]:
    """Gemma with the shipped reader's adapter where it is the default."""
    yield SessionParts(
        config=SessionConfig(),
        cache=CacheConfig(ring=384, evict_block=64, read_block=16, latent_blocks=4),
        limits=ArticleLimits(),
        backbone=HfBackbone.load(HfConfig(adapter="none", device="cpu")),
    )


def answer(session: Session, name: str) -> tuple[str, float]:
    """The reader's answer from the cache alone, and the log-probability of `name`."""
    backbone = session.parts.backbone
    prompt = backbone.encode(reader_prompt([], QUESTION, "base"))
    written = backbone.decode(backbone.generate(prompt, session.cache, 12, ("\n",)))
    return written.strip(), backbone.score(prompt, backbone.encode(f" {name}"), session.cache)


def test_answer_does_not_know_what_was_withdrawn(shared: SessionParts, tmp_path: Path) -> None:
    """The fact answers the question before its withdrawal, neither at once after it nor once rebuilt."""
    session, twin = Session.new(KEY, shared), Session.new(KEY, shared)
    session.read([record(n, one) for n, one in enumerate(NEWS)])
    twin.read([record(n, one) for n, one in enumerate(NEWS) if one.id != "n1"])
    text, known = answer(session, "Odile Marsh")
    never = answer(twin, "Odile Marsh")
    assert "Odile Marsh" in text
    session.read([record(4, None, key=b"n1")])
    text, dropped = answer(session, "Odile Marsh")
    assert "Marsh" not in text and dropped < known - 5
    shelf = ShardLibrary(tmp_path)
    shelf.add(NEWS[0], NEWS[2], NEWS[3])
    rebuild = Rebuild(session, shelf)
    while not rebuild.step(InlineRunner(), skip_missing=False).complete:
        assert len(NEWS) > rebuild.articles
    rebuild.finish(InlineRunner())
    shelf.close()
    assert answer(session, "Odile Marsh") == never
    assert session.cache.to_bytes() == twin.cache.to_bytes()


def test_answer_follows_a_correction_at_once(shared: SessionParts) -> None:
    """After a correction the new form answers, before anything was rebuilt."""
    session = Session.new(KEY, shared)
    session.read([record(n, one) for n, one in enumerate(NEWS)])
    before = answer(session, "Odile Marsh")[1]
    session.read([record(4, mayor("Tomas Reuel", updated="2024-03-09T00:00:00Z"))])
    text, after = answer(session, "Odile Marsh")
    assert "Tomas Reuel" in text and after < before - 5
