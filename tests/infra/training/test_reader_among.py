"""infra/training/reader_among.py: long contexts of what policies choose from, nothing under a closed title."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from infra.training.reader_among import RANKED_BY, Offered, cloze_among, contexts, offered
from models.retriever.table import FEATURES, TableBatch
from pipeline.prepare.cloze import BLANK
from pipeline.prepare.near_misses import AnswerPool, Misleading, NearMissConfig
from pipeline.prepare.triples import Triple
from pipeline.tasks.contexts import WordWeights
from pipeline.tasks.material import Material
from pipeline.tasks.qa import Question, SourceText
from pipeline.tasks.scores import holds_answer
from tests.rl.toy import material as toy_material
from tests.rl.toy import tables

GOLD_TEXT = SourceText(
    text_id="g", title="Harbour", text="The harbour opened in 1912. It lies in the north. Ships call there."
)
OTHERS = [
    SourceText(
        text_id=f"t{at}",
        title=f"Port {at}",
        text=f"Port {at} opened its harbour in {1800 + at}. Port {at} is old. It trades.",
    )
    for at in range(14)
]
ASKED = Question(
    question_id="q", dataset="nq", text="When did the harbour open?", answers=("1912",), answerable=True,
    titles=("Harbour",), gold_ids=("g",),
)  # fmt: skip
ANSWERS = AnswerPool(["1912", "1655", "1777"])
WEIGHTS = WordWeights([text.text for text in [GOLD_TEXT, *OTHERS]])


def made(offer: Offered | None, closed: tuple[str, ...] = (), **more: int) -> list[Misleading]:
    """The contexts of ASKED, a word counted as a token."""
    config = NearMissConfig(near=8, found=8, silent=2, most_near=9, reach=20, **more)  # type: ignore[arg-type]
    found = contexts(
        ASKED, [GOLD_TEXT], OTHERS, offer, lambda title: title not in closed, WEIGHTS,
        lambda text: len(text.split()), ANSWERS, config,
    )  # fmt: skip
    return list(found)


def test_what_tells_is_read_among_one_to_ten_sentences() -> None:
    """Short and long ones, near misses of many texts; an exchanged answer stands for the right one everywhere."""
    found = made(None)
    assert all(each.triple.kind.startswith("among:") for each in found)
    sizes = {len(each.triple.sentences) for each in found if each.triple.kind.startswith("among:near")}
    assert min(sizes) >= 2 and max(sizes) <= 10 and max(sizes) >= 6
    exchanged = [each.triple for each in found if each.triple.kind.endswith("~")]
    assert exchanged
    for triple in exchanged:
        told = " ".join(text for _, _, text in triple.sentences)
        assert holds_answer(told, triple.answers) and not holds_answer(told, ["1912"])
        assert triple.target.strip() == triple.answers[0]
    assert any(not each.triple.tells for each in found)


def test_offered_sentences_are_taken_in_the_order_of_the_material_but_none_under_a_closed_title() -> None:
    """Of what policies choose from, so much as a budget holds, best first; the gold sentence stands in its text."""
    sentences = [
        ("Port 3", "", "Port 3 opened its harbour in 1803."),
        ("Port 5", "", "Port 5 is old."),
        ("Harbour", "", "The harbour opened in 1912."),
        ("Elsewhere", "", "A pier that no text of the pool has."),
    ]
    offer = Offered(tuple(sentences), ((0, 0), (1, 1), (2, 0), (3, 0)), {"hybrid": (3, 2, 0, 1)})
    titles = {title for each in made(offer) for title, _, _ in each.triple.sentences}
    assert titles == {"Port 3", "Port 5", "Harbour", "Elsewhere"}
    open_titles = {t for each in made(offer, ("Port 3",)) for t, _, _ in each.triple.sentences}
    assert open_titles == {"Port 5", "Harbour", "Elsewhere"}
    # the gold text's other sentences no ranking offered: they come last, and tell nothing
    assert any("Ships call there." in text for each in made(offer) for _, _, text in each.triple.sentences)
    assert any(each.triple.kind == "among:near" and each.triple.tells for each in made(offer))


def test_a_blanked_sentence_is_read_among_near_misses_that_do_not_tell() -> None:
    """One sentence tells; none of the others holds what is missing, none is of its own article."""
    triple = Triple(
        question_id="cloze-g", dataset="cloze", split="train", kind="cloze",
        question=f"In {BLANK} the harbour was opened.",
        sentences=(("Harbour", "", "The harbour opened in 1912."), ("Harbour", "", "It lies in the north.")),
        answers=("1912",), tells=True, target=" 1912",
    )  # fmt: skip
    near = [*OTHERS, SourceText(text_id="same", title="Harbour", text="Harbour again.")]
    near.append(SourceText(text_id="n", title="Year", text="So in 1912."))
    found = cloze_among(triple, near, WEIGHTS)
    assert found is not None and found.kind == "among" and found.target == " 1912"
    telling = [text for _, _, text in found.sentences if holds_answer(text, ["1912"])]
    assert telling == ["The harbour opened in 1912."] and 2 <= len(found.sentences) <= 10
    assert {title for title, _, _ in found.sentences} <= {"Harbour", *(text.title for text in OTHERS)}
    assert cloze_among(triple, [], WEIGHTS) is None
    assert cloze_among(triple, near, WEIGHTS) == found


def test_the_material_tells_what_training_questions_are_offered_and_in_which_order() -> None:
    """Test questions are left out; each order is that of its feature, over the question's own candidates."""
    batch = tables(8, width=5)
    noise = np.random.default_rng(1).random((*batch.present.shape, len(FEATURES))).astype(np.float32)
    made = toy_material(TableBatch(**(batch.arrays() | {"features": noise})))
    split = [replace(q, split="train" if at < 5 else "test") for at, q in enumerate(made.questions)]
    material = Material(tuple(split), made.tables)
    found = offered(material)
    trained = [at for at, each in enumerate(material.questions) if each.split != "test"]
    assert set(found) == {material.questions[at].question_id for at in trained} and trained
    for at in trained:
        offer, question = found[material.questions[at].question_id], material.questions[at]
        assert offer.sentences == question.sentences
        for name, feature in RANKED_BY.items():
            values = material.tables.features[at, :, FEATURES.index(feature)]
            assert sorted(offer.orders[name]) == list(range(len(question.sentences)))
            assert np.all(np.diff(values[list(offer.orders[name])]) <= 1e-6)
