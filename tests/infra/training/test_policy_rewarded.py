"""infra/training/policy_{alone,rewarded,over}.py: worth of picks, arms of pair readers, reward over labels."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.training import policy_alone, policy_opened, policy_rewarded, policy_work
from infra.training.policy_alone import (
    AloneConfig,
    picks_for,
    read_questions,
    requests_for,
    told_of,
    worth_of,
)
from infra.training.policy_arms import folds_first, folds_then, form_of, shares, with_arms
from infra.training.policy_collect import collect, unpack
from infra.training.policy_evaluation import Curves
from infra.training.policy_opened import arm_home, best_arm, open_material, seen_by
from infra.training.policy_over import gains, over_supervised, table
from infra.training.policy_rewarded import arm_orders, first_picks, worth_weights
from infra.training.policy_stages import reward_jobs, taught_jobs
from models.retriever.pair_reader import load_pair_reader
from models.retriever.table import ALL_FEATURES, GOLD
from pipeline.tasks.material import Material
from rl.episodes import Outcome, Readings, Request, fingerprint
from tests.infra.training.test_policy_gpu import carried, questions_with_features, run, texts

__all__ = ["carried", "texts"]  # fixtures


def common(texts: Path, out: Path) -> tuple[str, ...]:
    """A run of four questions a set and split, MiniLM's pair readers, one seed."""
    return (
        "--carried", str(texts), "--out", str(out), "--seeds", "0", "--warm-steps", "4", "--worlds", "0",
        "--iterations", "1", "--width", "16", "--layers", "1", "--budgets", "48", "--biases", "-4",
        "--pair-epochs", "1", "--seconds", "600", "--most", "4", "--together", "--rewarded-epochs", "1",
        "--alone", "3", "--twos", "2",
    )  # fmt: skip


class Labelled:
    """Answers rightly where it has read what tells, else not at all; better likelihood then, too."""

    def __init__(self, material: Material) -> None:
        self.labels = material.tables.labels

    def outcomes(self, requests: Sequence[Request]) -> list[tuple[float, float, float]]:
        told = [any(self.labels[row, at] == GOLD for at in picks) for row, picks in requests]
        return [(1.0, 0.1, -1.0) if each else (0.0, 3.0, 1.0) for each in told]


@pytest.fixture
def quick_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model reads: what tells is known by its label."""
    for module in (policy_alone, policy_opened, policy_work):
        monkeypatch.setattr(
            module, "open_readers", lambda given, material: lambda want_loss: Labelled(material)
        )


@pytest.mark.usefixtures("quick_reader")
def test_a_run_judges_policies_over_label_scores_and_over_rewarded_ones(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage in a row with arms and made questions; what came home; done work is passed over."""
    out = tmp_path / "state"
    made = questions_with_features()
    asked = tuple(replace(question, split="train") for question in made.questions)
    Material(asked, made.tables).save(tmp_path / "made", {})
    options = (
        *common(texts, out), "--arms", "log", "labels", "--arm-seeds", "2",
        "--made", str(tmp_path / "made"), "--alone-made", "5", "--made-steps", "2",
    )  # fmt: skip
    run(monkeypatch, *options)
    told = json.loads((out / "arms.json").read_text())
    assert set(told["first_picks"]) == {"label_trained", "log", "labels"}
    assert told["best"] == "log", "of forms of reward, not of labels"
    best = arm_home(out, told["best"]) / "pairs"
    reader, about = load_pair_reader(best / "whole")
    assert about["form"] == told["best"] and about["steps"] == about["steps_planned"]
    material = Material.load(out / "material")
    train = len(material.rows("train", answerable=True))
    assert about["read"]["train"]["questions"] == train and about["read"]["made"]["questions"] == 5
    begun, _ = load_pair_reader(out / "pairs" / "whole")
    question, sentence = material.questions[0].text, [material.questions[0].sentences[0][2]]
    assert not np.allclose(reader.features(question, sentence), begun.features(question, sentence))

    records = {path.parent.name: json.loads(path.read_text()) for path in out.glob("policies/*/record.json")}
    kinds = ("supervised", "supervised_longer", "supervised_rewarded", "reinforce", "plain_ppo")
    assert set(records) >= {f"{kind}-0" for kind in (*kinds, "reinforce_rewarded", "plain_ppo_rewarded")}
    assert records["plain_ppo_rewarded-0"]["scores"] == "rewarded" and records["plain_ppo-0"]["scores"] == ""
    assert "warm_loss" not in records["plain_ppo_rewarded-0"], (
        "it begins with the labels' policy over its scores"
    )
    found = json.loads((out / "evaluation.json").read_text())
    names = {point["name"] for point in found["sets"]["nq"]["test"]}
    assert names >= {"pair", "pair_rewarded", "pair_longer", "plain_ppo_rewarded-0", "supervised_longer-0"}
    # which of the rewarded have a point at no more tokens than the simple methods hangs on the draw
    assert "supervised_rewarded" in found["over_supervised"]["supervised"]
    assert "rl_over_supervised_f1" in found["summary"]
    assert found["arms"]["best"] == told["best"] and "nq" in found["arms"]["ranks"]["test"]

    given = argparse.Namespace(out=out, pair_base="minilm", pair_features="one", arm_seeds=2)
    own = [open_material(given, scores, seed) for scores, seed in (("", 0), ("rewarded", 0), ("rewarded", 1))]
    at = ALL_FEATURES.index("pair")
    columns = [each.tables.features[..., at] for each in own]
    assert not np.allclose(columns[0], columns[1]) and not np.allclose(columns[1], columns[2])
    assert seen_by(given, "longer") == arm_home(out, "labels") / "pairs"

    files = sorted(out.glob("alone/*/*.npz"))
    before = [path.stat().st_mtime_ns for path in files]
    assert len(files) == 2
    run(monkeypatch, *options, "--stage", "alone", "rewarded", "rewarded_whole")
    assert [path.stat().st_mtime_ns for path in files] == before
    collect(out, tmp_path / "home")
    unpack(sorted((tmp_path / "home").iterdir()), tmp_path / "unpacked")
    home = tmp_path / "unpacked"
    assert (home / "arms.json").is_file()
    assert load_pair_reader(home / "arms" / told["best"] / "pairs" / "whole")[1]["fold"] == "whole"


@pytest.mark.usefixtures("quick_reader")
def test_arms_of_several_kinds_are_seen_as_their_weighted_sum(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reward trains MiniLM's; another's label-trained scores stay beside it; the weights are the arm's own."""
    out = tmp_path / "state"
    shutil.copytree(texts / "minilm", tmp_path / "encoders" / "e5")
    run(
        monkeypatch, *common(texts, out), "--arms", "log", "labels", "--pair-base", "e5+minilm",
        "--pair-features", "both", "--rewarded-kinds", "minilm", "--encoders", str(tmp_path / "encoders"),
        "--encoder-epochs", "1", "--stage", "material", "pairs", "both", "alone", "rewarded", "rewarded_whole",
        "rewarded_both",
    )  # fmt: skip
    home = arm_home(out, "log")
    assert (home / "pairs_e5").resolve() == out / "pairs_e5"
    given = argparse.Namespace(out=out, pair_base="e5+minilm", pair_features="both", arm_seeds=1)
    assert seen_by(given, "rewarded") == home / "pairs_both"
    told = [
        json.loads((place / "pairs_both" / "whole" / "config.json").read_text())
        for place in (out, home, arm_home(out, "labels"))
    ]
    assert len({json.dumps(each["weights"]) for each in told}) == 3
    given.arms = ["log", "labels"]
    material = Material.load(out / "material")
    assert set(arm_orders(given, material, only_seen=True)) == {"pair_both_rewarded", "pair_both_longer"}
    assert set(arm_orders(given, material)) >= {"pair_rewarded", "pair_e5_longer"}
    own = open_material(given, "rewarded").tables.features
    assert not np.allclose(own, open_material(given).tables.features)


def test_weights_by_worth_go_to_the_order_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels call the first candidate right; read, the second answers, and one kind's order has it first."""
    made = questions_with_features()
    train = made.rows("train", answerable=True)
    readings = Readings(None, fingerprint(made))
    for row in train.tolist():
        readings.add(
            [row] * 3, [0, 1, 2], [Outcome(0.0, 1.0, 0.0), Outcome(0.0, 1.0, 0.0), Outcome(1.0, 1.0, 0.0)]
        )
    for place, best in (("pairs", 0), ("pairs_decoder", 1)):
        columns = np.full((*made.tables.present.shape, 6), -0.1, np.float32)
        columns[:, best, 0] = 0.3
        for fold in ("fold0", "fold1", "whole"):
            (tmp_path / place / fold).mkdir(parents=True)
            np.savez(tmp_path / place / fold / "scores.npz", rows=np.arange(len(made)), columns=columns)
    order = np.tile(-np.arange(made.tables.num_candidates, dtype=np.float32), (len(made), 1))
    monkeypatch.setattr(policy_rewarded, "plan_of", lambda given, plan: (made, train, order))
    monkeypatch.setattr(policy_rewarded, "load_alone", lambda given, plan, material: readings)
    given = argparse.Namespace(out=tmp_path, alone=2, twos=0)
    decoder, minilm = worth_weights(given, tmp_path, ["decoder", "minilm"])
    assert decoder > 1.0 > 0.5 > minilm


def test_what_is_read_of_a_question_is_its_best_and_what_tells() -> None:
    """The best by the scores first; a labelled one that is not among them takes the last place."""
    made = questions_with_features()
    tables = made.tables
    row = next(at for at in range(len(made)) if (tables.labels[at] == GOLD).sum() == 1)
    gold = int(np.flatnonzero(tables.labels[row] == GOLD)[0])
    scores = np.arange(tables.num_candidates, 0, -1).astype(np.float32)
    scores[gold] = -9.0
    config = AloneConfig(alone=3, twos=2)
    picks = picks_for(tables, row, scores, config).tolist()
    others = [at for at in np.flatnonzero(tables.present[row]).tolist() if at != gold]
    assert picks == [*others[:2], gold]
    scores[gold] = 99.0
    assert picks_for(tables, row, scores, config)[0] == gold
    asked = requests_for(row, np.array(picks), config)
    assert asked == [(row, ()), *((row, (at,)) for at in picks), (row, tuple(sorted(picks[:2])))]
    with pytest.raises(ValueError, match="twos: given 4 of 3"):
        AloneConfig(alone=3, twos=4)


def test_worth_is_f1_less_the_tokens_and_only_what_was_read_counts() -> None:
    """Heads are paid once a text; a question without all its single readings is left out; unread twos are NaN."""
    made = questions_with_features()
    tables, config = made.tables, AloneConfig(alone=2, twos=2)
    scores = np.tile(np.arange(tables.num_candidates, 0, -1).astype(np.float32), (len(made), 1))
    picks = picks_for(tables, 3, scores[3], config).tolist()
    tokens = sum(int(tables.tokens[3, at]) for at in picks)
    heads = {int(tables.groups[3, at]): int(tables.heads[3, at]) for at in picks}
    assert worth_of(tables, 3, picks, 0.5, 0.01) == pytest.approx(0.5 - 0.01 * (tokens + sum(heads.values())))
    readings = Readings(None, fingerprint(made))
    readings.add(
        [3, 3, 3, 4],
        [0, 1 << picks[0], 1 << picks[1], 0],
        [Outcome(f1, 0.5, 0.0) for f1 in (0.1, 0.9, 0.2, 0.3)],
    )
    (found,) = read_questions(made, np.array([3, 4]), scores, readings, config, 0.0)
    assert found.row == 3 and found.picks.tolist() == picks
    np.testing.assert_allclose(found.alone, [0.9, 0.2], rtol=1e-6)
    assert found.nothing == pytest.approx(0.1) and np.isnan(found.twos).all()
    readings.add([3], [(1 << picks[0]) + (1 << picks[1])], [Outcome(0.7, 0.5, 0.0)])
    (found,) = read_questions(made, np.array([3]), scores, readings, config, 0.0)
    assert found.twos[0, 1] == found.twos[1, 0] == pytest.approx(0.7)
    assert told_of(made, [found])["best"] == pytest.approx(0.9)


def test_the_best_form_is_named_by_first_picks_of_folds_that_did_not_see_them(tmp_path: Path) -> None:
    """F1 of the best candidate by each order, over questions where all orders' first picks were read."""
    made = questions_with_features()
    train = made.rows("train", answerable=True)
    readings = Readings(None, fingerprint(made))
    for row in train[:-1].tolist():
        readings.add([row, row], [1, 2], [Outcome(0.25, 0.0, 0.0), Outcome(1.0, 0.0, 0.0)])
    homes = {}
    for name, best in (("log", 1), ("expected", 0)):
        homes[name] = tmp_path / name
        for at, fold in enumerate(("fold0", "fold1")):
            columns = np.zeros((len(train[at::2]), made.tables.num_candidates, 6), np.float32)
            columns[:, best, 0] = 1.0
            (homes[name] / "pairs" / fold).mkdir(parents=True)
            np.savez(homes[name] / "pairs" / fold / "scores.npz", rows=train[at::2], columns=columns)
    found = first_picks(made, homes, readings, ("pairs",))
    assert found["log"]["f1"] == 100.0 and found["expected"]["f1"] == 25.0
    assert found["log"]["n"] == found["expected"]["n"] == len(train) - 1


def test_stages_and_trainings_of_arms(tmp_path: Path) -> None:
    """Both folds of every arm, then the whole of the best and of labels, then further seeds; none without arms."""
    given = argparse.Namespace(
        out=tmp_path, arms=["log", "expected", "labels"], arm_seeds=2, pair_base="both", pair_features="both",
        rewarded_kinds=["minilm"],
    )  # fmt: skip
    assert with_arms(["pairs", "both", "teach", "reward"], given) == [
        "pairs", "both", "alone", "rewarded", "rewarded_whole", "rewarded_both", "teach", "reward",
    ]  # fmt: skip
    assert with_arms(["alone", "rewarded"], given) == ["alone", "rewarded"]
    assert len(folds_first(given)) == 6 and ("labels", "minilm", "fold1") in folds_first(given)
    with pytest.raises(FileNotFoundError, match="stage rewarded"):
        best_arm(tmp_path)
    (tmp_path / "arms.json").write_text(json.dumps({"best": "expected"}))
    assert folds_then(given) == [
        ("expected", "minilm", "whole"), ("labels", "minilm", "whole"),
        *(("expected-1", "minilm", fold) for fold in ("whole", "fold1", "fold0")),
    ]  # fmt: skip
    few, many = shares(given), shares(argparse.Namespace(**{**vars(given), "rewarded_kinds": []}))
    assert many["rewarded"] > 3 * few["rewarded"] > 0, "the decoder's too"
    given.rewarded_kinds = ["bge"]
    with pytest.raises(ValueError, match="given bge"):
        folds_first(given)
    none = argparse.Namespace(arms=[], pair_features="one")
    assert with_arms(["alone", "pairs", "teach"], none) == ["pairs", "teach"]
    assert form_of("log-2") == ("log", 2)
    with pytest.raises(ValueError, match="given 'best-1'"):
        form_of("best-1")
    names = [job.name for job in taught_jobs([0], ("rewarded", "longer"))]
    assert names == [
        "supervised-0",
        "supervised_without_pair-0",
        "supervised_rewarded-0",
        "supervised_longer-0",
    ]
    assert [job.scores for job in reward_jobs([0], together=True, rewarded=True)] == [
        "rewarded",
        "rewarded",
        "",
        "",
        "",
    ]


def test_gains_are_means_of_the_sets_with_each_seed_beside() -> None:
    """By hand: half a point on one set and none on the other, seeds apart."""
    ours = {
        "a": [np.full(40, 0.51), np.full(40, 0.50)],
        "b": [np.full(10, 0.2), np.full(10, 0.2)],
        "c": [np.ones(3)] * 2,
    }
    theirs = {"a": [np.full(40, 0.50)] * 2, "b": [np.full(10, 0.2)] * 2}
    found = gains(ours, theirs)
    assert found is not None
    assert found["gain"] == found["low"] == found["high"] == 0.25
    assert found["seeds"] == [0.5, 0.0] and found["spread"] == 0.35
    assert found["sets"] == {"a": 0.5, "b": 0.0}
    assert gains(ours, {"z": [np.ones(2)]}) is None


def point(name: str, f1: float, budget: int = 64) -> dict[str, object]:
    """A point of a curve that reads half of its budget."""
    return {
        "name": name, "budget": budget, "stop_bias": -4.0 if "-" in name else 0.0, "forced_f1": f1,
        "tokens": budget if name == "bm25" else budget / 2,
    }  # fmt: skip


def test_over_supervised_takes_the_points_that_dev_questions_choose() -> None:
    """The policy of a set is the kind that its summary names; both label arms are compared with where they are."""
    curves = Curves()
    told = {"supervised-0": 0.4, "supervised_longer-0": 0.45, "plain_ppo_rewarded-0": 0.5, "reinforce-0": 0.3}
    for split in ("dev", "test"):
        for name, f1 in {"bm25": 0.2, **told}.items():
            curves.add("nq", split, point(name, 100 * f1), np.full(8, f1))
    found = over_supervised(curves, {"policy_nq": "plain_ppo_rewarded"})
    assert found["supervised"]["policy"]["gain"] == found["supervised"]["plain_ppo_rewarded"]["gain"] == 10.0
    assert found["supervised_longer"]["policy"]["gain"] == 5.0
    assert found["supervised"]["reinforce"]["gain"] == -10.0
    assert found["supervised"]["supervised_longer"]["gain"] == 5.0
    assert any("plain_ppo_rewarded | 10.0" in line for line in table(found))


def test_a_seed_is_held_against_the_same_seed_alone() -> None:
    """A kind without seed 0 is not compared with the other's seed 0, however good that was."""
    curves = Curves()
    told = {
        "supervised-0": 0.9,
        "supervised-1": 0.4,
        "supervised-2": 0.5,
        "plain_ppo-1": 0.6,
        "plain_ppo-2": 0.6,
    }
    for split in ("dev", "test"):
        for name, f1 in {"bm25": 0.2, **told}.items():
            curves.add("nq", split, point(name, 100 * f1), np.full(8, f1))
    found = over_supervised(curves, {"policy_nq": "plain_ppo"})["supervised"]["plain_ppo"]
    assert (found["gain"], found["seeds"]) == (15.0, [20.0, 10.0])
