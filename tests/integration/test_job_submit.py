"""`ray job submit --working-dir . -- dysra …` on a real cluster with token authentication."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.broker import TopicFactory
from tests.cluster import Cluster
from tests.integration.helpers import publish_newswire
from tests.models.embed.tiny import make_tiny_embedder

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

MAX_UPLOAD_BYTES = 5 * 1024 * 1024


def test_wrong_token_is_refused(cluster: Cluster) -> None:
    """With RAY_AUTH_MODE=token nobody submits a job without the token."""
    done = cluster.run("ray", "job", "list", RAY_AUTH_TOKEN="0" * 64)
    assert done.returncode != 0
    assert "token" in (done.stdout + done.stderr).lower()


@pytest.mark.broker
def test_ingest_runs_as_a_job(cluster: Cluster, topic: TopicFactory, tmp_path: Path) -> None:
    """Published articles are in the store, each accounted for, in figures that end the log; the upload is small.

    What `--working-dir .` uploads is code, under 5 MB.
    """
    kafka = topic()
    embedder = make_tiny_embedder(tmp_path / "tiny")
    published = publish_newswire(kafka, num_articles=60)
    done = cluster.run(
        *("ray", "job", "submit", "--submission-id", "ingest-test", "--working-dir", ".", "--"),
        *("dysra", "ingest", "--topic", kafka.topic, "--bootstrap-servers", kafka.bootstrap_servers),
        *("--store", str(tmp_path / "store"), "--embedder", str(embedder), "--until-idle", "2", "--json"),
        DYSRA_TRACKING_URI=f"sqlite:///{tmp_path}/mlflow.db",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = _figures(done.stdout + done.stderr)
    assert figures["read"] == published
    parts = ("stored", "deleted", "dead_lettered", "duplicates")
    assert figures["read"] == sum(figures[part] for part in parts)
    folders = list(cluster.folder.glob("ray/session_latest/runtime_resources/working_dir_files/_ray_pkg_*"))
    uploaded = [_size(folder) for folder in folders if folder.is_dir()]
    assert uploaded and max(uploaded) < MAX_UPLOAD_BYTES


def _figures(output: str) -> dict:
    """The last line that is a JSON object: the driver's own output ends with it."""
    lines = [line for line in output.splitlines() if line.startswith("{") and line.endswith("}")]
    assert lines, output[-2000:]
    return json.loads(lines[-1])


def _size(folder: Path) -> int:
    """Without what the job compiles there once it runs."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if "__pycache__" not in path.parts)
