"""models/retriever/pair_taught.py: a student learns a teacher's scores of rows that both see by number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.retriever import pair_taught
from models.retriever.pair_base import PairRow
from models.retriever.pair_taught import (
    NOT_READ,
    WORDS,
    Plan,
    TaughtConfig,
    draw_plan,
    measured,
    soft_loss,
    train_taught,
)
from models.retriever.pair_training import PairTexts, PairTrainConfig, draw
from tests.models.retriever import decoder_case, pair_case

DRAWN = PairTrainConfig(candidates=3, given=0.5, seed=5)


def test_a_plan_is_what_training_draws_for_any_tokenizer(tmp_path: Path) -> None:
    """The same rows as `draw` gives, in a student's tokens and a teacher's; saved, taken and joined unchanged."""
    asked, texts, tables = pair_case.questions(12, seed=1)
    plan = draw_plan(tables, np.arange(12), 20, DRAWN)
    assert len(plan) == 20
    assert np.isnan(plan.scores).all()
    assert (plan.given != NOT_READ).any() and (plan.given == NOT_READ).any()
    chance = np.random.default_rng(DRAWN.seed)
    order = [*chance.permutation(np.arange(12)), *chance.permutation(np.arange(12))][:20]
    for reader in (pair_case.reader(), decoder_case.reader(tmp_path / "base")):
        own = PairTexts.of(reader, asked, texts)
        again = np.random.default_rng(DRAWN.seed)
        again.permutation(np.arange(12)), again.permutation(np.arange(12))
        drawn = [draw(tables, own, int(row), DRAWN, again) for row in order]
        made = plan.examples(own)
        assert [each.rows for each in made] == [each.rows for each in drawn]
        assert [each.right.tolist() for each in made] == [each.right.tolist() for each in drawn]
    plan = plan.scored(np.arange(plan.num_rows, dtype=np.float32))
    plan.save(tmp_path / "plan.npz")
    found = Plan.load(tmp_path / "plan.npz")
    halves = Plan.join([found.take(np.arange(0, 7)), found.take(np.arange(7, 20))])
    for name in Plan.__slots__:
        np.testing.assert_array_equal(getattr(halves, name), getattr(plan, name))
    turned = plan.take(np.array([4, 2]))
    first, last = plan.starts[2:4]
    np.testing.assert_array_equal(turned.scores[int(turned.starts[1]) :], np.arange(first, last))
    with pytest.raises(ValueError, match=r"given \(1,\)"):
        plan.scored(np.zeros(1, np.float32))


def test_the_soft_loss_is_the_divergence_beside_none_of_these() -> None:
    """Against the plain formula, 0 at the teacher's own scores, and without examples that it did not look at."""
    own, theirs = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([2.0, 0.0, -1.0, 1.0])
    temperature = 2.0
    want = 0.0
    for start, end in ((0, 3), (3, 4)):
        p = torch.softmax(torch.cat([theirs[start:end], torch.zeros(1)]) / temperature, 0)
        q = torch.softmax(torch.cat([own[start:end], torch.zeros(1)]) / temperature, 0)
        want += temperature**2 * float((p * (p / q).log()).sum()) / 2
    assert float(soft_loss(own, theirs, [3, 1], temperature)) == pytest.approx(want, rel=1e-5)
    assert float(soft_loss(theirs, theirs, [3, 1], temperature)) == pytest.approx(0.0, abs=1e-6)
    cut = theirs.clone()
    cut[3] = float("nan")
    one = soft_loss(own[:3], theirs[:3], [3], temperature)
    assert float(soft_loss(own, cut, [3, 1], temperature)) == pytest.approx(float(one), rel=1e-5)
    learning = own.clone().requires_grad_(True)
    soft_loss(learning, cut, [3, 1], temperature).backward()  # type: ignore[no-untyped-call]
    assert learning.grad is not None and learning.grad.isfinite().all() and learning.grad[3] == 0
    assert float(soft_loss(own, torch.full((4,), float("nan")), [3, 1], 1.0)) == 0.0


def test_a_student_comes_to_its_teacher_s_scores_and_keeps_its_words() -> None:
    """By soft targets alone, against labels that say otherwise: what it puts first is the teacher's; words stay."""
    asked, texts, tables = pair_case.questions(64, seed=1)
    student = pair_case.reader()
    own = PairTexts.of(student, asked, texts)
    config = replace(DRAWN, candidates=4, given=0.0)
    plan = draw_plan(tables, np.arange(64), 640, config)
    # a teacher that likes pens, whatever is asked for
    likes = np.array(
        [
            4.0 if "pen" in texts[row][at] else -3.0
            for row, at in zip(plan.questions, plan.picks, strict=True)
        ],
        np.float32,
    )
    plan = plan.scored(likes)
    before = student.model.state_dict()[WORDS].clone()
    told = measured(student, plan, own)
    records = train_taught(student, plan, own, TaughtConfig(questions=16, lr=2e-3, soft=1.0, temperature=1.0))
    after = measured(student, plan, own)
    assert records[-1]["soft"] < 0.1 < records[0]["soft"]
    assert after["agrees"] > 95 > told["agrees"]
    assert after["soft"] < 0.2 < told["soft"]
    assert after["teacher_right"] == after["right"] < 50
    torch.testing.assert_close(student.model.state_dict()[WORDS], before)
    assert student.model.bert.embeddings.word_embeddings.weight.requires_grad


def test_batches_of_like_length_change_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty tokens a batch or all at once: the same scores in the same order, and the same gradient of the head."""
    student = pair_case.reader()
    torch.nn.init.normal_(student.model.head.weight, std=0.5)
    ids = student.tokenize(["what ann key", "ann has key", "bob", "cid has map ann has pen bob has hat"])
    rows = [PairRow(ids[0], text, given) for text in ids[1:] for given in ((), ids[1], ids[3])]
    found, gradients = [], []
    for tokens in (40, 1 << 20):
        monkeypatch.setattr(pair_taught, "_AT_ONCE", tokens)
        student.model.zero_grad()
        scores = pair_taught.learned(student, rows)
        (scores * torch.arange(len(rows))).sum().backward()
        found.append(scores.detach())
        gradients.append(student.model.head.weight.grad.clone())
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)


def test_without_a_teacher_the_labels_teach() -> None:
    """All scores NaN, as where the clock ended the teacher at once: what tells is put first all the same."""
    asked, texts, tables = pair_case.questions(64, seed=1)
    student = pair_case.reader()
    plan = draw_plan(tables, np.arange(64), 640, replace(DRAWN, candidates=4, given=0.0))
    own = PairTexts.of(student, asked, texts)
    records = train_taught(student, plan, own, TaughtConfig(questions=16, lr=2e-3, soft=0.5))
    assert records[-1]["right"] > 0.9
    assert records[-1]["soft"] == 0.0


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"questions": 0}, "questions"), ({"soft": 1.5}, "soft"), ({"temperature": 0.0}, "temperature")],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], named: str) -> None:
    """The message names the field."""
    with pytest.raises(ValueError, match=f"{named}: given"):
        TaughtConfig(**settings)  # type: ignore[arg-type]
