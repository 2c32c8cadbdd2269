"""Material made on a GPU host: every question's candidates, labels, features and vectors in about a minute.

    python3 -m infra.training.policy_material --carried carried --out carried/material

What `policy_data` makes on a workplace, for many more questions: BM25, cutting and features in processes, vectors
(MiniLM, half precision) on the device, each passage's in one go, so the search is BM25 and the embedder over the
whole corpus. Questions are split by titles over all sets together; some of the training questions (DEV, by a hash
of their first gold title) are kept for choosing. RealTimeQA (never in training) and newswire come with pools of
their own (`policy_pools`): BM25's texts, which the embedder ranks. Every split's share of questions with what
tells among their candidates is told, and a run whose dev questions cannot tell is refused (`checked`).
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from infra.training.forked import forked_pool
from infra.training.host_search import Encoder, counter, fused, nearest
from infra.training.policy_carry import CORPUS, SETS
from infra.training.policy_pack import main_directions, turn
from infra.training.policy_pools import HOPS, Pooled, both_ways
from infra.training.policy_worlds import cache_told, newswire_pool
from models.retriever.table import GOLD, HOLDS, CandidateTable, TableBatch
from pipeline.candidate_features import Unit, embedded_text, features, preselect
from pipeline.prepare.pools import TextIndex
from pipeline.session.sentences import split_sentences
from pipeline.tasks.cached import CACHE, offered, told_among
from pipeline.tasks.choices import label_of, needs_all, units_of
from pipeline.tasks.contexts import Candidate, candidates
from pipeline.tasks.material import ChoiceQuestion, Material
from pipeline.tasks.qa import (
    Question,
    SourceText,
    assign_splits,
    read_lines,
    read_passages,
    read_questions,
    test_title_keys,
    title_key,
)
from pipeline.tasks.scores import holds_answer

REACH = 100
MOST = {"train": {"nq": 2500, "squad": 1200}, "test": {"nq": 400, "squad": 400, "hotpot": 300}}
DEV = {"nq": 0.15, "squad": 0.15, "hotpot": 0.2}
"""Share of a set's training questions that are kept for choosing."""
ONLY_TRAINED = ("musique",)
WORLDS: tuple[dict[str, Any], ...] = (
    *({"seed": seed, "split": "train", "kinds": HOPS, "num_questions": 200} for seed in (1101, 1102, 1103)),
    *({"seed": seed, "split": "train", "num_questions": 160} for seed in (1104, 1105, 1106)),
    {"seed": 1107, "split": "validation", "num_questions": 160},
    {"seed": 2001, "split": "test", "num_questions": 300},
)
"""Newswire worlds: hops for want of HotpotQA's texts, mixed kinds, dev questions, the world that is judged.

None that a reader was trained on (1001 to 1030): of worlds 1001 and 1004 the shipped one knew 44 questions with
their answers."""
LEAST_TOLD = 0.6
"""Least share of a set's dev questions that must have what tells among their candidates."""
LEAST_TOLD_OF = {"rtqa": 0.4}
"""The same of sets where less is told in test too: 69% of RealTimeQA's, whose answers the news at hand may lack."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostMaterialConfig:
    """How material is made there."""

    passages: int = field(default=12, metadata={"help": "texts of the search that are cut into candidates"})
    candidates: int = field(default=48, metadata={"help": "candidates of a question, 2 to 64"})
    worlds: int = field(default=len(WORLDS), metadata={"help": "newswire worlds of WORLDS, at most"})
    dim: int = field(default=128, metadata={"help": "directions of the vectors that are kept (0: all)"})
    most: int = field(default=0, metadata={"help": "questions of a set and split, at most (0: as built in)"})
    processes: int = field(default=14, metadata={"help": "of BM25, cutting and features"})
    seed: int = field(default=0, metadata={"help": "which questions are taken"})
    cache: int = field(
        default=CACHE,
        metadata={"help": "newest articles of its stream's cache that a newswire question brings (0: none)"},
    )
    cache_share: float = field(
        default=0.5, metadata={"help": "of newswire's training questions, those that bring them"}
    )
    judged: int = field(default=0, metadata={"help": "1: dev and test questions alone, nothing is trained"})


class _Shared:
    """What worker processes inherit when they are forked."""

    index: TextIndex
    texts: dict[str, SourceText]
    held_back: frozenset[str]
    config: HostMaterialConfig
    count: Any


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--carried", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, entry in HostMaterialConfig.__dataclass_fields__.items():
        parser.add_argument(
            f"--{name}", type=type(entry.default), default=entry.default, help=entry.metadata["help"]
        )
    given = parser.parse_args()
    config = HostMaterialConfig(
        **{name: getattr(given, name) for name in HostMaterialConfig.__dataclass_fields__}
    )
    if (given.out / "manifest.json").exists():
        _say(f"{given.out} is there")
        return
    began = time.monotonic()
    made, projection = make(given.carried, config, given.device)
    told = checked(made)
    _say(f"questions and share with what tells among their candidates: {told}")
    cache = cache_told(made, config.passages)
    _say(f"candidates of caches: {cache}")
    made.save(
        given.out,
        {"sets": SETS, "told": told, "cache": cache, "seconds": round(time.monotonic() - began, 1)},
    )
    np.save(given.out / "projection.npy", projection.astype(np.float32))
    _say(f"{given.out}: {len(made):,} questions in {time.monotonic() - began:.0f} s")


def make(carried: Path, config: HostMaterialConfig, device: str) -> tuple[Material, npt.NDArray[np.float32]]:
    """The material, its vectors along their main directions, and those directions [D, dim]."""
    began = time.monotonic()
    texts = read_passages(carried / "corpus" / f"{CORPUS}.jsonl.zst")
    every = [q for name in SETS for q in read_questions(carried / "qa" / f"{name}.jsonl.zst")]
    every = with_hops(assign_splits(every, texts), texts, carried / "qa" / "musique.jsonl.zst")
    shared = _Shared
    shared.texts, shared.held_back, shared.config = texts, test_title_keys(every), config
    shared.index, shared.count = TextIndex(list(texts.values())), counter(carried)
    questions = [q for q in picked(every, config) if not (config.judged and q.split == "train")]
    _say(f"{time.monotonic() - began:.0f} s: {len(texts):,} passages indexed, {len(questions):,} questions")
    # forked before the device is touched: a process that has a CUDA context must not be
    with forked_pool(config.processes) as pool:
        asked_of = [world | {"cache": config.cache} for world in worlds_of(config)]
        worlds = pool.map_async(_world, asked_of, chunksize=1)
        lexical = pool.map_async(_lexical, questions, chunksize=32)
        encode = Encoder(carried / "minilm", device)
        names = list(texts)
        passages = encode([f"{texts[name].title}\n{texts[name].text}" for name in names])
        asked = encode([question.text for question in questions])
        dense = nearest(asked, passages, REACH, device)
        _say(f"{time.monotonic() - began:.0f} s: passages and questions embedded")
        jobs: list[Job] = [
            Job(
                question,
                [texts[name] for name in fused([found, [names[at] for at in near]], _reach(config))],
                (),
            )
            for question, found, near in zip(questions, lexical.get(), dense, strict=True)
        ]
        pools = [
            both_ways(each, config.cache_share, config.seed) for each in _pools(carried, worlds.get(), config)
        ]
        jobs += pooled_jobs(pools, encode, config)
        cuts = [each for each in pool.map(_cut, jobs, chunksize=16) if each is not None]
        asked = encode([made.text for made, _, _ in cuts])
        distinct = list(dict.fromkeys(embedded_text(unit) for _, _, units in cuts for unit in units))
        vectors, row_of = encode(distinct), {text: at for at, text in enumerate(distinct)}
        _say(f"{time.monotonic() - began:.0f} s: {len(distinct):,} candidates embedded")
        own = [vectors[[row_of[embedded_text(unit)] for unit in units]] for _, _, units in cuts]
        near_to = [
            rows.astype(np.float32) @ query.astype(np.float32) for query, rows in zip(asked, own, strict=True)
        ]
        described = pool.starmap(
            _describe,
            [(made.text, units, cosine) for (made, _, units), cosine in zip(cuts, near_to, strict=True)],
            chunksize=32,
        )
    tables = [
        CandidateTable(
            query=query,
            vectors=rows,
            features=columns,
            tokens=np.array([unit.num_tokens for unit in units], np.int64),
            groups=np.array([unit.rank for unit in units], np.int64),
            heads=np.array([unit.head_tokens for unit in units], np.int64),
            labels=np.array([unit.label for unit in units], np.int8),
            needs_all=need,
        )
        for (_, need, units), query, rows, columns in zip(cuts, asked, own, described, strict=True)
    ]
    whole = Material(tuple(made for made, _, _ in cuts), TableBatch.stack(tables))
    projection = main_directions(whole, config.dim)
    return turn(whole, projection), projection


def checked(material: Material, least: float = LEAST_TOLD) -> dict[str, dict[str, tuple[int, float]]]:
    """Questions of each split and set, and the share of them whose candidates hold what tells.

    Raises ValueError where a set's dev questions are fewer than `least` told: nothing could be chosen on them.
    """
    told = (material.tables.labels == GOLD).any(1)
    found: dict[str, dict[str, tuple[int, float]]] = {}
    for dataset in sorted({question.dataset for question in material.questions}):
        for split in ("train", "dev", "test"):
            rows = material.rows(split, dataset)
            if len(rows):
                found.setdefault(split, {})[dataset] = (len(rows), round(float(told[rows].mean()), 4))
    poor = {
        name: told
        for name, (_, told) in found.get("dev", {}).items()
        if told < min(least, LEAST_TOLD_OF.get(name, least))
    }
    if poor:
        raise ValueError(
            f"dev questions: given {poor} as the shares with what tells among their candidates; allowed: {least} "
            "or more. Take questions whose gold texts the corpus holds (policy_material.picked)"
        )
    return found


def with_hops(
    questions: Sequence[Question], texts: Mapping[str, SourceText], decomposed: Path
) -> list[Question]:
    """MuSiQue's questions with the sentence of each hop as their support; the others as they are."""
    answers = {row["id"]: [hop["answer"] for hop in row["decomposition"]] for row in read_lines(decomposed)}
    made = []
    for question in questions:
        support = []
        if question.dataset == "musique":
            golds = [texts[name] for name in question.gold_ids if name in texts]
            for at, answer in enumerate(answers.get(question.question_id, ())):
                told = [
                    (text.title, sentence)
                    for text in [*golds[at : at + 1], *golds]
                    for sentence in split_sentences(text.text)
                    if holds_answer(sentence, [answer])
                ]
                support += told[:1]
        made.append(replace(question, support=tuple(dict.fromkeys(support))) if support else question)
    return made


class Job(NamedTuple):
    """A question with its texts, and what tells it beside its support.

    `last`: what its session has read last, newest first; None where no session is thought of. `tellings` as
    `policy_pools.Cached` has them.
    """

    question: Question
    texts: list[SourceText]
    others: tuple[str, ...]
    last: list[SourceText] | None = None
    tellings: tuple[tuple[tuple[str, str], ...], ...] = ()


def pooled_jobs(pools: Sequence[Pooled], encode: Encoder, config: HostMaterialConfig) -> list[Job]:
    """What is cut for questions that bring their texts: BM25's order fused with the embedder's among them."""
    jobs: list[Job] = []
    for pooled in pools:
        names = list(dict.fromkeys(name for pool in pooled.pools for name in pool))
        place = {name: at for at, name in enumerate(names)}
        vectors = encode([f"{pooled.texts[name].title}\n{pooled.texts[name].text}" for name in names])
        asked = encode([question.text for question in pooled.questions])
        taken: dict[tuple[str, str], int] = {}
        caches = pooled.caches or [None] * len(pooled.questions)
        for question, ids, others, cached, query in zip(
            pooled.questions, pooled.pools, pooled.also, caches, asked, strict=True
        ):
            key = (question.split, question.dataset)
            taken[key] = taken.get(key, 0) + 1
            if config.most and taken[key] > config.most:
                continue
            near = vectors[[place[name] for name in ids]].astype(np.float32) @ query.astype(np.float32)
            order = [ids[at] for at in np.argsort(-near, kind="stable")]
            best = fused([list(ids), order], _reach(config))
            job = Job(question, [pooled.texts[name] for name in best], others)
            if cached is not None:
                last = [pooled.texts[name] for name in cached.articles]
                job = job._replace(last=last, tellings=cached.tellings)
            jobs.append(job)
    return jobs


def worlds_of(config: HostMaterialConfig) -> list[dict[str, Any]]:
    """The newswire worlds of a run."""
    return [world for world in WORLDS[: config.worlds] if not (config.judged and world["split"] == "train")]


def _pools(carried: Path, worlds: Sequence[Pooled], config: HostMaterialConfig) -> list[Pooled]:
    files = sorted((carried / "pools").glob("*.json.xz"))
    found = [Pooled.load(path) for path in files]
    for each, world in zip(worlds_of(config), worlds, strict=True):
        if each["split"] == "validation":
            asked = tuple(replace(question, split="dev") for question in world.questions)
            found.append(replace(world, questions=asked))
        else:
            found.append(world)
    return found


def _reach(config: HostMaterialConfig) -> int:
    return 2 * config.passages


def picked(questions: Sequence[Question], config: HostMaterialConfig) -> list[Question]:
    """The answerable questions of a run by a hash of their ids; some of training become "dev", by title.

    A question whose gold text the corpus lacks has no title, and is left out: nothing among its candidates tells.
    """
    order = sorted(questions, key=lambda q: _hash(f"{config.seed}:{q.question_id}"))
    found: list[Question] = []
    taken: dict[tuple[str, str], int] = {}
    for question in order:
        if not question.answerable or not question.titles or question.split not in ("train", "dev", "test"):
            continue
        split, name = question.split, question.dataset
        if name in ONLY_TRAINED:
            if split == "test":
                continue
            split = "train"
        elif (
            split == "train" and _hash(f"dev:{title_key(question.titles[0])}") < DEV.get(name, 0.1) * 2.0**56
        ):
            split = "dev"
        most = MOST.get(split, {}).get(name, 1 << 30)
        most = min(most, config.most) if config.most else most
        if taken.get((name, split), 0) < most:
            taken[name, split] = taken.get((name, split), 0) + 1
            found.append(replace(question, split=split))
    return found


def _lexical(question: Question) -> list[str]:
    return [text.text_id for text in _Shared.index.top(question.text, REACH)]


def _world(asked: dict[str, Any]) -> Pooled:
    return newswire_pool(**asked)


def _cut(job: Job) -> tuple[ChoiceQuestion, bool, list[Unit]] | None:
    """A question's candidates within its texts; training reads nothing under a test question's title."""
    question, texts, others, last, tellings = job
    config = _Shared.config
    if question.split != "test" and not question.dataset.startswith("newswire"):
        texts = [text for text in texts if title_key(text.title) not in _Shared.held_back]
    if last is None:
        choices: list[Candidate] = candidates(texts[: config.passages])
    else:
        choices = offered(question.text, texts[: config.passages], last, _Shared.count)
        if tellings:
            question, others = told_among(question, tellings, choices)
    if len(choices) < 2:
        return None
    units = units_of(question, choices, _Shared.count, lambda choice: labelled(question, choice, others))
    kept = preselect(question.text, units, config.candidates)
    units, choices = [units[at] for at in kept], [choices[at] for at in kept]
    made = ChoiceQuestion(
        question_id=question.question_id,
        dataset=question.dataset,
        split=question.split,
        text=question.text,
        answers=question.answers,
        kind=question.kind,
        sentences=tuple((choice.source.title, choice.source.date, choice.text) for choice in choices),
        places=tuple(choice.place for choice in choices),
    )
    return made, needs_all(question), units


def labelled(question: Question, choice: Candidate, others: Sequence[str]) -> int:
    """The label by the question's support or golds; HOLDS for what tells a hop beside the sentence named."""
    label = label_of(question, choice)
    return HOLDS if not label and any(sentence in choice.text for sentence in others) else label


def _describe(question: str, units: Sequence[Unit], cosine: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return features(question, units, cosine)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")


def _say(what: str) -> None:
    print(what, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
