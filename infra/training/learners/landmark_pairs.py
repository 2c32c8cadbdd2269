"""Questions and the texts that tell, as numbers of texts: made of triples, or read from a file of pairs."""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BadData
from pipeline.prepare.triples import Triple
from pipeline.session.prompts import GIVEN_UP, article_head
from pipeline.tasks.scores import holds_answer

TRAIN = "train"
ENDING = ".json.xz"
CORPUS = "corpus.xz"
PRACTICE = "practice"


@dataclass(frozen=True, slots=True)
class Pairs:
    """Texts, and of each question its own place among them, the telling text's, and those that nearly tell.

    `groups` names each question's set; `lexical` holds BM25's best places for it. Both may be left out.
    """

    texts: tuple[str, ...]
    questions: tuple[tuple[int, int, tuple[int, ...]], ...]
    groups: tuple[str, ...] = ()
    lexical: tuple[tuple[int, ...], ...] = ()

    def searched(self) -> list[int]:
        """The places that are searched: all that are no question."""
        asked = {question for question, _, _ in self.questions}
        return [at for at in range(len(self.texts)) if at not in asked]

    def split(self, share: float, seed: int, least: int = 20) -> tuple[Pairs, Pairs]:
        """The pairs without a share of their questions (practice stays), and those; none where they are too few."""
        drawn = {
            question
            for (question, _, _), group in zip(self.questions, self.groups, strict=True)
            if group != PRACTICE and random.Random(f"{seed}:dev:{self.texts[question]}").random() < share
        }
        kept = [at for at, (question, _, _) in enumerate(self.questions) if question not in drawn]
        held = [at for at, (question, _, _) in enumerate(self.questions) if question in drawn]
        if len(drawn) < least:
            kept, held = list(range(len(self.questions))), []
        one, other = (
            Pairs(self.texts, tuple(self.questions[at] for at in some), tuple(self.groups[at] for at in some))
            for some in (kept, held)
        )
        return one, other

    def with_practice(self, share: float, seed: int) -> Pairs:
        """The same with a share of the practice questions alone."""
        chance = random.Random(f"{seed}:{PRACTICE}")
        kept = [at for at, group in enumerate(self.groups) if group != PRACTICE or chance.random() < share]
        return Pairs(
            self.texts, tuple(self.questions[at] for at in kept), tuple(self.groups[at] for at in kept)
        )


def load_pairs(path: Path) -> Pairs:
    """A file that `infra.training.landmark_data` wrote; BadData where it is damaged."""
    try:
        body = json.loads(lzma.decompress(path.read_bytes()))
        return Pairs(
            tuple(body["texts"]),
            tuple((asked, gold, tuple(near)) for asked, gold, near in body["questions"]),
            tuple(body["groups"]),
            tuple(map(tuple, body["lexical"])),
        )
    except (lzma.LZMAError, EOFError, ValueError, KeyError, TypeError) as error:
        raise BadData(
            f"{path} is no file of pairs ({error}); make it by infra.training.landmark_data"
        ) from None


def judged_files(folder: Path) -> dict[str, Path]:
    """The files of a folder that are judged on, by name."""
    found = {path.name.removesuffix(ENDING): path for path in sorted(folder.glob(f"*{ENDING}"))}
    return {name: path for name, path in found.items() if name != TRAIN}


def read_corpus(path: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Titles with texts, and questions; BadData where the file is damaged."""
    try:
        body = json.loads(lzma.decompress(path.read_bytes()))
        return list(zip(body["titles"], body["texts"], strict=True)), list(body["asked"])
    except (lzma.LZMAError, EOFError, ValueError, KeyError, TypeError) as error:
        raise BadData(f"{path} is no corpus ({error}); make it by infra.training.landmark_data") from None


def pairs_of(triples: Sequence[Triple], most_hard: int = 8) -> Pairs:
    """Question, telling sentence and sentences that do not tell, of every question that has an `oracle` triple."""
    texts: dict[str, int] = {}
    by_question: dict[str, list[Triple]] = {}
    for triple in triples:
        by_question.setdefault(triple.question_id, []).append(triple)
    found, groups = [], []
    for group in by_question.values():
        told = [t for t in group if t.tells and t.target != GIVEN_UP]
        # newswire kinds say what is asked first: "now:oracle"
        oracle = next((t for t in told if t.kind.rpartition(":")[2] == "oracle"), None)
        if oracle is None:
            continue
        golds = {_text(sentence) for sentence in oracle.sentences}
        other = dict.fromkeys(_text(s) for triple in group if triple is not oracle for s in triple.sentences)
        near = [t for t in other if t not in golds and not holds_answer(t, oracle.answers)][:most_hard]
        places = [
            texts.setdefault(t, len(texts)) for t in (oracle.question, _text(oracle.sentences[0]), *near)
        ]
        found.append((places[0], places[1], tuple(places[2:])))
        groups.append(oracle.dataset)
    return Pairs(tuple(texts), tuple(found), tuple(groups))


def _text(sentence: tuple[str, str, str]) -> str:
    return f"{article_head(sentence[0], sentence[1])}: {sentence[2]}"
