"""Questions and the texts that tell, with a corpus to find them in: what a landmark head is trained and judged on.

    python -m infra.training.landmark_data --data $DYSRA_DATA --out build/landmark        # two minutes on a CPU

Writes OUT/train.json.xz and, to be judged on, OUT/sentences.json.xz and OUT/passages.json.xz: test questions, their
telling texts, BM25's best texts for them and other texts of the corpus. BM25's places are written down, so that a
GPU host needs no index. The second half of the training file is practice: a sentence of a passage, to be found
again in the rest of the passage. OUT/corpus.xz holds all passages that may be read and the training questions'
texts, for `infra.training.landmark_taught`. Nothing under a test question's gold title is in either.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra.console import say
from infra.training.learners.landmark_pairs import CORPUS, PRACTICE, Pairs
from pipeline.prepare.pools import TextIndex
from pipeline.session.prompts import article_head
from pipeline.tasks.contexts import WordWeights, candidates, gold_texts, oracle_sentences, rank_sentences
from pipeline.tasks.qa import (
    Question,
    SourceText,
    assign_splits,
    read_passages,
    read_questions,
    test_title_keys,
    title_key,
)
from pipeline.tasks.scores import holds_answer

SETS = ("nq_open", "squad2", "hotpotqa", "musique")
LEXICAL = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class LandmarkDataConfig:
    """How much is made."""

    train: int = field(default=4000, metadata={"help": "training questions of a set, at most"})
    test: int = field(default=400, metadata={"help": "test questions of a set, at most"})
    near: int = field(default=8, metadata={"help": "sentences a question that nearly tell"})
    practice: int = field(default=8000, metadata={"help": "passages to practise on"})
    sentences: int = field(default=30_000, metadata={"help": "texts of the corpus of sentences"})
    passages: int = field(default=10_000, metadata={"help": "texts of the corpus of passages"})
    seed: int = field(default=0, metadata={"help": "of everything"})

    def __post_init__(self) -> None:
        for name in ("train", "test", "sentences", "passages"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 1 or more")
        for name in ("near", "practice"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: given {getattr(self, name)}; allowed: 0 or more")


class LandmarkData:
    """Makes the three files of one corpus and its questions, whose splits are assigned."""

    def __init__(
        self, passages: Mapping[str, SourceText], questions: Sequence[Question], config: LandmarkDataConfig
    ) -> None:
        self.passages, self.config = passages, config
        # musique names passages and no sentence that tells: its titles count for the split alone
        usable = [q for q in questions if q.answerable and q.gold_ids and q.dataset != "musique"]
        self.questions = sorted(
            usable, key=lambda q: random.Random(f"{config.seed}:{q.question_id}").random()
        )
        self.held_back = test_title_keys(questions)
        self._weights = WordWeights(text.text for text in passages.values())
        self._index = TextIndex(list(passages.values()))

    def train(self) -> Pairs:
        """Training questions with sentences that nearly tell, then practice."""
        made = _Texts()
        for question in self._some("train", self.config.train):
            golds = self._told(question)
            if not golds:
                continue
            found = self._index.top(question.text, 10, self._open)
            ranked = rank_sentences(question.text, candidates(found), self._weights)
            near = [
                text for choice in ranked[: 3 * self.config.near]
                if not holds_answer(choice.text, question.answers)
                and (text := _shown(choice.source.title, choice.text)) not in golds
            ]  # fmt: skip
            for gold in golds:
                made.add(question.text, gold, near[: self.config.near], question.dataset)
        for asked, told in self._practice():
            made.add(asked, told, [], PRACTICE)
        return made.pairs()

    def judged(self, unit: str) -> Pairs:
        """Test questions over a corpus of sentences or of passages, with BM25's places."""
        made = _Texts()
        for question in self._some("test", self.config.test):
            whole = [_shown(text.title, text.text) for text in gold_texts(question, self.passages)]
            golds = self._told(question) if unit == "sentence" else whole
            for gold in golds:
                made.add(question.text, gold, [], question.dataset)
        for question in self._some("test", self.config.test):
            for text in self._index.top(question.text, 4 if unit == "sentence" else 8):
                made.more(self._cut(text, unit))
        chance = random.Random(f"{self.config.seed}:{unit}")
        most = self.config.sentences if unit == "sentence" else self.config.passages
        for text in chance.sample(
            sorted(self.passages.values(), key=lambda t: t.text_id), len(self.passages)
        ):
            if made.searched >= most:
                break
            made.more(self._cut(text, unit))
        return made.pairs(lexical=True)

    def _told(self, question: Question) -> list[str]:
        """The sentences that tell, as a reader sees them."""
        found = oracle_sentences(question, gold_texts(question, self.passages), self._weights)
        return [_shown(title, text) for title, _, text in found or ()]

    def _practice(self) -> Iterator[tuple[str, str]]:
        chance = random.Random(f"{self.config.seed}:practice")
        open_texts = sorted((t for t in self.passages.values() if self._open(t)), key=lambda t: t.text_id)
        for text in chance.sample(open_texts, min(self.config.practice, len(open_texts))):
            parts = [choice.text for choice in candidates([text])]
            long = [at for at, part in enumerate(parts) if len(part.split()) >= 6]
            if len(parts) > 1 and long:
                at = chance.choice(long)
                yield parts[at], _shown(text.title, " ".join(parts[:at] + parts[at + 1 :]))

    def _some(self, split: str, most: int) -> Iterator[Question]:
        taken: Counter[str] = Counter()
        for question in self.questions:
            if question.split == split and taken[question.dataset] < most:
                taken[question.dataset] += 1
                yield question

    def _open(self, text: SourceText) -> bool:
        return title_key(text.title) not in self.held_back

    def _cut(self, text: SourceText, unit: str) -> list[str]:
        parts = [text.text] if unit == "passage" else [choice.text for choice in candidates([text])]
        return [_shown(text.title, part) for part in parts]


def save_corpus(
    passages: Mapping[str, SourceText], questions: Sequence[Question], path: Path, more: Sequence[str] = ()
) -> tuple[int, int]:
    """Write the passages that may be read and the training questions (and `more`); how many of each.

    Questions' splits are assigned. A question of another split is not written, not even where `more` has it.
    """
    held_back = test_title_keys(questions)
    texts = [t for t in passages.values() if title_key(t.title) not in held_back]
    other = {question.text for question in questions if question.split != "train"}
    asked = dict.fromkeys([*(q.text for q in questions if q.split == "train"), *more])
    kept = [text for text in asked if text not in other]
    body = {"titles": [t.title for t in texts], "texts": [t.text for t in texts], "asked": kept}
    path.write_bytes(lzma.compress(json.dumps(body, ensure_ascii=False).encode(), preset=6))
    return len(texts), len(kept)


class _Texts:
    """Texts by number, each once; questions apart, so that nobody finds a question."""

    def __init__(self) -> None:
        self._texts: dict[str, int] = {}
        self._asked: set[int] = set()
        self._rows: list[tuple[int, int, tuple[int, ...]]] = []
        self._groups: list[str] = []

    @property
    def searched(self) -> int:
        """Texts that are no question."""
        return len(self._texts) - len(self._asked)

    def add(self, asked: str, gold: str, near: Sequence[str], group: str) -> None:
        """A question with its text that tells and those that nearly tell."""
        question = self._number(asked)
        self._asked.add(question)
        self._rows.append((question, self._number(gold), tuple(map(self._number, near))))
        self._groups.append(group)

    def more(self, texts: Sequence[str]) -> None:
        """Further texts to search among."""
        for text in texts:
            self._number(text)

    def pairs(self, lexical: bool = False) -> Pairs:
        """All of it."""
        made = Pairs(tuple(self._texts), tuple(self._rows), tuple(self._groups))
        if not lexical:
            return made
        places = made.searched()
        index = TextIndex([SourceText(text_id=str(at), title="", text=made.texts[at]) for at in places])
        known: dict[int, tuple[int, ...]] = {}
        for question, _, _ in made.questions:
            if question not in known:
                best = index.top(made.texts[question], LEXICAL)
                known[question] = tuple(int(text.text_id) for text in best)
        return Pairs(made.texts, made.questions, made.groups, tuple(known[q] for q, _, _ in made.questions))

    def _number(self, text: str) -> int:
        return self._texts.setdefault(text, len(self._texts))


def _shown(title: str, text: str) -> str:
    return f"{article_head(title, '')}: {text}"


def save(pairs: Pairs, path: Path) -> None:
    """Write one file of pairs."""
    body = {
        "texts": pairs.texts, "questions": pairs.questions, "groups": pairs.groups, "lexical": pairs.lexical,
    }  # fmt: skip
    path.write_bytes(lzma.compress(json.dumps(body, ensure_ascii=False).encode(), preset=6))


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the data folder (qa/, corpus/)")
    parser.add_argument("--out", type=Path, required=True)
    for name, entry in LandmarkDataConfig.__dataclass_fields__.items():
        parser.add_argument(f"--{name}", type=int, default=entry.default, help=entry.metadata["help"])
    given = parser.parse_args(arguments)
    config = LandmarkDataConfig(
        **{name: getattr(given, name) for name in LandmarkDataConfig.__dataclass_fields__}
    )
    passages = read_passages(given.data / "corpus/passages_wiki.jsonl.zst")
    questions = [q for name in SETS for q in read_questions(given.data / f"qa/{name}.jsonl.zst")]
    questions = assign_splits(questions, passages, seed=config.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    # no passage of TimeQA is searched: what its questions ask teaches how questions sound
    more = [q.text for q in read_questions(given.data / "qa/timeqa.jsonl.zst") if q.split == "train"]
    found = save_corpus(passages, questions, given.out / CORPUS, more)
    say(f"{given.out / CORPUS}: {found[0]:,} passages, {found[1]:,} questions")
    made = LandmarkData(passages, questions, config)
    for name, pairs in (
        ("train", made.train()), ("sentences", made.judged("sentence")), ("passages", made.judged("passage")),
    ):  # fmt: skip
        path = given.out / f"{name}.json.xz"
        save(pairs, path)
        say(
            f"{path}: {len(pairs.questions):,} questions {dict(Counter(pairs.groups))}, "
            f"{len(pairs.texts):,} texts, {path.stat().st_size / 2**20:.1f} MiB"
        )


if __name__ == "__main__":
    main()
