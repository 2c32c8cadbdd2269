"""Questions over shared contexts of many passages, to train and judge a reader on compressed contexts.

    python -m infra.training.reader_latents_data --data $DYSRA_DATA --out build/latents       # a minute on a CPU

Writes OUT/train.json.xz and OUT/test.json.xz: groups of up to four questions of a set, their gold passages, and
distractors that BM25 finds for them. No text under a test question's gold title is in the training groups.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.console import say
from pipeline.errors import BadData
from pipeline.session.prompts import article_head, one_line
from pipeline.tasks.contexts import gold_texts
from pipeline.tasks.qa import (
    Question,
    SourceText,
    assign_splits,
    read_passages,
    read_questions,
    test_title_keys,
    title_key,
)

SETS = ("nq_open", "squad2", "hotpotqa")
TOGETHER = 4


@dataclass(frozen=True, slots=True)
class Group:
    """Questions over one context: lines of passages, the golds first, and each question's answers."""

    dataset: str
    lines: tuple[str, ...]
    num_golds: int
    asked: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]

    def context(self, passages: int, seed: str) -> str:
        """The golds among distractors, `passages` in all where there are as many, in random order."""
        lines = list(self.lines[: max(self.num_golds, passages)])
        random.Random(seed).shuffle(lines)
        return "".join(f"{line}\n" for line in lines)


def groups(
    passages: dict[str, SourceText], questions: Sequence[Question], split: str, most: int, width: int
) -> Iterator[Group]:
    """Groups of a split, at most `most` of each set, with up to `width` passages each; splits are assigned."""
    from pipeline.prepare.pools import TextIndex

    index = TextIndex(list(passages.values()))
    held_back = test_title_keys(questions)
    for dataset in sorted({question.dataset for question in questions}):
        some = [
            q for q in questions if q.dataset == dataset and q.split == split and q.answerable and q.answers
        ]
        some = [q for q in some if gold_texts(q, passages)]
        random.Random(f"{dataset}:{split}").shuffle(some)
        for at in range(0, min(len(some), most * TOGETHER), TOGETHER):
            together = some[at : at + TOGETHER]
            golds = {t.text_id: t for question in together for t in gold_texts(question, passages)}
            pools = [
                index.top(question.text, width, None if split == "test" else lambda t: _open(t, held_back))
                for question in together
            ]
            others: dict[str, SourceText] = {}
            for rank in range(width):
                for pool in pools:
                    if rank < len(pool) and pool[rank].text_id not in golds:
                        others.setdefault(pool[rank].text_id, pool[rank])
            texts = [*golds.values(), *list(others.values())[: max(0, width - len(golds))]]
            yield Group(
                dataset, tuple(f"{article_head(t.title)}: {one_line(t.text)}" for t in texts), len(golds),
                tuple(q.text for q in together), tuple(q.answers for q in together),
            )  # fmt: skip


def save(made: Sequence[Group], path: Path) -> None:
    """Write groups."""
    rows = [{name: getattr(group, name) for name in Group.__slots__} for group in made]
    path.write_bytes(lzma.compress(json.dumps(rows, ensure_ascii=False).encode(), preset=6))


def load_groups(path: Path) -> list[Group]:
    """Read groups; BadData where the file is damaged."""
    try:
        return [
            Group(
                row["dataset"], tuple(row["lines"]), row["num_golds"], tuple(row["asked"]),
                tuple(map(tuple, row["answers"])),
            )
            for row in json.loads(lzma.decompress(path.read_bytes()))
        ]  # fmt: skip
    except (lzma.LZMAError, EOFError, ValueError, KeyError, TypeError) as error:
        raise BadData(
            f"{path} holds no groups ({error}); make it by infra.training.reader_latents_data"
        ) from None


def _open(text: SourceText, held_back: frozenset[str]) -> bool:
    return title_key(text.title) not in held_back


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the data folder (qa/, corpus/)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=400, help="training groups of a set, at most")
    parser.add_argument("--test", type=int, default=40, help="test groups of a set, at most")
    parser.add_argument("--width", type=int, default=24, help="passages of a group")
    given = parser.parse_args(arguments)
    passages = read_passages(given.data / "corpus/passages_wiki.jsonl.zst")
    questions = [q for name in SETS for q in read_questions(given.data / f"qa/{name}.jsonl.zst")]
    questions = assign_splits(questions, passages, seed=0)
    given.out.mkdir(parents=True, exist_ok=True)
    for split, most in (("train", given.train), ("test", given.test)):
        made = list(groups(passages, questions, split, most, given.width))
        path = given.out / f"{split}.json.xz"
        save(made, path)
        say(f"{path}: {len(made):,} groups, {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
