"""`dysra demo`: the whole main job on this machine, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.config import load_config
from infra.console import ConfigFile, Figures, JsonFlag, say, verb
from pipeline.errors import UsageError

_DEMO_WINDOW_ARTICLES = 10


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(demo)


@verb
def demo(
    articles: Annotated[int, typer.Option(min=40, help="articles to publish")] = 1_000,
    questions: Annotated[int, typer.Option(min=1, help="questions to ask of the newswire")] = 24,
    news: Annotated[
        Path | None, typer.Option(help="news file to use instead of the newswire (JSONL, zst, Parquet)")
    ] = None,
    questions_file: Annotated[Path | None, typer.Option(help="questions for --news: JSON lines")] = None,
    seed: Annotated[int, typer.Option(help="seed of the newswire")] = 7,
    embedder: Annotated[
        str | None, typer.Option(help="minilm, static, or a sentence-transformers folder")
    ] = None,
    sessions: Annotated[int, typer.Option(min=1, max=32, help="sessions at most")] = 6,
    window: Annotated[
        int, typer.Option(min=1, help="articles of its stream that each session reads back to")
    ] = _DEMO_WINDOW_ARTICLES,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="brokers of your own instead of a local one")
    ] = None,
    port: Annotated[int | None, typer.Option(help="port of the sessions' HTTP")] = None,
    state: Annotated[Path, typer.Option(help="folder for the broker, the store and the sessions")] = Path(
        ".dysra/demo"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="stay up afterwards and print the URLs")] = False,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Broker, articles, ingest, store, sessions, questions with cited answers, a summary: then everything stops."""
    from infra.demo import DemoOptions, run_demo
    from infra.demo.material import file_material, newswire_material

    settings = load_config(config)
    settings = settings.override("kafka", bootstrap_servers=bootstrap_servers)
    settings = settings.override("embedder", model=embedder)
    settings = settings.override("serve", port=port)
    settings = settings.override("session", origin="demo", window_articles=window)
    if news is not None:
        if not news.exists():
            raise UsageError(f"news file {news} does not exist")
        material = file_material(news, articles, questions_file)
    elif questions_file is not None:
        raise UsageError("--questions-file goes with --news; the newswire has questions of its own")
    else:
        material = newswire_material(articles, questions, seed)
    say(
        "[bold]DySRA demo[/]: news in through Kafka, searchable at once, questions answered with their sources\n"
    )
    options = DemoOptions(
        state=state.absolute(), max_sessions=sessions, keep=keep, own_broker=bootstrap_servers is None
    )
    return run_demo(settings, material, options)
