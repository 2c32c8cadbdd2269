"""What the demo stands on, started side by side: a broker in a thread of its own, meanwhile Ray and MLflow."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from infra.config import Config
from infra.console import say
from infra.demo.waiting import waiting


def named_for(config: Config, state: Path, run: str) -> Config:
    """The configuration of one run: a topic and a group of its own, store and sessions in `state`."""
    config = config.override(
        "kafka", origin="demo", topic=f"{config.kafka.topic}-demo-{run}", group_id=f"demo-{run}"
    )
    config = config.override("store", origin="demo", path=state / "store")
    return config.override("serve", origin="demo", sessions_dir=state / "sessions", no_auth=True)


def start_broker(config: Config, state: Path, own_broker: bool, cleanup: ExitStack) -> Callable[[], Config]:
    """Begin to start a broker (or look for the operator's) and make the topic.

    The result waits for it and gives the configuration that names it. `cleanup` stops the broker, however far it
    has come; jars that are missing are fetched before this returns.
    """
    if not own_broker:
        from pipeline.kafka import reachable

        say(f"[bold]1. Kafka[/]: yours, at {config.kafka.bootstrap_servers}")
        reachable(config.kafka)
        return lambda: _with_topic(config)
    from infra import kafka
    from infra.kafka.jars import ensure_jars, java

    folder = state / "kafka"
    say("[bold]1. Kafka[/] starts: a broker of its own, no container (the first time Maven fetches its jars)")
    java()  # what is missing is told before Ray starts for nothing
    with waiting("Maven fetches Kafka"):
        ensure_jars(on_step=lambda step: say(f"   {step}"))
    workers = ThreadPoolExecutor(1, thread_name_prefix="broker")

    def start() -> Config:
        broker = kafka.start(folder, 0, on_step=lambda step: say(f"   {step}"))
        return _with_topic(
            config.override("kafka", origin="demo", bootstrap_servers=broker.bootstrap_servers)
        )

    cleanup.callback(lambda: shutil.rmtree(folder / "data", ignore_errors=True))
    cleanup.callback(kafka.stop, folder)
    cleanup.callback(
        workers.shutdown, cancel_futures=True
    )  # waits: what has begun to start can be stopped then
    started = workers.submit(start)

    def wait() -> Config:
        with waiting("the broker starts"):
            return started.result()  # has a limit of its own

    return wait


def start_ray(cleanup: ExitStack) -> None:
    """Ray, embedded in this process; `cleanup` stops it."""
    from infra.cluster import connect_ray

    say("[bold]2. Ray[/] starts beside it, embedded in this process")
    with waiting("Ray starts"):
        connect_ray()
    cleanup.callback(_stop_ray)


def _with_topic(config: Config) -> Config:
    from pipeline.kafka import ensure_topic

    ensure_topic(config.kafka)
    say(
        f"   topic {config.kafka.topic}, {config.kafka.partitions} partitions, at {config.kafka.bootstrap_servers}"
    )
    return config


def _stop_ray() -> None:
    import ray

    ray.shutdown()
