"""Questions over newswire worlds for the policy's run: each with BM25's texts, and what its session read last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from infra.training.policy_pools import REACH, Cached, Pooled, pooled_of
from models.retriever.table import GOLD
from pipeline.prepare.pools import TextIndex, pieces
from pipeline.session.prompts import one_line
from pipeline.tasks.material import Material
from pipeline.tasks.qa import Question, SourceText

if TYPE_CHECKING:
    from pipeline.newswire import NewsEvent

NEWS_REACH = 4000
"""Pieces looked at, best first, before those that did not stand when a question is asked are passed over."""


def newswire_pool(
    seed: int,
    *,
    num_articles: int = 1500,
    num_questions: int = 300,
    kinds: Sequence[str] = (),
    split: str = "",
    cache: int = 0,
) -> Pooled:
    """A simulated world's answerable questions, asked at its end over the newest form of every article.

    `support` holds one telling sentence of each hop, the one whose text BM25 finds first; what else tells a hop is
    in `also`. `split` is the newswire's own (entities and wordings apart): of its train split the questions are for
    training; only judged ones (test) may lack a hop in their pool.

    With `cache` they are asked over the whole period, each over the forms that stood then, and bring the `cache`
    newest articles of their stream (of the largest, where they lead over several): so other questions, whose ids
    tell.
    """
    from pipeline.newswire import KINDS, Truth, generate, questions

    truth, events = Truth(), []
    for event in generate(seed, num_articles):
        truth.add(event)
        events.append(event)
    forms = _forms(events, every=cache > 0)
    told: dict[str, list[tuple[str, str]]] = {}
    wholes: dict[str, SourceText] = {}
    texts: dict[str, SourceText] = {}
    for form in forms.values():
        record = form.event.record
        wholes[form.name] = article = SourceText(
            text_id=form.name, title=record["title"], text=record["text"], date=record["published"][:10]
        )
        texts |= {piece.text_id: piece for piece in pieces(article)}
        for sentence in form.event.sentences:
            for fact in sentence.facts:
                told.setdefault(fact.id, []).append((form.name, one_line(sentence.text)))
    index = TextIndex(list(texts.values()))
    drawn = questions(
        seed, num_articles, num_questions, tuple(kinds) or KINDS, "spread" if cache else "end", split=split,
        truth=truth,
    )  # fmt: skip
    home = Counter(event.record["stream"] for event in events).most_common(1)[0][0]
    asked, found, others, caches = [], [], [], []
    for each in drawn:
        if not each.answerable or not each.hops or each.kind == "count":
            continue
        if cache:
            pool = index.top(each.question, REACH, partial(_stands, forms, each.asked), reach=NEWS_REACH)
            last = [wholes[name] for name in _newest(forms, each.stream or home, each.asked, cache)]
        else:
            pool, last = index.top(each.question, REACH), []
        tellings = [_tellings([*pool, *last], told.get(hop.fact, ())) for hop in each.hops]
        if split != "test" and not all(tellings):
            continue
        support = tuple(dict.fromkeys(options[0] for options in tellings if options))
        asked.append(
            Question(
                question_id=f"{seed}:{'spread-' if cache else ''}{each.id}",
                dataset="newswire",
                text=each.question,
                answers=tuple(each.answers),
                answerable=True,
                titles=tuple(dict.fromkeys(title for title, _ in support)) or (each.entity,),
                support=support,
                asked=each.asked,
                kind=each.kind,
                split="train" if split == "train" else "test",
            )
        )
        found.append(pool)
        others.append(tuple(option[1] for options in tellings for option in options[1:]))
        caches.append(Cached(tuple(text.text_id for text in last), tuple(map(tuple, tellings))))
    made = pooled_of(asked, found, others, caches if cache else ())
    lasts = {name: wholes[name] for each in made.caches for name in each.articles}
    return replace(made, texts=made.texts | lasts)


@dataclass(frozen=True, slots=True)
class _Form:
    """One form of an article, and from when until when (ISO 8601) it stood."""

    name: str
    event: NewsEvent
    since: str
    until: str


def _forms(events: Sequence[NewsEvent], *, every: bool) -> dict[str, _Form]:
    """The forms of a world's articles by name: those that stand at its end by their ids, or `every` one.

    A later form's name ends in "@v1", "@v2"…
    """
    from pipeline.newswire.values import iso

    found: dict[str, _Form] = {}
    newest: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for event in events:
        article, moment = event.record["id"], iso(event.time)
        before = newest.pop(article, None) if event.kind == "withdrawal" else newest.get(article)
        if before is not None and every:
            found[before] = replace(found[before], until=moment)
        elif before is not None and event.kind == "withdrawal":
            del found[before]
        if event.kind == "withdrawal":
            continue
        name = f"{article}@v{counts[article]}" if every and counts[article] else article
        counts[article] += 1
        newest[article] = name
        found[name] = _Form(name, event, moment, "9999")
    return found


def _form_of(text_id: str) -> str:
    return text_id.rsplit("#", 1)[0]


def _stands(forms: dict[str, _Form], asked: str, text: SourceText) -> bool:
    """Whether a piece's form stood at a time."""
    form = forms[_form_of(text.text_id)]
    return form.since <= asked < form.until


def _newest(forms: dict[str, _Form], stream: str, asked: str, count: int) -> list[str]:
    """The last `count` forms of a stream that stood at a time, newest first: what a session there read last.

    Without the copies among them: the store links those, and a session leaves linked articles out.
    """
    standing = [
        form
        for form in forms.values()
        if form.since <= asked < form.until and form.event.record["stream"] == stream
    ]
    return [form.name for form in standing[: -count - 1 : -1] if form.event.kind != "copy"]


def _tellings(pool: Sequence[SourceText], told: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(title, sentence) of the sentences that tell a fact, as the pool's texts hold them, best text first."""
    by_article: dict[str, list[str]] = {}
    for article, sentence in told:
        by_article.setdefault(article, []).append(sentence)
    return [
        (text.title, sentence)
        for text in pool
        for sentence in by_article.get(_form_of(text.text_id), ())
        if sentence in text.text
    ]


def cache_told(material: Material, passages: int) -> dict[str, dict[str, dict[str, int]]]:
    """What caches offer, by split and set of newswire: questions, those with a cache, those that it alone tells.

    The cache's candidates are those behind the `passages` texts of the search; `told_by_cache` counts questions
    with a hop that none of these tells and one of theirs does.
    """
    found: dict[str, dict[str, Counter[str]]] = {}
    for question, labels in zip(material.questions, material.tables.labels, strict=True):
        if not question.dataset.startswith("newswire"):
            continue
        theirs = [at for at, (rank, _) in enumerate(question.places) if rank >= passages]
        counts = found.setdefault(question.split, {}).setdefault(question.dataset, Counter())
        counts["questions"] += 1
        counts["with_cache"] += bool(theirs)
        counts["told_by_cache"] += any(labels[at] == GOLD for at in theirs)
        counts["candidates"] += len(question.places)
        counts["candidates_of_cache"] += len(theirs)
    return {split: {name: dict(counts) for name, counts in sets.items()} for split, sets in found.items()}
