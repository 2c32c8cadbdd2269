"""What the demo prints: each question with its answer, its sources and its cost, then the sum of it all."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from typing import Any

from rich.markup import escape

from infra.console import say
from infra.demo.material import DemoQuestion
from pipeline.tasks.scores import answer_f1, exact_match, holds_answer

_WIDTH = 100
_LONGEST_RIGHT_ANSWER_WORDS = 12


def is_right(question: DemoQuestion, answer: dict[str, Any]) -> bool:
    """Whether the answer is right: it equals or briefly holds a gold answer, gives up, or cites the article."""
    if question.article_id is not None:
        return any(source["article_id"] == question.article_id for source in answer["sources"])
    if not question.answers:
        return bool(answer["given_up"])
    text = answer["text"]
    if exact_match(text, question.answers):
        return True
    return len(text.split()) <= _LONGEST_RIGHT_ANSWER_WORDS and holds_answer(text, question.answers)


def f1(question: DemoQuestion, answer: dict[str, Any]) -> float | None:
    """Token F1 against the gold answers; None where there are none to compare with."""
    if question.article_id is not None:
        return None
    return answer_f1("" if answer["given_up"] else answer["text"], question.answers)


def show_answer(number: int, question: DemoQuestion, answer: dict[str, Any], right: bool) -> None:
    """One question, its answer, the first source, and what it cost."""
    mark = "[green]✓[/]" if right else "[red]✗[/]"
    text = answer["text"] if not answer["given_up"] else "(the news does not tell)"
    say(f" {mark} {number:2}. [bold]{escape(question.question)}[/] [dim]{question.kind}[/]")
    say(f"       → {escape(text)}{_wanted(question, right)}")
    if answer["sources"]:
        source = answer["sources"][0]
        more = f" and {len(answer['sources']) - 1} more" if len(answer["sources"]) > 1 else ""
        title = textwrap.shorten(source["title"], 70, placeholder="…")
        say(f"       [dim]{source['published'][:16]} {escape(source['source'])}: {escape(title)}{more}[/]")
        if evidence := around(source["quote"], answer["text"]):
            say(f"       [dim]“{escape(evidence)}”[/]")
    tokens = answer["tokens"]
    say(
        f"       [dim]{tokens['read']} tokens read, {tokens['generated']} written, "
        f"{answer['latency_ms'] / 1000:.1f} s[/]"
    )


def around(quote: str, answer: str, reach: int = 55) -> str:
    """The words of a quote on both sides of the answer, "" where it does not hold the answer literally."""
    needle = answer.strip(" .")
    at = quote.casefold().find(needle.casefold()) if needle else -1
    if at < 0:
        return ""
    begin = quote.rfind(" ", 0, at - reach) + 1 if at > reach else 0
    end = quote.find(" ", min(len(quote), at + len(needle) + reach))
    end = len(quote) if end < 0 else end
    return f"{'…' if begin else ''}{quote[begin:end].strip()}{'…' if end < len(quote) else ''}"


def show_summary(stream: str, summary: dict[str, Any]) -> None:
    """A stream's summary with its sources."""
    say(f"\n[bold]Summary of the stream “{escape(stream)}”[/]")
    for sentence in summary["text"].splitlines():
        for line in textwrap.wrap(sentence, _WIDTH, subsequent_indent="  "):
            say(f"  {escape(line)}")
    for source in summary["sources"]:
        title = textwrap.shorten(source["title"], 70, placeholder="…")
        say(f"  [dim]- {source['published'][:16]} {escape(source['source'])}: {escape(title)}[/]")


def by_kind(questions: list[DemoQuestion], rights: list[bool]) -> dict[str, str]:
    """Right answers of each kind, as "2/3"."""
    counted: dict[str, list[bool]] = defaultdict(list)
    for question, right in zip(questions, rights, strict=True):
        counted[question.kind].append(right)
    return {kind: f"{sum(marks)}/{len(marks)}" for kind, marks in counted.items()}


def _wanted(question: DemoQuestion, right: bool) -> str:
    if right or question.article_id is not None:
        return ""
    wanted = question.answers[0] if question.answers else "the news does not tell"
    return f"   [dim](wanted: {escape(wanted)})[/]"
