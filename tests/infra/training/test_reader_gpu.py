"""infra/training/reader_gpu.py: the script of the GPU host, in miniature on a CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from infra.training import reader_gpu
from models.reader_training import ReadingRows
from tests.models import tiny

NAMES = ["nq/oracle", "nq/silent", "newswire/now:oracle"]


def save_rows(
    path: Path, rows: ReadingRows, codes: list[int], tells: list[bool], held_out: list[bool]
) -> None:
    """Rows as `reader_pack` writes them."""
    np.savez(
        path,
        tokens=rows.tokens.astype(np.uint16),
        lengths=rows.lengths.astype(np.uint16),
        answer_starts=rows.answer_starts.astype(np.uint16),
        codes=np.array(codes, np.uint16),
        tells=np.array(tells),
        held_out=np.array(held_out),
    )


@pytest.fixture
def carried(tmp_path: Path) -> Path:
    """A carried folder with a tiny model and forty rows, a third of them silent."""
    torch.manual_seed(0)
    config = tiny.config()
    model = Gemma3ForCausalLM(config)
    state = {
        name: t.to(torch.bfloat16).contiguous()
        for name, t in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(state, tmp_path / "base.safetensors")
    config.save_pretrained(tmp_path)
    rows = ReadingRows.of(
        [([1, 10 + at % 20, 5], [3 if at % 3 == 1 else 10 + at % 20, 4]) for at in range(40)]
    )
    codes = [at % 3 for at in range(40)]
    save_rows(
        tmp_path / "training.npz", rows, codes, [code != 1 for code in codes], [at >= 36 for at in range(40)]
    )
    save_rows(tmp_path / "judged.npz", rows, codes, [code != 1 for code in codes], [False] * 40)
    names = {
        "vocab_size": config.vocab_size,
        "give_up": 3,
        "stop": 4,
        "example": [7, 8],
        "training": NAMES,
        "judged": NAMES,
    }
    (tmp_path / "names.json").write_text(json.dumps(names))
    return tmp_path


def do(carried: Path, run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """One run of the script, and what it wrote."""
    (carried / "runs.json").write_text(json.dumps([run]))
    out = carried / "out"
    arguments = [
        "--carried",
        str(carried),
        "--out",
        str(out),
        "--runs",
        str(carried / "runs.json"),
        "--device",
        "cpu",
    ]
    monkeypatch.setattr(sys, "argv", ["reader_gpu", *arguments, "--run", run["name"]])
    reader_gpu.main()
    record: dict[str, Any] = json.loads((out / f"{run['name']}.json").read_text())
    return record


def test_a_lora_run_leaves_its_adapter_curve_and_answers(
    carried: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter that another run can go on from, a curve that falls, one answer a judged row."""
    run = {"name": "one", "lr": 2e-2, "rank": 4, "dropout": 0.0, "steps": 40, "tokens_per_batch": 64}
    record = do(carried, run, monkeypatch)
    losses = [point["loss"] for point in record["curve"]]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert record["judged"]["rows"] == list(range(40))
    assert len(record["judged"]["ids"]) == len(record["judged"]["margins"]) == 40
    adapter = carried / "out" / "one.safetensors"
    assert all(tensor.dtype == torch.bfloat16 for tensor in load_file(adapter).values())
    (carried / "one.safetensors").write_bytes(adapter.read_bytes())
    further = do(carried, run | {"name": "two", "steps": 1, "init": "one.safetensors"}, monkeypatch)
    assert further["curve"][0]["loss"] < np.mean(losses[:5])


def test_the_base_is_judged_without_training(carried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No curve, only answers."""
    record = do(carried, {"name": "base", "method": "base"}, monkeypatch)
    assert "curve" not in record
    assert len(record["judged"]["ids"]) == 40


def test_an_adapter_of_another_shape_is_refused(carried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Going on from what does not fit ends the run with the file's name or its shapes."""
    save_file({"base_model.model.nothing.lora_A.weight": torch.zeros(2, 2)}, carried / "odd.safetensors")
    with pytest.raises(RuntimeError, match=r"odd\.safetensors does not fit"):
        do(carried, {"name": "odd", "rank": 4, "steps": 1, "init": "odd.safetensors"}, monkeypatch)


def labels() -> dict[str, np.ndarray[Any, Any]]:
    """A thousand rows of the three labels, the last hundred held out."""
    codes = np.arange(1000) % 3
    return {"codes": codes, "tells": codes != 1, "held_out": np.arange(1000) >= 900}


@pytest.mark.parametrize("silent", [0.3, {"default": 0.2, "newswire": 0.4}])
def test_silent_rows_keep_their_share_and_held_out_rows_stay_out(silent: object) -> None:
    """The share holds over all rows, or inside each set; dev rows are never trained on."""
    run = reader_gpu.DEFAULTS | {"silent_share": silent}
    chosen = reader_gpu.row_chooser(labels(), NAMES, run)(0)
    assert chosen.max() < 900
    nq = chosen[np.isin(chosen % 3, [0, 1])]
    of, wanted = (chosen, 0.3) if isinstance(silent, float) else (nq, 0.2)
    assert abs(np.mean(of % 3 == 1) - wanted) < 0.02


def test_shares_thin_a_set_out() -> None:
    """A set's share is the share of its rows that an epoch reads."""
    run = reader_gpu.DEFAULTS | {"shares": {"newswire": 0.5}, "silent_share": 0.1}
    chosen = reader_gpu.row_chooser(labels(), NAMES, run)(0)
    assert 110 < np.sum(chosen % 3 == 2) < 190
    assert np.sum(chosen % 3 == 0) == 300


def test_long_prompts_are_sampled_evenly() -> None:
    """Short rows are all judged; of the long ones the wanted number, spread over them."""
    sizes = [2000 if at % 2 else 10 for at in range(20)]
    rows = ReadingRows.of([([1] * size, [2]) for size in sizes])
    found = reader_gpu.judged_rows(rows, 0, 5)
    assert [at for at in found if at % 2 == 0] == list(range(0, 20, 2))
    assert len([at for at in found if at % 2]) == 5
    assert reader_gpu.judged_rows(rows, 4, 0) == [0, 1, 2, 3]


def test_weights_are_cast_and_rotary_frequencies_are_not() -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    model = Gemma3ForCausalLM(Gemma3TextConfig(**sizes, **heads))
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "inv_freq" in name}
    reader_gpu.cast_weights(model, torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert before
    for name, buffer in model.named_buffers():
        if name in before:
            assert torch.equal(buffer, before[name])
    assert model(torch.arange(12)[None]).logits.dtype == torch.bfloat16
