"""Serving on a cluster as operators do: `ray job submit -- dysra serve`, and `serve deploy` with the YAML."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from actors.keys import new_key
from infra.dashboards import FOLDER
from pipeline.kafka import KafkaConfig
from pipeline.publisher import Publisher
from tests.broker import TopicFactory
from tests.cluster import Cluster
from tests.models.embed.tiny import make_tiny_embedder
from tests.pipeline.session.support import STREAM, article
from tests.tiny_model import save_tiny_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.broker,
    pytest.mark.timeout(600),
]

LIMIT_S = 240.0
CACHE = {"sinks": 2, "ring": 64, "read_block": 16, "evict_block": 16, "rank": 4, "latent_blocks": 3}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(get: Callable[[], Any], what: str) -> Any:
    """The first true value, waited for."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            if value := get():
                return value
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def sections(root: Path, kafka: KafkaConfig, port: int) -> dict[str, dict[str, Any]]:
    """A configuration of small parts."""
    return {
        "kafka": {"bootstrap_servers": kafka.bootstrap_servers, "topic": kafka.topic},
        "store": {"path": str(root / "store"), "num_shards": 1},
        "embedder": {"model": str(make_tiny_embedder(root / "embedder"))},
        "backbone": {"model": str(save_tiny_model(root / "tiny")), "device": "cpu", "threads": 1},
        "cache": CACHE,
        "session": {"start": "earliest"},
        "serve": {
            "host": "127.0.0.1",
            "port": port,
            "sessions_dir": str(root / "sessions"),
            "cpus_per_replica": 0.5,
            "replicas": 1,
            "ingress_replicas": 1,
            "gpus_per_replica": 0,
            "answer_timeout_s": 20,
            "drain_s": 30,
        },
    }


def read_to_the_end(client: httpx.Client, kafka: KafkaConfig) -> dict[str, Any]:
    """Publish five articles, open the stream's session, and wait until it has read them."""
    with Publisher(kafka) as publisher:
        for number in range(5):
            publisher.publish(article(number))
    until(lambda: client.get("/healthz").status_code == 200, "the service did not come up")
    until(lambda: client.post(f"/v1/streams/{STREAM}").status_code == 201, "no session was opened")

    def page() -> dict[str, Any] | None:
        found = client.get(f"/v1/streams/{STREAM}").json()
        return found if found.get("articles_read") == 5 else None

    return dict(until(page, "the session did not read"))


def test_served_as_a_job_until_it_is_stopped(cluster: Cluster, topic: TopicFactory, tmp_path: Path) -> None:
    """A submitted `dysra serve` answers over HTTP; stopping the job saves the sessions."""
    kafka, port = topic(partitions=1), free_port()
    config = tmp_path / "dysra.yaml"
    config.write_text(yaml.safe_dump(sections(tmp_path, kafka, port)))
    submitted = cluster.run(
        *("ray", "job", "submit", "--no-wait", "--submission-id", "serve-test", "--working-dir", ".", "--"),
        *("dysra", "serve", "--no-auth", "--config", str(config), "--json"),
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            page = read_to_the_end(client, kafka)
            answer = client.post(f"/v1/streams/{STREAM}/ask", json={"question": "Which pier?"}).json()
        assert page["state"] in ("resident", "catching_up") and answer["given_up"]
    finally:
        cluster.run("ray", "job", "stop", "serve-test")
    logs = cluster.run("ray", "job", "logs", "serve-test").stdout
    assert "every session is saved" in logs, logs[-3000:]
    figures = json.loads([line for line in logs.splitlines() if line.startswith("{")][-1])
    assert figures["url"].endswith(str(port))
    assert list((tmp_path / "sessions").glob("*/*/*.safetensors"))


def test_serve_yaml_deploys(cluster: Cluster, topic: TopicFactory, tmp_path: Path) -> None:
    """`serve deploy` with the shipped YAML, its addresses and paths replaced, answers with a key; with another
    user_config the same process goes on with the same sessions, and a wrong one takes nothing away."""
    kafka, port = topic(partitions=1), free_port()
    key = new_key(tmp_path / "keys.json", "desk")
    value = yaml.safe_load((FOLDER.parent / "k8s" / "serve.yaml").read_text(encoding="utf-8"))
    value["http_options"] |= {"host": "127.0.0.1", "port": port}
    (application,) = value["applications"]
    own = sections(tmp_path, kafka, port)
    application["args"] = {name: {**application["args"].get(name, {}), **own[name]} for name in own}
    application["args"]["serve"]["keys_file"] = str(tmp_path / "keys.json")
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(value))
    deployed = cluster.run("serve", "deploy", str(path), "--address", cluster.dashboard)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    try:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, headers=headers) as client:
            page = read_to_the_end(client, kafka)
            assert client.get("/v1/streams", headers={"Authorization": "Bearer wrong"}).status_code == 401
            # with the front door of its `controller_options`; Serve alone answers 500
            assert client.get("/healthz", headers=[(b"X-Request-Id", b"\xff")]).status_code == 200
            assert page["tokens_seen"] > 0

            def deploy_session(**fields: Any) -> None:
                told = {"session": {**own["session"], **fields}}
                application["deployments"] = [{"name": "SessionHost", "user_config": told}]
                path.write_text(yaml.safe_dump(value))
                again = cluster.run("serve", "deploy", str(path), "--address", cluster.dashboard)
                assert again.returncode == 0, again.stdout + again.stderr

            deploy_session(max_per_tenant=1)
            names = (f"other-{number}" for number in count())
            until(
                lambda: client.post(f"/v1/streams/{next(names)}").status_code == 409,
                "the changed user_config was not taken over",
            )
            same = client.get(f"/v1/streams/{STREAM}").json()
            assert (same["replica"], same["epoch"]) == (page["replica"], page["epoch"])
            deploy_session(max_per_tenants=2)  # no such setting
            told = until(
                lambda: client.get(f"/v1/streams/{STREAM}").json()["replica"].get("refused"),
                "nothing was told",
            )
            assert "max_per_tenants" in told
            for _ in range(10):  # longer than Serve takes to end a replica that it gives up
                time.sleep(1.0)
                same = client.get(f"/v1/streams/{STREAM}").json()
                assert (same["replica"]["pid"], same["epoch"]) == (page["replica"]["pid"], page["epoch"])
            deploy_session()  # and a right one is taken over again
            until(
                lambda: "refused" not in client.get(f"/v1/streams/{STREAM}").json()["replica"],
                "the right user_config was not taken over",
            )
    finally:
        cluster.run("serve", "shutdown", "-y", "--address", cluster.dashboard)
