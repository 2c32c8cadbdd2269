"""Questions that fold readers are stopped by: kept back of their own part, and read as policies read.

Groups of questions that share a title or their words are kept back whole, and no text under their titles is read
in training. Beside them stand dev questions that no fold reader is trained on and none pays for, as the shipped
reader reads them (`unknown_to_shipped`): questions of the training sets do not show what is lost on real news.
Contexts are the material's: what tells alone, among three and nine near misses, hybrid ranking's 128 tokens.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from infra.evaluation.policy_judge import choose
from models.retriever.table import FEATURES, GOLD
from pipeline.prepare.near_misses import Misleading
from pipeline.prepare.triples import Triple
from pipeline.session.prompts import target_text
from pipeline.tasks.material import Material
from pipeline.tasks.qa import Question, title_key

HELD = {"nq": 120, "squad": 100, "hotpot": 16}
"""Questions of a set that a reader is stopped by, of its own part, at most; no more than SHARE of these."""
SHARE = 0.1
LARGEST = 0.75
BESIDE = {"rtqa": 110, "newswire": 60}
"""Dev questions that stand beside them, at most."""
AMONG = {"oracle": 0, "among4": 3, "among10": 9}
"""Kinds of contexts, by the near misses beside what tells."""
BUDGET = 128
SHIPPED_WORLDS = range(1001, 1011)
"""Seeds of the newswire worlds that the shipped reader was trained on (docs/reader.md)."""


def groups_of(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions in groups that share no gold title and no wording with each other; no question comes twice."""
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
    return [groups[key] for key in sorted(groups)]


def keys_of(question: Question) -> list[str]:
    """What a question is known by: its words and its gold titles, as they are compared."""
    return [f"asked:{title_key(question.text)}", *(f"title:{title_key(title)}" for title in question.titles)]


def folds_of(questions: Sequence[Question], num: int = 2) -> dict[str, int]:
    """The fold (0 to num - 1) of each question by its id; what shares a title or its words is of one fold."""
    if num < 2:
        raise ValueError(f"folds: given {num}; allowed: 2 or more")
    taken: Counter[tuple[str, int]] = Counter()
    found: dict[str, int] = {}
    # SQuAD has hundreds of questions a title: the largest groups are dealt first, so that each set is shared evenly
    for group in sorted(groups_of(questions), key=lambda group: -len(group)):
        dataset = Counter(question.dataset for question in group).most_common(1)[0][0]
        fold = min(range(num), key=lambda at: (taken[dataset, at], at))
        taken.update((question.dataset, fold) for question in group)
        found |= {question.question_id: fold for question in group}
    return found


def held_back(
    questions: Sequence[Question], known: Collection[str], most: Mapping[str, int] = HELD, seed: int = 0
) -> list[Question]:
    """The questions of groups drawn by hash until each set has `most` of those that are `known` (to the material).

    A group larger than LARGEST of what a set may have is passed over: SQuAD has 13 articles of 141 to 341 questions
    to learn from, so one of its small ones stands for it.
    """
    whole = Counter(question.dataset for question in questions if question.question_id in known)
    allowed = {name: min(most.get(name, 0), max(1, int(SHARE * whole[name]))) for name in whole}
    taken: Counter[str] = Counter()
    found: list[Question] = []

    def order(group: Sequence[Question]) -> bytes:
        name = min(question.question_id for question in group)
        return hashlib.blake2b(f"{seed}:held:{name}".encode(), digest_size=8).digest()

    for group in sorted(groups_of(questions), key=order):
        own = Counter(question.dataset for question in group if question.question_id in known)
        fits = all(
            taken[name] + own[name] <= allowed[name] and own[name] <= max(1, int(LARGEST * allowed[name]))
            for name in own
        )
        if own and fits:
            taken += own
            found += group
    return found


def unknown_to_shipped(
    material: Material, questions: Sequence[Question], datasets: Collection[str]
) -> list[str]:
    """Ids of training and dev questions of some sets that the shipped reader provably does not know.

    `questions`: all of the files that it was trained on, whatever their split. Left out is what has an id or the
    words of one of these, what tells under a gold title of one, and what is of a world that it was trained on.
    """
    ids = {question.question_id for question in questions}
    asked = {title_key(question.text) for question in questions}
    titles = {title_key(title) for question in questions for title in question.titles}
    found = []
    for row, question in enumerate(material.questions):
        if question.split == "test" or question.dataset not in datasets or question.question_id in ids:
            continue
        if question.dataset == "newswire":
            known = int(question.question_id.split(":", 1)[0]) in SHIPPED_WORLDS
        else:
            told = np.flatnonzero(material.tables.labels[row, : len(question.sentences)] == GOLD)
            known = title_key(question.text) in asked
            known |= any(title_key(question.sentences[at][0]) in titles for at in told)
        if not known:
            found.append(question.question_id)
    return found


def held_rows(
    material: Material, held: Collection[str], beside: Collection[str], most: Mapping[str, int] = BESIDE
) -> list[Misleading]:
    """The readings that a fold reader is stopped by: of questions `held` back, and dev questions of `beside`."""
    taken: Counter[str] = Counter()
    rows = []
    for row, question in enumerate(material.questions):
        if question.question_id in held:
            rows.append(row)
        elif question.split == "dev" and question.question_id in beside:
            taken[question.dataset] += 1
            if taken[question.dataset] <= most.get(question.dataset, 0):
                rows.append(row)
    return [Misleading(triple) for row in rows for triple in _read(material, row)]


def _read(material: Material, row: int) -> Iterator[Triple]:
    """One question's readings; where nothing tells among its candidates, hybrid ranking's alone."""
    tables, question = material.tables, material.questions[row]
    fused = tables.features[row, :, FEATURES.index("fused")]
    order = np.argsort(-np.where(tables.present[row], fused, -1.0), kind="stable").tolist()
    order = order[: int(tables.present[row].sum())]
    golds = [at for at in order if tables.labels[row, at] == GOLD]
    wanted = golds if tables.needs_all[row] else golds[:1]
    others = [at for at in order if tables.labels[row, at] == 0]
    if question.answers and wanted:
        for kind, near in AMONG.items():
            if len(others) >= near:
                yield _triple(material, row, kind, [*wanted, *others[:near]], True)
    (chosen,) = choose(material.take(np.array([row], np.int64)), "hybrid", BUDGET)
    told = set(golds) & set(chosen.picks)
    tells = bool(question.answers) and bool(told) and (told == set(golds) or not tables.needs_all[row])
    if chosen.picks and (tells or not question.answers):
        yield _triple(material, row, f"hybrid{BUDGET}", chosen.picks, tells)


def _triple(material: Material, row: int, kind: str, picks: Sequence[int], tells: bool) -> Triple:
    question = material.questions[row]
    return Triple(
        question_id=question.question_id, dataset=question.dataset, split="dev", kind=kind,
        question=question.text, sentences=question.chosen(picks), answers=question.answers, tells=tells,
        target=target_text(question.answers[0] if tells else None),
    )  # fmt: skip
