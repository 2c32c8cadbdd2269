"""`dysra serve`, `dysra ask`, `dysra summarize`: sessions over HTTP, and a client for the shell."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from infra.config import load_config
from infra.console import ConfigFile, Figures, JsonFlag, say, verb
from infra.signals import stop_on_signals
from pipeline.errors import StoppedEarly, UsageError
from pipeline.kafka import reachable

Url = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="DYSRA_URL", help="where the service answers; default: from the configuration"
    ),
]
Key = Annotated[
    str | None, typer.Option("--key", envvar="DYSRA_KEY", help="API key, where the service asks for one")
]
_POLL_S = 0.5


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(serve)
    app.command()(ask)
    app.command()(summarize)


@verb
def serve(
    host: Annotated[str | None, typer.Option(help="address to listen on (127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on (8000)")] = None,
    store: Annotated[Path | None, typer.Option(help="folder of the store that `dysra ingest` fills")] = None,
    sessions: Annotated[Path | None, typer.Option(help="folder of the sessions' snapshots")] = None,
    model: Annotated[str | None, typer.Option(help="gemma-3-270m, or a folder of any decoder")] = None,
    adapter: Annotated[str | None, typer.Option(help="LoRA adapter: shipped, none, or a folder")] = None,
    embedder: Annotated[
        str | None, typer.Option(help="the store's embedder: minilm, static or a folder")
    ] = None,
    replicas: Annotated[int | None, typer.Option(help="replicas that hold sessions, one a GPU")] = None,
    start: Annotated[str | None, typer.Option(help="new sessions start at: window, earliest, latest")] = None,
    window: Annotated[int | None, typer.Option(help="articles that a new session reads back to")] = None,
    bootstrap_servers: Annotated[str | None, typer.Option(help="Kafka brokers, host:port")] = None,
    topic: Annotated[str | None, typer.Option(help="topic of the articles")] = None,
    keys: Annotated[Path | None, typer.Option(help="file of API keys")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="no API keys (loopback addresses only)")] = False,
    new_key: Annotated[str | None, typer.Option(metavar="TENANT", help="add a key to --keys and end")] = None,
    key_stream: Annotated[
        list[str] | None, typer.Option(help="with --new-key: a stream it is good for")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="a Ray cluster; empty: the running one, else embedded")
    ] = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Serve sessions over HTTP until stopped (Ctrl-C, SIGTERM); every session is saved on the way out."""
    effective = (
        load_config(config)
        .override("serve", host=host, port=port, sessions_dir=sessions, replicas=replicas, keys_file=keys)
        .override("serve", no_auth=no_auth or None)
        .override("store", path=store)
        .override("backbone", model=model, adapter=adapter)
        .override("embedder", model=embedder)
        .override("session", start=start, window_articles=window)
        .override("kafka", bootstrap_servers=bootstrap_servers, topic=topic)
    )
    if new_key is not None:
        return _new_key(effective.serve.keys_file, new_key, key_stream or [])
    from actors.keys import check_open_door

    config_serve = effective.serve
    check_open_door(config_serve.host, no_auth=config_serve.no_auth, keys_file=config_serve.keys_file)
    reachable(effective.kafka)
    from actors import serve_app
    from actors.serve_settings import ServeSettings
    from infra.cluster import connect_ray

    settings = ServeSettings.from_config(effective)
    serve_app.check_ready(settings)
    where = connect_ray(ray_address)
    with stop_on_signals() as stopped:  # after Ray, which sets a handler of its own
        model = effective.backbone.model
        say(f"Starting {config_serve.replicas} replica(s) on the {where} Ray, model {model} …")
        began = time.monotonic()
        deployed = serve_app.deploy(settings, detached_store=where == "cluster")
        ready_s = time.monotonic() - began
        _say_ready(deployed.url, ready_s, config_serve.no_auth)
        while not stopped.wait(_POLL_S):
            if not serve_app.status():
                say("The application was deleted from outside; stopping.")
                break
        say("Stopping: answers under way are finished, sessions saved …")
        drained = serve_app.shutdown(config_serve.drain_s + 30)
        if where == "embedded":
            deployed.store.close_store()
    figures = {
        "url": deployed.url,
        "ready_s": round(ready_s, 1),
        "seconds": round(time.monotonic() - began, 1),
    }
    if not drained:
        error = StoppedEarly(
            f"the replicas did not finish within {config_serve.drain_s + 30:.0f} s; sessions go on from their "
            "last snapshots (serve.drain_s sets the time)"
        )
        error.figures = figures  # type: ignore[attr-defined]
        raise error
    say("Stopped; every session is saved.")
    return figures


@verb
def ask(
    stream: Annotated[str, typer.Argument(help="the stream to ask")],
    question: Annotated[str, typer.Argument(help="what you want to know")],
    as_of: Annotated[str | None, typer.Option(help="answer as of this day or time (ISO 8601)")] = None,
    since: Annotated[str | None, typer.Option(help="only articles published since (ISO 8601)")] = None,
    source: Annotated[list[str] | None, typer.Option(help="only this source; may be repeated")] = None,
    k: Annotated[int | None, typer.Option("-k", help="passages taken from the store")] = None,
    budget: Annotated[int | None, typer.Option(help="tokens of sentences that are read")] = None,
    all_streams: Annotated[bool, typer.Option("--all-streams", help="search every stream")] = False,
    url: Url = None,
    key: Key = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Ask a stream one question; the answer comes with its sources and its cost."""
    from actors.api_models import AskBody
    from infra.client import SessionClient

    body = {
        "question": question,
        "as_of": as_of,
        "since": since,
        "sources": source or None,
        "k": k,
        "token_budget": budget,
        "cross_stream": all_streams,
    }
    asked = _checked(AskBody, body)
    with SessionClient(url or load_config(config).serve.url, key) as client:
        answer = client.ask(stream, asked)
    show_answer(answer)
    return answer


@verb
def summarize(
    stream: Annotated[str, typer.Argument(help="the stream to summarise")],
    since: Annotated[str | None, typer.Option(help="first day or time (ISO 8601)")] = None,
    until: Annotated[str | None, typer.Option(help="last day or time (ISO 8601)")] = None,
    sentences: Annotated[int | None, typer.Option(help="length in sentences")] = None,
    url: Url = None,
    key: Key = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """What a stream's recent articles report most, quoted, each line with its source."""
    from actors.api_models import SummaryBody
    from infra.client import SessionClient

    body = {"since": since, "until": until, "sentences": sentences}
    asked = _checked(SummaryBody, body)
    with SessionClient(url or load_config(config).serve.url, key) as client:
        summary = client.summarize(stream, asked)
    if not summary["sources"]:
        say("No article of this stream lies in the period.")
    else:
        say(escape(summary["text"]))
        _show_sources(summary["sources"])
    say(f"[dim]{summary['articles_considered']} articles looked at; {summary['method']}[/]")
    return summary


def _checked(form: type[Any], body: dict[str, Any]) -> dict[str, Any]:
    """What is sent: the fields that were given, checked as the service would check them."""
    from pydantic import ValidationError

    given = {name: value for name, value in body.items() if value is not None}
    try:
        form.model_validate(given)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = ".".join(map(str, wrong["loc"]))
        raise UsageError(f"{name} is {wrong['input']!r}: {wrong['msg']}") from None
    return given


def show_answer(answer: dict[str, Any]) -> None:
    """An answer for a person: text, sources, cost."""
    say("[bold]The news does not say.[/]" if answer["given_up"] else f"[bold]{escape(answer['text'])}[/]")
    _show_sources(answer["sources"])
    tokens, lag = answer["tokens"], answer["lag"]
    behind = f"{lag['records']} records behind" if lag["records"] else "up to date"
    partial = "; [yellow]partial: a part of the store did not answer[/]" if answer["partial"] else ""
    say(
        f"[dim]read {tokens['read']} tokens, wrote {tokens['generated']}, {answer['latency_ms']:,.0f} ms; "
        f"session {answer['session_bytes'] / 1e6:.1f} MB, {behind}[/]{partial}"
    )


def _show_sources(sources: list[dict[str, Any]]) -> None:
    for number, source in enumerate(sources, start=1):
        say(
            f"  \\[{number}] {source['published'][:10]} {escape(source['source'])}: {escape(source['title'])}"
            + (f" [dim]{escape(source['url'])}[/]" if source["url"] else "")
        )
        say(f"      [dim]{escape(source['quote'])}[/]")


def _new_key(path: Path | None, tenant: str, streams: list[str]) -> Figures:
    from actors.keys import new_key

    if path is None:
        raise UsageError("name the file that the key is added to: --keys FILE")
    key = new_key(path, tenant, streams)
    say(f"Key of tenant {tenant}, shown only now:\n\n  {key}\n")
    say(f"Its hash is in {path}. Send it as `Authorization: Bearer {key[:14]}…`, or set DYSRA_KEY.")
    return {"tenant": tenant, "key": key, "keys_file": str(path)}


def _say_ready(url: str, ready_s: float, no_auth: bool) -> None:
    auth = "" if no_auth else ' -H "Authorization: Bearer $DYSRA_KEY"'
    say(
        f"[green]Ready[/] after {ready_s:.0f} s. [bold]{url}[/]  (pages: {url}/docs, streams: {url}/v1/streams)"
    )
    say('  dysra ask STREAM "What happened?"')
    body = '{"question": "What happened?"}'
    say(escape(f"  curl {url}/v1/streams/STREAM/ask{auth} -H 'Content-Type: application/json' -d '{body}'"))
    say(f"  OpenAI clients: base_url {url}/v1, model dysra:STREAM")
