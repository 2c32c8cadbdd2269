"""What the reader's hard contexts are made of: carried to a GPU host as it is, and gathered there.

    python -m infra.training.reader_carry --data $DYSRA_DATA --news rtqa.json.xz --wheels build/wheels \\
        --out build/reader-job

Writes the parts OUT/part-0, part-1, …: questions, passages, pages, RealTimeQA's questions with their news
(`policy_pools.pack_news`), MiniLM and wheels. All searching is done on the host: 13,000 questions over 83,000
passages take it seconds in processes and two loaded cores an hour.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from infra.training.policy_carry import MIB, pack_minilm, split
from infra.training.policy_pools import Pooled
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

WIKI_SETS = ("squad2", "nq_open", "hotpotqa", "musique")
CARRIED = (
    *(f"qa/{name}.jsonl.zst" for name in (*WIKI_SETS, "timeqa", "timeqa_docs")), "corpus/passages_wiki.jsonl.zst",
)  # fmt: skip
NEWS = "rtqa.json.xz"
DEV_SHARE = 0.05
POOL = 24


@dataclass(slots=True)
class Asked:
    """A question, the rows of its golds among the texts, and those of its own pool where it has one."""

    question: Question
    golds: list[int]
    pool: list[int]


@dataclass(slots=True)
class Gathered:
    """All texts, the first `num_wiki` of them searched; which of them training may not read; all questions."""

    texts: list[SourceText]
    num_wiki: int
    closed: list[bool]
    asked: list[Asked]


def dev_by_title(question: Question, share: float = DEV_SHARE) -> Question:
    """The question, in "dev" if one of its gold titles falls into the share by hash; test ones stay.

    So no title of the share is a title of a training question.
    """
    if question.split not in ("train", "dev"):
        return question
    kept_back = any(_share(f"dev:{title_key(title)}") < share for title in question.titles)
    return replace(question, split="dev" if kept_back else "train")


def gather(carried: Path, most_judged: int = 400, limit: int = 0) -> Gathered:
    """Read what was carried; of each set at most `most_judged` answerable and as many unanswerable test questions.

    `limit` keeps so many questions of each set, and of the passages only their golds and fifty others: a try.
    """
    passages = read_passages(carried / "corpus/passages_wiki.jsonl.zst")
    pages = read_timeqa_pages(carried / "qa/timeqa_docs.jsonl.zst")
    paragraphs = {text.text_id: text for page in pages.values() for text in page}
    read = [read_questions(carried / f"qa/{name}.jsonl.zst") for name in (*WIKI_SETS, "timeqa")]
    every = [question for found in read for question in (found[:limit] if limit else found)]
    every = assign_splits(every, {**passages, **paragraphs})
    held_back = test_title_keys(every)
    chosen = _judged([dev_by_title(question) for question in every], most_judged)
    if limit:
        wanted = {gold for question in chosen for gold in question.gold_ids}
        passages = {n: t for at, (n, t) in enumerate(passages.items()) if at < 50 or n in wanted}
    news = Pooled.load(carried / NEWS)
    texts = list(passages.values())
    row = {text.text_id: at for at, text in enumerate(texts)}

    def place(text: SourceText) -> int:
        if text.text_id not in row:
            row[text.text_id] = len(texts)
            texts.append(text)
        return row[text.text_id]

    asked = []
    for question in chosen:
        page = pages.get(question.titles[0], []) if question.dataset == "timeqa" else []
        if question.dataset == "timeqa" and not page:
            continue
        own = [row[at] for at in question.pool_ids if at in row and question.dataset == "hotpot"]
        pool = [place(text) for text in page] or own
        golds = [row[gold] for gold in question.gold_ids if gold in row]
        # most of HotpotQA's questions have no text here: what a search finds for them tells them by chance
        if golds or question.split == "test":
            asked.append(Asked(question, golds, pool))
    for question, names in list(zip(news.questions, news.pools, strict=True))[: limit or None]:
        pool = [place(news.texts[name]) for name in names[:POOL]]
        golds = [place(news.texts[gold]) for gold in question.gold_ids if gold in news.texts]
        asked.append(Asked(replace(question, split="test"), golds, pool))
    closed = [title_key(text.title) in held_back for text in texts]
    return Gathered(texts, len(passages), closed, asked)


def _judged(questions: Sequence[Question], most: int) -> list[Question]:
    """The training and dev questions, and test questions by hash of their ids, `most` of a set and kind."""
    taken: Counter[tuple[str, bool]] = Counter()
    found = []
    for question in sorted(questions, key=lambda q: hashlib.blake2b(q.question_id.encode()).digest()):
        if question.split == "test":
            key = (question.dataset, question.answerable)
            if not question.gold_ids or taken[key] >= most:
                continue
            taken[key] += 1
        if question.split != "dropped":
            found.append(question)
    return found


def _share(key: str) -> float:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big") / 2.0**56


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument(
        "--news", type=Path, required=True, help="RealTimeQA with its news, from policy_carry"
    )
    parser.add_argument("--wheels", type=Path, help="folder of wheels that the host lacks")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part-mib", type=float, default=33.0)
    given = parser.parse_args(arguments)
    whole: Path = given.out / "whole"
    for name in CARRIED:
        (whole / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(given.data / name, whole / name)
    shutil.copyfile(given.news, whole / NEWS)
    pack_minilm(whole / "minilm")
    if given.wheels:
        shutil.copytree(given.wheels, whole / "unpacked-wheels", dirs_exist_ok=True)
    for name, size in split(whole, given.out, int(given.part_mib * MIB)).items():
        print(f"{given.out / name}: {size / MIB:.1f} MiB")  # noqa: T201


if __name__ == "__main__":
    main()
