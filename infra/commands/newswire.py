"""`dysra newswire`: simulated news to a file, a topic or a data set, with questions and their answers."""

from __future__ import annotations

import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from infra.config import load_config
from infra.console import ConfigFile, Figures, JsonFlag, progress, say, verb
from infra.signals import stop_on_signals
from pipeline.errors import StoppedEarly, UsageError
from pipeline.newswire import ARTICLES_A_YEAR, KINDS, NewsEvent, Question, Truth, generate, questions
from pipeline.newswire.files import LineFile, Tally, line_of, write_news, write_questions
from pipeline.newswire.newsstreams import DEFAULT_SEED, NewsStreamsPlan, write_news_streams


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("newswire")(newswire)


@verb
def newswire(
    out: Annotated[
        Path | None, typer.Option("--out", help="file to write: JSON lines, compressed if it ends in .zst")
    ] = None,
    questions_file: Annotated[
        Path | None,
        typer.Option("--questions", help="file for the questions and answers (.jsonl, .jsonl.zst)"),
    ] = None,
    num_questions: Annotated[
        int | None,
        typer.Option(
            "--num-questions", help="questions to draw, the kinds in turn [400; 10000 for a data set]"
        ),
    ] = None,
    asked: Annotated[
        str, typer.Option("--asked", help="when questions are asked: end, or spread over the time")
    ] = "end",
    articles: Annotated[
        int | None,
        typer.Option("--articles", help="articles to write, copies counted [1000; 50000 for a data set]"),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", help="seed of the world; the same seed gives the same bytes")
    ] = DEFAULT_SEED,
    start: Annotated[
        str | None, typer.Option("--start", help="first day, YYYY-MM-DD [so that the last year is 2025]")
    ] = None,
    news_streams: Annotated[
        Path | None,
        typer.Option(
            "--news-streams", help="empty folder for the NewsStreams set: shards, splits, truth, card"
        ),
    ] = None,
    topic: Annotated[
        str | None, typer.Option("--topic", help="publish to this topic instead of a file")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="records a second to the topic [as fast as it goes]")
    ] = None,
    bootstrap_servers: Annotated[
        str | None, typer.Option("--bootstrap-servers", help="Kafka brokers, host:port [127.0.0.1:9092]")
    ] = None,
    config: ConfigFile = None,
    json_output: JsonFlag = False,
) -> Figures:
    """Write simulated news with known answers: to a file, a topic, or as the NewsStreams data set."""
    first = _day(start)
    _check(articles, num_questions, asked, rate)
    if news_streams is not None and (out or questions_file or topic or rate):
        raise UsageError(
            "--news-streams writes a whole set; leave out --out, --questions, --topic and --rate"
        )
    if news_streams is None and not (out or questions_file or topic or bootstrap_servers):
        raise UsageError(
            "say where the news goes: --out FILE, --questions FILE, --topic T or --news-streams DIR"
        )
    if rate is not None and not (topic or bootstrap_servers):
        raise UsageError("--rate goes with --topic")
    for path in (out, questions_file):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"there is no folder {path.absolute().parent} to write {path.name} into")
    began = time.monotonic()
    if news_streams is not None:
        wanted = 10_000 if num_questions is None else num_questions
        plan = NewsStreamsPlan(
            seed=seed, num_articles=articles or ARTICLES_A_YEAR, num_questions=wanted, start=first
        )
        with progress("writing NewsStreams", plan.num_articles) as steps:
            figures = write_news_streams(news_streams, plan, lambda event: _step(steps, event))
        figures["seconds"] = round(time.monotonic() - began, 2)
        _describe(figures, f"{news_streams}/")
        return figures
    count = 1_000 if articles is None else articles
    truth = Truth() if questions_file is not None else None
    tally = Tally()
    with progress("writing news", count) as steps:

        def note(event: NewsEvent) -> None:
            _step(steps, event)
            if truth is not None:
                truth.add(event)

        if topic or bootstrap_servers:
            loaded = load_config(config).override("kafka", topic=topic, bootstrap_servers=bootstrap_servers)
            target = f"topic {loaded.kafka.topic}"
            _publish(loaded.kafka, generate(seed, count, first), rate, out, tally, note)
        else:
            target = str(out) if out else "nowhere (counted only)"
            write_news(generate(seed, count, first), out, tally, note)
    found: list[Question] = []
    if truth is not None and questions_file is not None:
        wanted = 400 if num_questions is None else num_questions
        found = questions(seed, count, wanted, asked=asked, start=first, truth=truth)
        write_questions(found, questions_file)
    kinds = Counter(question.kind for question in found)
    figures = {**tally.figures(), "questions": {kind: kinds[kind] for kind in KINDS if kinds[kind]},
               "seconds": round(time.monotonic() - began, 2)}  # fmt: skip
    _describe(figures, target)
    if questions_file is not None:
        say(escape(f"  {len(found):,} questions in {questions_file}"))
    return figures


def _publish(kafka: Any, events: Any, rate: float | None, out: Path | None, tally: Tally, note: Any) -> None:
    """Publish events as they come, at most `rate` a second; a signal stops with what was sent flushed."""
    from pipeline.publisher import Publisher

    copy = LineFile(out) if out is not None else None
    finished = False
    try:
        with stop_on_signals() as stop, Publisher(kafka) as publisher:
            began = time.monotonic()
            for event in events:
                if rate is not None:
                    stop.wait(max(0.0, began + tally.kinds.total() / rate - time.monotonic()))
                if stop.is_set():
                    publisher.flush()
                    raise StoppedEarly(
                        f"stopped after {tally.kinds.total():,} records; all of them are on the topic"
                    )
                line = line_of(event.record)
                if event.kind == "withdrawal":
                    publisher.delete(event.record["id"], event.record["stream"])
                else:
                    publisher.publish_raw(
                        event.record["id"].encode(), line[:-1], stream=event.record["stream"]
                    )
                if copy is not None:
                    copy.write(line)
                tally.add(event, line)
                note(event)
        finished = True
    finally:
        if copy is not None:
            copy.close(keep=finished)


def _step(steps: Any, event: NewsEvent) -> None:
    if event.kind in ("article", "copy"):
        steps.advance()


def _day(text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--start is {text!r}; give a day as YYYY-MM-DD, for example 2024-01-01") from None


def _check(articles: int | None, num_questions: int | None, asked: str, rate: float | None) -> None:
    if articles is not None and articles < 1:
        raise UsageError(f"--articles is {articles}; it must be 1 or more")
    if num_questions is not None and num_questions < 0:
        raise UsageError(f"--num-questions is {num_questions}; it must be 0 or more")
    if asked not in ("end", "spread"):
        raise UsageError(f"--asked is {asked!r}; allowed are end and spread")
    if rate is not None and rate <= 0:
        raise UsageError(f"--rate is {rate:g}; it must be above 0")


def _describe(figures: dict[str, Any], target: str) -> None:
    say(
        escape(
            f"wrote {figures['articles']:,} articles ({figures['copies']:,} of them copies), "
            f"{figures['updates']:,} updates, {figures['corrections']:,} corrections and "
            f"{figures['deletions']:,} withdrawals to {target} in {figures['seconds']:,.1f} s"
        )
    )
    say(
        f"  {figures['words']:,} words, about {figures['tokens_estimate']:,} tokens, "
        f"from {figures['first_published']} to {figures['last_published']}"
    )
    say(f"  sha256 of the lines {figures['sha256']}")
