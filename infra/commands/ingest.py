"""`dysra ingest`: the continuous job from a topic into the store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.config import load_config
from infra.console import ConfigFile, Figures, JsonFlag, say, verb
from infra.signals import stop_on_signals
from pipeline.errors import DysraError, StoppedEarly, UsageError

_PROGRESS_S = 5.0


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("ingest")(ingest)


@verb
def ingest(
    topic: Annotated[str | None, typer.Option("--topic", help="topic of the articles")] = None,
    bootstrap_servers: Annotated[
        str | None, typer.Option("--bootstrap-servers", help="brokers, as host:port, comma separated")
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="folder of the store, made if it is missing")
    ] = None,
    shards: Annotated[
        int | None, typer.Option("--shards", help="number of shards; fixed when the store is made")
    ] = None,
    embedder: Annotated[
        str | None, typer.Option("--embedder", help="minilm, static, or a model's folder; fixed for a store")
    ] = None,
    until_idle: Annotated[
        float | None,
        typer.Option(
            "--until-idle", help="end once the topic has been silent for this long and all is durable, s"
        ),
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", help="consumer group that durable offsets are committed to")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="end once this many records are accounted for")
    ] = None,
    ingesters: Annotated[
        int | None, typer.Option("--ingesters", help="ingest actors that the partitions are spread over")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="a Ray cluster; empty: the running one, else embedded")
    ] = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Read a topic into the store until stopped (SIGTERM, Ctrl-C), or until it is silent (--until-idle).

    Every record ends in one way: stored, deleted, dead-lettered to <topic>.dlq, or a duplicate. Run it again and
    it goes on where the store ends. Exit code 0 at the end, 5 when it was stopped before.
    """
    for name, value in (("--until-idle", until_idle), ("--limit", limit)):
        if value is not None and value <= 0:
            raise UsageError(f"{name} is {value}; it must be above 0")
    settings = (
        load_config(config)
        .override("kafka", topic=topic, bootstrap_servers=bootstrap_servers, group_id=group)
        .override("store", path=store, num_shards=shards)
        .override("embedder", model=embedder)
        .override("ingest", num_ingesters=ingesters)
    )
    figures, reason = run(settings, until_idle, limit, ray_address)
    say(_summary(figures))
    if reason == "stopped":
        error = StoppedEarly("stopped before the end; all finished work is saved, run it again to go on")
        error.figures = figures  # type: ignore[attr-defined]
        raise error
    return figures


def run(
    settings: Any, until_idle: float | None, limit: int | None, ray_address: str | None
) -> tuple[Figures, str]:
    """Run the job to its end; the figures, and why it ended."""
    from actors.ingest_job import IngestJob
    from actors.ingest_spec import IngestSpec
    from infra.cluster import connect_ray
    from models.embed import warm_up
    from pipeline.kafka import topic_partitions

    notice = warm_up(settings.embedder)
    topic_partitions(settings.kafka, settings.kafka.topic)  # fails at once, before anything heavy starts
    if notice:
        say(f"  {notice}")
    where = connect_ray(ray_address)
    _require_lasting_folder(settings.store.path, where)
    with stop_on_signals() as stop:  # after Ray, which sets a handler of its own
        spec = IngestSpec.from_config(settings)
        job = IngestJob.start(spec, detached=where == "cluster")
        say(
            f"ingesting {spec.kafka.topic} at {spec.kafka.describe()} into {job.spec.store.path} "
            f"({job.client.num_shards} shards, {job.client.embedder_identity}, Ray {where})"
        )
        try:
            reason = job.wait(
                until_idle_s=until_idle, limit=limit, stopped=stop.is_set, on_progress=_progress_printer()
            )
        except DysraError as error:
            error.figures = job.stop()  # type: ignore[attr-defined]
            raise
        figures = job.stop()
        figures["ended"] = reason
        return figures, reason


def _require_lasting_folder(path: Path, where: str) -> None:
    """A job's working folder is a copy that Ray throws away: a store does not belong there."""
    import ray

    if where == "cluster" and not path.expanduser().is_absolute():
        working_dir = ray.get_runtime_context().runtime_env.get("working_dir")
        if working_dir or os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
            raise UsageError(
                f"the store folder {str(path)!r} is relative to the job's working folder, which Ray removes after "
                "the job; give an absolute path that the cluster's nodes share (--store or store.path)"
            )


def _progress_printer() -> Any:
    import time

    shown = [time.monotonic()]

    def show(figures: Figures) -> None:
        if time.monotonic() - shown[0] < _PROGRESS_S:
            return
        shown[0] = time.monotonic()
        delays = figures["published_to_searchable_ms"]
        p50, p99 = (f"{delays[name] / 1_000:.1f} s" if delays[name] else "-" for name in ("p50", "p99"))
        say(
            f"  {figures['read']:,} records ({figures['stored']:,} stored), lag {figures['lag']:,}, "
            f"{figures['articles_per_s']:.0f}/s, searchable after {p50} (p50), {p99} (p99)"
        )

    return show


def _summary(figures: Figures) -> str:
    return (
        f"read {figures['read']:,} records in {figures['seconds']:.0f} s: {figures['stored']:,} stored, "
        f"{figures['deleted']:,} deleted, {figures['dead_lettered']:,} dead-lettered, "
        f"{figures['duplicates']:,} duplicates ({figures['duplicates_linked']:,} linked); "
        f"{figures['chunks']:,} chunks, lag {figures['lag']:,}"
    )
