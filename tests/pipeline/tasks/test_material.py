"""pipeline/tasks/material.py and choices.py: candidates, labels and features, and a folder that gives them back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.formats import KEY, NewerFormat
from models.retriever import GOLD, HOLDS, TableBatch
from models.retriever.around import as_read
from pipeline.candidate_features import FEATURES, Unit, candidate_table, preselect
from pipeline.errors import BadData, UsageError
from pipeline.tasks.choices import cut, material_of, spans
from pipeline.tasks.material import Material
from pipeline.tasks.qa import Question, SourceText
from tests.rl.toy import material, tables

TEXTS = [
    SourceText(
        text_id="p0", title="Harbour bridge", text="It opened in 1931. Ines Falk cut the ribbon. It is red."
    ),
    SourceText(text_id="p1", title="Old mill", text="The mill burnt down. Ines Falk saw it. It was rebuilt."),
]
QUESTION = Question(
    question_id="q", dataset="squad", text="Who cut the ribbon?", answers=("Ines Falk",), answerable=True,
    gold_ids=("p0",),
)  # fmt: skip


def encode(texts: list[str]) -> np.ndarray:
    """A unit vector a text."""
    rows = np.array([np.random.default_rng(len(text)).normal(size=6) for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def count(text: str) -> int:
    """A token a word."""
    return len(text.split())


def test_labels_tell_what_tells_from_what_only_holds_the_answer() -> None:
    """The gold passage's sentence is GOLD, another text's with the answer string HOLDS, the rest nothing."""
    made, table, choices = material_of(QUESTION, cut(TEXTS, "sentence", count), encode, count)
    by_text = {choice.text: int(label) for choice, label in zip(choices, table.labels, strict=True)}
    assert by_text["Ines Falk cut the ribbon."] == GOLD
    assert by_text["Ines Falk saw it."] == HOLDS
    assert sorted(by_text.values()) == [0, 0, 0, 0, HOLDS, GOLD]
    assert made.answers == ("Ines Falk",)


def test_a_choice_is_read_in_the_order_of_the_texts() -> None:
    """However it was chosen, sentences of a text stand together and in its order."""
    made, _, choices = material_of(QUESTION, cut(TEXTS, "sentence", count), encode, count)
    order = [choice.text for choice in choices]
    picks = [order.index(text) for text in ("It is red.", "The mill burnt down.", "It opened in 1931.")]
    assert [text for _, _, text in made.chosen(picks)] == [
        "It opened in 1931.", "It is red.", "The mill burnt down.",
    ]  # fmt: skip


@given(st.lists(st.text("ab ", min_size=1, max_size=40), min_size=1, max_size=4), st.integers(1, 9))
def test_spans_keep_every_word_and_their_length(texts: list[str], size: int) -> None:
    """No word is lost or doubled; no span is longer than asked unless one word is."""
    sources = [SourceText(text_id=str(at), title="t", text=text) for at, text in enumerate(texts)]
    found = spans(sources, size, len)
    for at, text in enumerate(texts):
        own = [span.text for span in found if span.place[0] == at]
        assert " ".join(own).split() == text.split()
        assert all(sum(len(f" {word}") for word in span.split()) <= size or " " not in span for span in own)


def test_features_are_named_bounded_and_know_the_question() -> None:
    """The sentence with the question's words leads in overlap and BM25; every feature is a number near 1."""
    units = [Unit(c.text, c.source.title, *c.place, 5, 4) for c in cut(TEXTS, "sentence", count)]
    table = candidate_table(QUESTION.text, units, encode)
    assert table.features.shape == (6, len(FEATURES))
    assert np.isfinite(table.features).all() and np.abs(table.features).max() < 10
    for name in ("bm25", "overlap"):
        assert table.features[:, FEATURES.index(name)].argmax() == 1
    assert len(preselect(QUESTION.text, units, 2)) == 2
    assert 1 in preselect(QUESTION.text, units, 2)


def test_a_pair_reader_is_handed_the_sentences_around_each_candidate() -> None:
    """Those of its own text that are among the candidates, in place; a reader of candidates alone drops them."""
    units = [Unit(c.text, c.source.title, *c.place, 5, 4) for c in cut(TEXTS, "sentence", count)]
    seen: list[str] = []
    table = candidate_table(
        QUESTION.text, units, encode, pair=lambda _, texts: (seen.extend(texts), np.zeros((len(texts), 6)))[1]
    )
    assert table.features.shape == (6, len(FEATURES) + 6)
    read = [as_read(text, around=True) for text in seen]
    assert read[0] == "Harbour bridge: It opened in 1931. | after: Ines Falk cut the ribbon."
    assert read[4] == "Old mill: Ines Falk saw it. | before: The mill burnt down. | after: It was rebuilt."
    assert as_read(seen[4], around=False) == "Old mill: Ines Falk saw it."


@pytest.mark.parametrize("int8", [False, True])
def test_a_folder_gives_back_what_was_saved(tmp_path: Path, int8: bool) -> None:
    """Texts exactly, tables exactly (vectors in 8 bits within a hundredth), however it was saved before."""
    made = material(tables(6))
    made.save(tmp_path, {"seed": 1}, int8=not int8)
    made.save(tmp_path, {"seed": 1}, int8=int8)
    back = Material.load(tmp_path)
    assert back.questions == made.questions
    for name, array in made.tables.arrays().items():
        tolerance = 0.01 if int8 and name in ("vectors", "features") else 0.0
        np.testing.assert_allclose(getattr(back.tables, name), array, atol=tolerance, err_msg=name)


def test_material_of_a_later_version_is_refused(tmp_path: Path) -> None:
    """By name; a manifest that states no form, and none at all, are of the first."""
    made = material(tables(2))
    made.save(tmp_path, {})
    path = tmp_path / "manifest.json"
    body = json.loads(path.read_text())
    assert body.pop(KEY) == 1
    path.write_text(json.dumps(body | {KEY: 2}))
    with pytest.raises(NewerFormat, match="has format 2; this DySRA reads up to 1"):
        Material.load(tmp_path)
    path.write_text(json.dumps(body))
    Material.load(tmp_path)
    path.unlink()
    Material.load(tmp_path)


def test_materials_of_other_widths_are_joined() -> None:
    """Rows keep their candidates; padding grows."""
    joined = Material.join([material(tables(3, width=4)), material(tables(2, width=6))])
    assert len(joined) == 5
    assert joined.tables.num_candidates == 6
    assert not joined.tables.present[:3, 4:].any()


def test_what_is_no_material_is_said(tmp_path: Path) -> None:
    """An empty folder and one whose parts do not fit are told apart."""
    with pytest.raises(UsageError, match="is no folder of material"):
        Material.load(tmp_path)
    material(tables(3)).save(tmp_path, {})
    lines = (tmp_path / "questions.jsonl").read_text().splitlines()
    (tmp_path / "questions.jsonl").write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(BadData, match="do not fit"):
        Material.load(tmp_path)
    with pytest.raises(ValueError, match="needs at least one question"):
        TableBatch.stack([])
