"""Sentences with a blank whose filling the rest of the passage holds: reading practice without annotators.

After the recurring spans of Splinter (arXiv 2101.00438): a name or number that stands in two sentences of a passage
is blanked in one of them and told by another.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator

from pipeline.prepare.triples import Triple
from pipeline.session.prompts import target_text
from pipeline.session.sentences import split_sentences
from pipeline.tasks.qa import SourceText

_SPAN = re.compile(
    r"(?<=[\w,;] )(?:[A-Z][\w'’-]+(?: (?:of|the|de|and) [A-Z][\w'’-]+| [A-Z][\w'’-]+){0,3}|\d[\d,.]*\d)(?=[ ,.;)])"
)
BLANK = "____"


def cloze_triples(texts: Iterable[SourceText], seed: int, most_chars: int = 260) -> Iterator[Triple]:
    """At most one triple a text: the blanked sentence is the question, the other sentences are the context."""
    for text in texts:
        sentences = split_sentences(text.text)
        if len(sentences) < 3:
            continue
        found = []
        for at, sentence in enumerate(sentences):
            if not 40 <= len(sentence) <= most_chars:
                continue
            for match in _SPAN.finditer(sentence):
                span = match.group()
                alone = re.compile(rf"\b{re.escape(span)}\b")
                rest = [other for place, other in enumerate(sentences) if place != at]
                once = len(span) > 2 and span not in text.title and len(alone.findall(sentence)) == 1
                if once and any(alone.search(other) for other in rest):
                    found.append((sentence[: match.start()] + BLANK + sentence[match.end() :], span, rest))
        if not found:
            continue
        question, span, rest = random.Random(f"{seed}:cloze:{text.text_id}").choice(found)
        yield Triple(
            question_id=f"cloze-{text.text_id}",
            dataset="cloze",
            split="train",
            kind="cloze",
            question=question,
            sentences=tuple((text.title, text.date, other) for other in rest),
            answers=(span,),
            tells=True,
            target=target_text(span),
        )
