"""infra/training/made_hops.py and made_shards.py: links, descriptions, joined questions, the round trip of two."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from infra.training import made_filters
from infra.training.made_filters import Made, answered_back, refused
from infra.training.made_hops import described, draw_links, first_hop, joined, names
from infra.training.made_shards import made_of_row, planned, row_of
from infra.training.made_sources import Source
from infra.training.policy_made import HOPS, rows_of_pass
from models.retriever.pair_training import PairTrainConfig
from pipeline.tasks.qa import SourceText

A = Source("two", "a", "Finding Nemo", "Finding Nemo was directed by Andrew Stanton in 2003.")
B = Source("two", "b", "Andrew Stanton", "Stanton grew up in Rockport, a small town by the sea.", (A,))


def test_a_link_names_a_title_that_few_others_name() -> None:
    """A names B's title, B does not name A's; titles of one word, with brackets, or named everywhere are none."""
    texts = [
        SourceText(text_id="a", title="Finding Nemo", text=A.sentence),
        SourceText(
            text_id="b", title="Andrew Stanton",
            text=f"{B.sentence} He is known for the film Finding Nemo of that year.",
        ),
        SourceText(text_id="c", title="Nemo", text="Nemo is a fish that swims far away from his old home."),
        SourceText(text_id="d", title="New York", text="New York is a city of very many people and tall houses."),
        *(
            SourceText(text_id=f"n{at}", title=f"Mayor {at}x", text="He came to New York as a poor man.")
            for at in range(25)
        ),
    ]  # fmt: skip
    assert draw_links(texts, 10, 0) == [B]
    assert first_hop(B) == (Source("hops", "a", A.title, A.sentence), "Andrew Stanton")


@pytest.mark.parametrize(
    ("question", "phrase"),
    [
        ("Who directed Finding Nemo?", "the person who directed Finding Nemo"),
        ("who did X marry", "the person that X marry"),
        ("what company published the journal", "the company that published the journal"),
        ("In which small town did X grow up?", "the small town that X grow up"),
        ("what is the name of the lake by the town", "the lake by the town"),
        ("which is the largest lake of Asia", "the largest lake of Asia"),
        ("where was X born", "the place where X was born"),
        ("who was Mark Twain", ""),
        ("when did it rain", ""),
        ("how many people live there", ""),
    ],
)
def test_a_question_becomes_a_description(question: str, phrase: str) -> None:
    """Of who, what, which and where; '' for all else."""
    assert described(question) == phrase


def test_two_questions_join_at_the_title() -> None:
    """The title goes, with its article; a possessive or a question that lacks it does not join."""
    who = "who directed Finding Nemo"
    assert joined(who, "where did Andrew Stanton grow up?", "Andrew Stanton") == (
        "where did the person who directed Finding Nemo grow up?"
    )
    assert joined("what band made it", "when did the Red Dogs part", "Red Dogs (band)") == (
        "when did the band that made it part"
    )
    assert joined(who, "where is Andrew Stanton's home", "Andrew Stanton") == ""
    assert joined(who, "where did he grow up", "Andrew Stanton") == ""
    assert names("where did Stanton grow up", "Andrew Stanton", "Finding Nemo") is False
    assert names("where did andrew stanton grow up", "Andrew Stanton", "Finding Nemo")


def test_filters_ask_the_way_of_the_first_sentence_and_the_answer_of_the_second() -> None:
    """What names the title between is refused; so is what says nothing of the first sentence."""
    good = "where did the person who directed Finding Nemo grow up"
    assert refused(Made(B, "Rockport", good)) == ""
    assert refused(Made(B, "2003", good)) == "span"
    assert refused(Made(B, "Rockport", "where did Andrew Stanton of Finding Nemo grow up")) == "names"
    assert refused(Made(B, "Rockport", "in which small town by the sea was it")) == "vague"


@pytest.mark.parametrize(
    ("margins", "reason"),
    [
        ((-5.0, 2.0, -3.0), ""),
        ((1.0, 2.0, 2.0), "gave_up"),
        ((-5.0, -4.5, 2.0), "first_tells"),
        ((-5.0, 2.0, -4.5), "second_tells"),
    ],
)
def test_neither_sentence_alone_may_do(
    margins: tuple[float, float, float], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both must be a nat surer than either; each way to fail is counted."""
    left = iter(margins)

    def say(model: object, prompts: list[list[int]], **_: object) -> list[SimpleNamespace]:
        return [SimpleNamespace(ids=(1,), margin=next(left)) for _ in prompts]

    monkeypatch.setattr(made_filters, "greedy_answers", say)
    voice = SimpleNamespace(
        begin=(2,), encode=lambda text: [3], decode=lambda ids: " Rockport", form="adapted", model=None,
        max_new_tokens=4, tokens_per_batch=64, device="cpu",
    )  # fmt: skip
    found, counts = answered_back(voice, [Made(B, "Rockport", "where did who directed it grow up")], 0.7, 0.0)
    assert found == [not reason]
    assert {name for name, count in counts.items() if count} == ({reason} if reason else set())


def test_shards_of_links_are_spread_and_rows_come_back() -> None:
    """Each source once, links in shards of half the size; a row holds all of a question."""
    single = [Source("nq", str(at), "t", "s") for at in range(10)]
    shards = planned(single, [B] * 6, 4)
    assert [shard.number for shard in shards] == list(range(6))
    assert sum(len(shard.sources) for shard in shards) == 16
    assert [bool(shard.sources[0].via) for shard in shards[:3]].count(True) >= 1
    made = Made(B, "Rockport", "where?")
    assert made_of_row(row_of(made)) == made


def test_a_short_pass_takes_questions_of_two_sentences_first() -> None:
    """All of the few, a share of many; nothing twice."""
    needs_all = np.arange(100) < 10
    material = SimpleNamespace(
        rows=lambda answerable: np.arange(100), tables=SimpleNamespace(needs_all=needs_all)
    )
    config = PairTrainConfig(questions=4)
    drawn = rows_of_pass(material, config, 10)
    assert len(set(drawn.tolist())) == 40
    assert needs_all[drawn].sum() == 10
    assert needs_all[rows_of_pass(material, config, 5)].sum() == int(HOPS * 20)
