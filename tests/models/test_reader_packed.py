"""models/reader_packed.py and reader_lowrank.py: packs, the forward of Gemma over them, and merged adapters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch.nn import functional as F

from models.reader_lowrank import LowRank, MasterWeights
from models.reader_packed import PackedReader, choose_attention, pack_loss
from models.reader_packs import NONE, PackShape, fill, make_pack, plan_packs
from models.reader_training import ReadingRows, answer_loss, collate
from tests.models.test_reader_training import tiny, toy

SHAPE = PackShape(rows=3, length=48, readings=24, answers=32)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 48), min_size=1, max_size=60), st.integers(0, 5))
def test_packs_hold_every_reading_once_and_keep_their_shapes(lengths: list[int], seed: int) -> None:
    """A plan is a partition of the readings whose packs all fit the shape."""
    rows = ReadingRows.of([([5] * (size - 1), [2]) for size in lengths])
    packs = plan_packs(rows, np.arange(len(rows)), SHAPE, seed)
    assert sorted(r for pack in packs for row in pack for r in row) == list(range(len(rows)))
    for pack in packs:
        made = make_pack(rows, pack, SHAPE)
        assert made.ids.shape == (3, 48)
        assert int(made.starts[-1]) == 3 * 48
        assert bool((made.starts.diff() >= 0).all())
        assert float(made.weights.sum()) == sum(len(row) for row in pack)


def test_like_readings_fill_their_packs() -> None:
    """Best fit leaves under a tenth of the tokens empty where many readings are there to choose from."""
    chance = np.random.default_rng(0)
    rows = ReadingRows.of([([5] * int(n), [2]) for n in chance.integers(3, 30, 600)])
    shape = PackShape(rows=8, length=128, readings=400, answers=400)
    assert fill(rows, plan_packs(rows, np.arange(600), shape, 0)[:-1], shape) > 0.9


def test_a_reading_longer_than_a_row_is_refused() -> None:
    """The error names the length and what a row holds."""
    rows = ReadingRows.of([([5] * 60, [2])])
    with pytest.raises(ValueError, match="61 tokens; rows hold 48"):
        plan_packs(rows, np.arange(1), SHAPE, 0)


def test_rows_of_many_short_readings_or_long_answers_still_fit_a_pack() -> None:
    """A row alone never holds more readings or answer tokens than a pack; an answer that never fits is refused."""
    short = ReadingRows.of([([5], [2])] * 60)
    wordy = ReadingRows.of([([5], [2] * 20)] * 6)
    for rows in (short, wordy):
        packs = plan_packs(rows, np.arange(len(rows)), SHAPE, 0)
        assert sorted(r for pack in packs for row in pack for r in row) == list(range(len(rows)))
        for pack in packs:
            make_pack(rows, pack, SHAPE)
    with pytest.raises(ValueError, match="an answer has 33 tokens; packs hold 32"):
        plan_packs(ReadingRows.of([([5], [2] * 33)]), np.arange(1), SHAPE, 0)


def test_packed_readings_have_the_logits_of_readings_alone() -> None:
    """Every answer token's logits are those of `transformers` for that reading alone, windows and all."""
    model = tiny().eval()
    # longer than the window of 16, so that a sliding layer differs from a full one
    chance = np.random.default_rng(1)
    rows = ReadingRows.of([(chance.integers(4, 32, n).tolist(), [1, 2]) for n in (30, 9, 20, 5, 40, 12)])
    packs = plan_packs(rows, np.arange(6), SHAPE, 0)
    reader = PackedReader(model)
    seen = 0
    for pack in packs:
        made = make_pack(rows, pack, SHAPE)
        logits = reader.logits(made)[made.weights > 0]
        expected = []
        for row in pack:
            for reading in row:
                ids = torch.from_numpy(rows.row(reading).astype(np.int64))[None]
                start = int(rows.answer_starts[reading])
                expected.append(model(input_ids=ids).logits[0, start - 1 : -1].float())
        torch.testing.assert_close(logits, torch.cat(expected), atol=1e-4, rtol=1e-4)
        seen += len(logits)
    assert seen == 12


def test_the_loss_of_a_pack_is_the_mean_over_its_answer_tokens() -> None:
    """Without contrast it is `answer_loss` of the same readings."""
    model, rows = tiny(), toy(12, 3)
    shape = PackShape(rows=4, length=48, readings=40, answers=64)
    (pack,) = plan_packs(rows, np.arange(12), shape, 0)
    ours, shown = pack_loss(PackedReader(model), make_pack(rows, pack, shape))
    theirs, right = answer_loss(model, collate(rows, np.arange(12), torch.device("cpu")))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shown["right"], right, atol=1e-5, rtol=1e-5)


def test_contrast_pushes_the_avoided_token_down() -> None:
    """A step along the contrast's gradient alone makes the avoided token less likely."""
    model, rows = tiny(), ReadingRows.of([([0, 5, 9, 3], [21, 2]), ([0, 7, 3], [22, 2])])
    shape = PackShape(rows=1, length=16, readings=8, answers=8)
    avoid = np.array([[0, 25], [-1, -1]])
    reader = PackedReader(model)
    made = make_pack(rows, [[0, 1]], shape, avoid)
    assert made.avoid.tolist() == [25, NONE, NONE, NONE, NONE, NONE, NONE, NONE]
    plain, _ = pack_loss(reader, made)
    loss, before = pack_loss(reader, made, 1.0)
    assert float(loss) > float(plain)
    (loss - plain).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.5 * parameter.grad
    _, after = pack_loss(reader, made, 1.0)
    assert float(after["avoided_p"]) < float(before["avoided_p"])


def test_merged_gradients_are_the_adapters_own() -> None:
    """`gather` gives A and B the gradients that autograd gives an adapter that stands beside the weight."""
    model = tiny()
    low = LowRank(model, rank=4, alpha=8, seed=1)
    with torch.no_grad():
        for b in low.parameters()[len(low.parameters()) // 2 :]:
            b.normal_(std=0.05)
    low.merge()
    rows = toy(6, 2)
    batch = collate(rows, np.arange(6), torch.device("cpu"))
    answer_loss(model, batch)[0].backward()
    low.gather()
    name = "model.layers.1.mlp.down_proj"
    a, b = next((a, b) for found, a, b in low.each() if found == name)
    at = next(i for i, stack in enumerate(low._stacks) if name in [n for n, _ in stack])
    place = [n for n, _ in low._stacks[at]].index(name)
    linear = model.model.layers[1].mlp.down_proj
    own_a, own_b = a.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()
    base = low._base[at][place]
    linear.register_forward_hook(
        lambda module, given, out: F.linear(given[0], base + 2.0 * own_b @ own_a)  # alpha / rank
    )
    answer_loss(model, batch)[0].backward()
    torch.testing.assert_close(low._a[at].grad[place], own_a.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(low._b[at].grad[place], own_b.grad, atol=1e-5, rtol=1e-4)


def test_a_saved_adapter_is_read_by_peft_and_begun_from(tmp_path: Path) -> None:
    """peft's merged model has the trained model's logits (to bf16); a lower rank keeps the largest directions."""
    model = tiny()
    low = LowRank(model, rank=4, alpha=8)
    with torch.no_grad():
        for b in low.parameters()[len(low.parameters()) // 2 :]:
            b.normal_(std=0.05)
    low.merge()
    low.save(tmp_path)
    ids = torch.tensor([[0, 5, 9, 3]])
    loaded = PeftModel.from_pretrained(tiny(), str(tmp_path)).merge_and_unload()
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=2e-2, rtol=2e-2)
    other = tiny()
    assert LowRank(other, rank=6, alpha=12).start_from(tmp_path) == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(other(ids).logits, loaded(ids).logits, atol=1e-4, rtol=1e-3)
    kept = LowRank(tiny(), rank=2, alpha=4).start_from(tmp_path)
    assert 0.4 < kept < 0.999


def test_full_tuning_moves_half_precision_weights_by_their_masters() -> None:
    """A step smaller than half precision can hold is kept in the master and shows after enough of them."""
    model = tiny().to(torch.bfloat16)
    masters = MasterWeights(model)
    weight = model.model.norm.weight
    with torch.no_grad():
        weight.fill_(1.0)
    masters = MasterWeights(model)
    place = next(i for i, w in enumerate(masters._weights) if w is weight)
    for _ in range(16):
        with torch.no_grad():
            masters.parameters()[place] += 1e-3
        masters.merge()
    assert float(weight[0]) == pytest.approx(1.016, abs=0.005)


def test_attention_is_chosen_by_trying() -> None:
    """Without a device the masked attention is taken."""
    assert choose_attention("cpu")[0] == "masked"


def test_another_kind_of_model_is_refused() -> None:
    """The error names what this forward does not know."""
    model = tiny()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match=r"final_logit_softcapping: given 30\.0"):
        PackedReader(model)
