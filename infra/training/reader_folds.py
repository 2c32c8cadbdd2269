"""Readers that each lack a part of the training questions, so that no policy is paid by their memory.

    python -m infra.training.reader_folds pack --data $DYSRA_DATA --reader build/reader-whole \\
        --out build/fold-readers                                                                 # here
    python3 -m infra.training.reader_folds make --carried carried --extra fold-readers --material M --out rows
    python3 -m infra.training.reader_folds train --reader /tmp/reader --rows rows --work WORK --out folds

Questions that share a gold title, or the very words, are of one fold (`folds_of`), whatever their set. Reader k is
trained on the contexts of the shipped reader (`pipeline/prepare/triples.py`) of the other folds' questions, and on
long ones of what policies choose from (`reader_among`); no text under a title of its own fold, or of a test
question, is in them, as with test questions before. Some of its questions are kept back in the same way, and name
the moment that is kept (`reader_held`). Its newswire worlds are none of the policy's. What the shipped reader
provably does not know (RealTimeQA, newswire) is written down for `policy_readers`: it reads that itself. Beside the
policy's parts there travel TimeQA, the vocabulary, the shipped policy (5 MiB).
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra.training.forked import forked_pool
from infra.training.policy_carry import CORPUS, SETS
from infra.training.policy_readers import FOLDS_FILE, OWN_WORLDS, SHIPPED_READS, fold_names
from infra.training.reader_among import Offered, cloze_among, contexts, offered
from infra.training.reader_folds_train import train
from infra.training.reader_held import folds_of, held_back, held_rows, unknown_to_shipped
from infra.training.reader_rows import Coder, Rows
from models.hf.cut import VOCABULARY
from models.retriever.storage import SHIPPED
from pipeline.prepare.cloze import cloze_triples
from pipeline.prepare.near_misses import AnswerPool, Misleading
from pipeline.prepare.newswire import NewswireConfig, newswire_triples
from pipeline.prepare.pools import TextIndex, words_of
from pipeline.prepare.triples import Triple, TripleConfig, TripleMaker
from pipeline.tasks.contexts import WordWeights, candidates, gold_texts, rank_sentences
from pipeline.tasks.material import Material
from pipeline.tasks.qa import (
    Question,
    SourceText,
    assign_splits,
    read_passages,
    read_questions,
    read_timeqa_pages,
    test_title_keys,
    title_key,
)

EXTRA = ("timeqa.jsonl.zst", "timeqa_docs.jsonl.zst")
POOL, REACH = 24, 600
LONGEST = 1024
CLOZE = 16_000
NUM_FOLDS = 4
WORLDS = tuple(
    NewswireConfig(seed=1011 + at, num_articles=400 * (1 + at % 6), split="train") for at in range(12)
)
"""The policy's are of seeds 1101 to 1107 and 2001, the shipped reader's 1001 to 1010."""
TWICE = ("among:oracle", "among:gold")
"""Long contexts that are among the shipped reader's kinds already."""


class _Shared:
    """What worker processes inherit when they are forked."""

    passages: dict[str, SourceText]
    texts: dict[str, SourceText]
    pages: dict[str, list[SourceText]]
    closed: tuple[frozenset[str], ...]
    every: list[Question]
    questions: list[Question]
    folds: dict[str, int]
    held: tuple[frozenset[str], ...]
    offers: dict[str, Offered]
    answers: tuple[AnswerPool, ...]
    index: TextIndex
    weights: WordWeights
    coder: Coder


def gather(carried: Path, extra: Path, limit: int = 0, folds: int = 2) -> None:
    """Read what was carried; `limit` keeps so many questions of each set, and their passages: a try.

    The offers are there already: what the material does not have is not kept back.
    """
    shared = _Shared
    shared.passages = read_passages(carried / "corpus" / f"{CORPUS}.jsonl.zst")
    wiki = [q for name in SETS for q in _some(carried / "qa" / f"{name}.jsonl.zst", limit)]
    pages = read_timeqa_pages(extra / EXTRA[1]) if (extra / EXTRA[1]).exists() else {}
    paragraphs = {text.text_id: text for page in pages.values() for text in page}
    timeqa = _some(extra / EXTRA[0], limit) if pages else []
    shared.pages, shared.texts = pages, {**shared.passages, **paragraphs}
    # the policy splits its sets alone, the shipped reader all together: what is a test question in either is closed
    alone = assign_splits(wiki, shared.passages)
    every = assign_splits([*wiki, *timeqa], shared.texts)
    tested = test_title_keys([*alone, *every])
    shared.every = [*every, *alone]
    shared.folds = folds_of([question for question in shared.every if question.split != "test"], folds)
    shared.questions = [
        question
        for question in every
        if question.split in ("train", "dev") and not tested & {title_key(title) for title in question.titles}
    ]
    asked = [question for question in shared.every if question.question_id in shared.folds]
    held = [
        held_back(
            [question for question in asked if shared.folds[question.question_id] != fold],
            shared.offers,
            seed=fold,
        )
        for fold in range(folds)
    ]
    shared.held = tuple(frozenset(question.question_id for question in part) for part in held)
    shared.closed = tuple(
        tested | {
            title_key(title)
            for question in asked
            if shared.folds[question.question_id] == fold or question.question_id in shared.held[fold]
            for title in question.titles
        }
        for fold in range(folds)
    )  # fmt: skip
    # an answer is exchanged for one that the reader's own questions have
    shared.answers = tuple(
        AnswerPool(
            answer for question in shared.questions if _learns(fold, question) for answer in question.answers
        )
        for fold in range(folds)
    )
    if limit:
        wanted = {gold for question in wiki for gold in question.gold_ids}
        shared.passages = {
            name: text
            for at, (name, text) in enumerate(shared.passages.items())
            if at < 20 * limit or name in wanted
        }


def triples_of(fold: int, question: Question) -> list[Triple]:
    """A question's training contexts for the reader that does not know `fold`; none for what it does not learn."""
    if not _learns(fold, question):
        return []
    asked, pool = _asked(fold, question)
    maker = TripleMaker(_Shared.texts, _Shared.weights, lambda _: pool, _Shared.coder.count, TripleConfig())
    return list(maker.training(asked))


def among_of(fold: int, question: Question) -> list[Misleading]:
    """A question's long contexts for the reader that does not know `fold`; none for what it does not learn."""
    if not _learns(fold, question):
        return []
    asked, pool = _asked(fold, question)
    closed = _Shared.closed[fold]

    def is_open(title: str) -> bool:
        return title_key(title) not in closed

    found = contexts(
        asked, gold_texts(asked, _Shared.texts), pool, _Shared.offers.get(question.question_id), is_open,
        _Shared.weights, _Shared.coder.count, _Shared.answers[fold],
    )  # fmt: skip
    # a file may name support under a title that it does not call gold
    return [
        each
        for each in found
        if each.triple.kind not in TWICE and all(is_open(title) for title, _, _ in each.triple.sentences)
    ]


def make(
    carried: Path, extra: Path, out: Path, *, processes: int = 12, limit: int = 0, cloze: int = CLOZE,
    worlds: Sequence[NewswireConfig] = WORLDS, material: Path | None = None, folds: int = 2,
    shipped_reads: Sequence[str] = OWN_WORLDS,
) -> None:  # fmt: skip
    """Write the rows of all readers as `reader_fast` reads them, and folds.json: the fold of every question.

    With a material also the rows that each reader is stopped by, and shipped_reads.json: which questions of the
    sets `shipped_reads` the shipped reader does not know.
    """
    if (out / FOLDS_FILE).exists():
        return
    began, shared = time.monotonic(), _Shared
    out.mkdir(parents=True, exist_ok=True)
    (out / "coder").mkdir(exist_ok=True)
    packed = (carried / "tokenizer.json.xz").read_bytes()
    (out / "coder" / "tokenizer.json").write_bytes(lzma.decompress(packed))
    shutil.copy(extra / VOCABULARY, out / "coder" / VOCABULARY)
    shared.coder = Coder(out / "coder", LONGEST)
    chosen = None if material is None else Material.load(material)
    shared.offers = {} if chosen is None else offered(chosen)
    gather(carried, extra, limit, folds)
    dev = [Rows() for _ in range(folds)]
    if chosen is not None:
        beside = unknown_to_shipped(chosen, shared.every, shipped_reads)
        (out / SHIPPED_READS).write_text(json.dumps(beside))
        dev = [Rows.of(shared.coder, held_rows(chosen, held, set(beside)), "dev") for held in shared.held]
        kept = [len(held) for held in shared.held]
        _say(f"the shipped reader reads {len(beside)} questions itself; held back {kept}", began)
    names = list(shared.passages)
    counts = [sum(fold == at for fold in shared.folds.values()) for at in range(folds)]
    _say(f"{len(names):,} passages, {len(shared.questions):,} questions, folds of {counts}", began)
    with forked_pool(processes) as pool:
        bags = pool.map(_bag, names, chunksize=1024)
    shared.index = TextIndex([shared.passages[name] for name in names], bags)
    shared.weights = WordWeights(bags=bags)
    _say("passages indexed", began)
    with forked_pool(processes) as pool:
        news = pool.map_async(_world, sorted(worlds, key=lambda world: -world.num_articles), chunksize=1)
        asked = pool.map_async(_rows, range(len(shared.questions)), chunksize=8)
        free = [at for at in names if _open_to_all(at)]
        free = random.Random(0).sample(free, min(cloze, len(free)))
        blanked = pool.map(_cloze, free, chunksize=64)
        found = asked.get()
        for fold, name in enumerate(fold_names(shared.folds)):
            rows = Rows.merge([*(each[fold] for each in found), *blanked, *news.get()])
            barred = {each for each, own in shared.folds.items() if own == fold} | shared.held[fold]
            if known := sorted({a[1] for a in rows.about if a[1] in barred}):
                raise ValueError(
                    f"{name}: {len(known)} questions of its own fold or held back, the first {known[0]}"
                )
            (out / name).mkdir(exist_ok=True)
            Rows.merge([rows, dev[fold]]).save(out / name, shared.coder)
            tokens = sum(map(len, rows.tokens))
            sets = dict(Counter(a[2] for a in rows.about))
            _say(
                f"{name}: {len(rows.about):,} rows, {tokens:,} tokens, {rows.dropped} left out; {sets}; "
                f"stopped by {dict(Counter(f'{a[2]}/{a[3]}' for a in dev[fold].about))}",
                began,
            )
            kinds = Counter(f"{a[2]}/{a[3].split(':')[0]}" for a in rows.about)
            _say(f"{name}: {dict(kinds.most_common())}", began)
    (out / FOLDS_FILE).write_text(json.dumps(shared.folds))


def pack(data: Path, reader: Path, out: Path) -> None:
    """What travels for the fold readers beside the policy's parts."""
    out.mkdir(parents=True, exist_ok=True)
    for name in EXTRA:
        shutil.copyfile(data / "qa" / name, out / name)
    shutil.copyfile(reader / VOCABULARY, out / VOCABULARY)
    # the tree travels without weights
    shutil.copytree(SHIPPED, out / "retriever", dirs_exist_ok=True)


def _asked(fold: int, question: Question) -> tuple[Question, list[SourceText]]:
    """A question with its open golds, and the texts that compete with them; the last asked for is kept."""
    key = (fold, question.question_id)
    if key not in _LAST:
        paged = question.dataset == "timeqa"
        pool = _page_pool(question) if paged else _wiki_pool(fold, question)
        if not paged:
            # a gold passage of another title than the question's own may stand under a closed one
            open_ids = tuple(at for at in question.gold_ids if at not in _Shared.passages or _open(fold, at))
            question = replace(question, gold_ids=open_ids)
        _LAST.clear()
        _LAST[key] = question, pool
    return _LAST[key]


def _open(fold: int, text_id: str) -> bool:
    return title_key(_Shared.passages[text_id].title) not in _Shared.closed[fold]


def _open_to_all(text_id: str) -> bool:
    return all(_open(fold, text_id) for fold in range(len(_Shared.closed)))


def _learns(fold: int, question: Question) -> bool:
    """Whether the reader that does not know `fold` is trained on a question."""
    name = question.question_id
    return _Shared.folds[name] != fold and name not in _Shared.held[fold]


def _wiki_pool(fold: int, question: Question) -> list[SourceText]:
    """BM25's best passages, the question's own context first, nothing under a closed title."""
    passages = _Shared.passages
    own = [passages[at] for at in question.pool_ids if at in passages and _open(fold, at)]
    if question.question_id not in _FOUND:
        # what is best is the same for every reader, what is open is not
        _FOUND.clear()
        _FOUND[question.question_id] = _Shared.index.top(question.text, REACH, None, REACH)
    found = [text for text in _FOUND[question.question_id] if _open(fold, text.text_id)][:POOL]
    return [*own, *(text for text in found if text not in own)]


def _page_pool(question: Question) -> list[SourceText]:
    """The paragraphs of the question's own page, best first."""
    page = _Shared.pages.get(question.titles[0], [])
    ranked = rank_sentences(question.text, candidates(page), _Shared.weights)
    return list(dict.fromkeys(choice.source for choice in ranked))[:POOL]


def _some(path: Path, limit: int) -> list[Question]:
    found = read_questions(path)
    return found[:limit] if limit else found


def _bag(name: str) -> list[str]:
    return words_of(_Shared.passages[name])


def _rows(at: int) -> list[Rows]:
    """A question's rows for each reader."""
    asked = _Shared.questions[at]
    return [
        Rows.of(
            _Shared.coder, [*map(Misleading, triples_of(fold, asked)), *among_of(fold, asked)], "training"
        )
        for fold in range(len(_Shared.closed))
    ]


def _cloze(name: str) -> Rows:
    """A blanked sentence read with its own passage, or, two times in three, among sentences of others."""
    found = list(cloze_triples([_Shared.passages[name]], 0))
    if found and random.Random(f"cloze:{name}").random() < 2 / 3:
        near = _Shared.index.top(found[0].question, POOL // 2, lambda text: _open_to_all(text.text_id), REACH)
        among = cloze_among(found[0], near, _Shared.weights)
        found = [] if among is None else [among]
    return Rows.of(_Shared.coder, map(Misleading, found), "training")


def _world(world: NewswireConfig) -> Rows:
    found = newswire_triples(world, _Shared.coder.count)
    return Rows.of(_Shared.coder, map(Misleading, found), "training")


_LAST: dict[tuple[int, str], tuple[Question, list[SourceText]]] = {}
_FOUND: dict[str, list[SourceText]] = {}


def _say(what: str, began: float) -> None:
    print(f"[{time.monotonic() - began:5.1f} s] {what}", flush=True)  # noqa: T201


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    packs, makes, trains = (verbs.add_parser(name) for name in ("pack", "make", "train"))
    packs.add_argument("--data", type=Path, required=True, help="the data folder")
    packs.add_argument("--reader", type=Path, required=True, help="build/reader-whole of reader_parts")
    makes.add_argument("--carried", type=Path, required=True)
    makes.add_argument("--extra", type=Path, required=True, help="what `pack` wrote")
    makes.add_argument("--material", type=Path, help="policy's: its candidates are what long contexts have")
    makes.add_argument("--processes", type=int, default=12)
    makes.add_argument("--limit", type=int, default=0, help="questions of a set, for a try (0: all)")
    makes.add_argument("--folds", type=int, default=NUM_FOLDS, help="readers, each without that part")
    makes.add_argument(
        "--shipped-reads", nargs="*", default=list(OWN_WORLDS), choices=OWN_WORLDS,
        help="sets that the shipped reader itself reads where it provably does not know a question",
    )  # fmt: skip
    for name in ("reader", "rows", "work"):
        trains.add_argument(f"--{name}", type=Path, required=True)
    trains.add_argument("--runs", type=Path, default=Path(__file__).parent / "runs/reader_folds.json")
    trains.add_argument("--seconds", type=float, default=220, help="at most; a run ends by its tokens")
    trains.add_argument("--grace", type=float, default=60, help="seconds for loading and compiling")
    trains.add_argument("--device", default="cuda")
    for each in (packs, makes, trains):
        each.add_argument("--out", type=Path, required=True)
    given: Any = parser.parse_args(arguments)
    if given.verb == "pack":
        pack(given.data, given.reader, given.out)
        return 0
    if given.verb == "make":
        cloze, worlds = (40, WORLDS[:1]) if given.limit else (CLOZE, WORLDS)
        make(
            given.carried, given.extra, given.out, processes=given.processes, limit=given.limit, cloze=cloze,
            worlds=worlds, material=given.material, folds=given.folds, shipped_reads=given.shipped_reads,
        )  # fmt: skip
        return 0
    return 3 if train(given) else 0


if __name__ == "__main__":
    raise SystemExit(main())
