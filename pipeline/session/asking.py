"""How a question is answered: search, choose sentences, read them, answer, and check every source first.

Nothing here changes the session.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from models.backbone import Backbone, Reluctance
from pipeline.session.answer import Answer, Event, Lag, Question, Tokens, cite
from pipeline.session.apart import ApartChoice, choose_apart, read_apart
from pipeline.session.cached import beside
from pipeline.session.chooser import Chooser
from pipeline.session.config import SessionConfig
from pipeline.session.guard import is_order
from pipeline.session.hops import HopChooser, leads_on
from pipeline.session.ports import Library, ModelRunner, Query
from pipeline.session.prompts import (
    GIVEN_UP,
    STOP_TEXTS,
    PromptForm,
    giving_up_token,
    parse_answer,
    reader_prompt,
)
from pipeline.session.sentences import Candidate, candidates
from pipeline.store.records import Passage

_MAX_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class AskParts:
    """What answering needs beside the session itself."""

    config: SessionConfig
    backbone: Backbone
    library: Library
    chooser: Chooser
    runner: ModelRunner
    adapted: bool

    @property
    def form(self) -> PromptForm:
        """The prompt form that the reader was made for."""
        if self.config.prompt_form == "auto":
            return "adapted" if self.adapted else "base"
        return self.config.prompt_form

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as the backbone reads it."""
        return len(self.backbone.encode(text))


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What a question may see of a session: its stream, its cache, and how far behind it is.

    `retractions` counts what the session has dropped so far from its cache; `newest` names the last articles of
    its cache, newest first, as many as are asked for.
    """

    stream: str
    cache: Any | None
    session_bytes: int
    lag: Lag
    retractions: Callable[[], int] = lambda: 0
    newest: Callable[[int], list[str]] = lambda count: []


def answer(
    question: Question, view: View, parts: AskParts, cancelled: threading.Event | None = None
) -> Iterator[Event]:
    """The events of one answer: `sources`, `token`…, perhaps `restart` and again, and `done` last.

    A source that was corrected or withdrawn while the answer was made is dropped and the answer made again;
    after three such attempts the session gives up rather than cite an old form.
    """
    began = time.monotonic()
    stopped = cancelled or threading.Event()
    found, partial = _search(question, view, parts)
    if parts.config.cache_candidates and parts.config.attend != "cache":
        own = view.newest(parts.config.cache_candidates)
        found = beside(found, own, question, view.stream, parts.library, parts.config.search_deadline_s)
    dropped: set[tuple[str, int]] = set()
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        choice = _choose(question, found, dropped, view, parts)
        chosen = list(choice.picks) if isinstance(choice, ApartChoice) else choice
        yield Event("sources", {"sources": [_row(source) for source in cite(chosen)], "partial": partial})
        text, given_up, tokens = "", True, Tokens(question=parts.count_tokens(question.text))
        rests_on: Sequence[Candidate] = chosen
        before = view.retractions()
        if isinstance(choice, ApartChoice) and chosen:
            text, given_up, tokens, rests_on = yield from _write_apart(question, choice, view, parts, stopped)
        elif chosen or parts.config.attend != "chosen":
            text, given_up, tokens = yield from _write(question, chosen, view, parts, stopped)
        stale = _stale(chosen, parts)
        if not stale and (parts.config.attend == "chosen" or view.retractions() == before):
            break
        dropped |= stale
        text, given_up, rests_on = "", True, []
        if attempt < _MAX_ATTEMPTS:
            yield Event(
                "restart", {"reason": "a source was corrected or withdrawn while the answer was made"}
            )
    result = Answer(
        text=text,
        sources=[] if given_up else cite(rests_on, text),
        given_up=given_up,
        partial=partial,
        stream=view.stream,
        lag=view.lag,
        tokens=tokens,
        session_bytes=view.session_bytes,
        latency_ms=round(1_000 * (time.monotonic() - began), 1),
        model=parts.backbone.identity,
        attempts=attempt,
    )
    yield Event("done", result.to_dict())


def newest_only(
    passages: Sequence[Passage], parts: AskParts, dropped: set[tuple[str, int]] | None = None
) -> list[Passage]:
    """The passages whose article still stands in the store in the version that they come from."""
    gone = _outdated({(p.article_id, p.version_ms) for p in passages}, parts) | (dropped or set())
    return [p for p in passages if (p.article_id, p.version_ms) not in gone]


def _search(
    question: Question, view: View, parts: AskParts, text: str | None = None
) -> tuple[list[Passage], bool]:
    query = Query(
        text=text or question.text,
        k=question.passages or parts.config.passages,
        streams=None if question.cross_stream else frozenset({view.stream}),
        sources=question.sources,
        since_ms=question.since_ms,
        as_of_ms=question.as_of_ms,
    )
    return parts.library.search(query, parts.config.search_deadline_s)


def _choose(
    question: Question,
    found: Sequence[Passage],
    dropped: set[tuple[str, int]],
    view: View,
    parts: AskParts,
) -> list[Candidate] | ApartChoice:
    """What is read, together in reading order, or apart (`session.reading`) in the order of choosing."""
    if parts.config.attend == "cache":
        return []

    def cut(passages: Sequence[Passage]) -> list[Candidate]:
        found = candidates(newest_only(passages, parts, dropped), parts.count_tokens)
        return [c for c in found if not is_order(c.text)] if parts.config.guard else found

    def again(text: str) -> list[Candidate]:
        return cut(_search(question, view, parts, text)[0])

    budget = min(question.token_budget or parts.config.token_budget, parts.config.max_token_budget)
    config = parts.config
    reading = getattr(parts.chooser, "reading", "together") if config.reading == "policy" else config.reading
    if reading == "apart" and not (config.hops > 1 and leads_on(question.text)):
        bare = len(_prompt(question, [], view, parts))
        return choose_apart(parts.chooser, question.text, cut(found), budget, bare, config.apart_readings)
    return HopChooser(parts.chooser, config.hops).choose(question.text, cut(found), budget, again)


def _prompt(question: Question, chosen: Sequence[Candidate], view: View, parts: AskParts) -> list[int]:
    """The ids that the reader is given."""
    sentences = [(c.title, c.date, c.text) for c in chosen]
    text = reader_prompt(sentences, question.text, parts.form, quoted=parts.config.guard)
    ids = parts.backbone.encode(text)
    return ids if _attended_cache(view, parts) is not None else [*parts.backbone.bos, *ids]


def _attended_cache(view: View, parts: AskParts) -> Any | None:
    return view.cache if parts.config.attend != "chosen" else None


def _write(
    question: Question,
    chosen: Sequence[Candidate],
    view: View,
    parts: AskParts,
    stopped: threading.Event,
) -> Generator[Event, None, tuple[str, bool, Tokens]]:
    """Token events of one reading; its text, whether it gave up, and its cost."""
    backbone, config = parts.backbone, parts.config
    cache = _attended_cache(view, parts)
    ids, bare = _prompt(question, chosen, view, parts), len(_prompt(question, [], view, parts))
    limit = min(question.max_new_tokens or config.max_new_tokens, config.max_new_tokens_limit)
    unknown, reluctant = giving_up_token(backbone.encode), None
    if parts.form == "adapted" and unknown is not None:
        # The first token's margin tells apart what a tuned reader knows from what it does not (docs/reader.md).
        reluctant = Reluctance(token=unknown, margin=config.give_up_margin)
    job = partial(backbone.generate, ids, cache, limit, STOP_TEXTS, stopped.is_set, reluctant=reluctant)
    written = yield from _tell(job, parts)
    parsed = parse_answer(backbone.decode(written))
    tokens = Tokens(
        question=parts.count_tokens(question.text),
        read=max(0, len(ids) - bare),
        cache=_attended(cache),
        generated=len(written),
    )
    return parsed.text, parsed.given_up, tokens


def _write_apart(
    question: Question, choice: ApartChoice, view: View, parts: AskParts, stopped: threading.Event
) -> Generator[Event, None, tuple[str, bool, Tokens, Sequence[Candidate]]]:
    """The token event of the most trusted answer, whole: which it is shows at the end; and what it rests on."""
    config = parts.config
    cache = _attended_cache(view, parts)
    found = read_apart(
        question.text, choice, lambda pick: _prompt(question, [pick], view, parts), parts.backbone,
        parts.runner, form=parts.form, cache=cache, stopped=stopped,
        limit=min(question.max_new_tokens or config.max_new_tokens, config.max_new_tokens_limit),
    )  # fmt: skip
    answer = found.reading.parsed
    # as together: a tuned reader gives up only where that is likelier by the margin than what it says
    given_up = answer.given_up or (parts.form == "adapted" and found.reading.margin > config.give_up_margin)
    tokens = Tokens(
        question=parts.count_tokens(question.text),
        read=max(0, found.prompt_tokens - len(_prompt(question, [], view, parts))),
        cache=_attended(cache),
        generated=found.generated,
    )
    if not given_up:
        yield Event("token", {"text": answer.text})
    return "" if given_up else answer.text, given_up, tokens, found.rests_on


def _tell(job: Callable[[], Iterator[int]], parts: AskParts) -> Generator[Event, None, list[int]]:
    """A token event for each piece of text as it is written; the ids of all of it."""
    backbone = parts.backbone
    written: list[int] = []
    shown = ""
    for token in parts.runner.iterate(job):
        written.append(token)
        text = backbone.decode(written)
        # A character whose bytes are not all there yet decodes to U+FFFD: it waits for its next token. What
        # may become the sign of giving up waits until it has become something else.
        if text.endswith("\ufffd") or GIVEN_UP.strip().startswith(text.strip().casefold()):
            continue
        fresh, shown = text[len(shown) :], text
        if fresh:
            yield Event("token", {"text": fresh if len(shown) > len(fresh) else fresh.lstrip()})
    return written


def _attended(cache: Any | None) -> int:
    return 0 if cache is None else int(getattr(cache, "tokens_kept", cache.tokens_seen))


def _stale(chosen: Sequence[Candidate], parts: AskParts) -> set[tuple[str, int]]:
    return _outdated({(c.article_id, c.version_ms) for c in chosen}, parts)


def _outdated(versions: set[tuple[str, int]], parts: AskParts) -> set[tuple[str, int]]:
    """Those (article, version) pairs that the store has replaced or withdrawn since."""
    if not versions:
        return set()
    ids = sorted({article_id for article_id, _ in versions})
    newest = parts.library.articles(ids, parts.config.search_deadline_s)
    gone = set()
    for article_id, version_ms in versions:
        stored = newest.get(article_id)
        if stored is None or stored.deleted or (stored.version_ms or 0) > version_ms:
            gone.add((article_id, version_ms))
    return gone


def _row(source: Any) -> dict[str, Any]:
    return {name: getattr(source, name) for name in source.__slots__}
