"""Question answering: choose what is read by a method, let the reader answer, score answers and cost.

Figures are those of one reader over one file of questions; methods are comparable at equal budgets.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infra.evaluation.attention_rag import AttentionRag
from infra.evaluation.hybrid_pool import HybridPool
from infra.evaluation.qa_apart import answers_apart, trust_of
from infra.evaluation.qa_choosing import ChoiceSettings, ChoosingMethod, long_units
from infra.evaluation.qa_sources import QaSource, open_source
from infra.evaluation.reading import HfReader, load_reader
from pipeline.errors import UsageError
from pipeline.session.prompts import PromptForm, Sentence, parse_answer, reader_prompt
from pipeline.tasks.choices import cut
from pipeline.tasks.contexts import (
    Candidate,
    as_sentences,
    oracle_sentences,
    rank_sentences,
    tells,
    whole,
    within_budget,
)
from pipeline.tasks.qa import Question
from pipeline.tasks.scores import Reading, score_readings

SIMPLE = ("none", "random", "bm25", "dense", "hybrid", "oracle", "gold", "full")
STAGED = ("policy", "supervised", "router", "cascade")
READINGS = ("together", "apart")
METHODS = (*SIMPLE, *STAGED, "attention_rag", "longrag")
UNITS = ("sentence", "span", "passage")
RETRIEVED = 20
Encode = Callable[[Sequence[str]], "np.ndarray[Any, Any]"]


@dataclass(frozen=True, kw_only=True, slots=True)
class QaConfig:
    """One cell: a method on a file of questions."""

    data: Path = field(metadata={"help": "questions, named as in the data folder (nq_open.jsonl.zst, …)"})
    method: str = field(default="bm25", metadata={"help": f"what is read: {', '.join(METHODS)}"})
    corpus: Path | None = field(
        default=None, metadata={"help": "texts; default: where the data folder has them"}
    )
    model: str = field(default="gemma-3-270m", metadata={"help": "the reader, as backbone.model"})
    adapter: str | None = field(default=None, metadata={"help": "LoRA adapter of the reader"})
    embedder: str = field(default="minilm", metadata={"help": "for all methods that compare meanings"})
    policy: Path | None = field(
        default=None,
        metadata={"help": "folder of the policy, supervised or router; default: the shipped policy"},
    )
    stop_bias: float = field(
        default=0.0, metadata={"help": "added to the policy's STOP: above 0 it reads less"}
    )
    passages: int = field(default=10, metadata={"help": "texts that staged methods cut into candidates"})
    reach: int = field(
        default=100,
        metadata={"help": "BM25's best texts that staged methods rank by meaning too; 0: the corpus"},
    )
    cache: int = field(
        default=0,
        metadata={"help": "newest articles of a session's cache that staged methods choose from too"},
    )
    span: int = field(default=32, metadata={"help": "tokens of a span"})
    unit: str = field(default="sentence", metadata={"help": "what is chosen: sentence, span or passage"})
    budget: int = field(default=128, metadata={"help": "tokens of text a question, titles included"})
    reading: str = field(
        default="together",
        metadata={"help": "together in one prompt, or apart: each alone, the most trusted answer"},
    )
    trust: Path | None = field(
        default=None, metadata={"help": "weights of readings apart; default: the reader's own probability"}
    )
    split: str = field(default="test", metadata={"help": "test (no gold title of it was trained on) or all"})
    limit: int = field(default=0, metadata={"help": "questions, at most (0: all)"})
    seed: int = field(default=0, metadata={"help": "which questions a limit keeps; random choices"})
    device: str = field(default="auto", metadata={"help": "as backbone.device"})

    def __post_init__(self) -> None:
        choices = (
            ("method", METHODS), ("unit", UNITS), ("split", ("test", "all")), ("reading", READINGS),
        )  # fmt: skip
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: given {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if self.budget < 8:
            raise ValueError(f"budget: given {self.budget}; allowed: 8 tokens or more")
        for name, least in (("passages", 1), ("reach", 0), ("span", 1), ("cache", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: {least} or more")
        if self.cache and self.method not in STAGED:
            raise ValueError(
                f"cache: given {self.cache} with method {self.method}; allowed: with {', '.join(STAGED)}"
            )
        if self.limit < 0:
            raise ValueError(f"limit: given {self.limit}; allowed: 0 (all) or more")


def run(config: QaConfig, on_progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """The figures of a cell, in the keys that `dysra evaluate --json` prints.

    Raises UsageError for files that the method cannot use, BadData for broken ones.
    """
    source = open_source(config.data, config.corpus)
    questions = _picked(source.questions, config)
    reader = load_reader(config.model, config.adapter, config.device)
    backbone = reader.backbone
    form: PromptForm = "adapted" if config.adapter else "base"

    def count(text: str) -> int:
        return len(backbone.encode(text))

    began = time.monotonic()
    choose, compressor = _chooser(source, config, count, backbone, form)
    contexts = [choose(question) for question in questions]
    kept = [
        (question, found) for question, found in zip(questions, contexts, strict=True) if found is not None
    ]
    if not kept:
        raise UsageError(
            f"{config.data}: method {config.method} has nothing to read for any question; try bm25"
        )
    chosen_s = time.monotonic() - began
    bare = [len(backbone.encode(reader_prompt((), q.text, form))) + len(backbone.bos) for q, _ in kept]
    began = time.monotonic()
    prompts, said, readings, read_of = (_apart if config.reading == "apart" else _together)(
        reader, kept, form, config, on_progress
    )
    read_s = time.monotonic() - began
    scores = asdict(score_readings(readings, config.seed))
    scores["holds"] = round(100 * sum(reading.tells for reading in readings) / len(readings), 2)
    read_tokens = [read - least for read, least in zip(read_of, bare, strict=True)]
    return {
        "task": "qa",
        "method": config.method,
        "data": config.data.name,
        "unit": config.unit,
        "budget": config.budget,
        "reading": config.reading,
        "split": config.split,
        "n": len(kept),
        "scores": scores,
        "cost": reader.cost(prompts, read_tokens, said, chosen_s, read_s)
        | ({"compressor_tokens": round(compressor() / len(questions), 1)} if compressor() else {}),
        "seed": config.seed,
        "model": backbone.identity,
    } | ({"cache": config.cache} if config.cache else {})


Kept = list[tuple[Question, tuple[Sentence, ...]]]
Answered = tuple[list[list[int]], list[tuple[int, ...]], list[Reading], list[int]]
"""What was read and said for each question, the readings to score, and the tokens of all its prompts."""


def _together(
    reader: Any, kept: Kept, form: PromptForm, config: QaConfig, on_progress: Callable[[int], None] | None
) -> Answered:
    """All sentences of a question in one prompt."""
    backbone = reader.backbone
    prompts = [[*backbone.bos, *backbone.encode(reader_prompt(read, q.text, form))] for q, read in kept]
    said, forced = reader.answers(prompts, on_progress)
    readings = [
        Reading(
            answer=parsed.text,
            given_up=parsed.given_up,
            golds=question.answers,
            tells=tells(question, sentences),
            forced=parse_answer(backbone.decode(forced[at])).text if at in forced else "",
        )
        for at, ((question, sentences), parsed) in enumerate(
            zip(kept, (parse_answer(backbone.decode(ids)) for ids in said), strict=True)
        )
    ]
    return prompts, said, readings, [len(prompt) for prompt in prompts]


def _apart(
    reader: Any, kept: Kept, form: PromptForm, config: QaConfig, on_progress: Callable[[int], None] | None
) -> Answered:
    """Each sentence in a prompt of its own; every prompt of a question counts."""
    if not isinstance(reader, HfReader):
        raise UsageError(
            "--reading apart needs a transformers reader; give --model hf, or --reading together"
        )
    found = answers_apart(reader.backbone, kept, form, trust_of(config.trust), on_progress)
    readings = [
        Reading(
            answer="" if each.given_up else each.text,
            given_up=each.given_up,
            golds=question.answers,
            tells=tells(question, sentences),
            forced=each.text,
        )
        for (question, sentences), each in zip(kept, found, strict=True)
    ]
    # costs are means a question: its prompts count together
    return (
        [[token for prompt in each.prompts for token in prompt] for each in found],
        [tuple(token for ids in each.said for token in ids) for each in found],
        readings,
        [sum(map(len, each.prompts)) for each in found],
    )


def _picked(questions: Sequence[Question], config: QaConfig) -> list[Question]:
    found = [question for question in questions if config.split == "all" or question.split == "test"]
    if not found:
        raise UsageError(f"{config.data} holds no question of the test split; give --split all")
    random.Random(config.seed).shuffle(found)
    return found[: config.limit or None]


def _chooser(
    source: QaSource, config: QaConfig, count: Callable[[str], int], backbone: Any, form: PromptForm
) -> tuple[Callable[[Question], tuple[Sentence, ...] | None], Callable[[], int]]:
    """What gives each question its context, and the tokens that it has read itself to choose."""
    if config.method == "attention_rag":
        rag = AttentionRag(backbone, form, config.budget, count)
        return lambda question: rag.context(question, source.pool(question, config.passages)), (
            lambda: rag.prefill_tokens
        )
    if config.method in STAGED or config.method == "longrag":
        encode = _kept(config.embedder)
        if config.method == "longrag":
            pool = HybridPool(source, encode, config.reach)
            return lambda question: long_units(question, source, pool, config.budget, count), lambda: 0
        settings = ChoiceSettings(
            method=config.method, unit=config.unit, budget=config.budget, span_tokens=config.span,
            passages=config.passages, reach=config.reach, stop_bias=config.stop_bias, policy=config.policy,
            cache=config.cache, device=str(getattr(backbone, "device", "cpu")),
        )  # fmt: skip
        words = getattr(backbone, "words", None)
        return ChoosingMethod(source, settings, encode, count, words).context, lambda: 0
    plain = _embedder(config.embedder) if config.method in ("dense", "hybrid") else None
    return lambda question: _context(question, source, config, count, plain), lambda: 0


def _context(
    question: Question, source: QaSource, config: QaConfig, count: Callable[[str], int], encode: Encode | None
) -> tuple[Sentence, ...] | None:
    """What the method gives to read; None where it has nothing for this question (no gold text)."""
    if config.method == "none":
        return ()
    golds = source.golds(question)
    if config.method in ("oracle", "gold", "full"):
        if not golds:
            return None
        if config.method == "oracle":
            return oracle_sentences(question, golds, source.weights)
        if config.method == "gold":
            return whole(golds)
        others = [text for text in source.pool(question, RETRIEVED) if text not in golds]
        texts = [*golds, *others][:RETRIEVED]
        random.Random(f"{config.seed}:{question.question_id}").shuffle(texts)
        return whole(sorted(texts, key=lambda text: text.date))
    pool = source.pool(question, RETRIEVED)
    units = cut(pool, config.unit, count, config.span)
    if not units:
        return ()
    chosen = within_budget(_ranked(question, units, source, config, encode), config.budget, count)
    return as_sentences(sorted(chosen, key=lambda choice: choice.source.date))


def _ranked(
    question: Question, units: list[Candidate], source: QaSource, config: QaConfig, encode: Encode | None
) -> list[Candidate]:
    if config.method == "random":
        return random.Random(f"{config.seed}:{question.question_id}").sample(units, len(units))
    lexical = rank_sentences(question.text, units, source.weights)
    if encode is None:
        return lexical
    vectors = encode([question.text, *(f"{unit.source.title}: {unit.text}" for unit in units)])
    dense = [units[at] for at in np.argsort(-(vectors[1:] @ vectors[0]), kind="stable")]
    if config.method == "dense":
        return dense
    place: dict[tuple[int, int], float] = {}
    for ranking in (lexical, dense):
        for at, unit in enumerate(ranking):
            place[unit.place] = place.get(unit.place, 0.0) + 1 / (60 + at)
    return sorted(units, key=lambda unit: -place[unit.place])


def _kept(spec: str) -> Encode:
    """The embedder with its vectors kept on disk: staged methods embed many texts."""
    from infra.evaluation.vector_cache import VectorCache
    from models.embed import load_embedder
    from models.embed.artifacts import cache_folder

    cache = VectorCache(cache_folder("") / "vectors", load_embedder(spec))
    return lambda texts: np.asarray(cache.encode(texts), np.float32)


def _embedder(spec: str) -> Encode:
    from models.embed import load_embedder

    embedder = load_embedder(spec)
    return lambda texts: np.asarray(embedder.encode(list(texts)))
