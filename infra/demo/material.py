"""What the demo publishes and asks: the newswire with its questions, or a news file of the operator's own."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import orjson

from pipeline.article import Article, ArticleLimits, Deletion, parse_article, parse_record
from pipeline.errors import BadData, UsageError
from pipeline.prepare.cloze import cloze_triples
from pipeline.tasks.qa import SourceText

NEWSWIRE_SEED = 7
_QUESTIONS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoQuestion:
    """One question and how it is judged.

    By its gold `answers` (empty: the news does not tell); with `article_id` instead, a headline is asked back
    and the answer is right if it cites that article.
    """

    kind: str
    question: str
    stream: str
    cross_stream: bool = False
    answers: tuple[str, ...] = ()
    article_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """Records in order of publication, questions over all of them, and what they are in words."""

    records: tuple[Article | Deletion, ...]
    deletion_streams: dict[str, str]
    questions: tuple[DemoQuestion, ...]
    description: str

    @property
    def num_articles(self) -> int:
        """Records that are not deletions."""
        return sum(isinstance(record, Article) for record in self.records)

    def streams(self) -> list[tuple[str, int]]:
        """Streams with their number of articles, largest first."""
        counts = Counter(record.stream for record in self.records if isinstance(record, Article))
        return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def newswire_material(num_articles: int, num_questions: int, seed: int = NEWSWIRE_SEED) -> Material:
    """About a week of the simulated world, and questions of every kind asked at its end."""
    from pipeline.newswire import demo_set

    drawn = demo_set(seed, num_articles, num_questions)
    records: list[Article | Deletion] = []
    deletion_streams: dict[str, str] = {}
    for record in drawn.records:
        if record.get("deleted"):
            records.append(Deletion(id=record["id"]))
            deletion_streams[record["id"]] = record["stream"]
        else:
            records.append(parse_article(record))
    home = Counter(r.stream for r in records if isinstance(r, Article)).most_common(1)[0][0]
    questions = tuple(
        DemoQuestion(
            kind=drawn_question.kind,
            question=drawn_question.question,
            stream=drawn_question.stream or home,
            cross_stream=drawn_question.stream is None,
            answers=drawn_question.answers,
        )
        for drawn_question in drawn.questions
    )
    described = f"the newswire, seed {seed}: a small simulated world whose facts change"
    return Material(
        records=tuple(records), deletion_streams=deletion_streams, questions=questions, description=described
    )


def file_material(path: Path, limit: int, questions_file: Path | None = None) -> Material:
    """The first `limit` articles of a news file in time order, with questions of a file or made of the articles."""
    from pipeline.news_file import lines_in_time_order, parse_line, survey

    limits = ArticleLimits()
    records: list[Article | Deletion] = []
    deletion_streams: dict[str, str] = {}
    for number, line in lines_in_time_order(path, survey(path)):
        if len(records) >= limit:
            break
        entry = parse_line(number, line, limits)
        if entry.kind in ("article", "deletion"):
            record = parse_record(entry.key, entry.value)
            records.append(record)
            if isinstance(record, Deletion):
                deletion_streams[record.id] = entry.stream
    articles = [record for record in records if isinstance(record, Article)]
    if not articles:
        raise BadData(f"{path} holds no dated article; each line needs id, published, source, title and text")
    questions = _read_questions(questions_file, articles) if questions_file else _quiz(articles)
    return Material(
        records=tuple(records),
        deletion_streams=deletion_streams,
        questions=questions,
        description=f"{path.name}, in time order",
    )


def _quiz(articles: list[Article]) -> tuple[DemoQuestion, ...]:
    """Questions about a file that brings none, over the whole period: sentences with a blank to fill, headlines.

    A blanked name or number stands in another sentence of its article too; a headline is right if the article
    itself is cited.
    """
    step = max(1, len(articles) // _QUESTIONS)
    quiz = []
    for number, article in enumerate(articles[::step][:_QUESTIONS]):
        text = SourceText(text_id=article.id, title=article.title, text=article.text)
        blank = next(iter(cloze_triples([text], NEWSWIRE_SEED)), None) if number % 3 else None
        if blank is not None:
            made = DemoQuestion(
                kind="blank", question=blank.question, stream=article.stream, answers=tuple(blank.answers)
            )
        else:
            made = DemoQuestion(
                kind="headline",
                question=f"What is reported about this: {article.title}?",
                stream=article.stream,
                article_id=article.id,
            )
        quiz.append(made)
    return tuple(quiz)


def _read_questions(path: Path, articles: list[Article]) -> tuple[DemoQuestion, ...]:
    """JSON lines with `question`, `answers` and optionally `stream` and `kind`."""
    home = Counter(article.stream for article in articles).most_common(1)[0][0]
    questions = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = orjson.loads(line)
            questions.append(
                DemoQuestion(
                    kind=str(row.get("kind", "question")),
                    question=str(row["question"]),
                    stream=row.get("stream") or home,
                    cross_stream=not row.get("stream"),
                    answers=tuple(map(str, row.get("answers", []))),
                )
            )
        except (orjson.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise UsageError(
                f'{path} line {number}: {error!r}; each line is {{"question": …, "answers": […]}}'
            ) from None
    if not questions:
        raise UsageError(f"{path} holds no question")
    return tuple(questions)
