"""The policies that may serve, in MLflow: versions of one registered model, aliases champion and challenger.

The champion also lies in a folder of its own with a small pointer file, so sessions can poll it without MLflow.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.tracking import TrackingConfig, default_uri, mlflow_client, reaching
from models.formats import FORMAT, KEY
from pipeline.errors import UsageError
from pipeline.shared_files import locked, replace_file

MODEL = "retriever"
CHAMPION, CHALLENGER = "champion", "challenger"
POINTER = "champion.json"
_PREVIOUS = "dysra.previous_champion"
_BIAS = "stop_bias"
_READING = "reading"


class PromotionUnderWay(UsageError):
    """Another process promotes or rolls back."""


class Registry:
    """Versions of the retriever's policy. `state` is the folder of the champion's copy."""

    def __init__(self, config: TrackingConfig, state: Path) -> None:
        self._state = state
        self.uri = config.uri or default_uri(state)
        self._client = mlflow_client(self.uri)
        if not self._client.search_registered_models(f"name = '{MODEL}'"):
            self._client.create_registered_model(MODEL)

    def add(self, folder: Path, run_id: str, figures: Mapping[str, Any]) -> int:
        """Register a saved policy as a new version and make it the challenger."""
        self._client.log_artifacts(run_id, str(folder), "policy")
        source = f"{self._client.get_run(run_id).info.artifact_uri}/policy"
        tags = {name: str(value)[:500] for name, value in figures.items()}
        made = self._client.create_model_version(MODEL, source=source, run_id=run_id, tags=tags)
        self._client.set_registered_model_alias(MODEL, CHALLENGER, made.version)
        return int(made.version)

    def versions(self) -> list[dict[str, Any]]:
        """Every version, newest first: version, aliases, tags, run_id, created_ms."""
        aliases: dict[int, list[str]] = {}
        for alias, version in self._aliases().items():
            aliases.setdefault(int(version), []).append(alias)
        found = self._client.search_model_versions(f"name = '{MODEL}'")
        return sorted(
            (
                {
                    "version": int(each.version),
                    "aliases": sorted(aliases.get(int(each.version), [])),
                    "run_id": each.run_id,
                    "created_ms": int(each.creation_timestamp),
                    "tags": dict(each.tags),
                }
                for each in found
            ),
            key=lambda row: -int(row["version"]),
        )

    def version_of(self, alias: str) -> int | None:
        """The version that an alias names."""
        version = self._aliases().get(alias)
        return None if version is None else int(version)

    def fetch(self, version: int, target: Path) -> Path:
        """A version's policy as a folder under `target`."""
        if version not in [row["version"] for row in self.versions()]:
            raise UsageError(f"version {version} is not registered; see `dysra models list`")
        from mlflow.artifacts import download_artifacts

        source = self._client.get_model_version(MODEL, str(version)).source
        target.mkdir(parents=True, exist_ok=True)
        with reaching(self.uri):
            found = download_artifacts(artifact_uri=source, dst_path=str(target), tracking_uri=self.uri)
        return Path(found)

    def promote(self, version: int, stop_bias: float = 0.0, reading: str = "together") -> int | None:
        """Make a version the champion; returns the one before it. Sessions find it by the pointer file.

        `reading` is how its choices are read where `session.reading` leaves it to the policy.
        """
        before = self.version_of(CHAMPION)
        self._client.set_model_version_tag(MODEL, str(version), _READING, reading)
        self._client.set_model_version_tag(MODEL, str(version), _BIAS, str(stop_bias))
        self._publish(version)
        self._client.set_registered_model_alias(MODEL, CHAMPION, str(version))
        if self.version_of(CHALLENGER) == version:
            self._client.delete_registered_model_alias(MODEL, CHALLENGER)
        if before is not None and before != version:
            self._client.set_registered_model_tag(MODEL, _PREVIOUS, str(before))
        return before

    def rollback(self) -> tuple[int, int]:
        """Go back to the champion before this one: (left, back to)."""
        current = self.version_of(CHAMPION)
        told = self._client.get_registered_model(MODEL).tags.get(_PREVIOUS, "")
        if current is None or not told:
            raise UsageError(
                "there is no champion before this one to go back to; `dysra models list` shows what there is"
            )
        self._publish(int(told))
        self._client.set_registered_model_alias(MODEL, CHAMPION, told)
        self._client.set_registered_model_tag(MODEL, _PREVIOUS, str(current))
        return current, int(told)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other process of this state folder promotes or rolls back; UsageError where one is at it."""
        home = self.pointer.parent
        home.mkdir(parents=True, exist_ok=True)
        with locked(home / ".promoting", 1.0, PromotionUnderWay):
            yield

    @property
    def stop_bias(self) -> float:
        """The bias of STOP that the champion serves with."""
        champion = self.version_of(CHAMPION)
        return 0.0 if champion is None else self._bias(champion)

    @property
    def reading(self) -> str:
        """How the champion's choices are read: together or apart."""
        champion = self.version_of(CHAMPION)
        return "together" if champion is None else self._reading(champion)

    @property
    def pointer(self) -> Path:
        """The file that names the champion's folder; what sessions poll."""
        return self._state / "policy" / POINTER

    def _publish(self, version: int) -> None:
        """Copy a version beside the pointer, then move the pointer to it, at once."""
        home = self.pointer.parent
        home.mkdir(parents=True, exist_ok=True)
        # another registry numbers from 1 again: its versions are no copies of this one's
        run = str(self._client.get_model_version(MODEL, str(version)).run_id)[:8]
        folder = home / f"v{version}-{run}"
        if not folder.exists():
            part = home / f".v{version}-{os.getpid()}"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(self.fetch(version, part / "fetched"), part / "policy")
            os.replace(part / "policy", folder)
            shutil.rmtree(part, ignore_errors=True)
        body = {
            KEY: FORMAT,
            "version": version,
            "folder": str(folder.absolute()),
            "stop_bias": self._bias(version),
            "reading": self._reading(version),
            "since": time.time(),
        }
        replace_file(self.pointer, (json.dumps(body) + "\n").encode())

    def _bias(self, version: int) -> float:
        return float(self._client.get_model_version(MODEL, str(version)).tags.get(_BIAS, "0"))

    def _reading(self, version: int) -> str:
        return str(self._client.get_model_version(MODEL, str(version)).tags.get(_READING, "together"))

    def _aliases(self) -> dict[str, Any]:
        return dict(self._client.get_registered_model(MODEL).aliases or {})
