"""NewsStreams: a year of the newswire as a data set, with questions in three splits and the truth behind it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pipeline.newswire.files import LineFile, Tally, line_of, write_questions
from pipeline.newswire.questions import KINDS, SPLITS, questions
from pipeline.newswire.simulate import ARTICLES_A_YEAR, NewsEvent, generate
from pipeline.newswire.truth import Truth

SHARD_RECORDS = 5_000
SPLIT_SHARES = {"train": 60, "validation": 20, "test": 20}
DEFAULT_SEED = 2025


@dataclass(frozen=True, kw_only=True, slots=True)
class NewsStreamsPlan:
    """What a set holds; the defaults are the set that docs/newswire.md describes."""

    seed: int = DEFAULT_SEED
    num_articles: int = ARTICLES_A_YEAR
    num_questions: int = 10_000
    start: date | None = None

    def __post_init__(self) -> None:
        if self.num_articles < 1:
            raise ValueError(f"num_articles is {self.num_articles}; it must be 1 or more")
        if self.num_questions < 0:
            raise ValueError(f"num_questions is {self.num_questions}; it must be 0 or more")


def write_news_streams(
    folder: Path, plan: NewsStreamsPlan, on_event: Callable[[NewsEvent], None] | None = None
) -> dict[str, Any]:
    """Write the set into a new or empty folder and return its figures. Raises ValueError if it holds files."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder, or empty this one")
    (folder / "articles").mkdir(parents=True)
    (folder / "questions").mkdir()
    contents: dict[str, str] = {}
    truth, tally = Truth(), Tally()
    with LineFile(folder / "truth.jsonl.zst") as links:
        for name, shard in _shards(generate(plan.seed, plan.num_articles, plan.start)):
            with LineFile(folder / name) as out:
                for event in shard:
                    line = line_of(event.record)
                    out.write(line)
                    tally.add(event, line)
                    truth.add(event)
                    links.write(line_of(truth_line(event)))
                    if on_event is not None:
                        on_event(event)
            contents[name] = out.sha256
    contents["truth.jsonl.zst"] = links.sha256
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        wanted = plan.num_questions * SPLIT_SHARES[split] // 100
        found = questions(plan.seed, plan.num_articles, wanted, asked="spread", split=split, truth=truth)
        name = f"questions/{split}.jsonl.zst"
        contents[name] = write_questions(found, folder / name)
        kinds = Counter(question.kind for question in found)
        counts[split] = {kind: kinds[kind] for kind in KINDS}
    figures = {**tally.figures(), "questions": counts, "records": tally.kinds.total()}
    (folder / "README.md").write_text(_card(plan, figures), encoding="utf-8")
    (folder / "CONTENTS.sha256").write_text(
        "".join(f"{digest}  {name.removesuffix('.zst')}\n" for name, digest in sorted(contents.items())),
        encoding="utf-8",
    )
    names = sorted([*contents, "README.md", "CONTENTS.sha256"])
    (folder / "SHA256SUMS").write_text(
        "".join(f"{_digest(folder / name)}  {name}\n" for name in names), encoding="utf-8"
    )
    contents_sha = hashlib.sha256((folder / "CONTENTS.sha256").read_bytes()).hexdigest()
    return {**figures, "contents_sha256": contents_sha}


def truth_line(event: NewsEvent) -> dict[str, Any]:
    """What stands behind a record: its kind, the event it tells, what it copies, what was wrong, its facts."""
    value: dict[str, Any] = {
        "id": event.record["id"],
        "time": event.time,
        "kind": event.kind,
        "event": event.event,
    }
    if event.copy_of:
        value["copy_of"] = event.copy_of
    if event.false_fact is not None:
        right = event.false_fact
        value |= {"false_fact": right.id, "wrong": event.wrong, "right": list(right.value.accepted)}
    tells = [
        {"fact": fact.id, "value": fact.value.accepted[0], "sentence": sentence.text,
         **({"false": True} if event.kind == "article" and event.wrong_slot in sentence.slots else {})}
        for sentence in event.sentences
        for fact in sentence.facts
    ]  # fmt: skip
    if tells:
        value["tells"] = tells
    return value


def _shards(events: Iterator[NewsEvent]) -> Iterator[tuple[str, Iterator[NewsEvent]]]:
    number, ended = 0, False

    def take(first: NewsEvent) -> Iterator[NewsEvent]:
        nonlocal ended
        yield first
        for _ in range(SHARD_RECORDS - 1):
            following = next(events, None)
            if following is None:
                ended = True
                return
            yield following

    while not ended:
        first = next(events, None)
        if first is None:
            return
        yield f"articles/part-{number:05d}.jsonl.zst", take(first)
        number += 1


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _card(plan: NewsStreamsPlan, figures: dict[str, Any]) -> str:
    streams = ", ".join(f"{name} {count:,}" for name, count in figures["streams"].items())
    rows = "\n".join(
        f"| {kind} | " + " | ".join(f"{figures['questions'][split][kind]:,}" for split in SPLITS) + " |"
        for kind in KINDS
    )
    start = f" --start {plan.start.isoformat()}" if plan.start else ""
    return f"""# NewsStreams

News of a simulated world whose facts change, in time order, with questions whose answers are known exactly.
No company, person, place or team in it is real; any likeness of a name is chance.

Made by `dysra newswire --news-streams DIR --seed {plan.seed} --articles {plan.num_articles}{start}`
with {plan.num_questions:,} questions asked for. The same command gives the same lines on any machine:
`CONTENTS.sha256` holds the checksums of the files before compression, `SHA256SUMS` those of the files themselves
(another zstd library may compress to other bytes).

| what | number |
| --- | --- |
| records | {figures["records"]:,} |
| articles (ids, copies included) | {figures["articles"]:,} |
| near-verbatim copies among them | {figures["copies"]:,} |
| updates, corrections, withdrawals | {figures["updates"]:,}, {figures["corrections"]:,}, {figures["deletions"]:,} |
| words | {figures["words"]:,} |
| first and last publication | {figures["first_published"]} to {figures["last_published"]} |

Articles and their later forms by stream: {streams}.

| questions | train | validation | test |
| --- | --- | --- | --- |
{rows}

* `articles/part-*.jsonl.zst`: records in order of publication: `id, published, source, title, text, topics,
  stream, url` and `updated` for later forms of the same id; `{{"id", "deleted": true, "stream", …}}` withdraws.
* `questions/<split>.jsonl.zst`: `id, kind, question, answers` (accepted forms), `stream` (null: several),
  `asked` (judge by what was published by then), `gold_article_ids, evidence, answerable, relation, entity,
  wording, split, hops, wrong, absent`. Splits share neither entities nor wordings.
* `truth.jsonl.zst`: a line a record: the event behind it, what it copies, what was wrong in it, which sentence
  tells which fact.

Licence: Apache-2.0, as the program that wrote it. Limits: docs/newswire.md of the DySRA repository.
"""
