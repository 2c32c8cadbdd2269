"""Reading apart: each chosen sentence is read alone, and the answer of the most trusted readings is given.

What stands beside the telling sentence misleads a small reader; here nothing stands beside it. It costs the prompt
again with every sentence, counts in the budget, and cannot join two sentences: questions that lead over another
article are read together (docs/policy.md).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from models.backbone import Backbone
from pipeline.session.chooser import Chooser, HybridChooser, fill
from pipeline.session.ports import ModelRunner
from pipeline.session.prompts import STOP_TEXTS, ParsedAnswer, PromptForm, giving_up_token, parse_answer
from pipeline.session.sentences import Candidate
from pipeline.tasks.scores import normalize_answer

if TYPE_CHECKING:  # who reads together needs none of it, and torch takes seconds to load
    import numpy.typing as npt

    from models.retriever.table import TableBatch
    from models.retriever.trust import TrustedAnswer
    from models.retriever.trust_files import Trust

Verify = Callable[[str, Sequence[str]], "npt.NDArray[np.float32]"]
"""A question and claims (`models.retriever.trust.claim`) to a verifier's logits. [n]"""


def own_word() -> Trust:
    """Trust by the reader's own probability: what serves where nothing was fitted."""
    from models.retriever.trust_files import Trust

    return Trust()


@dataclass(frozen=True, slots=True)
class ApartChoice:
    """Sentences in the order in which they are read, and what their readings are trusted by.

    `tables`: one question as the policy saw it, `places` the columns of `picks` in it; without a policy None.
    """

    picks: tuple[Candidate, ...]
    places: tuple[int, ...]
    tables: TableBatch | None = None
    trust: Trust = field(default_factory=own_word)
    verify: Verify | None = None


@runtime_checkable
class ApartChooser(Protocol):
    """A chooser that knows what readings apart cost and how far each is trusted."""

    def choose_apart(
        self, question: str, candidates: Sequence[Candidate], budget: int, prompt_tokens: int, most: int
    ) -> ApartChoice:
        """At most `most` sentences of `budget` tokens together, prompts but the first among them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One sentence read alone by a reader that must answer, and how sure it was (see `SingleReadings`)."""

    written: tuple[int, ...]
    parsed: ParsedAnswer
    prompt_tokens: int
    margin: float
    sure: float


@dataclass(frozen=True, slots=True)
class ApartAnswer:
    """The most trusted answer, the sentences whose readings gave it, and how many were read."""

    reading: Reading
    trust: float
    rests_on: tuple[Candidate, ...]
    num_read: int
    prompt_tokens: int
    generated: int


def choose_apart(
    chooser: Chooser,
    question: str,
    candidates: Sequence[Candidate],
    budget: int,
    prompt_tokens: int,
    most: int,
) -> ApartChoice:
    """What a chooser reads apart; one that knows nothing of it: its ranking, trusted by the reader's own word."""
    if isinstance(chooser, ApartChooser):
        return chooser.choose_apart(question, candidates, budget, prompt_tokens, most)
    # the first prompt is paid by every reading; each further sentence pays its head and a prompt again
    costly = [
        replace(one, num_tokens=one.num_tokens + one.head_tokens + prompt_tokens, head_tokens=0)
        for one in candidates
    ]
    room = budget + prompt_tokens
    if isinstance(chooser, HybridChooser):
        scores = chooser.scores(question, candidates) if candidates else []
        order = sorted(range(len(candidates)), key=lambda at: (-scores[at], at))
        chosen = fill([costly[at] for at in order], room)
    else:
        chosen = chooser.choose(question, costly, room)
    own = {(one.article_id, one.position): one for one in candidates}
    picks = tuple(own[one.article_id, one.position] for one in chosen[:most])
    return ApartChoice(picks, tuple(range(len(picks))))


def read_apart(
    question: str,
    choice: ApartChoice,
    prompt_of: Callable[[Candidate], list[int]],
    backbone: Backbone,
    runner: ModelRunner,
    *,
    form: PromptForm,
    cache: Any | None,
    limit: int,
    stopped: threading.Event,
) -> ApartAnswer:
    """Read the choice sentence by sentence until an answer is trusted enough; each reading is a model job.

    A reading that was stopped answers with what is there. ValueError for a choice of nothing.
    """
    if not choice.picks:
        raise ValueError("choice: given no sentence; allowed: one or more")
    from models.retriever.trust import claim

    readings: list[Reading] = []
    verified: list[float] = []
    answers: list[TrustedAnswer] = []
    for pick in choice.picks:
        prompt = prompt_of(pick)

        def job(prompt: list[int] = prompt) -> Reading:
            return _read_one(prompt, backbone, form, cache, limit, stopped)

        readings.append(runner.call(job))
        if choice.verify is not None:
            told = claim(readings[-1].parsed.text, pick.title, pick.text)
            verified.append(float(choice.verify(question, [told])[0]))
        answers = _trusted(choice, readings, verified)
        if stopped.is_set() or answers[-1].trust >= choice.trust.enough:
            break
    best = answers[-1]
    names = [normalize_answer(reading.parsed.text) for reading in readings]
    return ApartAnswer(
        reading=readings[best.at],
        trust=best.trust,
        rests_on=tuple(
            pick for pick, name in zip(choice.picks, names, strict=False) if name == names[best.at]
        ),
        num_read=len(readings),
        prompt_tokens=sum(reading.prompt_tokens for reading in readings),
        generated=sum(len(reading.written) for reading in readings),
    )


def _trusted(
    choice: ApartChoice, readings: Sequence[Reading], verified: Sequence[float]
) -> list[TrustedAnswer]:
    """The most trusted answer after each reading so far."""
    from models.retriever.trust import UNREAD, SingleReadings, most_trusted

    at = list(choice.places[: len(readings)])
    width = choice.tables.num_candidates if choice.tables is not None else len(choice.picks)

    def column(values: Sequence[float]) -> npt.NDArray[np.float32]:
        made = np.full((1, width), np.nan, np.float32)
        made[0, at] = values
        return made

    groups = np.full((1, width), UNREAD, np.int64)
    names = [normalize_answer(reading.parsed.text) for reading in readings]
    groups[0, at] = [names.index(name) for name in names]
    singles = SingleReadings(
        f1=column([0.0] * len(at)),
        margin=column([reading.margin for reading in readings]),
        sure=column([reading.sure for reading in readings]),
        lengths=column([float(len(reading.written)) for reading in readings]),
        groups=groups,
        loss=column([0.0] * len(at)),
    )
    scores = column(verified) if verified else None
    logits = choice.trust.combination.logits(choice.tables, singles, scores)[0, at]
    return most_trusted(logits.tolist(), groups[0, at].tolist())


def _read_one(
    prompt: list[int],
    backbone: Backbone,
    form: PromptForm,
    cache: Any | None,
    limit: int,
    stopped: threading.Event,
) -> Reading:
    """Generate the answer that the reader gives when it must, and score it."""
    unknown, end = giving_up_token(backbone.encode), backbone.encode(STOP_TEXTS[0])[:1]
    barred = [unknown] if form == "adapted" and unknown is not None else []
    written = list(backbone.generate(prompt, cache, limit, STOP_TEXTS, stopped.is_set, suppress_first=barred))
    whole = backbone.score(prompt, [*written, *end], cache)
    margin = 0.0
    if barred:
        other = written[0] if written else end[0]
        margin = backbone.score(prompt, barred, cache) - backbone.score(prompt, [other], cache)
    return Reading(
        written=tuple(written),
        parsed=parse_answer(backbone.decode(written)),
        prompt_tokens=len(prompt),
        margin=margin,
        sure=whole / (len(written) + 1),
    )
