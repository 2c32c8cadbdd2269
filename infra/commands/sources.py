"""`dysra replay`, `dysra feed` and `dysra dlq list | replay`: what puts news on a topic."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from infra.config import load_config
from infra.console import ConfigFile, Figures, JsonFlag, progress, say, verb
from infra.signals import stop_on_signals
from pipeline.dead_letters import DeadLetter, read_dead_letters, replay_dead_letters
from pipeline.errors import UsageError
from pipeline.kafka import KafkaConfig
from pipeline.news_file import survey
from pipeline.publisher import Publisher
from pipeline.replay import Replay, ReplayConfig

Servers = Annotated[
    str | None, typer.Option("--bootstrap-servers", help="Kafka brokers, host:port [127.0.0.1:9092]")
]
Topic = Annotated[str | None, typer.Option("--topic", help="topic of the articles [news]")]

dlq_app = typer.Typer(
    name="dlq",
    help="Records that could not be articles: list them, publish them again.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("replay")(replay)
    app.command("feed")(feed)
    app.add_typer(dlq_app)


@verb
def replay(
    file: Annotated[Path, typer.Argument(help="news file: JSON lines (.jsonl, .jsonl.zst) or Parquet")],
    topic: Topic = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="articles a second [as fast as it goes]")
    ] = None,
    speed: Annotated[
        float | None, typer.Option("--speed", help="follow event time, sped up by this factor")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="most records to publish")] = None,
    stream: Annotated[
        str | None, typer.Option("--stream", help="put every article on this stream [its own]")
    ] = None,
    undated: Annotated[
        str, typer.Option("--undated", help="articles without a date: skip, or date them now")
    ] = "skip",
    raw: Annotated[
        bool, typer.Option("--raw", help="publish bad lines as they are, for ingest to dead-letter")
    ] = False,
    start: Annotated[str | None, typer.Option("--start", help="id of the article to start with")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on behind the last article acknowledged before")
    ] = False,
    state: Annotated[Path, typer.Option("--state", help="folder of the progress files")] = Path(
        ".dysra/replay"
    ),
    bootstrap_servers: Servers = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Publish a news file to a topic, in time order; stop it with Ctrl-C and go on with --resume."""
    loaded = load_config(config).override("kafka", topic=topic, bootstrap_servers=bootstrap_servers)
    options = ReplayConfig(
        rate=rate, speed=speed, limit=limit, stream=stream, undated=undated,  # type: ignore[arg-type]
        raw=raw, start=start, resume=resume, state=state,
    )  # fmt: skip
    if not file.is_file():
        raise UsageError(f"there is no news file {file}")
    with stop_on_signals() as stop, Publisher(loaded.kafka) as publisher:
        found = survey(file)
        if not found.in_order:
            say(f"{file} is not in time order; it is sorted in memory")
        with progress(f"replaying {file.name} to {loaded.kafka.topic}", found.num_lines) as steps:
            work = Replay(
                file, publisher, options, loaded.articles, stop=stop, on_progress=steps.update, found=found
            )
            figures = work.run()
    for line in figures["bad"]:
        say(escape(f"  not published: {line}"))
    say(
        f"published {figures['published']:,} records ({figures['bytes'] / 1e6:,.1f} MB) to {figures['topic']} in "
        f"{figures['seconds']:,.1f} s, {figures['articles_per_s']:,.0f} a second; "
        f"{figures['undated']:,} undated and {figures['bad_lines']:,} bad lines left out"
    )
    if figures["published"]:
        say(f"  news from {figures['first_published']} to {figures['last_published']}")
    return figures


@verb
def feed(
    urls: Annotated[list[str], typer.Argument(help="addresses of RSS or Atom feeds")],
    topic: Topic = None,
    interval: Annotated[
        float, typer.Option("--interval", help="seconds between two looks at a feed")
    ] = 300.0,
    once: Annotated[bool, typer.Option("--once", help="look at each feed once, then end")] = False,
    stream: Annotated[
        str | None, typer.Option("--stream", help="put every article on this stream [the feed's title]")
    ] = None,
    state: Annotated[Path, typer.Option("--state", help="folder of what was seen before")] = Path(
        ".dysra/feeds"
    ),
    bootstrap_servers: Servers = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Publish what is new in RSS and Atom feeds, until it is stopped (or --once)."""
    from pipeline.feed import FeedConfig, FeedPoller, check_addresses

    check_addresses(urls)
    loaded = load_config(config).override("kafka", topic=topic, bootstrap_servers=bootstrap_servers)
    options = FeedConfig(interval_s=interval, stream=stream, state=state)
    with stop_on_signals() as stop, Publisher(loaded.kafka) as publisher:
        poller = FeedPoller(urls, publisher, options, loaded.articles, on_event=lambda text: say(f"  {text}"))
        figures = poller.run(once=once, stop=stop)
    say(
        f"published {figures['published']:,} new and {figures['updated']:,} updated articles to {figures['topic']}"
    )
    return figures


@dlq_app.command("list")
@verb
def dlq_list(
    topic: Topic = None,
    limit: Annotated[int, typer.Option("--limit", help="most records to show")] = 50,
    reason: Annotated[str | None, typer.Option("--reason", help="only records with this reason")] = None,
    bootstrap_servers: Servers = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """List the records that could not be articles, each once, with the reason; oldest first."""
    kafka: KafkaConfig = (
        load_config(config).override("kafka", topic=topic, bootstrap_servers=bootstrap_servers).kafka
    )
    if limit < 0:
        raise UsageError(f"--limit is {limit}; it must be 0 or more")
    by_reason: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    for letter in _chosen(read_dead_letters(kafka), reason, None):
        by_reason[letter.reason] += 1
        if len(rows) < limit:
            rows.append(_row(letter))
    total = sum(by_reason.values())
    for row in rows:
        say(escape(f"  {row['id']}  {row['reason']}: {row['detail']}"))
        say(escape(f"      key {row['key']!r}, {row['value_bytes']:,} bytes: {row['head']!r}"))
    shown = ", ".join(f"{name} {count:,}" for name, count in by_reason.most_common())
    say(f"{total:,} dead letters of {kafka.topic}" + (f" ({shown})" if shown else ""))
    return {"topic": kafka.topic, "dead_letters": total, "by_reason": dict(by_reason), "rows": rows}


@dlq_app.command("replay")
@verb
def dlq_replay(
    topic: Topic = None,
    everything: Annotated[bool, typer.Option("--all", help="publish every dead letter again")] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="those with this reason")] = None,
    ids: Annotated[
        str | None, typer.Option("--ids", help="these, as `dysra dlq list` names them, comma separated")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="count them, publish nothing")] = False,
    bootstrap_servers: Servers = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Publish dead letters to their topic again, once the cause is mended."""
    kafka: KafkaConfig = (
        load_config(config).override("kafka", topic=topic, bootstrap_servers=bootstrap_servers).kafka
    )
    if sum((everything, reason is not None, ids is not None)) != 1:
        raise UsageError("say which dead letters: give one of --all, --reason and --ids")
    wanted = {part.strip() for part in ids.split(",") if part.strip()} if ids is not None else None
    by_reason: Counter[str] = Counter()
    left_out: list[str] = []

    def replayable() -> Iterator[DeadLetter]:
        for letter in _chosen(read_dead_letters(kafka), reason, wanted):
            if letter.replayable:
                by_reason[letter.reason] += 1
                yield letter
            else:
                left_out.append(letter.id)

    count = sum(1 for _ in replayable()) if dry_run else replay_dead_letters(kafka, replayable())
    found = count + len(left_out)
    if wanted is not None and found < len(wanted):
        say(f"{len(wanted) - found:,} of the ids are not among the dead letters of {kafka.topic}")
    say(f"{'would publish' if dry_run else 'published'} {count:,} dead letters to {kafka.topic} again")
    for name in itertools.islice(left_out, 10):
        say(f"  left out, not kept whole: {name}")
    return {
        "topic": kafka.topic,
        "replayed": 0 if dry_run else count,
        "matched": found,
        "not_replayable": left_out,
        "by_reason": dict(by_reason),
        "dry_run": dry_run,
    }


def _chosen(letters: Iterator[DeadLetter], reason: str | None, ids: set[str] | None) -> Iterator[DeadLetter]:
    for letter in letters:
        if (reason is None or letter.reason == reason) and (ids is None or letter.id in ids):
            yield letter


def _row(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "reason": letter.reason,
        "detail": letter.detail,
        "attempts": letter.attempts,
        "time": letter.time,
        "key": None if letter.key is None else letter.key[:200].decode(errors="replace"),
        "value_bytes": letter.value_bytes,
        "head": "" if letter.value is None else letter.value[:120].decode(errors="replace"),
        "replayable": letter.replayable,
    }
