"""Hard negatives of made questions: sentences of the passages that words and meaning find for them.

As the policy's material is made: BM25 and MiniLM fused, a dozen passages, cut into sentences, described by the same
features. Nothing under a gold title is searched. A sentence that holds the answer elsewhere is left out, as it may
tell; a question whose own passage neither search finds is left out too: it does not say what it asks about. Of two
sentences both tell and both are needed; the first one's passage must be found, the other is put there.

Processes are forked before the device is touched; what the device makes after that they read from files.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.training.forked import forked_pool
from infra.training.host_search import Encoder, counter, fused, nearest
from infra.training.made_filters import Made
from infra.training.made_hops import bare
from models.retriever.table import GOLD, CandidateTable, TableBatch
from pipeline.candidate_features import features, preselect
from pipeline.prepare.pools import TextIndex, words_of
from pipeline.session.prompts import one_line
from pipeline.session.sentences import split_sentences
from pipeline.tasks.choices import units_of
from pipeline.tasks.contexts import Candidate
from pipeline.tasks.material import ChoiceQuestion, Material
from pipeline.tasks.qa import Question, SourceText
from pipeline.tasks.scores import holds_answer

FEWEST = 4
"""A question with fewer candidates teaches nothing."""
LEFT_OUT = ("not_found", "no_sentence", "few")


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidatesConfig:
    """How candidates of made questions are found."""

    passages: int = field(default=12, metadata={"help": "passages that are cut into candidates"})
    candidates: int = field(default=32, metadata={"help": "candidates of a question, 4 to 64"})
    reach: int = field(default=100, metadata={"help": "each search must find the own passage among so many"})
    processes: int = field(default=12, metadata={"help": "of cutting, BM25 and features"})

    def __post_init__(self) -> None:
        if not FEWEST <= self.candidates <= 64:
            raise ValueError(f"candidates: given {self.candidates}; allowed: {FEWEST} to 64")
        for name in ("passages", "reach", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")


class _Shared:
    """What worker processes inherit when they are forked."""

    texts: list[SourceText]
    sentences: list[tuple[str, ...]]
    first: npt.NDArray[np.int64]
    """Where each text's sentences begin among all. [number of texts + 1]"""
    index: TextIndex
    place: dict[str, int]
    made: Sequence[Made]
    config: CandidatesConfig
    count: Any
    folder: Path
    vectors: npt.NDArray[Any] | None = None
    asked: npt.NDArray[Any] | None = None


def material_of_made(
    made: Sequence[Made], texts: Sequence[SourceText], carried: Path, work: Path, config: CandidatesConfig,
    device: str, seconds: float, say: Callable[[str], None],
) -> tuple[Material, dict[str, int]]:  # fmt: skip
    """The questions with their candidates, and how many were left out, by reason; those that there was time for.

    Vectors are left out of the tables (width 1): pair readers read words. ValueError where nothing is left.
    """
    began, shared = time.monotonic(), _Shared
    shared.texts, shared.made, shared.config, shared.folder = list(texts), made, config, work
    work.mkdir(parents=True, exist_ok=True)
    with forked_pool(config.processes) as pool:
        cut = pool.map(_split, range(len(texts)), chunksize=1024)
    shared.sentences = [sentences for sentences, _ in cut]
    shared.index = TextIndex(shared.texts, [bag for _, bag in cut])
    shared.first = np.concatenate([[0], np.cumsum([len(each) for each in shared.sentences])]).astype(np.int64)
    shared.place = {text.text_id: at for at, text in enumerate(shared.texts)}
    shared.count, shared.vectors, shared.asked = counter(carried), None, None
    say(
        f"{time.monotonic() - began:.0f} s: {len(texts):,} passages, {int(shared.first[-1]):,} sentences indexed"
    )
    left = Counter(dict.fromkeys(LEFT_OUT, 0))
    questions: list[ChoiceQuestion] = []
    tables: list[CandidateTable] = []
    # forked before the device is touched: a process that has a CUDA context must not be
    with forked_pool(config.processes) as pool:
        lexical = pool.map_async(_lexical, range(len(made)), chunksize=64)
        encode = Encoder(carried / "minilm", device)
        passages = encode([f"{text.title}\n{text.text}" for text in shared.texts])
        asked = encode([each.question for each in made])
        near = nearest(asked, passages, config.reach, device)
        sentences = encode(
            [
                f"{text.title}: {sentence}"
                for text, own in zip(shared.texts, shared.sentences, strict=True)
                for sentence in own
            ]
        )
        np.save(work / "asked.npy", asked)
        np.save(work / "sentences.npy", sentences)
        say(f"{time.monotonic() - began:.0f} s: {len(made):,} questions, passages and sentences embedded")
        jobs = [
            (at, found, row.tolist()) for at, (found, row) in enumerate(zip(lexical.get(), near, strict=True))
        ]
        for reason, question, table in pool.imap(_row, jobs, chunksize=32):
            if question is None or table is None:
                left[reason] += 1
            else:
                questions.append(question)
                tables.append(table)
            if time.monotonic() - began > seconds:
                say(f"made candidates: ended by the clock after {len(questions):,} of {len(made):,}")
                pool.terminate()
                break
    if not questions:
        raise ValueError(f"made: given {len(made)} questions, none has candidates ({dict(left)}); make more")
    return Material(tuple(questions), TableBatch.stack(tables, config.candidates)), dict(left)


def _row(job: tuple[int, list[int], list[int]]) -> tuple[str, ChoiceQuestion | None, CandidateTable | None]:
    """A question's candidates described; or the reason why it is left out."""
    at, lexical, near = job
    made, config = _Shared.made[at], _Shared.config
    told = (*made.source.via, made.source)
    own = [_Shared.place[each.text_id] for each in told]
    if own[0] not in lexical and own[0] not in near:
        return "not_found", None, None
    order = [int(name) for name in fused([[str(i) for i in lexical], [str(i) for i in near]], config.reach)]
    places = order[: config.passages]
    lacking = [each for each in dict.fromkeys(own) if each not in places]
    if lacking:
        others = [each for each in places if each not in own]
        places = [each for each in places if each in own or each in others[: len(others) - len(lacking)]]
        places += lacking
    choices, rows, golds = _choices(made, places, own)
    if len(golds) < len(told):
        return "no_sentence", None, None
    if len(choices) < FEWEST:
        return "few", None, None
    asked = Question(
        question_id=f"made-{at:06d}", dataset=f"made-{made.source.style}", text=made.question,
        answers=(made.answer,), answerable=True, gold_ids=tuple(each.text_id for each in told),
    )  # fmt: skip
    telling = [id(choices[i]) for i in golds]
    units = units_of(asked, choices, _Shared.count, lambda choice: GOLD if id(choice) in telling else 0)
    kept = preselect(asked.text, units, config.candidates)
    if lost := [i for i in golds if i not in kept]:
        spare = [i for i in kept if i not in golds]
        kept = [i for i in kept if i in golds or i in spare[: len(spare) - len(lost)]] + lost
    units, choices = [units[i] for i in kept], [choices[i] for i in kept]
    vectors, query = _vectors()
    cosine = vectors[[rows[i] for i in kept]].astype(np.float32) @ query[at].astype(np.float32)
    table = CandidateTable(
        query=np.zeros(1, np.float16),
        vectors=np.zeros((len(units), 1), np.float16),
        features=features(asked.text, units, cosine),
        tokens=np.array([unit.num_tokens for unit in units], np.int64),
        groups=np.array([unit.rank for unit in units], np.int64),
        heads=np.array([unit.head_tokens for unit in units], np.int64),
        labels=np.array([unit.label for unit in units], np.int8),
        needs_all=len(told) > 1,
    )
    question = ChoiceQuestion(
        question_id=asked.question_id, dataset=asked.dataset, split="train", text=asked.text,
        answers=asked.answers, kind=made.source.style,
        sentences=tuple((choice.source.title, "", choice.text) for choice in choices),
        places=tuple(choice.place for choice in choices),
    )  # fmt: skip
    return "", question, table


def _choices(
    made: Made, places: Sequence[int], own: Sequence[int]
) -> tuple[list[Candidate], list[int], list[int]]:
    """The sentences of these passages, their rows among all, and which of them tell, as far as they are there.

    What holds the answer elsewhere, or says the same again, is left out; so is what else names the second one's
    title.
    """
    choices: list[Candidate] = []
    rows: list[int] = []
    golds: list[int] = []
    seen: set[str] = set()
    told = [
        (at, one_line(each.sentence).casefold())
        for at, each in zip(own, (*made.source.via, made.source), strict=True)
    ]
    sayings = {key for _, key in told}
    leads = [bare(made.source.title)] if made.source.via else []
    for rank, at in enumerate(places):
        for place, sentence in enumerate(_Shared.sentences[at]):
            key = one_line(sentence).casefold()
            tells = (at, key) in told and key not in seen
            if not tells and (key in seen or key in sayings or holds_answer(sentence, [made.answer])):
                continue
            if not tells and leads and at != own[-1] and holds_answer(sentence, leads):
                continue
            seen.add(key)
            if tells:
                golds.append(len(choices))
            choices.append(Candidate(_Shared.texts[at], sentence, (rank, place)))
            rows.append(int(_Shared.first[at]) + place)
    return choices, rows, golds


def _vectors() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The sentences' and the questions' vectors, opened by each process when it first needs them."""
    if _Shared.vectors is None or _Shared.asked is None:
        _Shared.vectors = np.load(_Shared.folder / "sentences.npy", mmap_mode="r")
        _Shared.asked = np.load(_Shared.folder / "asked.npy", mmap_mode="r")
    return _Shared.vectors, _Shared.asked


def _split(at: int) -> tuple[tuple[str, ...], list[str]]:
    text = _Shared.texts[at]
    return tuple(split_sentences(text.text)), words_of(text)


def _lexical(at: int) -> list[int]:
    found = _Shared.index.top(_Shared.made[at].question, _Shared.config.reach)
    return [_Shared.place[text.text_id] for text in found]


def _quiet() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
