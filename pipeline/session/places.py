"""Where sessions lie on disk: a folder a tenant, in it one a stream, with a note of whose it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from pipeline.errors import DysraError
from pipeline.log import get_logger
from pipeline.session.resident import SessionRefused
from pipeline.session.state import SessionKey
from pipeline.shared_files import replace_file

_NOTE, _NOTE_VERSION = "session.json", 1


class TooManySessions(DysraError):
    """The tenant has as many sessions as it may have."""


class SessionPlaces:
    """The folders of all sessions under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, key: SessionKey) -> Path:
        """The session's own, which need not exist."""
        return self._tenant_folder(key.tenant) / key.folder

    def note(self, key: SessionKey, *, resident: bool) -> None:
        """Keep beside the snapshots whose they are, and whether the session is to be held in memory."""
        about = {
            "version": _NOTE_VERSION, "tenant": key.tenant, "stream": key.stream, "resident": resident,
        }  # fmt: skip
        replace_file(self.folder(key) / _NOTE, orjson.dumps(about))

    def notes(self) -> list[dict[str, Any]]:
        """What `note` kept of every session, unreadable notes and those of a later version left out."""
        found = []
        for path in sorted(self._root.glob(f"*/*/{_NOTE}")):
            try:
                about = orjson.loads(path.read_bytes())
            except (OSError, orjson.JSONDecodeError):
                continue
            if not isinstance(about, dict) or not {"tenant", "stream"} <= about.keys():
                continue
            if about.get("version", _NOTE_VERSION) == _NOTE_VERSION:
                found.append(about)
            else:
                get_logger().error("session_of_a_later_version", file=str(path), version=about["version"])
        return found

    def require_known(self, key: SessionKey) -> None:
        """Raise SessionRefused for a note of a later version: what it says beyond this one's would be lost."""
        path = self.folder(key) / _NOTE
        try:
            version = orjson.loads(path.read_bytes()).get("version", _NOTE_VERSION)
        except (OSError, orjson.JSONDecodeError, AttributeError):
            return  # none yet, or a damaged one, which is written anew
        if isinstance(version, int) and version > _NOTE_VERSION:
            raise SessionRefused(
                f"{path} has version {version}; this DySRA reads up to {_NOTE_VERSION}: upgrade DySRA, or move the "
                "session's folder away to begin anew"
            )

    def require_room(self, key: SessionKey, limit: int) -> None:
        """Raise TooManySessions if the tenant may have no further one (`limit` 0: any); each is a folder."""
        folder = self._tenant_folder(key.tenant)
        held = sum(1 for _ in folder.iterdir()) if limit and folder.is_dir() else 0
        if limit and held >= limit:
            raise TooManySessions(
                f"tenant {key.tenant!r} has {held} sessions, as many as session.max_per_tenant allows: ask one of "
                "them, or DELETE one (/v1/streams/{id}) that is not needed any more"
            )

    def _tenant_folder(self, tenant: str) -> Path:
        return self._root / SessionKey("", tenant).folder
