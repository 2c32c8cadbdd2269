"""infra/evaluation/chooser_contest.py: choosers of sessions side by side over the same search and budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from infra.demo.material import DemoQuestion, Material
from infra.evaluation.chooser_contest import contest, search_of, told
from pipeline.article import Article, Deletion, parse_article
from pipeline.session.chooser import HybridChooser
from pipeline.session.sentences import Candidate


class Words:
    """A backbone of whole words."""

    bos = (0,)

    def __init__(self) -> None:
        self.known: list[str] = ["<bos>"]

    def encode(self, text: str) -> list[int]:
        """One token a word."""
        for word in text.split():
            if word not in self.known:
                self.known.append(word)
        return [self.known.index(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """The words again."""
        return " ".join(self.known[at] for at in ids)

    def score(self, prompt: Sequence[int], answer: Sequence[int], cache: object) -> float:
        """Giving up is far likelier than anything else."""
        return 0.0 if self.known[answer[0]] == "unknown" else -5.0


class LastWord:
    """Answers with the last word of the sentence that was read last; gives up where nothing was read."""

    def __init__(self) -> None:
        self.backbone = Words()

    def answers(
        self, prompts: list[list[int]], on_progress: object
    ) -> tuple[list[tuple[int, ...]], dict[int, tuple[int, ...]]]:
        """The word before the mark, if any sentence stands in the prompt."""
        said: list[tuple[int, ...]] = []
        forced = {}
        for at, prompt in enumerate(prompts):
            text = self.backbone.decode(prompt)
            found = [word for word in ("Norling", "Vance") if f"{word}." in text]
            said.append(tuple(self.backbone.encode(found[0] if found else "unknown")))
            if not found:
                forced[at] = tuple(self.backbone.encode("Norling"))
        return said, forced


class Nothing:
    """Chooses nothing."""

    def choose(self, question: str, candidates: Sequence[Candidate], budget: int) -> list[Candidate]:
        """Nothing."""
        return []


def article(name: str, text: str, hour: int) -> Article:
    """An article of one stream."""
    return parse_article(
        {
            "id": name, "source": "wire", "stream": "harbour", "title": f"About {name}", "text": text,
            "published": f"2026-01-02T{hour:02d}:00:00Z",
        }
    )  # fmt: skip


@pytest.fixture
def material() -> Material:
    """A corrected article, a withdrawn one, and a question that the corrected one answers."""
    return Material(
        records=(
            article("bridge", "The bridge was drawn by Vance.", 1),
            article("bridge", "The bridge was drawn by Norling.", 2),
            article("ferry", "The ferry and the bridge were drawn by Vance.", 3),
            Deletion(id="ferry"),
        ),
        deletion_streams={"ferry": "harbour"},
        questions=(
            DemoQuestion(kind="who", question="Who drew the bridge?", stream="harbour", answers=("Norling",)),
            DemoQuestion(kind="who", question="Who drew the bridge?", stream="other", answers=("Norling",)),
        ),
        description="two articles",
    )


def test_each_chooser_reads_the_newest_forms_alone_and_is_judged_by_its_answer(
    material: Material, tmp_path: Path
) -> None:
    """A correction stands, a withdrawal is gone, another stream finds nothing; giving up over the margin holds."""
    search = search_of(material)
    assert [p.text for p in search(material.questions[0])] == ["The bridge was drawn by Norling."]
    assert search(material.questions[1]) == []
    choosers = {"hybrid": HybridChooser(), "nothing": Nothing()}
    rows = contest(material, search, choosers, LastWord(), 64, tmp_path / "rows.jsonl")
    assert [row["right"] for row in rows] == [True, False, False, False]
    assert [row["given_up"] for row in rows] == [False, True, True, True]
    assert rows[0]["tokens"] > rows[1]["tokens"] == 0
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
    found = told(rows)
    assert (found["hybrid"]["right"], found["hybrid"]["holds"], found["nothing"]["right"]) == (1, 1, 0)
    assert found["gain_f1"]["gain"] == -50.0
