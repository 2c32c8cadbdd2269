"""Reading apart: what is read of each choice, how answers are joined, and that nothing is judged by its own fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.training import apart_fit, apart_gpu, apart_join, apart_page
from infra.training.apart_join import INPUTS, Voter, answered, cost, fit, said_of, voters, winner
from infra.training.apart_rows import ApartPlan, rows_read, wanted_of
from models.hf import HfBackbone
from models.reader_scoring import answer_losses
from pipeline.tasks.material import Material
from pipeline.tasks.reading import MaterialReader, Voice, voice_of
from pipeline.tasks.scores import normalize_answer
from tests.infra.training import learning_case

PLAN = ApartPlan(methods=("hybrid", "bm25", "oracle"), budgets=(40,), sizes=(2, 3), by_two=3, cross=2)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Material, Voice]:
    """Toy questions and a tiny reader that answers in bytes."""
    folder = tmp_path_factory.mktemp("apart")
    material = Material.load(learning_case.material(folder / "material", count=6))
    return material, voice_of(HfBackbone.load(learning_case.reader(folder)), adapted=True)


def voter(answer: str, f1: float = 0.0, **told: float) -> Voter:
    """A voter with some of its inputs."""
    return Voter(answer, f1, tuple(told.get(name, 0.0) for name in INPUTS))


def row(at: int, right_pair: float = 1.0, split: str = "test") -> dict[str, Any]:
    """A question of two sentences of one text: the first tells, by its pair score too; together they mislead."""
    return {
        "id": f"q{at}", "dataset": "toy", "split": split, "prompt": 9, "tokens": [10, 20], "heads": [5, 5],
        "groups": [0, 0], "features": {"pair": [right_pair, 0.0]}, "chosen": {"pair:#2": [0, 1]},
        "read": [
            [[], "c", 0.0, 0.0, -3.0, -1.0, 3], [[0], "a", 1.0, -2.0, -1.0, -0.5, 2],
            [[1], "b", 0.0, -1.0, -1.0, -0.5, 2], [[0, 1], "b", 0.0, -2.0, -0.5, -0.2, 2],
        ],
        "crossed": [
            [[], "a", -4.0], [[], "b", -1.0], [[0], "a", -0.5], [[0], "b", -2.0], [[1], "a", -3.0],
            [[1], "b", -1.0], [[0, 1], "a", -2.0], [[0, 1], "b", -0.5],
        ],
    }  # fmt: skip


def test_each_sentence_is_read_alone_all_together_and_the_first_by_two() -> None:
    """Nothing twice, and the reading without text is there for questions that choose nothing."""
    found = wanted_of({"pair:#3": (4, 1, 2), "hybrid:#2": (1, 7)}, by_two=3)
    assert sorted(found) == sorted([(), (1,), (2,), (4,), (7,), (1, 7), (1, 2, 4), (1, 4), (2, 4), (1, 2)])


def test_a_reading_is_that_of_the_reader_of_policies(case: tuple[Material, Voice]) -> None:
    """Answer, F1 and margin are MaterialReader's; the likelihood is that of a pass of its own over the answer."""
    material, voice = case
    rows = list(rows_read(material, range(3), PLAN, voice))
    reader = MaterialReader(material, voice, want_loss=False)
    for at, each in enumerate(rows):
        said = said_of(each)
        assert {(), (0,), (1,)} <= set(said)
        asked = [(at, picks) for picks in said]
        prompts, answers = reader._answers(asked)
        ids = [[*one.ids, *voice.encode("\n")][: voice.max_new_tokens] for one in answers]
        losses = answer_losses(voice.model, list(zip(prompts, ids, strict=True)))
        for (_, picks), spoken, own, loss in zip(asked, reader.spoken(asked), ids, losses, strict=True):
            one = said[picks]
            assert (one.answer, one.count) == (normalize_answer(spoken.text), len(own))
            assert one.f1 == pytest.approx(spoken.f1, abs=1e-4)
            assert one.margin == pytest.approx(spoken.margin, abs=2e-3)
            assert one.whole == pytest.approx(-loss * len(own), abs=0.02)


def test_answers_are_weighed_under_every_first_sentence_together_and_without_text(
    case: tuple[Material, Voice],
) -> None:
    """What `crossed` holds of an answer is its likelihood after that prompt."""
    material, voice = case
    (each,) = rows_read(material, [1], PLAN, voice)
    first = max((picks for name, picks in each["chosen"].items()), key=len)[:2]
    prompts = {tuple(picks) for picks, _, _ in each["crossed"]}
    assert prompts == {(), (first[0],), (first[1],), tuple(sorted(first))}
    picks, answer, logp = each["crossed"][-1]
    prompt = [*voice.begin, *voice.encode(material.prompt(1, picks))]
    target = [*voice.encode(f" {answer}"), *voice.encode("\n")]
    (loss,) = answer_losses(voice.model, [(prompt, target)])
    if normalize_answer(answer) == answer:
        assert logp == pytest.approx(-loss * len(target), abs=1.0)


def test_giving_up_counts_as_lost_in_a_readings_likelihood() -> None:
    """The first token's share of all logits, giving up among them, not of the others alone."""
    logits = np.array([2.0, 1.0, -0.5])  # giving up, the answer's token, another
    barred = math.log(math.exp(1.0) / (math.exp(1.0) + math.exp(-0.5)))
    said = said_of({"read": [[[0], "a", 1.0, 1.0, barred, barred, 1]]})[0,]
    assert said.whole == pytest.approx(math.log(math.exp(1.0) / np.exp(logits).sum()))


def test_the_same_answer_of_several_sentences_adds_up() -> None:
    """Two weaker voters of one answer outweigh the strongest."""
    votes = [voter("a", 1.0, pair=1.0), voter("b", pair=1.4), voter("a", 1.0, pair=0.9)]
    weights = [1.0 if name == "pair" else 0.0 for name in INPUTS]
    assert winner(votes, weights).answer == "a"
    assert winner(votes[:2], weights).answer == "b"


def test_weights_are_learned_that_trust_what_was_right() -> None:
    """Where the pair score tells and the margin misleads, the fit finds it out."""
    chance = np.random.default_rng(0)
    asked = []
    for _ in range(60):
        noise = chance.normal(size=2) * 0.1
        asked.append(
            [voter("r", 1.0, pair=1 + noise[0], margin=-1.0), voter("w", pair=0.3 + noise[1], margin=1.0)]
        )
    weights = fit(asked)
    assert all(winner(votes, weights).answer == "r" for votes in asked)
    assert weights[INPUTS.index("pair")] > 0 > weights[INPUTS.index("margin")]
    with pytest.raises(ValueError, match="two answers"):
        fit([[voter("a"), voter("a")]])


def test_every_way_answers_a_choice() -> None:
    """The row's sentence that tells is found by its pair score and apart, and not together."""
    each = row(0)
    said = said_of(each)
    pair = [4.0 if name == "pair" else 0.0 for name in INPUTS]
    assert answered(each, said, [0, 1], "together") == 0.0
    assert answered(each, said, [0, 1], "pair") == 1.0
    assert answered(each, said, [0, 1], "margin") == 1.0
    assert answered(each, said, [0, 1], "joined", pair) == 1.0
    assert answered(each, said, [0, 1], "crossed", (1.0, 1.0, 0.0, 0.0)) == 1.0
    assert answered(each, said, [0, 1], "crossed", (0.0, 0.0, 0.0, 1.0)) == 0.0  # as together has it
    assert [len(voters(each, said, [0, 1], way)) for way in apart_join.FITTED] == [2, 3, 3]
    assert len(voters(each, said, [0], "both")) == 1


def test_a_head_is_paid_once_together_and_each_time_apart() -> None:
    """Both sentences are of one text; every further prompt is told beside."""
    each = row(0)
    assert cost(each, [0, 1], "together") == (35, 0)
    assert cost(each, [0, 1], "joined") == (40, 9)
    assert cost(each, [0, 1], "both") == (75, 18)
    assert cost(each, [0], "both") == (15, 0)


def test_no_question_is_answered_with_weights_that_saw_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves: what a half's weights were fitted on is the other half; dev: no test question."""
    asked = [apart_fit.Asked.of(row(at)) for at in range(40)]
    asked += [apart_fit.Asked.of(row(at, split="dev") | {"dataset": "rtqa"}) for at in range(40, 60)]
    pools: list[set[str]] = []

    def seen(pool: Any, way: str, methods: Any) -> list[float]:
        pools.append({each.row["id"] for each in pool})
        return [4.0] * (4 if way == "crossed" else len(INPUTS))

    monkeypatch.setattr(apart_fit, "fitted", seen)
    apart_fit.judged(asked, "halves", ("rtqa",), ("pair",))
    halves = {half: {each.row["id"] for each in asked[:40] if each.half == half} for half in (0, 1)}
    assert pools[0] == halves[1] and pools[1] == halves[0]
    pools.clear()
    apart_fit.judged(asked, "dev", ("rtqa",), ("pair",))
    assert pools[0] == {f"q{at}" for at in range(40, 60)}
    with pytest.raises(ValueError, match="no dev question"):
        apart_fit.judged(asked[:40], "dev", ("rtqa",), ("pair",))


def test_rows_come_home_in_pieces_and_a_cut_line_is_read_again(tmp_path: Path) -> None:
    """A process that was killed in a line forgets that line alone."""
    lines = [json.dumps(row(at)) for at in range(3)]
    path = tmp_path / "rows-0.jsonl"
    path.write_text("\n".join(lines[:2]) + "\n" + lines[2][:50])
    assert apart_gpu.known_ids(path) == {"q0", "q1"}
    assert apart_gpu.known_ids(path) == {"q0", "q1"}
    arguments = ["--stage", "home", "--out", str(tmp_path), "--home", str(tmp_path / "home")]
    apart_gpu.main(arguments)
    found = apart_gpu.read_rows(list((tmp_path / "home").iterdir()))
    assert [each["id"] for each in found] == ["q0", "q1"]
    assert apart_page.tables(
        apart_fit.judged([apart_fit.Asked.of(each) for each in found], "halves", (), ("pair",))
    )


def test_a_halfs_point_is_chosen_on_the_other_half_at_no_more_tokens() -> None:
    """What is best on a half itself has no say there; a point that reads more than is allowed has none anywhere."""
    asked = []
    for at in range(40):
        made = row(at)
        mine = apart_fit.Asked.of(made).half
        made["chosen"] = {"policy:1": [mine], "policy:2": [1 - mine], "hybrid:9": [0, 1]}
        asked.append(apart_fit.Asked.of(made))
    points = apart_page.Points(asked, {})
    # policy:1 is right on half 0 alone, policy:2 on half 1 alone: chosen on the other half both are wrong
    found = points.crossed(("policy",), ("together",))
    assert found is not None and found[2] == ["policy:2 together", "policy:1 together"]
    assert found[0].mean() == 0.0
    assert points.crossed(("hybrid",), ("together", "margin"), most=36) is not None
    assert points.crossed(("hybrid",), ("margin",), most=36) is None
    assert points.best(("hybrid",), ("together", "margin")) == ("hybrid:9", "margin")
    lines = apart_page.summary(asked, {})["toy"]["lines"]
    assert lines["simple, either"]["over"]["gain"] == 100.0 and lines["policy, together"]["f1"] == 0.0
