"""`dysra kafka up | down | status`: the local broker of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from infra.console import ConfigFile, Figures, JsonFlag, say, verb
from infra.kafka import Broker, find, start, stop
from pipeline.errors import DependencyUnreachable
from pipeline.kafka import KafkaConfig
from pipeline.topics import topic_sizes

Directory = Annotated[
    Path, typer.Option("--dir", help="folder of the broker: its records, logs and settings")
]
_DEFAULT_DIRECTORY = Path(".dysra/kafka")

kafka_app = typer.Typer(
    name="kafka", help="A local Apache Kafka broker (needs Java 17 and Maven).", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.add_typer(kafka_app)


@kafka_app.command("up")
@verb
def up(
    directory: Directory = _DEFAULT_DIRECTORY,
    port: Annotated[
        int | None, typer.Option("--port", help="port of the broker [9092]; 0 picks a free one")
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", help="limit of the start, in seconds")] = 90.0,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Start the broker, or find the running one; returns once it answers."""
    broker = start(directory, port, timeout_s=timeout_s, on_step=lambda text: say(f"  {text}"))
    done = "started" if broker.started else "already running"
    say(f"Kafka {broker.version} {done} at {broker.bootstrap_servers} (process {broker.pid})")
    say(f"  records and logs: {broker.directory}   log: {broker.log}")
    say(f"  stop it with: dysra kafka down --dir {directory}")
    return broker.figures()


@kafka_app.command("down")
@verb
def down(
    directory: Directory = _DEFAULT_DIRECTORY,
    timeout_s: Annotated[float, typer.Option("--timeout", help="seconds to wait before it is killed")] = 30.0,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Stop the broker of the folder; its records stay."""
    broker = stop(directory, timeout_s=timeout_s)
    if broker is None:
        say(f"no broker of {directory} is running")
        return {"stopped": False, "directory": str(directory.absolute())}
    say(
        f"Kafka at {broker.bootstrap_servers} stopped (process {broker.pid}); its records stay in {directory}"
    )
    return {"stopped": True, "pid": broker.pid, "directory": broker.directory}


@kafka_app.command("status")
@verb
def status(
    directory: Directory = _DEFAULT_DIRECTORY, config: ConfigFile = None, json_output: JsonFlag = False
) -> Figures:
    """Show the broker's process, address, topics and their sizes; exit code 3 if none runs."""
    broker = find(directory)
    if broker is None:
        raise DependencyUnreachable(f"no broker of {directory} is running; start one with `dysra kafka up`")
    topics = topic_sizes(KafkaConfig(bootstrap_servers=broker.bootstrap_servers))
    say(f"Kafka {broker.version} at {broker.bootstrap_servers} (process {broker.pid}); log: {broker.log}")
    for row in topics:
        size = f"{row['bytes'] / 1e6:,.1f} MB"
        say(f"  {row['topic']}: {row['records']:,} records in {row['partitions']} partitions, {size}")
    if not topics:
        say("  no topics yet")
    return {**_identity(broker), "topics": topics}


def _identity(broker: Broker) -> dict[str, Any]:
    figures = broker.figures()
    return {
        name: figures[name] for name in ("pid", "port", "bootstrap_servers", "directory", "log", "version")
    }
