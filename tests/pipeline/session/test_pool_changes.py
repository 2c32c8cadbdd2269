"""What a pool does with other settings, another model, and files of later versions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import structlog

from pipeline.errors import DysraError
from pipeline.session.answer import Question
from pipeline.session.pool import SessionPool
from pipeline.session.resident import SessionRefused
from tests.pipeline.session.pool_case import caught_up, library, pool, until
from tests.pipeline.session.support import KEY, backbone

__all__ = ["library", "pool"]  # fixtures


def test_other_settings_keep_the_sessions_in_memory(pool: Callable[..., SessionPool]) -> None:
    """A changed configuration is taken over at once: the same sessions, no byte of them changed."""
    one = pool()
    before, resident = caught_up(one)["digest"], one._residents[KEY]
    sessions = replace(one.sessions, config=replace(one.sessions.config, token_budget=99))
    asking = replace(one.asking, config=sessions.config)
    one.configure(sessions, asking, one._tails, reopen=False)
    assert one._residents[KEY] is resident and resident.session.parts.config.token_budget == 99
    assert one.asking.config.token_budget == 99 and caught_up(one)["digest"] == before


def test_promoted_model_is_taken_over_by_running_sessions(pool: Callable[..., SessionPool]) -> None:
    """Another model takes the sessions over: same place in the topic, caches read anew, questions answered."""
    one = pool(attend="both")
    seen = caught_up(one)["records_seen"]
    sessions = replace(one.sessions, backbone=backbone(seed=1))
    one.configure(sessions, replace(one.asking, backbone=backbone(seed=1)), one._tails, reopen=True)
    page = until(lambda: (p := one.info(KEY)) and p.get("rebuilds") and p, "not rebuilt")
    assert page["model"] == backbone(seed=1).identity and page["restored"]
    assert page["records_seen"] == seen and not page["rebuilding"]
    assert [event.kind for event in one.ask(KEY, Question(text="Which pier?"))][-1] == "done"


def test_question_never_meets_a_model_that_did_not_write_the_cache(pool: Callable[..., SessionPool]) -> None:
    """While another model takes over, answers under way end with theirs; new questions are told to come again."""
    one = pool(attend="both")
    caught_up(one)
    under_way = one.ask(KEY, Question(text="Which pier?"))
    assert next(under_way).kind == "sources"
    sessions = replace(one.sessions, backbone=backbone(seed=1))
    asking = replace(one.asking, backbone=backbone(seed=1))
    change = threading.Thread(
        target=one.configure, args=(sessions, asking, one._tails), kwargs={"reopen": True}, daemon=True
    )
    change.start()
    until(lambda: one.asking is asking, "not configured")
    for _ in range(3):  # the reader looks at the session meanwhile
        with pytest.raises(DysraError, match="another model; ask again"):
            next(one.ask(KEY, Question(text="Which pier?")))
        time.sleep(0.1)
    assert [event.kind for event in under_way][-1] == "done"
    change.join(30)
    assert not change.is_alive()
    assert [event.kind for event in one.ask(KEY, Question(text="Which pier?"))][-1] == "done"
    assert one.info(KEY)["model"] == backbone(seed=1).identity  # type: ignore[index]


def test_an_answer_that_outlasts_the_change_ends_whole_and_its_session_follows(
    pool: Callable[..., SessionPool],
) -> None:
    """Its session is left to its snapshot, with a reason in the log, and the next question opens it with the new
    model; a removal that cannot wait any longer is refused."""
    one = pool(attend="both", let_go_s=0.3)
    caught_up(one)
    under_way = one.ask(KEY, Question(text="Which pier?"))
    assert next(under_way).kind == "sources"
    sessions, asking = (replace(part, backbone=backbone(seed=1)) for part in (one.sessions, one.asking))
    with structlog.testing.capture_logs() as logs:
        one.configure(sessions, asking, one._tails, reopen=True)
    (told,) = [row for row in logs if row["event"] == "session_refused"]
    assert "did not end within 0.3 s" in told["error"]
    with pytest.raises(DysraError, match=r"'harbour' has answers under way that did not end within 0\.3 s"):
        one.remove(KEY)
    assert [event.kind for event in under_way][-1] == "done"
    until(lambda: KEY not in one._residents, "not let go")
    assert [event.kind for event in one.ask(KEY, Question(text="Which pier?"))][-1] == "done"
    assert one.info(KEY)["model"] == backbone(seed=1).identity  # type: ignore[index]


def test_a_pool_that_stops_says_so_to_who_waits_for_a_session(pool: Callable[..., SessionPool]) -> None:
    """Not that an answer took too long: it is asked again elsewhere."""
    one = pool()
    caught_up(one)
    under_way = one.ask(KEY, Question(text="Which pier?"))
    assert next(under_way).kind == "sources"
    threading.Timer(0.3, one._stopped.set).start()
    with pytest.raises(DysraError, match="this replica is stopping"):
        one.remove(KEY)
    list(under_way)


def test_a_snapshot_of_a_later_version_is_refused_and_left_alone(
    pool: Callable[..., SessionPool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a downgrade a session is not begun anew over what the newer version had read: it is refused by both
    versions, and goes on once the newer one is back."""
    one = pool()
    digest = caught_up(one)["digest"]
    one.close()
    snapshots = {path.name for path in tmp_path.glob("sessions/*/*/*.safetensors")}
    monkeypatch.setattr("pipeline.session.state.STATE_VERSION", 1)
    old = pool(owner="old")
    with pytest.raises(SessionRefused, match="version 2; versions 1 to 1 are read here"):
        old.open(KEY)
    assert old.resume(lambda key: True) == []
    assert {path.name for path in tmp_path.glob("sessions/*/*/*.safetensors")} == snapshots
    monkeypatch.undo()
    assert caught_up(pool(owner="new"))["digest"] == digest


def test_a_cache_of_a_later_version_is_refused_and_left_alone(
    pool: Callable[..., SessionPool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for the cache in the snapshot: read anew from articles, it would lose what only its latents hold."""
    one = pool()
    digest = caught_up(one)["digest"]
    one.close()
    snapshots = {path.name for path in tmp_path.glob("sessions/*/*/*.safetensors")}
    monkeypatch.setattr("models.cache.snapshot.FORMAT", 1)
    old = pool(owner="old", other_cache="rebuild")
    with pytest.raises(SessionRefused, match="format 2; this version reads formats 1 to 1"):
        old.open(KEY)
    assert {path.name for path in tmp_path.glob("sessions/*/*/*.safetensors")} == snapshots
    monkeypatch.undo()
    assert caught_up(pool(owner="new"))["digest"] == digest


@pytest.mark.parametrize("note", [b'{"version":2,"tenant":"local","stream":"harbour","kept":1}', b"{"])
def test_a_note_of_a_later_version_is_not_written_over(
    pool: Callable[..., SessionPool], tmp_path: Path, note: bytes
) -> None:
    """A session whose note a later version wrote is refused by name; a damaged note is written anew."""
    one = pool()
    caught_up(one)
    one.close()
    (path,) = (tmp_path / "sessions").glob("*/*/session.json")
    path.write_bytes(note)
    two = pool(owner="two")
    if note == b"{":
        assert caught_up(two)["restored"] and orjson.loads(path.read_bytes())["resident"] is True
        return
    with pytest.raises(SessionRefused, match=r"session\.json has version 2; this DySRA reads up to 1"):
        two.open(KEY)
    assert path.read_bytes() == note
