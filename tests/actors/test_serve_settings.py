"""What a Serve user_config may change while sessions run."""

from __future__ import annotations

import pytest

from actors.serve_app import application
from actors.serve_config import ServeConfig
from actors.serve_settings import ServeSettings
from pipeline.errors import UsageError
from pipeline.session import SessionConfig

SETTINGS = ServeSettings(session=SessionConfig(token_budget=64), serve=ServeConfig(no_auth=True))


def test_changed_fields_are_laid_over_the_settings() -> None:
    """Fields that are not given stay as they are; other sections are untouched."""
    changed = SETTINGS.changed({"session": {"hops": 3}, "cache": {"ring": 2048}})
    assert (changed.session.hops, changed.session.token_budget, changed.cache.ring) == (3, 64, 2048)
    assert changed.kafka == SETTINGS.kafka and SETTINGS.changed({}) == SETTINGS


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"kafka": {"topic": "other"}}, "cannot change section 'kafka'.*deploy the application anew"),
        ({"session": {"hopps": 3}}, "unknown field 'session.hopps'"),
        ({"session": {"hops": 0}}, "hops is 0"),
    ],
)
def test_what_cannot_change_is_named(sections: dict[str, dict[str, object]], match: str) -> None:
    """Sections that are fixed, unknown fields and bad values are refused before anything changes."""
    with pytest.raises(UsageError, match=match):
        SETTINGS.changed(sections)


def test_session_section_travels_as_user_config() -> None:
    """Two applications that differ in the session section alone differ in the user_config alone."""
    one, other = application(SETTINGS), application(SETTINGS.changed({"session": {"hops": 3}}))

    def hosts(app: object) -> object:
        return app._bound_deployment.init_args[1]._bound_deployment  # type: ignore[attr-defined]

    first, second = hosts(one), hosts(other)
    assert first.init_args == second.init_args and first.init_kwargs == second.init_kwargs  # type: ignore[attr-defined]
    assert first._deployment_config.user_config["session"]["token_budget"] == 64  # type: ignore[attr-defined]
    assert second._deployment_config.user_config["session"]["hops"] == 3  # type: ignore[attr-defined]
    assert one._bound_deployment.init_args[0] == other._bound_deployment.init_args[0]
