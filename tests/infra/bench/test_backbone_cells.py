"""Trained backbones answer the same needles: who is told for which budget, what is lost against full attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.bench import backbone_cells as cells
from models.subq import SubqModel
from models.subq.baselines import baseline
from models.subq.checkpoint import save_checkpoint
from tests.infra.training.subq_case import MODEL, small_data


def _row(method: str, data: str, exact: float, nats: float, held: int, seed: int = 0) -> dict[str, Any]:
    return {
        "method": method, "seed": seed, "data": data, "n": 4, "torch": "2", "about": {},
        "scores": {"exact": exact, "digits": exact, "nats": nats}, "cost": {"kv_bytes": held, "state_bytes": 8},
    }  # fmt: skip


def test_a_method_is_told_for_the_budgets_that_its_bytes_keep_to() -> None:
    """By its bytes at the longest file; points and nats over the same files; means over seeds."""
    rows = [
        *(_row("transformer", name, 80.0, 1.0, held) for name, held in (("4k", 400), ("16k", 1600))),
        *(_row("mamba-2", "4k", exact, 2.0, 100, seed) for seed, exact in enumerate((40.0, 60.0))),
        _row("mamba-2", "16k", 10.0, 4.0, 100),
        *(_row("gca", name, 70.0, 1.5, held) for name, held in (("4k", 500), ("16k", 2000))),
    ]
    result = cells.report(rows, "cpu")
    ratios = result["ratios"]
    assert ratios["bytes_share_mamba_2"] == 0.0625 and ratios["bytes_share_gca"] == 1.25
    assert {name for name in ratios if "gca" in name} == {"bytes_share_gca"}
    # 80 less 50 at 4k, 80 less 10 at 16k; 1/16 of the bytes is 93.75% fewer
    drops = {
        name: value for name, value in ratios.items() if name.startswith("quality") and "nats" not in name
    }
    assert drops == {f"quality_drop_at_{budget}_mamba_2": 50.0 for budget in (50, 70, 90)}
    assert ratios["quality_drop_at_90_mamba_2_nats"] == 2.0
    nothing = [row | {"scores": row["scores"] | {"exact": 0.5}} for row in rows]
    # who answers nothing has nothing to lose
    assert set(cells.report(nothing, "cpu")["ratios"]) == {"bytes_share_mamba_2", "bytes_share_gca"}
    assert "| mamba-2 | 0, 1 | 50.0 (2.00) | 10.0 (4.00) | 100 | 8 |" in cells.markdown(result)


@pytest.mark.slow  # 13 s: processes of their own
def test_checkpoints_are_asked_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder <method>-<seed> of the seeds wanted, over every file, by the model's own shape."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.manual_seed(0)
    data, folder, cases = small_data(), tmp_path / "checkpoints", tmp_path / "cases"
    for method in ("transformer", "mamba-2"):
        model = SubqModel(baseline(method, MODEL)).eval()
        save_checkpoint(model, folder / f"{method}-0", tokenizer=data.tokenizer, storage="float32")
    save_checkpoint(model, folder / "mamba-2-1", tokenizer=data.tokenizer, storage="float32")
    cases.mkdir()
    for name, size in (("short", 300), ("long", 900)):
        text = data.tokenizer.decode(data.tokens[:size].tolist())
        line = {"context": text, "question": "what is the code of bado", "answers": ["4417"]}
        (cases / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    given = ["run", "--checkpoints", str(folder), "--cases", str(cases), "--out", str(tmp_path / "out")]
    assert cells.main([*given, "--device", "cpu", "--seconds", "240", "--seeds", "0", "--jobs", "2"]) == 0
    out = tmp_path / "result"
    assert cells.main(["report", "--rows", str(tmp_path / "out"), "--out", str(out), "--device", "cpu"]) == 0
    table = json.loads(out.with_suffix(".json").read_text())["table"]
    assert set(table) == {"transformer", "mamba-2"}
    for method, line in table.items():
        assert line["seeds"] == [0] and set(line["files"]) == {"short.jsonl", "long.jsonl"}, method
        grows = line["files"]["long.jsonl"]["kv_bytes"] > line["files"]["short.jsonl"]["kv_bytes"]
        assert grows == (method != "mamba-2"), method


def test_no_checkpoint_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder is named, and the form of what is wanted."""
    given = ["run", "--checkpoints", str(tmp_path), "--cases", str(tmp_path), "--out", str(tmp_path / "o")]
    assert cells.main(given) == 2
    assert f"no <method>-<seed>/config.json under {tmp_path}" in capsys.readouterr().out
