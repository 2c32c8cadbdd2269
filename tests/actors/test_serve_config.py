"""What of the service's limits has to fit together."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.serve_app import application
from actors.serve_config import LEAST_SAVING_S, ServeConfig
from actors.serve_settings import ServeSettings
from actors.session_service import SessionService
from infra.config import load_config
from pipeline.errors import UsageError


def test_a_drain_that_would_cut_the_longest_answer_is_refused_by_both_names(tmp_path: Path) -> None:
    """As it stood by default: 60 s to drain, 120 s for an answer. What the error advises is taken."""
    with pytest.raises(
        ValueError, match=r"drain_s is 60 and answer_timeout_s 120: .*raise drain_s to at least 130"
    ):
        ServeConfig(drain_s=60.0, answer_timeout_s=120.0)
    assert ServeConfig(drain_s=130.0, answer_timeout_s=120.0).saving_s == LEAST_SAVING_S
    assert ServeConfig(drain_s=60.0, answer_timeout_s=50.0).saving_s == LEAST_SAVING_S
    written = tmp_path / "dysra.yaml"
    written.write_text("serve:\n  answer_timeout_s: 600\n")
    with pytest.raises(UsageError, match=r"serve.*drain_s is 150 and answer_timeout_s 600"):
        load_config(written)


def test_serve_is_given_the_whole_drain_for_every_deployment() -> None:
    """Nobody in an answer's way, neither the replica nor who passes its tokens on, is ended before it."""
    config = ServeConfig(no_auth=True, answer_timeout_s=33.0, drain_s=55.0)
    ingress = application(ServeSettings(serve=config))._bound_deployment  # type: ignore[attr-defined]
    hosts = ingress.init_args[1]._bound_deployment
    for deployment in (ingress, hosts):
        assert deployment._deployment_config.graceful_shutdown_timeout_s == 55.0


def test_saving_takes_what_the_longest_answer_leaves_of_a_drain() -> None:
    """A reader that does not come to rest is not waited for until Serve ends the replica, the others unsaved."""

    class Pool:
        def close(self, timeout_s: float) -> list[str]:
            self.waited_s = timeout_s
            return []

    pool = Pool()
    service = SessionService(pool, ServeConfig(no_auth=True, answer_timeout_s=100.0, drain_s=112.0))  # type: ignore[arg-type]
    assert service.close() == [] and pool.waited_s == 4.0
