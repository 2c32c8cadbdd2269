"""Two readers that each know but half of the training questions, so that no policy is paid by their memory.

    python -m infra.training.reader_folds pack --data $DYSRA_DATA --reader build/reader-whole \\
        --out build/fold-readers                                                                 # here
    python3 -m infra.training.reader_folds make --carried carried --extra fold-readers --material M --out rows
    python3 -m infra.training.reader_folds train --reader /tmp/reader --rows rows --work WORK --out folds

Questions that share a gold title, or the very words, are of one fold (`folds_of`), whatever their set. Reader k is
trained on the contexts of the shipped reader (`pipeline/prepare/triples.py`) of the other fold's questions, and on
long ones of what policies choose from (`reader_among`); no text under a title of its own fold, or of a test
question, is in them, as with test questions before. Its newswire worlds are none of the policy's. Beside the
policy's parts there travel TimeQA, the vocabulary, the shipped policy (5 MiB).
"""

from __future__ import annotations

import argparse
import json
import lzma
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infra.training.policy_carry import CORPUS, SETS
from infra.training.policy_readers import FOLDS, FOLDS_FILE
from infra.training.reader_among import Offered, cloze_among, contexts, offered
from infra.training.reader_rows import Coder, Rows
from models.hf.cut import VOCABULARY
from models.retriever.storage import SHIPPED
from pipeline.prepare.cloze import cloze_triples
from pipeline.prepare.near_misses import AnswerPool, Misleading
from pipeline.prepare.newswire import NewswireConfig, newswire_triples
from pipeline.prepare.pools import TextIndex, words_of
from pipeline.prepare.triples import Triple, TripleConfig, TripleMaker
from pipeline.tasks.contexts import WordWeights, candidates, gold_texts, rank_sentences
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
CLOZE = 24_000
WORLDS = tuple(
    NewswireConfig(seed=1011 + at, num_articles=400 * (1 + at % 6), split="train") for at in range(20)
)
"""The policy's are of seeds 1001 to 1007 and 2001."""


class _Shared:
    """What worker processes inherit when they are forked."""

    passages: dict[str, SourceText]
    texts: dict[str, SourceText]
    pages: dict[str, list[SourceText]]
    closed: tuple[frozenset[str], ...]
    questions: list[Question]
    folds: dict[str, int]
    offers: dict[str, Offered]
    answers: tuple[AnswerPool, ...]
    index: TextIndex
    weights: WordWeights
    coder: Coder


def folds_of(questions: Sequence[Question]) -> dict[str, int]:
    """The fold (0 or 1) of each question by its id; those that share a title or their words are of one fold."""
    above: dict[str, str] = {}

    def root(key: str) -> str:
        while above.setdefault(key, key) != key:
            above[key] = above[above[key]]
            key = above[key]
        return key

    keys = {question.question_id: keys_of(question) for question in questions}
    for own in keys.values():
        first, *others = map(root, own)
        for other in others:
            above[max(root(first), root(other))] = min(root(first), root(other))
    groups: dict[str, list[Question]] = {}
    for question in {each.question_id: each for each in questions}.values():
        groups.setdefault(root(keys[question.question_id][0]), []).append(question)
    taken: Counter[tuple[str, int]] = Counter()
    found: dict[str, int] = {}
    # SQuAD has hundreds of questions a title: the largest groups are dealt first, so that each set is halved
    for key in sorted(groups, key=lambda key: (-len(groups[key]), key)):
        dataset = Counter(question.dataset for question in groups[key]).most_common(1)[0][0]
        fold = int(taken[dataset, 1] < taken[dataset, 0])
        taken.update((question.dataset, fold) for question in groups[key])
        found |= {question.question_id: fold for question in groups[key]}
    return found


def keys_of(question: Question) -> list[str]:
    """What a question is known by: its words and its gold titles, as they are compared."""
    return [f"asked:{title_key(question.text)}", *(f"title:{title_key(title)}" for title in question.titles)]


def gather(carried: Path, extra: Path, limit: int = 0) -> None:
    """Read what was carried; `limit` keeps so many questions of each set, and their passages: a try."""
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
    shared.folds = folds_of([question for question in [*every, *alone] if question.split != "test"])
    shared.questions = [
        question
        for question in every
        if question.split in ("train", "dev") and not tested & {title_key(title) for title in question.titles}
    ]
    shared.closed = tuple(
        tested | {
            title_key(title)
            for question in [*every, *alone]
            if shared.folds.get(question.question_id) == fold
            for title in question.titles
        }
        for fold in range(len(FOLDS))
    )  # fmt: skip
    # an answer is exchanged for one that the reader's own questions have
    shared.answers = tuple(
        AnswerPool(
            answer
            for question in shared.questions
            if shared.folds[question.question_id] != fold
            for answer in question.answers
        )
        for fold in range(len(FOLDS))
    )
    if limit:
        wanted = {gold for question in wiki for gold in question.gold_ids}
        shared.passages = {
            name: text
            for at, (name, text) in enumerate(shared.passages.items())
            if at < 20 * limit or name in wanted
        }


def triples_of(fold: int, question: Question) -> list[Triple]:
    """The training contexts of a question for the reader that does not know `fold`; none for one of that fold."""
    if _Shared.folds[question.question_id] == fold:
        return []
    asked, pool = _asked(fold, question)
    maker = TripleMaker(_Shared.texts, _Shared.weights, lambda _: pool, _Shared.coder.count, TripleConfig())
    return list(maker.training(asked))


def among_of(fold: int, question: Question) -> list[Misleading]:
    """The long contexts of a question for the reader that does not know `fold`; none for one of that fold."""
    if _Shared.folds[question.question_id] == fold:
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
    return [each for each in found if all(is_open(title) for title, _, _ in each.triple.sentences)]


def make(
    carried: Path, extra: Path, out: Path, *, processes: int = 12, limit: int = 0, cloze: int = CLOZE,
    worlds: Sequence[NewswireConfig] = WORLDS, material: Path | None = None,
) -> None:  # fmt: skip
    """Write the rows of both readers as `reader_fast` reads them, and folds.json: the fold of every question."""
    if (out / FOLDS_FILE).exists():
        return
    began, shared = time.monotonic(), _Shared
    out.mkdir(parents=True, exist_ok=True)
    (out / "coder").mkdir(exist_ok=True)
    packed = (carried / "tokenizer.json.xz").read_bytes()
    (out / "coder" / "tokenizer.json").write_bytes(lzma.decompress(packed))
    shutil.copy(extra / VOCABULARY, out / "coder" / VOCABULARY)
    shared.coder = Coder(out / "coder", LONGEST)
    gather(carried, extra, limit)
    shared.offers = {} if material is None else offered(material)
    names = list(shared.passages)
    counts = [sum(fold == at for fold in shared.folds.values()) for at in range(len(FOLDS))]
    _say(f"{len(names):,} passages, {len(shared.questions):,} questions, folds of {counts}", began)
    fork = multiprocessing.get_context("fork")
    with fork.Pool(processes, initializer=_quiet) as pool:
        bags = pool.map(_bag, names, chunksize=1024)
    shared.index = TextIndex([shared.passages[name] for name in names], bags)
    shared.weights = WordWeights(bags=bags)
    _say("passages indexed", began)
    with fork.Pool(processes, initializer=_quiet) as pool:
        news = pool.map_async(_world, sorted(worlds, key=lambda world: -world.num_articles), chunksize=1)
        for fold, name in enumerate(FOLDS):
            jobs = [(fold, at) for at in range(len(shared.questions))]
            asked = pool.map_async(_rows, jobs, chunksize=16)
            free = [at for at in names if _open(fold, at)]
            free = random.Random(fold).sample(free, min(cloze, len(free)))
            blanked = pool.map(_cloze, [(fold, at) for at in free], chunksize=64)
            rows = Rows.merge([*asked.get(), *blanked, *news.get()])
            if known := sorted({a[1] for a in rows.about if shared.folds.get(a[1]) == fold}):
                raise ValueError(f"{name}: {len(known)} questions of its own fold, the first {known[0]}")
            (out / name).mkdir(exist_ok=True)
            rows.save(out / name, shared.coder)
            tokens = sum(map(len, rows.tokens))
            sets = {each: sum(a[2] == each for a in rows.about) for each in {a[2] for a in rows.about}}
            _say(
                f"{name}: {len(rows.about):,} rows, {tokens:,} tokens, {rows.dropped} left out; {sets}", began
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


def train(given: argparse.Namespace) -> int:
    """Train both side by side, each a process; OUT/<fold> is an adapter when it is done. How many are missing."""
    if not np.array_equal(np.load(given.rows / "coder" / VOCABULARY), np.load(given.reader / VOCABULARY)):
        raise ValueError(f"{given.rows} was made for another vocabulary than {given.reader}; make it again")
    given.work.mkdir(parents=True, exist_ok=True)
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    children = {}
    for name in FOLDS:
        if (given.out / name / "adapter_config.json").exists():
            continue
        command = [
            sys.executable, "-m", "infra.training.reader_fast", "--reader", str(given.reader),
            "--rows", str(given.rows / name), "--runs", str(given.runs), "--run", name,
            "--out", str(given.out), "--work", str(given.work), "--seconds", f"{given.seconds:.0f}",
            "--device", given.device,
        ]  # fmt: skip
        with (given.out / f"{name}.log").open("w") as log:
            children[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    until = time.monotonic() + given.seconds + given.grace
    for name, child in children.items():
        try:
            child.wait(timeout=max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
        if (given.work / name / "adapter_config.json").exists():
            staged = given.out / f".{name}"
            shutil.copytree(given.work / name, staged, dirs_exist_ok=True)
            staged.rename(given.out / name)
        print((given.out / f"{name}.log").read_text(errors="replace")[-500:], flush=True)  # noqa: T201
    shutil.copyfile(given.rows / FOLDS_FILE, given.out / FOLDS_FILE)
    return sum(not (given.out / name / "adapter_config.json").exists() for name in FOLDS)


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


def _wiki_pool(fold: int, question: Question) -> list[SourceText]:
    """BM25's best passages, the question's own context first, nothing under a closed title."""
    passages = _Shared.passages
    own = [passages[at] for at in question.pool_ids if at in passages and _open(fold, at)]
    found = _Shared.index.top(question.text, POOL, lambda text: _open(fold, text.text_id), REACH)
    return [*own, *(text for text in found if text not in own)]


def _page_pool(question: Question) -> list[SourceText]:
    """The paragraphs of the question's own page, best first."""
    page = _Shared.pages.get(question.titles[0], [])
    ranked = rank_sentences(question.text, candidates(page), _Shared.weights)
    return list(dict.fromkeys(choice.source for choice in ranked))[:POOL]


def _some(path: Path, limit: int) -> list[Question]:
    found = read_questions(path)
    return found[:limit] if limit else found


def _quiet() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _bag(name: str) -> list[str]:
    return words_of(_Shared.passages[name])


def _rows(job: tuple[int, int]) -> Rows:
    fold, at = job
    asked = _Shared.questions[at]
    found = [*map(Misleading, triples_of(fold, asked)), *among_of(fold, asked)]
    return Rows.of(_Shared.coder, found, "training")


def _cloze(job: tuple[int, str]) -> Rows:
    """A blanked sentence read with its own passage, or, two times in three, among sentences of others."""
    fold, name = job
    found = list(cloze_triples([_Shared.passages[name]], 0))
    if found and random.Random(f"cloze:{name}").random() < 2 / 3:
        near = _Shared.index.top(found[0].question, POOL // 2, lambda text: _open(fold, text.text_id), REACH)
        among = cloze_among(found[0], near, _Shared.weights)
        found = [] if among is None else [among]
    return Rows.of(_Shared.coder, map(Misleading, found), "training")


def _world(world: NewswireConfig) -> Rows:
    found = newswire_triples(world, _Shared.coder.count)
    return Rows.of(_Shared.coder, map(Misleading, found), "training")


_LAST: dict[tuple[int, str], tuple[Question, list[SourceText]]] = {}


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
    for name in ("reader", "rows", "work"):
        trains.add_argument(f"--{name}", type=Path, required=True)
    trains.add_argument("--runs", type=Path, default=Path(__file__).parent / "runs/reader_folds.json")
    trains.add_argument("--seconds", type=float, default=260)
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
            worlds=worlds, material=given.material,
        )  # fmt: skip
        return 0
    return 3 if train(given) else 0


if __name__ == "__main__":
    raise SystemExit(main())
