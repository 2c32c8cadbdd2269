"""models/retriever/pair_rewarded.py: the policy gradient of a pair reader's picks, exact, and what it unlearns."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.retriever.pair_base import PairRow
from models.retriever.pair_rewarded import (
    FLOOR,
    FORMS,
    Form,
    ReadQuestion,
    ReadQuestions,
    RewardedConfig,
    Worths,
    backward,
    expected_worth,
    likelihood_loss,
    picked_rows,
    reward_loss,
    train_rewarded,
)
from models.retriever.pair_training import PairTexts, PairTrainConfig, train_pairs
from tests.models.retriever import decoder_case, pair_case

NAN = float("nan")


def read_question(row: int = 0, width: int = 3, twos: int = 2, seed: int = 0) -> ReadQuestion:
    """Worths drawn between 0 and 1, the first two candidates read together both ways."""
    chance = np.random.default_rng(seed)
    both = chance.random((twos, twos)).astype(np.float32)
    return ReadQuestion(
        row, np.arange(width), chance.random(width).astype(np.float32),
        chance.random(width).astype(np.float32), 0.1, (both + both.T) / 2,
    )  # fmt: skip


def paths(read: ReadQuestion) -> list[tuple[tuple[int, ...], float]]:
    """Every ending of an episode of at most two picks, and what it is worth."""
    found: list[tuple[tuple[int, ...], float]] = [((), read.nothing)]
    for i in range(len(read.picks)):
        found.append(((i,), float(read.alone[i])))
        for j in range(len(read.twos)):
            if i < len(read.twos) and i != j and not np.isnan(read.twos[i, j]):
                found.append(((i, j), float(read.twos[i, j])))
    return found


def log_prob(
    path: tuple[int, ...], first: torch.Tensor, second: torch.Tensor, read: ReadQuestion
) -> torch.Tensor:
    """Of an episode under softmaxes with a 0 for ending, written out pick by pick."""
    zero, width = torch.zeros(1), len(read.twos)
    begin = torch.cat([first, zero]).log_softmax(0)
    if not path:
        return begin[-1]
    i = path[0]
    if i >= width:
        return begin[i]
    open_to = [j for j in range(width) if j != i and not np.isnan(read.twos[i, j])]
    after = torch.cat([second[i, open_to], zero]).log_softmax(0)
    return begin[i] + (after[-1] if len(path) == 1 else after[open_to.index(path[1])])


def test_the_gradient_is_the_mean_of_the_sampled_one() -> None:
    """REINFORCE's term of every episode, weighed by its probability, with any baseline: the exact gradient."""
    for seed, baseline in product((0, 1), (0.0, 0.7)):
        read = read_question(seed=seed)
        torch.manual_seed(seed)
        first = torch.randn(3, requires_grad=True)
        second = torch.randn(2, 2, requires_grad=True)
        worth = expected_worth(first[None], second[None], Worths.of([read]))
        exact = torch.autograd.grad(worth.sum(), (first, second))
        sampled = [torch.zeros_like(first), torch.zeros_like(second)]
        total = 0.0
        for path, paid in paths(read):
            told = log_prob(path, first, second, read)
            chance = float(told.detach().exp())
            total += chance
            for into, each in zip(
                sampled, torch.autograd.grad(told, (first, second), allow_unused=True), strict=True
            ):
                into += 0.0 if each is None else chance * (paid - baseline) * each
        assert total == pytest.approx(1.0, abs=1e-5)
        for ours, theirs in zip(exact, sampled, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_every_form_s_gradient_is_that_of_finite_differences() -> None:
    """Questions of unlike widths in one batch, one of them with no two read."""
    batch = [read_question(width=4, twos=3), read_question(width=2, twos=0, seed=3)]
    batch[0].twos[0, 2] = NAN
    for form in ("expected", "log", "likelihood"):
        config = RewardedConfig(form=form)
        torch.manual_seed(1)
        first = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
        second = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)

        def loss(one: torch.Tensor, two: torch.Tensor, config: RewardedConfig = config) -> torch.Tensor:
            return reward_loss(one, two, batch, config)[0]

        assert torch.autograd.gradcheck(loss, (first, second), eps=1e-5, atol=1e-4), form


def test_where_no_two_were_read_it_is_the_mean_worth_of_one_pick() -> None:
    """By hand; `log` is the logarithm of it; worth below nothing counts as nothing there."""
    read = replace(read_question(width=2, twos=0), alone=np.array([1.0, 0.0], np.float32), nothing=0.0)
    first, second = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 0, 0)
    p = torch.softmax(torch.tensor([1.0, 2.0, 0.0]), 0)
    assert float(expected_worth(first, second, Worths.of([read]))) == pytest.approx(float(p[0]))
    loss, worth = reward_loss(first, second, [read], RewardedConfig(form="log"))
    assert float(loss) == pytest.approx(-float((p[0] + FLOOR).log()))
    assert float(worth) == pytest.approx(float(p[0]))
    poor = replace(read, alone=np.array([-1.0, -1.0], np.float32))
    assert float(reward_loss(first, second, [poor], RewardedConfig(form="log"))[0]) == pytest.approx(
        -np.log(FLOOR), rel=1e-5
    )


def test_the_likelihood_s_loss_is_nought_at_its_own_softmax() -> None:
    """Scores that are the log-likelihoods over the temperature; the place of "none" has no say."""
    losses, there = torch.tensor([[0.2, 1.4, 9.0]]), torch.tensor([[True, True, False]])
    own = -losses / 0.3
    assert float(likelihood_loss(own + 5.0, losses, there, 0.3)) == pytest.approx(0.0, abs=1e-6)
    p = torch.softmax(-losses[0, :2] / 0.3, 0)
    want = float((p * (p / torch.tensor([0.5, 0.5])).log()).sum())
    assert float(likelihood_loss(torch.zeros(1, 3), losses, there, 0.3)) == pytest.approx(want, rel=1e-5)


def test_rows_stand_where_the_batch_says() -> None:
    """Each first pick's row holds its candidate, each second's also the first one as read."""
    asked, texts, tables = pair_case.questions(2, seed=0)
    reader = pair_case.reader()
    source = ReadQuestions(tables, PairTexts.of(reader, asked, texts), ())
    one = replace(read_question(row=0, width=3, twos=3), picks=np.array([2, 0, 3]))
    one.twos[0, 1] = NAN
    batch = [(source, one), (source, read_question(row=1, width=2, twos=0))]
    rows, firsts, seconds = picked_rows(batch)
    tokens = source.texts.candidates
    assert rows[firsts[0, 0]] == PairRow(source.texts.questions[0], tokens[0][2])
    assert rows[firsts[1, 1]] == PairRow(source.texts.questions[1], tokens[1][1])
    assert rows[seconds[0, 2, 1]] == PairRow(source.texts.questions[0], tokens[0][0], tokens[0][3])
    assert seconds[0, 0, 1] == -1 and seconds[1].max() == -1 and firsts[1, 2] == -1
    assert (np.diagonal(seconds[0]) == -1).all()
    assert len(rows) == 3 + 5 + 2
    assert len(picked_rows(batch, twos=False)[0]) == 5


def misled() -> tuple[list[str], list[list[str]], ReadQuestions]:
    """Labels name the sentence of the key; read, the sentence of the hat answers and the key's does not."""
    asked, texts, tables = pair_case.questions(24, seed=2)
    reader = pair_case.reader()
    ids = PairTexts.of(reader, asked, texts)
    questions = []
    for row, own in enumerate(texts):
        alone = np.array([1.0 if text.endswith("hat") else 0.0 for text in own], np.float32)
        losses = np.where(alone > 0, 0.1, 3.0).astype(np.float32)
        questions.append(ReadQuestion(row, np.arange(4), alone, losses, 0.0, np.zeros((0, 0), np.float32)))
    return asked, texts, ReadQuestions(tables, ids, questions)


@pytest.fixture(scope="module")
def taught() -> tuple[list[str], list[list[str]], ReadQuestions, dict[str, torch.Tensor]]:
    """The misled questions, and the weights of a reader that learned their labels."""
    asked, texts, source = misled()
    reader = pair_case.reader()
    train_pairs(
        reader, source.tables, source.texts, np.arange(24),
        PairTrainConfig(epochs=25, questions=8, candidates=4, lr=2e-3, given=0.0),
    )  # fmt: skip
    return asked, texts, source, {name: each.clone() for name, each in reader.model.state_dict().items()}


@pytest.mark.parametrize("form", FORMS)
def test_where_labels_mislead_reward_corrects_them(form: Form, taught: Any) -> None:
    """A reader that the labels taught picks what does not answer; by reward it picks what does, by labels never."""
    asked, texts, source, weights = taught
    reader = pair_case.reader()
    reader.model.load_state_dict(weights)

    def share(ending: str) -> float:
        best = [
            own[int(found[:, 0].argmax())]
            for own, found in zip(texts, reader.features_of(every), strict=True)
        ]
        return float(np.mean([text.endswith(ending) for text in best]))

    every = list(zip(asked, texts, strict=True))
    assert share("key") == 1.0
    config = RewardedConfig(
        form=form,
        epochs=20,
        questions=8,
        lr=2e-3,
        labels=0.05,
        drawn=PairTrainConfig(candidates=4, given=0.0),
    )
    records = train_rewarded(reader, [source], config)
    assert records[-1]["step"] == 59
    if form == "labels":
        assert share("key") == 1.0
    else:
        assert share("hat") > 0.95
        assert records[-1]["worth"] > 0.9 > records[0]["worth"]


def test_a_step_made_in_parts_has_the_gradient_of_the_whole() -> None:
    """Parts of two questions, without the labels, whose share follows each part's weights."""
    asked, texts, tables = pair_case.questions(4, seed=3)
    reader = pair_case.reader()
    source = ReadQuestions(
        tables, PairTexts.of(reader, asked, texts), [read_question(at, seed=at) for at in range(4)]
    )
    found = []
    for together in (0, 2):
        reader.model.zero_grad()
        config = RewardedConfig(together=together, drawn=PairTrainConfig(candidates=4, given=0.0))
        told = backward(
            reader,
            [(source, each) for each in source.questions],
            replace(config, labels=0.0),
            np.random.default_rng(0),
        )
        found.append(
            (told["loss"].item(), [p.grad.clone() for p in reader.model.parameters() if p.grad is not None])
        )
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_a_decoder_s_reader_learns_too(tmp_path: Path) -> None:
    """Its tuned parts are gathered and merged as labels' training does."""
    reader = decoder_case.reader(tmp_path / "base")
    asked, texts, tables = pair_case.questions(4, seed=3)
    source = ReadQuestions(
        tables, PairTexts.of(reader, asked, texts), [read_question(at, seed=at) for at in range(4)]
    )
    before = reader.scores([PairRow(source.texts.questions[0], source.texts.candidates[0][0])])
    train_rewarded(reader, [source], RewardedConfig(epochs=2, questions=2, lr=1e-2))
    after = reader.scores([PairRow(source.texts.questions[0], source.texts.candidates[0][0])])
    assert np.isfinite(after).all() and not np.allclose(before, after)


def test_what_cannot_be_is_refused() -> None:
    """Settings and questions that do not fit say what they were given."""
    for wrong in ({"form": "best"}, {"questions": 0}, {"labels": -1.0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="given"):
            RewardedConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="twos: given"):
        read_question(width=1, twos=2)
    with pytest.raises(ValueError, match="picks: given 0"):
        read_question(width=0, twos=0)
    with pytest.raises(ValueError, match="given no question"):
        train_rewarded(pair_case.reader(), [], RewardedConfig())
