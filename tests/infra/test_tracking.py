"""MLflow runs: found again by their key, never doubled."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.tracking import TrackingConfig, default_uri, mlflow_client, start_run, track
from pipeline.errors import DependencyUnreachable


def _runs(state: Path) -> list[object]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(state))
    experiment = client.get_experiment_by_name("dysra")
    return list(client.search_runs([experiment.experiment_id]))


def test_retry_with_the_same_key_resumes_the_run(tmp_path: Path) -> None:
    """A job that is tried again goes on in its own run, whose parameters and metrics stay."""
    config = TrackingConfig(run_key="job-1")
    with pytest.raises(RuntimeError), track(config, "ingest", tmp_path, {"shards": 2}) as first:
        first.metrics({"read": 10, "delay_ms": {"p50": 3.5}, "note": "text", "flag": True}, step=1)
        raise RuntimeError("killed")
    with track(config, "ingest", tmp_path, {"shards": 3}) as second:
        second.metrics({"read": 20}, step=2)
    assert second.run_id == first.run_id
    (run,) = _runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"shards": "2"}
    assert run.data.metrics == {"read": 20.0, "delay_ms.p50": 3.5}
    assert run.data.tags["dysra.resumed"] == "1"


def test_starts_without_a_key_are_runs_of_their_own(tmp_path: Path) -> None:
    """Two jobs that nothing ties together are two runs, and another name is another run."""
    first = start_run(TrackingConfig(), "ingest", tmp_path)
    second = start_run(TrackingConfig(), "ingest", tmp_path)
    keyed = TrackingConfig(run_key="k")
    third, fourth = start_run(keyed, "ingest", tmp_path), start_run(keyed, "serve", tmp_path)
    assert len({first.run_id, second.run_id, third.run_id, fourth.run_id}) == 4


def test_disabled_tracker_writes_nothing(tmp_path: Path) -> None:
    """With tracking off nothing is created on disk."""
    with track(TrackingConfig(enabled=False), "ingest", tmp_path, {"a": 1}) as tracker:
        tracker.metrics({"read": 1})
    assert list(tmp_path.iterdir()) == []


def test_unreachable_server_is_named_with_what_to_change(tmp_path: Path) -> None:
    """A tracking server that does not answer is an error within seconds."""
    with pytest.raises(DependencyUnreachable, match=r"127\.0\.0\.1:9 .*tracking\.uri"):
        start_run(TrackingConfig(uri="http://127.0.0.1:9"), "ingest", tmp_path)


def test_what_went_wrong_is_told_and_not_that_mlflow_is_gone(tmp_path: Path) -> None:
    """A run that fails because its server went away ends with its own error."""
    with (
        pytest.raises(ZeroDivisionError),
        track(TrackingConfig(), "train", tmp_path) as tracker,
    ):
        tracker._client = mlflow_client("http://127.0.0.1:9")
        raise ZeroDivisionError
    with pytest.raises(DependencyUnreachable, match=r"127\.0\.0\.1:9"):
        tracker.metrics({"loss": 1.0})
