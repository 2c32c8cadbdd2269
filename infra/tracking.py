"""MLflow: one run for one job, resumed and not doubled when the job is retried.

A run is found again by its key (tag `dysra.run_key`): the operator's own (`tracking.run_key`), else the
submission id of the Ray job, else none, and every start is a run of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.formats import first_line
from pipeline.errors import DependencyUnreachable

_KEY_TAG = "dysra.run_key"
_MAX_PARAM_CHARS = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Where runs are recorded."""

    uri: str = field(
        default="", metadata={"help": "MLflow tracking URI; empty: SQLite under the state folder (.dysra)"}
    )
    experiment: str = field(default="dysra", metadata={"help": "name of the MLflow experiment"})
    run_key: str = field(
        default="", metadata={"help": "a retry with the same key resumes the run; empty: the Ray job's id"}
    )
    enabled: bool = field(default=True, metadata={"help": "record runs in MLflow"})

    def __post_init__(self) -> None:
        if self.enabled and not self.experiment.strip():
            raise ValueError("experiment is empty; give the experiment a name, or set enabled to false")


class Tracker:
    """Writes parameters, metrics and tags of one run; a disabled tracker does nothing."""

    def __init__(self, client: Any, run_id: str, url: str) -> None:
        self._client = client
        self.run_id = run_id
        self.url = url

    def params(self, values: Mapping[str, Any]) -> None:
        """Record parameters once; a resumed run keeps those it has."""
        if self._client is None:
            return
        known = self._client.get_run(self.run_id).data.params
        for name, value in values.items():
            if name not in known:
                self._client.log_param(self.run_id, name, str(value)[:_MAX_PARAM_CHARS])

    def metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Record the numbers among `values`, nested ones under dotted names."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        numbers = [Metric(name, number, now_ms, step or 0) for name, number in _numbers(values)]
        if numbers:
            self._client.log_batch(self.run_id, metrics=numbers)

    def text(self, content: str, name: str) -> None:
        """Keep a small text file with the run."""
        if self._client is not None:
            self._client.log_text(self.run_id, content, name)

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        if self._client is not None:
            self._client.set_terminated(self.run_id, status)


@contextmanager
def track(
    config: TrackingConfig, name: str, state: Path, params: Mapping[str, Any] | None = None
) -> Iterator[Tracker]:
    """A tracker for one job: FINISHED at the end, FAILED on an error, KILLED when interrupted."""
    tracker = start_run(config, name, state)
    tracker.params(params or {})
    try:
        yield tracker
    except BaseException as error:
        with suppress(DependencyUnreachable):  # what went wrong first is told
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracker.finish()


def start_run(config: TrackingConfig, name: str, state: Path) -> Tracker:
    """Start the run called `name`, or resume the one with the same key."""
    if not config.enabled:
        return Tracker(None, "", "")
    uri = config.uri or default_uri(state)
    client = mlflow_client(uri)
    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is not None:
        experiment_id = experiment.experiment_id
    elif uri.startswith("sqlite"):
        artifacts = (state / "mlflow-artifacts").resolve()
        experiment_id = client.create_experiment(config.experiment, artifact_location=artifacts.as_uri())
    else:
        experiment_id = client.create_experiment(config.experiment)
    run_id = _find_or_create(client, experiment_id, name, run_key(config))
    url = f"{uri}/#/experiments/{experiment_id}/runs/{run_id}" if uri.startswith("http") else uri
    return Tracker(client, run_id, url)


def attach(config: TrackingConfig, run_id: str, state: Path) -> Tracker:
    """A tracker that writes into a run that another process started; a disabled one where there is no run."""
    if not config.enabled or not run_id:
        return Tracker(None, "", "")
    uri = config.uri or default_uri(state)
    return Tracker(mlflow_client(uri), run_id, uri)


@contextmanager
def track_child(
    config: TrackingConfig, parent: Tracker, name: str, state: Path, params: Mapping[str, Any] | None = None
) -> Iterator[Tracker]:
    """A run under `parent` (one round of a job, say), found again by its name when the parent was resumed."""
    if not config.enabled or not parent.run_id:
        yield Tracker(None, "", "")
        return
    uri = config.uri or default_uri(state)
    client = mlflow_client(uri)
    experiment_id = client.get_run(parent.run_id).info.experiment_id
    wanted = f"tags.`mlflow.parentRunId` = '{parent.run_id}' and attributes.run_name = '{name}'"
    found = client.search_runs([experiment_id], filter_string=wanted, max_results=1)
    if found:
        run_id = str(found[0].info.run_id)
    else:
        tags = {"mlflow.parentRunId": parent.run_id}
        run_id = str(client.create_run(experiment_id, run_name=name, tags=tags).info.run_id)
    child = Tracker(client, run_id, uri)
    child.params(params or {})
    try:
        yield child
    except BaseException:
        with suppress(DependencyUnreachable):
            child.finish("FAILED")
        raise
    child.finish()


def mlflow_client(uri: str) -> Any:
    """MLflow's client; what it cannot do (no server, full disk, damaged database) is a DependencyUnreachable."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    import logging

    from mlflow.tracking import MlflowClient

    # MLflow sets its own levels when it is imported.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    with reaching(uri):
        return _Client(MlflowClient(tracking_uri=uri, registry_uri=uri), uri)


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Inside, an error of MLflow or of its database is a DependencyUnreachable that names `uri`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise DependencyUnreachable(
            f"MLflow at {uri} does not answer: {first_line(error)[:200]}; "
            "check tracking.uri, or set tracking.enabled to false"
        ) from None


class _Client:
    """The calls of MLflow's client, each inside `reaching`."""

    def __init__(self, client: Any, uri: str) -> None:
        self._client, self._uri = client, uri

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with reaching(self._uri):
                return getattr(self._client, name)(*args, **kwargs)

        return call


def default_uri(state: Path) -> str:
    """The SQLite database that is used when no tracking server is configured."""
    state.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{(state / 'mlflow.db').resolve()}"


def run_key(config: TrackingConfig) -> str:
    """What identifies this job across its retries; empty if nothing does."""
    return (
        config.run_key or os.environ.get("DYSRA_RUN_KEY", "") or os.environ.get("RAY_JOB_SUBMISSION_ID", "")
    )


def _find_or_create(client: Any, experiment_id: str, name: str, key: str) -> str:
    if key:
        wanted = f"tags.`{_KEY_TAG}` = '{key}' and attributes.run_name = '{name}'"
        found = client.search_runs([experiment_id], filter_string=wanted, max_results=1)
        if found:
            run_id = str(found[0].info.run_id)
            client.update_run(run_id, status="RUNNING")
            resumed = int(found[0].data.tags.get("dysra.resumed", "0")) + 1
            client.set_tag(run_id, "dysra.resumed", str(resumed))
            return run_id
    tags = {_KEY_TAG: key} if key else {}
    return str(client.create_run(experiment_id, run_name=name, tags=tags).info.run_id)


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
