"""The embedder's actor while a topic is being caught up with."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from actors.embedder import NUM_WAITING_CALLS
from actors.ingest_config import IngestConfig
from actors.remote import call, end_actor
from actors.store_actors import embedder_name, start_embedders
from models.embed import EmbedderConfig
from tests.models.embed.tiny import TINY_DIM, make_tiny_embedder

pytestmark = pytest.mark.ray

ARTICLES = [" ".join(["harbour"] * 400)] * 2_000


def test_questions_and_figures_do_not_wait_for_articles(local_ray: None, tmp_path: Path) -> None:
    """However many articles wait to be embedded, a question is embedded next and figures are given at once."""
    config = EmbedderConfig(model=str(make_tiny_embedder(tmp_path / "tiny")))
    (actor,) = start_embedders("busy", config, IngestConfig(), detached=False)
    try:
        assert call(actor.describe.remote(), 60.0)["dim"] == TINY_DIM
        articles = ray.put(ARTICLES)
        waiting = [actor.encode.remote(articles) for _ in range(NUM_WAITING_CALLS + 20)]
        assert call(actor.encode_questions.remote(["Who?"]), 30.0).shape == (1, TINY_DIM)
        stats = call(actor.stats.remote(), 30.0)
        # Behind the calls with articles, figures would come only once 20 of these are done.
        assert stats["texts"] < 20 * len(ARTICLES)
        assert ray.wait(waiting, num_returns=len(waiting), timeout=0)[1]
    finally:
        end_actor(embedder_name("busy", 0))
