"""models/reader_training.py and reader_decoding.py: rows, batches, the loss, and a toy that is learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from models.reader_decoding import greedy_answers
from models.reader_training import (
    ReaderTrainConfig,
    ReadingRows,
    add_lora,
    answer_loss,
    collate,
    learning_rate,
    plan_batches,
    save_adapter,
    train_reader,
)

CPU = torch.device("cpu")
GIVE_UP, STOP, KEY = 1, 2, 3


def tiny() -> Gemma3ForCausalLM:
    """A random Gemma of two layers with 32 tokens."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=32,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=24,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=128,
    )
    return Gemma3ForCausalLM(config)


def toy(num_rows: int, seed: int) -> ReadingRows:
    """Readings whose answer is the one token of the text from 20 on, or GIVE_UP where there is none."""
    chance = np.random.default_rng(seed)
    pairs = []
    for _ in range(num_rows):
        text = chance.integers(4, 20, int(chance.integers(4, 9))).tolist()
        answer = int(chance.integers(20, 32)) if chance.random() < 0.75 else GIVE_UP
        if answer != GIVE_UP:
            text[int(chance.integers(0, len(text)))] = answer
        pairs.append(([0, *text, KEY], [answer, STOP]))
    return ReadingRows.of(pairs)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=40), st.integers(1, 100), st.integers(0, 5))
def test_batches_hold_every_row_once_within_their_tokens(lengths: list[int], tokens: int, seed: int) -> None:
    """A plan is a partition of the rows; only a row alone may be over the size."""
    plan = plan_batches(np.array(lengths), np.arange(len(lengths)), tokens, seed)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(lengths)))
    for batch in plan:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= tokens


def test_only_answer_tokens_are_predicted() -> None:
    """The mask marks the places before each answer token, and none of the prompt or the padding."""
    rows = ReadingRows.of([([5, 6, 7], [8, 2]), ([9], [2])])
    batch = collate(rows, np.array([0, 1]), CPU)
    assert batch.ids.tolist() == [[5, 6, 7, 8, 2], [9, 2, 0, 0, 0]]
    assert batch.predicts.tolist() == [[False, False, True, True, False], [True, False, False, False, False]]


def test_rows_of_a_batch_do_not_see_one_another() -> None:
    """A row's loss alone is its loss beside longer rows: no leak across rows and none from padding."""
    model, rows = tiny().eval(), toy(6, 1)
    alone = [answer_loss(model, collate(rows, np.array([at]), CPU))[0] for at in range(6)]
    together = answer_loss(model, collate(rows, np.arange(6), CPU))[0]
    assert torch.allclose(torch.stack(alone).mean(), together, atol=1e-5)


def test_the_loss_is_that_of_the_plain_model() -> None:
    """Making logits at answer places only changes nothing."""
    model, rows = tiny().eval(), toy(1, 2)
    ids = torch.from_numpy(rows.row(0).astype(np.int64))[None]
    labels = ids.clone()
    labels[:, : rows.answer_starts[0]] = -100
    plain = model(input_ids=ids, labels=labels).loss
    assert torch.allclose(answer_loss(model, collate(rows, np.array([0]), CPU))[0], plain, atol=1e-5)


def test_a_tiny_reader_learns_the_toy_and_when_to_give_up() -> None:
    """Trained from scratch it copies the right token of unseen texts and gives up where there is none."""
    model = tiny()
    config = ReaderTrainConfig(steps=200, tokens_per_batch=512, lr=5e-3, seed=1)
    curve = train_reader(model, toy(3000, 3), config)
    # Knowing only how often each answer comes costs 2.4 nats for it, and nothing for the closing token.
    assert np.mean([step["loss"] for step in curve[-20:]]) < 0.25 * 2.4 / 2
    held_out = toy(200, 4)
    prompts = [held_out.row(at)[: held_out.answer_starts[at]].tolist() for at in range(200)]
    answers = greedy_answers(model, prompts, stop_id=STOP, give_up_id=GIVE_UP, max_new_tokens=4)
    right = [answer.ids == (int(held_out.row(at)[-2]),) for at, answer in enumerate(answers)]
    assert np.mean(right) > 0.8


def test_lora_trains_the_adapter_alone_and_saves_it_small(tmp_path: Path) -> None:
    """The base stays as it was, the loss falls, and the written adapter gives the same answers when loaded."""
    from peft import PeftModel
    from safetensors.torch import load_file

    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = add_lora(model, rank=8, alpha=16, dropout=0.0)
    curve = train_reader(adapted, toy(600, 5), ReaderTrainConfig(steps=60, tokens_per_batch=640, lr=1e-2))
    assert np.mean([s["loss"] for s in curve[-5:]]) < np.mean([s["loss"] for s in curve[:5]]) - 0.3
    after = {name: tensor for name, tensor in adapted.state_dict().items() if "lora_" not in name}
    for name, tensor in before.items():
        if name != "lm_head.weight":
            found = next(v for k, v in after.items() if k.replace("base_layer.", "").endswith(f".{name}"))
            assert torch.equal(found, tensor), name
    save_adapter(adapted, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    loaded = PeftModel.from_pretrained(tiny(), str(tmp_path)).eval()
    ids = torch.tensor([[0, 5, 3, 9, 3]])
    assert torch.allclose(loaded(ids).logits, adapted.eval()(ids).logits, atol=0.05)


def test_the_same_seed_gives_the_same_curve() -> None:
    """Two runs agree step by step."""
    curves = []
    for _ in range(2):
        model = tiny()
        config = ReaderTrainConfig(steps=5, tokens_per_batch=256, lr=1e-3, seed=7)
        curves.append([step["loss"] for step in train_reader(model, toy(50, 6), config)])
    assert curves[0] == curves[1]


def test_greedy_answers_do_not_depend_on_their_batch() -> None:
    """Left-padding changes nothing: one by one, the answers and margins are those of one batch."""
    model = tiny()
    prompts = [[0, *range(4, 4 + size), 3] for size in (1, 5, 9, 20)]
    options = {"stop_id": STOP, "give_up_id": GIVE_UP, "max_new_tokens": 5}
    together = greedy_answers(model, prompts, **options)  # type: ignore[arg-type]
    alone = [greedy_answers(model, [prompt], **options)[0] for prompt in prompts]  # type: ignore[arg-type]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    assert [a.margin for a in together] == pytest.approx([a.margin for a in alone], abs=1e-4)
    forced = greedy_answers(model, prompts, may_give_up=False, **options)  # type: ignore[arg-type]
    assert all(answer.ids[:1] != (GIVE_UP,) for answer in forced)


def test_prompts_are_read_in_widths_that_torch_attends_rightly() -> None:
    """Never 32 n + 1 queries at once, whatever the longest prompt: their last one writes the first token."""
    model, widths = tiny(), []
    model.register_forward_pre_hook(
        lambda _, args, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    for size in (31, 32, 63):
        prompt = [0, *range(4, 4 + size % 20), *[5] * (size - size % 20 - 1), 3]
        greedy_answers(model, [prompt], stop_id=STOP, give_up_id=GIVE_UP, max_new_tokens=1)
    assert widths == [32, 40, 64]


def test_the_learning_rate_rises_then_falls_to_a_tenth() -> None:
    """Warm-up to the peak, cosine to a tenth."""
    config = ReaderTrainConfig(lr=1.0, warmup=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[9] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"lr": 0}, {"warmup": 1}, {"weight_decay": -1}, {"limit_s": 0}]
)
def test_a_wrong_configuration_names_its_field(wrong: dict[str, float]) -> None:
    """The error names the field and what is allowed."""
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}: given .*allowed"):
        ReaderTrainConfig(**wrong)  # type: ignore[arg-type]


def test_rows_that_do_not_fit_are_refused() -> None:
    """Offsets and answer places must agree with the tokens."""
    with pytest.raises(ValueError, match="offsets"):
        ReadingRows(np.arange(3), np.array([0, 2]), np.array([1]))
    with pytest.raises(ValueError, match="answer_starts"):
        ReadingRows(np.arange(3), np.array([0, 3]), np.array([4]))


def test_a_frozen_model_is_refused() -> None:
    """Nothing to train is a mistake of the caller."""
    model = tiny().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter"):
        train_reader(model, toy(4, 0), ReaderTrainConfig(steps=1))
