"""A process that owns one session and its folder of snapshots, and reads what it is given through a pipe."""

from __future__ import annotations

import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from infra.bench.faults.news import Published
from infra.bench.faults.steps import Steps
from models.cache import CacheConfig
from models.hf import HfBackbone, HfConfig
from pipeline.article import ArticleLimits
from pipeline.log import configure_logging
from pipeline.session import SessionConfig
from pipeline.session.session import OtherModel, Session, SessionParts
from pipeline.session.snapshot import CorruptSnapshot, SnapshotFolder
from pipeline.session.state import SessionKey
from pipeline.source import Record

KEY = SessionKey("faults", "desk-0")
TOPIC = "faults-session"
_CACHE = CacheConfig(sinks=2, ring=64, read_block=16, evict_block=16, rank=4, latent_blocks=3)
_SNAPSHOT_EVERY = 5


def kafka_record(record: Published) -> Record:
    """The record as a session's topic would deliver it."""
    if record.kind == "bad":
        value: bytes | None = b"{"
    else:
        value = None if record.article is None else record.article.to_json()
    return Record(TOPIC, 0, record.number, 1_000 + record.number, record.article_id.encode(), value, ())


def serve(folder: str, model: str, owner: str, pipe: Connection, armed: int) -> None:
    """Take the session over, from its newest whole snapshot, and read until told to end."""
    configure_logging("CRITICAL", json_lines=True)
    torch.set_num_threads(1)
    backbone = HfBackbone.load(HfConfig(model=model, device="cpu", threads=1))
    parts = SessionParts(
        config=SessionConfig(max_article_tokens=64), cache=_CACHE, limits=ArticleLimits(), backbone=backbone
    )
    steps = Steps()
    steps.install()
    steps.arm(armed)
    began = time.perf_counter()
    snapshots = SnapshotFolder(Path(folder), owner)
    try:
        snapshots.acquire()
        snapshot, skipped = snapshots.newest()
        session = None
        if snapshot is not None:
            try:
                session = Session.restore(KEY, parts, snapshot)
            except (OtherModel, CorruptSnapshot, ValueError) as error:
                skipped.append(str(error))
        session = session or Session.new(KEY, parts)
    except Exception as error:
        pipe.send(("refused", type(error).__name__, str(error)))
        return
    steps.arm(0)
    pipe.send(("open", _next(session), time.perf_counter() - began, skipped))
    while True:
        command, armed, arguments = pipe.recv()
        steps.arm(armed)
        try:
            reply = _do(session, snapshots, command, *arguments)
        except Exception as error:
            pipe.send(("failed", type(error).__name__, str(error)))
            continue
        finally:
            steps.arm(0)
        pipe.send(("done", reply))
        if command == "close":
            return


def _do(session: Session, snapshots: SnapshotFolder, command: str, *arguments: Any) -> Any:
    if command == "read":
        return _read(session, snapshots, *arguments)
    if command == "save":
        return snapshots.write(session.snapshot()).name
    if command == "digest":
        return session.digest(), _next(session), session.cache.tokens_seen
    if command == "offset":
        return _next(session)
    return None


def _read(session: Session, snapshots: SnapshotFolder, records: Sequence[Published], save: bool) -> int:
    for count, record in enumerate(records, 1):
        session.read([kafka_record(record)])
        if save and count % _SNAPSHOT_EVERY == 0:
            snapshots.write(session.snapshot())
    return _next(session)


def _next(session: Session) -> int:
    return (session.state.offsets or {}).get(0, 0)
