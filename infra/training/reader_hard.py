"""Rows to train and judge the reader on, made on a GPU host: near misses by words, meaning and the pair reader.

    python3 -m infra.training.reader_hard --carried carried --reader /tmp/reader --out rows

`carried` is what `reader_carry` gathered, `reader` the folder that `reader_parts unpack` made. Texts are cut,
ranked by words, composed and tokenised in processes; texts, sentences and pairs are scored on the device; what the
shipped reader says when it reads near misses alone is what a training reading should avoid. Writes `training.npz`,
`dev.npz`, `judged.npz` (token ids of the cut vocabulary), `names.json`, and `dev.json` and `judged.json` (whose
rows they are).
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.training.forked import forked_pool
from infra.training.host_search import Encoder
from infra.training.reader_carry import POOL, Gathered, gather
from infra.training.reader_rows import Coder, Rows, distractor_answers, load_pair_reader_with
from models.retriever.pair_reader import PairRow
from pipeline.prepare.cloze import cloze_triples
from pipeline.prepare.near_misses import AnswerPool, Misleading, NearMissConfig, NearMisses
from pipeline.prepare.newswire import NewswireConfig, newswire_triples
from pipeline.prepare.pools import TextIndex, words_of
from pipeline.prepare.triples import TripleConfig, TripleMaker
from pipeline.session.chooser import bm25
from pipeline.session.sentences import split_sentences
from pipeline.tasks.contexts import Candidate, WordWeights, words

REACH = 100
PAIRED = 24
"""So many candidates, the best by words and meaning, are read by the pair reader."""
OWN_POOL = ("timeqa", "rtqa")
"""Sets whose questions are asked over texts of their own."""
JUDGED_WORLDS = (
    NewswireConfig(seed=2001, num_articles=2000, num_questions=400, split="test"),
    NewswireConfig(seed=7, num_articles=1000, num_questions=160, split="", name="demo"),
)
LEFT_OUT = ("none", "sentences64", "silent")
"""Judged contexts that are not read again: they tell little and cost a quarter of the time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HardConfig:
    """How much is made."""

    passages: int = field(default=12, metadata={"help": "texts of the search that are cut into sentences"})
    processes: int = field(default=10, metadata={"help": "processes that search, cut, compose and tokenise"})
    limit: int = field(default=0, metadata={"help": "questions of each set, for a try (0: all)"})
    longest: int = field(default=768, metadata={"help": "longer training rows are left out"})
    contexts: int = field(default=5, metadata={"help": "near and found contexts of a question, each"})
    worlds: int = field(default=12, metadata={"help": "newswire worlds to train on"})
    cloze: int = field(default=16_000, metadata={"help": "passages with a blanked sentence to practise on"})


class _Shared:
    """What worker processes inherit when they are forked."""

    all: Gathered
    sentences: list[list[str]]
    answers: AnswerPool
    coder: Coder
    near: NearMissConfig
    index: TextIndex
    weights: WordWeights


def make(carried: Path, reader: Path, out: Path, config: HardConfig, device: str) -> None:
    """Write the rows; what was made already is left as it is."""
    if (out / "names.json").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    clock, shared = _Clock(), _Shared
    shared.all = gather(carried, limit=config.limit)
    shared.coder = Coder(reader, config.longest)
    shared.near = NearMissConfig(near=config.contexts, found=config.contexts)
    asked, texts, num_wiki = shared.all.asked, shared.all.texts, shared.all.num_wiki
    shared.answers = AnswerPool(
        answer for each in asked if each.question.split == "train" for answer in each.question.answers
    )
    clock.say(f"{len(texts):,} texts, {len(asked):,} questions read")
    with forked_pool(config.processes) as first:
        cut = first.map_async(_cut, range(len(texts)), chunksize=1024)
        bags = first.map(_bag, range(num_wiki), chunksize=1024)
        shared.sentences = cut.get()
        worlds = first.map_async(_world, _worlds(config), chunksize=1)
        shared.index = TextIndex(texts[:num_wiki], bags)
        shared.weights = WordWeights(bags=bags)
        clock.say(f"{sum(map(len, shared.sentences)):,} sentences cut, {num_wiki:,} texts indexed")
        # forked before the device is touched: a process that has a CUDA context must not be
        with forked_pool(config.processes) as pool:
            lexical = pool.map_async(_search, range(len(asked)), chunksize=32)
            encode, questions, near = _embedded(carried, device)
            clock.say("texts and questions embedded")
            pools = _pools(lexical.get(), near, config)
            free = [at for at in range(num_wiki) if not shared.all.closed[at]]
            free = random.Random(0).sample(free, min(config.cloze, len(free)))
            rest = [pool.map_async(_cloze, free, chunksize=256)]
            tests = [(at, found) for at, found in enumerate(lexical.get())]
            tests = [job for job in tests if asked[job[0]].question.split == "test"]
            rest.append(pool.map_async(_as_before, tests, chunksize=8))
            made = _ranked(carried, reader, pool, encode, questions, pools, device, clock)
            made += [rows for each in (*rest, worlds) for rows in each.get()]
    written = Rows.merge(made)
    written.save(out, shared.coder)
    clock.say(f"rows: {written.counts()}; {written.dropped:,} left out")


def _embedded(carried: Path, device: str) -> tuple[Encoder, np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    """The embedder, every question's vector, and the searched texts nearest to each."""
    encode, every = Encoder(carried / "minilm", device), _Shared.all
    passages = encode([f"{text.title}\n{text.text}" for text in every.texts[: every.num_wiki]])
    questions = encode([each.question.text for each in every.asked])
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    whole = torch.from_numpy(passages).to(device, dtype)
    near: list[np.ndarray[Any, Any]] = []
    for start in range(0, len(questions), 512):
        scores = torch.from_numpy(questions[start : start + 512]).to(device, dtype) @ whole.T
        near += list(scores.topk(min(REACH, len(passages)), dim=1).indices.cpu().numpy())
    return encode, questions, near


def _pools(
    lexical: Sequence[list[int]], near: Sequence[np.ndarray[Any, Any]], config: HardConfig
) -> list[list[int]]:
    """Every question's texts, best first by words and meaning together; training reads no closed ones."""
    closed, pools = _Shared.all.closed, []
    for each, by_words, best in zip(_Shared.all.asked, lexical, near, strict=True):
        training = each.question.split != "test"
        rankings = [by_words]
        if each.question.dataset not in OWN_POOL:
            rankings.append([int(at) for at in best if not (training and closed[at])])
        score: dict[int, float] = {}
        for ranking in rankings:
            for at, name in enumerate(ranking):
                score[name] = score.get(name, 0.0) + 1 / (60 + at)
        chosen = sorted(score, key=lambda name: -score[name])[: config.passages]
        # training reads the gold texts whether or not the search found them; a test question must find them
        pools.append(list(dict.fromkeys([*chosen, *each.golds])) if training else chosen)
    return pools


def _ranked(
    carried: Path,
    reader: Path,
    pool: Any,
    encode: Encoder,
    questions: np.ndarray[Any, Any],
    pools: list[list[int]],
    device: str,
    clock: _Clock,
) -> list[Rows]:
    """Rank every question's sentences in four ways and compose its contexts."""
    asked = _Shared.all.asked
    lexical = pool.map_async(_by_words, list(enumerate(pools)), chunksize=32)
    places, names = _sentence_places(pools)
    vectors = encode(names)
    clock.say(f"{len(names):,} sentences embedded")
    orders: list[dict[str, list[int]]] = []
    for at, by_words in enumerate(lexical.get()):
        rows = [row for text in pools[at] for row in places[text]]
        cosine = np.zeros(0, np.float32)
        if rows:
            cosine = vectors[rows].astype(np.float32) @ questions[at].astype(np.float32)
        by_meaning = np.argsort(-cosine, kind="stable")
        hybrid = 1 / (60 + _ranks(np.array(by_words, np.int64))) + 1 / (60 + _ranks(by_meaning))
        orders.append(
            {
                "hybrid": np.argsort(-hybrid, kind="stable").tolist(),
                "dense": by_meaning.tolist(),
                "words": by_words,
            }
        )
    _add_pairs(carried, orders, pools, device)
    clock.say("pairs scored")
    jobs = [(at, rows, order) for at, (rows, order) in enumerate(zip(pools, orders, strict=True))]
    jobs = [job for job in jobs if job[2]["dense"]]
    probed = [job for job in jobs if asked[job[0]].question.split == "train" and asked[job[0]].golds]
    prompts = pool.map(_probe, probed, chunksize=32)
    misled = distractor_answers(reader, prompts, _Shared.coder, device)
    clock.say(f"{sum(map(bool, misled)):,} misleading answers of {len(probed):,}")
    said = {job[0]: text for job, text in zip(probed, misled, strict=True)}
    found: list[Rows] = pool.map(_compose, [(*job, said.get(job[0], "")) for job in jobs], chunksize=16)
    clock.say("contexts composed")
    return found


def _sentence_places(pools: Sequence[Sequence[int]]) -> tuple[dict[int, list[int]], list[str]]:
    """The rows of each used text's sentences among all that are embedded, and these, titles before them."""
    places: dict[int, list[int]] = {}
    names: list[str] = []
    for text in dict.fromkeys(at for rows in pools for at in rows):
        own = _Shared.sentences[text]
        places[text] = list(range(len(names), len(names) + len(own)))
        names += [f"{_Shared.all.texts[text].title}: {sentence}" for sentence in own]
    return places, names


def _ranks(order: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def _add_pairs(
    carried: Path, orders: list[dict[str, list[int]]], pools: Sequence[Sequence[int]], device: str
) -> None:
    """The order by the pair reader of each question's best candidates, the others behind them."""
    pairs = load_pair_reader_with(carried / "minilm", device)
    wanted: list[tuple[str, str]] = []
    for at, order in enumerate(orders):
        choices = _choices(pools[at])
        question = _Shared.all.asked[at].question.text
        wanted += [
            (question, f"{choices[c].source.title}: {choices[c].text}") for c in order["hybrid"][:PAIRED]
        ]
    distinct = list(dict.fromkeys(text for pair in wanted for text in pair))
    ids = dict(zip(distinct, pairs.tokenize(distinct), strict=True))
    scores = pairs.scores([PairRow(ids[question], ids[text]) for question, text in wanted])
    start = 0
    for order in orders:
        best, others = order["hybrid"][:PAIRED], order["hybrid"][PAIRED:]
        own = scores[start : start + len(best)]
        start += len(best)
        order["pair"] = [best[int(at)] for at in np.argsort(-own, kind="stable")] + others


def _cut(at: int) -> list[str]:
    return split_sentences(_Shared.all.texts[at].text)


def _bag(at: int) -> list[str]:
    return words_of(_Shared.all.texts[at])


def _search(at: int) -> list[int]:
    """The rows of a question's best texts by words; its own texts where it has some."""
    each, every = _Shared.all.asked[at], _Shared.all
    question = each.question
    if question.dataset == "timeqa":
        texts = [every.texts[row] for row in each.pool]
        by_words = np.array(bm25(question.text, [f"{text.title} {text.text}" for text in texts]))
        return [each.pool[int(place)] for place in np.argsort(-by_words, kind="stable")[:POOL]]
    if question.dataset == "rtqa":
        return each.pool
    scores = _Shared.index.scores(words(question.text))
    if scores is None:
        return []
    best = np.argsort(-scores, kind="stable")[: 4 * REACH]
    training = question.split != "test"
    found = [int(row) for row in best if scores[row] > 0 and not (training and every.closed[row])]
    own = [row for row in each.pool if training and not every.closed[row]]
    return list(dict.fromkeys([*own, *found]))[:REACH]


def _choices(rows: Iterable[int]) -> list[Candidate]:
    return [
        Candidate(_Shared.all.texts[text], sentence, (place, index))
        for place, text in enumerate(rows)
        for index, sentence in enumerate(_Shared.sentences[text])
    ]


def _by_words(job: tuple[int, list[int]]) -> list[int]:
    at, rows = job
    choices = _choices(rows)
    if not choices:
        return []
    scores = bm25(_Shared.all.asked[at].question.text, [f"{c.source.title} {c.text}" for c in choices])
    order: list[int] = np.argsort(-np.array(scores), kind="stable").tolist()
    return order


def _contexts(at: int, rows: Sequence[int], orders: dict[str, list[int]]) -> NearMisses:
    each = _Shared.all.asked[at]
    golds = [_Shared.all.texts[gold] for gold in each.golds]
    count = _Shared.coder.count
    return NearMisses(each.question, _choices(rows), orders, golds, count, _Shared.near)


def _probe(job: tuple[int, list[int], dict[str, list[int]]]) -> list[int]:
    """The prompt of near misses alone; empty where there are none, or the vocabulary lacks a token."""
    sentences = _contexts(*job).silent(random.Random(job[0]), least=3)
    return _Shared.coder.prompt(sentences, _Shared.all.asked[job[0]].question.text) if sentences else []


def _compose(job: tuple[int, list[int], dict[str, list[int]], str]) -> Rows:
    at, rows, orders, misled = job
    contexts, question = _contexts(at, rows, orders), _Shared.all.asked[at].question
    if question.split == "test":
        found: list[Misleading] = [Misleading(triple) for triple in contexts.judged()]
        return Rows.of(_Shared.coder, found, "judged")
    if question.split == "dev":
        triples = [Misleading(triple) for triple in contexts.judged((128,))]
        return Rows.of(_Shared.coder, triples, "dev")
    return Rows.of(_Shared.coder, contexts.training(_Shared.answers, misled), "training")


def _as_before(job: tuple[int, list[int]]) -> Rows:
    """The contexts that the shipped reader was judged by: best sentences by words, gold passages, many passages."""
    at, rows = job
    every = _Shared.all
    each = every.asked[at]
    own = {every.texts[row].text_id: every.texts[row] for row in (*rows[:POOL], *each.golds)}
    pool = [every.texts[row] for row in rows[:POOL]]
    maker = TripleMaker(own, _Shared.weights, lambda _: pool, _Shared.coder.count, TripleConfig())
    found = [Misleading(triple) for triple in maker.judged(each.question) if triple.kind not in LEFT_OUT]
    return Rows.of(_Shared.coder, found, "judged")


def _cloze(at: int) -> Rows:
    return Rows.of(_Shared.coder, map(Misleading, cloze_triples([_Shared.all.texts[at]], 0)), "training")


def _worlds(config: HardConfig) -> list[tuple[str, NewswireConfig]]:
    """Newswire worlds, the largest first; of a try only a small one."""
    if config.limit:
        return [("training", NewswireConfig(seed=1001, num_articles=60, num_questions=12, split="train"))]
    trained = [
        NewswireConfig(seed=1001 + at, num_articles=400 * (1 + at % 6), split="train")
        for at in range(config.worlds)
    ]
    trained.sort(key=lambda world: -world.num_articles)
    return [*(("judged", world) for world in JUDGED_WORLDS), *(("training", world) for world in trained)]


def _world(job: tuple[str, NewswireConfig]) -> Rows:
    part, world = job
    found = newswire_triples(world, _Shared.coder.count)
    kept = (Misleading(t) for t in found if part == "training" or t.kind.split(":")[-1] not in LEFT_OUT)
    return Rows.of(_Shared.coder, kept, part)


class _Clock:
    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, what: str) -> None:
        """Print with the seconds since the start."""
        print(f"[{time.monotonic() - self._began:5.1f} s] {what}", flush=True)  # noqa: T201


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--carried", type=Path, required=True)
    parser.add_argument("--reader", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, entry in HardConfig.__dataclass_fields__.items():
        parser.add_argument(f"--{name}", type=int, default=entry.default, help=entry.metadata["help"])
    given = parser.parse_args(arguments)
    config = HardConfig(**{name: getattr(given, name) for name in HardConfig.__dataclass_fields__})
    make(given.carried, given.reader, given.out, config, given.device)


if __name__ == "__main__":
    main()
