"""infra/training/policy_points.py and its staged reading: chosen once for every bias of STOP and every trust."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.training.policy_evaluation import Curves, staged, wanted_on_test
from infra.training.policy_points import (
    ApartTable,
    Judged,
    Point,
    answered,
    load_judged,
    save_judged,
)
from models.retriever import PolicyNetwork
from models.retriever.selecting import Chosen, select, trails
from models.retriever.trust import UNREAD, SingleReadings
from pipeline.tasks.material import Material
from tests.rl.toy import material, network_config, tables


def apart_of(made: Material, trust_of_right: float = 2.0) -> ApartTable:
    """Every candidate read alone: the telling one rightly and with more trust; answers all differ."""
    batch = made.tables
    right = (batch.labels > 0).astype(np.float32)
    groups = np.where(batch.present, np.arange(batch.present.size).reshape(batch.present.shape), UNREAD)
    nothing = np.zeros_like(right)
    singles = SingleReadings(right, nothing - 3, nothing - 0.5, nothing + 2, groups, nothing)
    logits = np.where(right > 0, trust_of_right, -1.0).astype(np.float32)
    return ApartTable(
        singles=singles, logits={"plain": logits, "verified": logits}, allowed=batch.present,
        prompts=np.full(len(made), 12),
    )  # fmt: skip


@pytest.mark.parametrize("budget", [40, 90])
def test_one_walk_gives_what_select_chooses_with_any_bias_of_stop(budget: int) -> None:
    """The same picks as choosing anew with that bias, from never stopping to stopping at once."""
    torch.manual_seed(0)
    batch = tables(40)
    network = PolicyNetwork(network_config()).eval()
    walks = trails(network, batch, budget, batch=16)
    for bias in (-12.0, -0.3, 0.0, 0.2, 12.0):
        wanted = select(network, batch, budget, stop_bias=bias)
        assert [walk.until(bias) for walk in walks] == [choice.picks for choice in wanted]
    assert len({len(walk.picks) for walk in walks}) > 1


def test_a_question_of_which_no_candidate_fits_the_budget_is_stopped_at_once() -> None:
    """The walk of such a row is empty, the others' are as before."""
    torch.manual_seed(0)
    batch = tables(12)
    budget = int(batch.tokens[0][batch.present[0]].min()) - 1
    network = PolicyNetwork(network_config()).eval()
    walks = trails(network, batch, budget)
    assert walks[0].picks == ()
    assert walks[0].until(-12.0) == ()
    wanted = select(network, batch, budget, stop_bias=-12.0)
    assert [walk.until(-12.0) for walk in walks] == [choice.picks for choice in wanted]


def test_reading_apart_ends_when_an_answer_is_trusted_and_pays_for_what_was_read() -> None:
    """The telling sentence read second ends it there; never enough trust reads all; F1 is of the trusted answer."""
    made = material(tables(12))
    here = apart_of(made)
    batch = here.tables(made.tables)
    gold = made.tables.labels.argmax(1)
    other = (gold + 1) % made.tables.present.sum(1)
    third = (gold + 2) % made.tables.present.sum(1)
    picks = list(zip(other.tolist(), gold.tolist(), third.tolist(), strict=True))
    (early, each), (whole, _) = answered(made, batch, here, "plain", picks, (0.7, 1.0))
    assert (each == 1).all()
    assert (early["sentences"], whole["sentences"]) == (2.0, 3.0)
    first = [made.tables.tokens[row, list(p[:2])].sum() + 2 * 5 + 12 for row, p in enumerate(picks)]
    assert early["tokens"] == round(float(np.mean(first)), 1)
    assert early["forced_f1"] == 100.0
    assert early["f1"] == 100.0, "no reading would rather give up"


def test_what_is_trusted_alone_is_not_read_again_and_else_both_readings_are_paid() -> None:
    """Tokens and F1 of the staged reading follow question by question; unread points have tokens and no F1."""
    made = material(tables(10))
    here = apart_of(made)
    gold = made.tables.labels.argmax(1)
    other = (gold + 1) % made.tables.present.sum(1)
    firsts = [int(gold[row]) if row < 5 else int(other[row]) for row in range(10)]
    chosen = tuple(
        Chosen((pick, int(third)), 77) for pick, third in zip(firsts, (other + 1) % 4, strict=True)
    )
    point = Point("reinforce-0", "test", "toy", 128, 0.0, chosen)
    each = np.full(10, 0.25, np.float32)
    made_of = {enough["trust"]: (enough, own) for enough, own in staged(point, {}, each, made, here)}
    told, own = made_of[0.75]
    assert told["name"] == "reinforce_staged-0"
    assert own is not None
    np.testing.assert_array_equal(own, [1.0] * 5 + [0.25] * 5)
    alone = made.tables.tokens[np.arange(10), firsts] + 5
    assert told["tokens"] == round(float((alone.sum() + 5 * (77 + 12)) / 10), 1)
    assert told["alone"] == 0.5
    unread, nothing = staged(point, {}, None, made, here)[0]
    assert nothing is None
    assert unread["forced_f1"] is None
    assert unread["tokens"] == made_of[0.6][0]["tokens"]


def test_of_a_policys_test_points_only_those_are_read_that_dev_questions_name_or_that_are_shown() -> None:
    """A point that is neither chosen, nor own STOP, nor of the shown curve stays unread."""
    curves = Curves()
    points = []
    for name, budget, bias, dev_f1 in (
        ("hybrid", 128, 0.0, 50.0), ("reinforce-0", 64, -12.0, 52.0), ("reinforce-0", 128, -12.0, 60.0),
        ("reinforce-0", 96, -12.0, 10.0), ("reinforce-0", 96, -4.0, 20.0), ("reinforce-0", 256, 0.0, 30.0),
    ):  # fmt: skip
        points.append(Point(name, "test", "nq", budget, bias, (Chosen((0,), budget),)))
        figures = {"name": name, "budget": budget, "stop_bias": bias, "tokens": 0.9 * budget}
        read = np.array([dev_f1 / 100])
        if name == "hybrid":
            figures["tokens"] = float(budget)
        curves.add("nq", "dev", figures | {"forced_f1": dev_f1}, read)
        curves.add("nq", "test", figures | {"forced_f1": dev_f1}, read if name == "hybrid" else None)
    found = {(p.budget, p.stop_bias) for p in wanted_on_test(points, curves)}
    assert found == {(128, -12.0), (64, -12.0), (96, -4.0), (256, 0.0)}
    assert curves.of("nq", "test")[1]["forced_f1"] is None


def test_judged_points_are_kept_with_their_questions(tmp_path: Path) -> None:
    """Figures and F1 question by question come back."""
    made = [Judged("pair_apart", "dev", "nq", {"budget": 64, "trust": 0.7}, np.array([0.5, 1.0], np.float32))]
    save_judged(made, tmp_path / "pair_apart.judged.npz")
    (again,) = load_judged(tmp_path)
    np.testing.assert_array_equal(again.each, made[0].each)
    assert replace(again, each=made[0].each) == made[0]
