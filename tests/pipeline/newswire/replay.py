"""A second opinion on questions: what a reader finds who has only the published records."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pipeline.newswire import NewsEvent, Question
from pipeline.newswire.values import from_iso


class Reader:
    """Takes records in order and keeps the form of each article that stands."""

    def __init__(self, events: Iterable[NewsEvent]) -> None:
        self._events = list(events)
        self._at = 0
        self.live: dict[str, dict[str, Any]] = {}

    def read_until(self, moment: int) -> None:
        """Read all records published by a moment; moments must not go back."""
        while self._at < len(self._events) and self._events[self._at].time <= moment:
            record = self._events[self._at].record
            if record.get("deleted"):
                self.live.pop(record["id"], None)
            else:
                self.live[record["id"]] = record
            self._at += 1

    def text(self, article_id: str) -> str:
        """The standing text of an article; empty if it was withdrawn or is not out."""
        return self.live.get(article_id, {}).get("text", "")

    def version(self, article_id: str) -> int:
        """When the standing form was published."""
        record = self.live[article_id]
        return from_iso(record.get("updated") or record["published"])


def holds(text: str, forms: Iterable[str]) -> bool:
    """Whether one of the forms stands in the text, not inside a longer word or number."""
    return any(re.search(rf"(?<![\w.,]){re.escape(form)}(?![\w])", text, re.IGNORECASE) for form in forms)


def in_time_order(questions: Iterable[Question]) -> list[Question]:
    """Questions by the time they are asked."""
    return sorted(questions, key=lambda question: question.asked)
