"""The stages of the demo, in order; each says what it does and leaves nothing running."""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from infra.config import Config
from infra.console import Figures, progress, say
from infra.demo import report
from infra.demo.material import DemoQuestion, Material
from infra.demo.start import named_for, start_broker, start_ray
from infra.demo.usage import TreeUsage
from infra.demo.waiting import waiting
from infra.signals import StoppedBySignal
from infra.tracking import Tracker, track
from pipeline.article import Article
from pipeline.errors import DysraError, StoppedEarly
from pipeline.kafka import KafkaConfig

_IDLE_S = 1.0  # all that was published is accounted for before: this shows that no record comes twice
_INGEST_LIMIT_S = 3_600.0
_READ_LIMIT_S = 900.0
_BAD_RECORDS = (
    b"{not json",
    b'{"id":"no-text","title":"No text"}',
    b'{"id":"t","published":"0007-01-01T00:00:00Z"}',
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoOptions:
    """What one demo does beyond the configuration."""

    state: Path
    num_live: int = 60
    live_rate: float = 5.0
    max_sessions: int = 6
    keep: bool = False
    own_broker: bool = True


def run_demo(config: Config, material: Material, options: DemoOptions) -> Figures:
    """Publish, ingest, serve, ask, sum up, stop. Returns the figures of DESIGN's `demo` row."""
    started = time.monotonic()
    for name in ("store", "sessions"):
        shutil.rmtree(options.state / name, ignore_errors=True)
    options.state.mkdir(parents=True, exist_ok=True)
    run = time.strftime("%Y%m%d-%H%M%S")
    figures: Figures = {}
    with contextlib.ExitStack() as told, contextlib.ExitStack() as cleanup, TreeUsage() as usage:
        signals = told.enter_context(StoppedBySignal())
        try:
            with usage.stage("start"):
                named = named_for(config, options.state, run)
                broker = start_broker(named, options.state, options.own_broker, cleanup)
                start_ray(cleanup)
                signals.listen()  # again: Ray sets a handler of its own
                described = {"material": material.description, "run": run}
                tracker = cleanup.enter_context(track(config.tracking, "demo", options.state, described))
                config = broker()
            with usage.stage("ingest"):
                figures |= _ingest(config, material, options, tracker)
            with usage.stage("sessions"):
                client = _serve(config, cleanup)
                figures |= _sessions(config, material, options, client)
            with usage.stage("questions"):
                figures |= _ask(material, options, client)
            figures |= {"seconds": round(time.monotonic() - started, 1), "peak_memory_gb": usage.peak_gb()}
            figures |= {"processor_s": round(usage.processor_s(), 1), "stages": usage.stages()}
            tracker.metrics(figures)
            _closing(config, figures, tracker)
            if options.keep:
                _keep(config)
        finally:
            signals.stopping()
            say("\nEverything is being stopped: sessions are saved, then Ray and the broker end")
            told.enter_context(waiting("stopping"))
    say(f"Everything is stopped again. Store, sessions and MLflow's records stay in {options.state}.")
    return figures


def _ingest(config: Config, material: Material, options: DemoOptions, tracker: Tracker) -> Figures:
    """History as fast as it goes, then some articles live, at a steady rate, to see how soon they are found."""
    from actors.delays import Delays
    from actors.ingest_job import IngestJob
    from actors.ingest_spec import IngestSpec

    num_live = min(options.num_live, len(material.records) // 4)
    history, live = material.records[: len(material.records) - num_live], material.records[-num_live:]
    say(f"\n[bold]3. Articles[/]: {material.description}")
    say(
        f"   {len(history):,} records as fast as they go, and {len(_BAD_RECORDS)} that are no articles, on purpose"
    )
    _publish(config.kafka, material, history, bad=_BAD_RECORDS)
    with waiting("the embedder loads, the store opens"):
        job = IngestJob.start(IngestSpec.from_config(config))
    try:
        before = _wait_until_read(job, len(history) + len(_BAD_RECORDS), "articles")
        bulk = job.figures()
        say(f"   {len(live)} more, live, {options.live_rate:g} a second")
        publisher = threading.Thread(
            target=_publish, args=(config.kafka, material, live), kwargs={"rate": options.live_rate}
        )
        publisher.start()
        after = _wait_until_read(job, len(material.records) + len(_BAD_RECORDS), "articles")
        publisher.join(timeout=120)
        searchable = sum(int(row["live_articles"]) for row in job.client.stats())
    finally:
        done = job.stop()
    tracker.metrics({"ingest": done})
    delay = Delays({bucket: count - before.get(bucket, 0) for bucket, count in after.items()}).to_dict()
    say(
        f"   {done['read']:,} read = {done['stored']:,} stored + {done['deleted']:,} deleted + "
        f"{done['dead_lettered']:,} dead-lettered + {done['duplicates']:,} duplicates; "
        f"{searchable:,} searchable now"
    )
    say(f"   published → searchable, live: {delay['p50']:.0f} ms (median), {delay['p99']:.0f} ms (p99)")
    parts = ("read", "stored", "deleted", "dead_lettered", "duplicates", "duplicates_linked", "committed")
    return {
        "articles_published": material.num_articles,
        "records_published": len(material.records) + len(_BAD_RECORDS),
        "articles_searchable": searchable,
        "articles_dead_lettered": done["dead_lettered"],
        "duplicates_linked": done["duplicates_linked"],
        "ingest": {**{name: done[name] for name in parts}, "articles_per_s": bulk["articles_per_s"]},
        "published_to_searchable_ms": delay,
        "embedder": done["embedder"],
    }


def _wait_until_read(job: Any, expected: int, label: str) -> dict[int, int]:
    """Wait until `expected` records are durable and the topic is silent; the histogram of delays so far."""
    with progress(label, expected) as bar:
        job.wait(
            limit=expected, timeout_s=_INGEST_LIMIT_S, on_progress=lambda figures: bar.update(figures["read"])
        )
        job.wait(until_idle_s=_IDLE_S, timeout_s=_INGEST_LIMIT_S)
    read = job.figures()["read"]
    if read != expected:
        raise DysraError(f"{read:,} records were read where {expected:,} were published; see the log")
    delays: dict[int, int] = job.progress()["delays"]
    return dict(delays)


def _publish(
    kafka: KafkaConfig,
    material: Material,
    records: tuple[Any, ...],
    *,
    rate: float = 0.0,
    bad: tuple[bytes, ...] = (),
) -> None:
    from pipeline.publisher import Publisher

    with Publisher(kafka) as publisher:
        for number, value in enumerate(bad):
            publisher.publish_raw(f"bad-{number}".encode(), value)
        begun = time.monotonic()
        for number, record in enumerate(records):
            if rate:
                time.sleep(max(0.0, begun + number / rate - time.monotonic()))
            if isinstance(record, Article):
                publisher.publish(record)
            else:
                publisher.delete(record.id, material.deletion_streams[record.id])
            if rate:
                publisher.flush()


def _serve(config: Config, cleanup: contextlib.ExitStack) -> httpx.Client:
    from actors.serve_app import deploy, shutdown
    from actors.serve_settings import ServeSettings

    say("\n[bold]4. Sessions[/]: Ray Serve starts, and loads the backbone")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with waiting("Serve starts, the backbone loads"):
        deployed = deploy(ServeSettings.from_config(config))
    cleanup.callback(shutdown)
    client = httpx.Client(base_url=deployed.url, timeout=config.serve.answer_timeout_s + 30)
    cleanup.callback(client.close)
    return client


def _sessions(config: Config, material: Material, options: DemoOptions, client: httpx.Client) -> Figures:
    """Open the sessions whose streams are asked and wait until each has read its window."""
    streams = session_streams(material, options.max_sessions)
    window = config.session.window_articles
    say(
        f"   {len(streams)} sessions, each reads the last {window} articles of its stream: {', '.join(streams)}"
    )
    for stream in streams:
        _checked(client.post(f"/v1/streams/{stream}"))
    deadline = time.monotonic() + _READ_LIMIT_S
    with progress("tokens read by the sessions") as bar:
        while True:
            infos = [_checked(client.get(f"/v1/streams/{stream}")) for stream in streams]
            done = [info for info in infos if info.get("state") == "resident" and info["lag"]["records"] == 0]
            bar.update(sum(int(info.get("tokens_seen") or 0) for info in infos))
            if len(done) == len(streams):
                break
            if time.monotonic() > deadline:
                raise DysraError(
                    f"{len(streams) - len(done)} sessions did not catch up in {_READ_LIMIT_S:.0f} s"
                )
            time.sleep(0.5)
    size = max(int(info["session_bytes"]) for info in infos)
    tokens = sum(int(info["tokens_seen"]) for info in infos)
    say(f"   {tokens:,} tokens read; each session holds {size / 1e6:.1f} MB, whatever it has read")
    return {"session_bytes": size, "sessions": len(streams), "session_tokens_read": tokens}


def session_streams(material: Material, limit: int) -> list[str]:
    """The streams that most questions ask, then the largest; at most `limit`."""
    asked: dict[str, int] = {}
    for question in material.questions:
        asked[question.stream] = asked.get(question.stream, 0) + 1
    return sorted(asked, key=lambda stream: (-asked[stream], stream))[:limit]


def _ask(material: Material, options: DemoOptions, client: httpx.Client) -> Figures:
    streams = session_streams(material, options.max_sessions)
    questions = list(material.questions)
    say(f"\n[bold]5. Questions[/]: {len(questions)}, over HTTP, each to the session of its stream")
    answers, rights = [], []
    for number, question in enumerate(questions, start=1):
        with waiting(f"question {number} is being answered"):
            answer = _one(question, streams, client)
        right = report.is_right(question, answer)
        answers.append(answer)
        rights.append(right)
        report.show_answer(number, question, answer, right)
    with waiting("a summary is being written"):
        summary = _checked(client.post(f"/v1/streams/{streams[0]}/summary", json={}))
    report.show_summary(streams[0], summary)
    scores = [s for q, a in zip(questions, answers, strict=True) if (s := report.f1(q, a)) is not None]
    return {
        "questions": len(questions),
        "answers_correct": sum(rights),
        "answers_by_kind": report.by_kind(questions, rights),
        "answers_f1": round(100 * sum(scores) / len(scores), 1) if scores else None,
        "tokens_read_per_answer": round(sum(a["tokens"]["read"] for a in answers) / len(answers), 1),
        "tokens_attended_in_cache_per_answer": round(
            sum(a["tokens"]["cache"] for a in answers) / len(answers), 1
        ),
        "answer_ms": round(sorted(a["latency_ms"] for a in answers)[len(answers) // 2]),
        "summary_sources": len(summary["sources"]),
        "model": answers[0]["model"],
    }


def _one(question: DemoQuestion, streams: list[str], client: httpx.Client) -> dict[str, Any]:
    known = question.stream in streams
    body = {"question": question.question, "cross_stream": question.cross_stream or not known}
    return _checked(client.post(f"/v1/streams/{question.stream if known else streams[0]}/ask", json=body))


def _checked(response: httpx.Response) -> dict[str, Any]:
    if response.status_code >= 400:
        raise DysraError(f"{response.request.url} answered {response.status_code}: {response.text[:300]}")
    body: dict[str, Any] = response.json()
    return body


def _closing(config: Config, figures: Figures, tracker: Tracker) -> None:
    kinds = ", ".join(f"{kind} {share}" for kind, share in figures["answers_by_kind"].items())
    say(
        f"\n[bold]{figures['answers_correct']} of {figures['questions']} right[/] ({kinds}), "
        f"{figures['tokens_read_per_answer']:.0f} tokens read an answer, "
        f"{figures['answer_ms'] / 1000:.1f} s an answer (median)"
    )
    say(f"{figures['seconds']:.0f} s in all, {figures['peak_memory_gb']:.1f} GB of memory at the peak")
    parts = [
        f"{name} {took['seconds']:.0f} ({took['processor_s']:.0f})"
        for name, took in figures["stages"].items()
    ]
    say(f"Seconds by the clock (of processors): {', '.join(parts)}")
    say(f"Where to look: MLflow run {tracker.run_id or '(tracking is off)'} in {tracker.url or '-'};")
    say(
        "  `mlflow ui --backend-store-uri` with that address shows it; `dysra --help` shows what else there is."
    )


def _keep(config: Config) -> None:
    url = config.serve.url
    say("\n[bold]Still running[/] (Ctrl-C stops everything):")
    say(f"  sessions   {url}/v1/streams   and OpenAI-compatible: {url}/v1/chat/completions")
    say(f"  broker     {config.kafka.bootstrap_servers}, topic {config.kafka.topic}")
    say(f'  ask        dysra ask STREAM "…" --url {url}')
    with contextlib.suppress(KeyboardInterrupt, StoppedEarly):
        for _ in itertools.count():
            time.sleep(3600)
