"""Arms of how the choice is taught: what each changes, whom the contrastive term reaches, how reading begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infra.commands.backbone import _spec
from infra.training.backbone_job import BackboneJob, run_here
from infra.training.backbone_loop import LoopConfig
from infra.training.learners.subq import SubqSpec
from infra.training.subq import SubqTrainConfig, SubqTrainer
from infra.training.subq_arms import ARMS, COPIES
from infra.training.subq_backbones import _parser, settings
from infra.training.subq_measures import told_at
from models.subq import SubqBackbone
from models.subq.baselines import count
from models.subq.losses import LossWeights
from pipeline.errors import UsageError
from tests.infra.training.subq_case import MODEL, STREAM, small_data
from tests.infra.training.token_files import token_files

BASE = ["--books", "b", "--news", "n", "--work", "w", "--out", "o"]
CHOICE_ALONE = LossWeights(language=0.0, answers=0.0, contrastive=1.0)
RUN = SubqTrainConfig(lr=4e-3, warmup=2, bank=256, muon=False, losses=CHOICE_ALONE)


def _gradients(tmp_path: Path, run: SubqTrainConfig, **changes: object) -> tuple[float, dict[str, float]]:
    """The contrastive term of the first batch, and the largest gradient of each part of the model."""
    trainer = SubqTrainer(replace(MODEL, **changes), small_data(), STREAM, run, tmp_path)  # type: ignore[arg-type]
    batch = small_data().stream(STREAM).batch(0)
    terms = trainer._terms(batch, 0.0)[0]
    terms.total(run.losses).backward()
    found: dict[str, float] = {}
    for name, weight in trainer.model.named_parameters():
        part = name.split(".")[0]
        found[part] = max(
            found.get(part, 0.0), 0.0 if weight.grad is None else float(weight.grad.abs().max())
        )
    return float(terms.contrastive.detach()), found


@pytest.mark.parametrize(
    "changes",
    [{}, {"encoder": "lean"}, {"retrieval": "token", "rerank": False}, {"lookahead": 4, "lookbehind": 4}],
    ids=["chunk", "lean", "token", "around"],
)
def test_a_term_kept_apart_teaches_the_encoder_alone(tmp_path: Path, changes: dict[str, object]) -> None:
    """The same loss; the encoder learns of it, embedding and blocks do not; without the option they do."""
    whole, reached = _gradients(tmp_path / "whole", RUN, **changes)
    apart, kept = _gradients(tmp_path / "apart", replace(RUN, contrastive_apart=True), **changes)
    assert apart == pytest.approx(whole, rel=1e-5) and whole > 0
    assert reached["embedding"] > 0 and reached["lower_blocks"] > 0
    assert kept["embedding"] == kept["lower_blocks"] == kept["upper_blocks"] == 0
    assert kept["encoder"] > 0


@pytest.mark.parametrize("changes", [{}, {"encoder": "lean", "shared_reader": True}], ids=["own", "lean"])
def test_closed_readers_begin_as_nothing_and_open(tmp_path: Path, changes: dict[str, object]) -> None:
    """At first the model says what it says without reading; values move with the first updates."""
    run = replace(RUN, closed=True, losses=LossWeights())
    trainer = SubqTrainer(replace(MODEL, **changes), small_data(), STREAM, run, tmp_path)  # type: ignore[arg-type]
    ids = torch.from_numpy(small_data().stream(STREAM).batch(0).ids)

    def differs() -> float:
        with torch.no_grad():
            read, unread = (trainer.model(ids, read=each).hidden for each in (True, False))
        return float((read - unread).abs().max())

    assert differs() == 0.0
    trainer.run()
    assert differs() > 1e-3


def test_each_arm_changes_what_its_name_says() -> None:
    """Shape, data and every other setting are those of subq (of subq-lean); sizes are equal."""
    given = _parser().parse_args(BASE)
    made = {name: settings(given, name, 0, 16_384) for name in ("subq", "subq-lean", *ARMS)}
    shape, stream, run = made["subq"]
    weights = run.losses
    silent = settings(_parser().parse_args([*BASE, "--answers", "0"]), "subq", 0, 16_384)
    assert silent == (shape, stream, replace(run, losses=replace(weights, answers=0.0)))
    assert made["subq-sixteenth"][2] == replace(run, losses=replace(weights, contrastive=0.0625))
    assert made["subq-faded"][2] == replace(run, contrastive_until=(0.1, 0.5))
    assert made["subq-apart"][2] == replace(run, contrastive_apart=True)
    lean = replace(run, contrastive_apart=True, closed=True, cross=0.0)
    assert made["subq-lean-apart"] == (made["subq-lean"][0], stream, lean)
    assert made["subq-lean-hindsight"] == (made["subq-lean"][0], stream, replace(lean, hindsight=1.0))
    hindsight = made["subq-lean-hindsight"][2]
    assert made["subq-lean-copies"][2] == hindsight
    even = replace(hindsight, losses=replace(weights, answers=weights.answers / 10))
    assert made["subq-lean-copies-even"][2] == even
    assert made["subq-lean-copies-late"][2] == replace(hindsight, answers_from=0.5)
    for name in ARMS:
        like = made[ARMS[name][0]][0]
        if name in COPIES:
            like = replace(like, copies=True, feed_forward=made[name][0].feed_forward)
        assert made[name][1] == stream and made[name][0] == like
        assert abs(count(made[name][0]) - count(shape)) < 0.01 * count(shape)


def test_answers_do_not_count_before_their_share_of_the_run(tmp_path: Path) -> None:
    """Weight 0 until then, the whole weight from then on; other terms stay; outside 0 to 1 is refused."""
    trainer = SubqTrainer(
        MODEL, small_data(), STREAM, replace(RUN, losses=LossWeights(), answers_from=0.5), tmp_path
    )
    assert [trainer._weights(at).answers for at in (0.0, 0.49, 0.5, 1.0)] == [0.0, 0.0, 1.0, 1.0]
    assert {trainer._weights(at).language for at in (0.0, 0.5)} == {1.0}
    with pytest.raises(ValueError, match=r"answers_from: given 1\.5; allowed: 0 to 1"):
        replace(RUN, answers_from=1.5)


def test_an_answer_counts_as_told_where_it_is_copied(tmp_path: Path) -> None:
    """What a step says of answers is of the chances with copies, not of the logits alone."""
    run = replace(RUN, cross=0.0, forced_until=0.0)
    trainer = SubqTrainer(replace(MODEL, copies=True), small_data(), STREAM, run, tmp_path)
    assert trainer.model.copier is not None
    torch.nn.init.constant_(trainer.model.copier.gate.bias, 20.0)  # logits are not asked
    batch = small_data().stream(STREAM).batch(0)
    told = float(trainer._terms(batch, 0.0)[1]["tokens_right"])
    ids, at = torch.from_numpy(batch.ids), torch.from_numpy(batch.at[batch.is_answer])
    out = trainer.model(ids)
    copied = trainer.model.copied(out, ids)
    assert copied is not None
    whole = trainer.model.next_logits(out.hidden, copied).flatten(0, 1)
    torch.testing.assert_close(told_at(trainer.model, out, ids, at), whole[at], atol=1e-5, rtol=1e-5)
    right = (whole[at].argmax(-1) == torch.from_numpy(batch.targets[batch.is_answer])).float().mean()
    by_logits = trainer.model.logits(out.hidden.flatten(0, 1)[at]).argmax(-1)
    alone = (by_logits == torch.from_numpy(batch.targets[batch.is_answer])).float().mean()
    assert told == pytest.approx(float(right)) and told != pytest.approx(float(alone))


def test_text_tells_by_hindsight_what_to_read(tmp_path: Path) -> None:
    """Where no question is asked the term is the labels' alone, by its weight; tokens that ask are refused."""
    data, quiet = small_data(), replace(STREAM, asked=0.0, anonymous=0.0)
    terms = {}
    for weight in (0.0, 1.0, 2.0):
        run = replace(RUN, hindsight=weight)
        trainer = SubqTrainer(MODEL, data, quiet, run, tmp_path / str(weight))
        if trainer._rare is not None:  # among 600 words none is rare
            trainer._rare = torch.ones_like(trainer._rare)
        terms[weight] = float(trainer._terms(data.stream(quiet).batch(0), 0.0)[0].contrastive.detach())
    assert terms[0.0] == 0.0 < terms[1.0] and terms[2.0] == pytest.approx(2 * terms[1.0])
    with pytest.raises(ValueError, match=r"hindsight: given 1\.0 with retrieval 'token'"):
        shape = replace(MODEL, retrieval="token", rerank=False)
        SubqTrainer(shape, data, quiet, replace(RUN, hindsight=1.0), tmp_path / "token")


def test_a_backbone_is_trained_to_copy_by_its_verb(tmp_path: Path) -> None:
    """The checkpoint has the head, the card says so, and it reads and answers; other kinds refuse the option."""
    train = SubqTrainConfig(joined=True, muon=False)
    spec = SubqSpec(data=token_files(tmp_path), steps=2, train=train, tiny=True, copies=True)
    run_here(BackboneJob(kind="subq", out=tmp_path / "out", spec=spec, loop=LoopConfig(steps=2)))
    model = tmp_path / "out" / "model"
    backbone = SubqBackbone.load(model)
    assert backbone.model.config.copies and backbone.model.copier is not None
    assert "| copies | true |" in (model / "README.md").read_text(encoding="utf-8")
    cache = backbone.new_cache()
    backbone.read(small_data().tokens[:200].tolist(), cache)
    assert 0 < len(list(backbone.generate(small_data().tokens[200:210].tolist(), cache, 5))) <= 5
    with pytest.raises(UsageError, match="--copies: given with --kind reader; allowed: with subq"):
        _spec("reader", tmp_path, "", 1, 1, 0.0, "", "", False, 0, None, False, copies=True)
