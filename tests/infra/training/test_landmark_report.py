"""The page of a landmark run names every method's recall and bytes, and no folder of the host."""

from __future__ import annotations

import json
from pathlib import Path

from infra.training import landmark_report


def test_page_has_recall_by_set_and_no_paths(tmp_path: Path) -> None:
    """Ours and peers by set; the ratio at equal bytes; paths are cut to their names."""
    values = {
        f"{name}_recall_{k}".lstrip("_"): 0.01 * k + (0.2 if name == "int8" else 0.4)
        for name in ("", "int8", "minilm128", "minilm", "bm25", "fused_ours", "fused128", "fused")
        for k in (1, 5, 20)
    }
    about = {
        "training_questions": 10, "steps": 20, "questions": 5, "seconds": 1.0, "seed": 0, "data": "/tmp/made/there",
        "bytes_a_text": {"ours": 512, "int8": 128, "minilm128": 128, "minilm": 1536},
    }  # fmt: skip
    figures = {
        "about": about, "curve": [{"step": 1, "contrastive": 2.0, "first": 0.1}],
        "judged": {"passages": {"all": values | {"searched": 100.0}, "sets": {"nq": values | {"n": 7}}}},
    }  # fmt: skip
    taught = json.loads(json.dumps(figures))
    taught["about"] |= {
        "method": "lora", "taught": "/tmp/made/given", "taught_texts": 4321, "passages": 128, "tokens": 99,
    }  # fmt: skip
    taught["curve"] = [{"step": 1, "direct": 0.5, "ranked": 3.0, "first": 0.2, "dev_recall_5": 0.61}]
    (tmp_path / "found.json").write_text(json.dumps({"frozen": figures, "lora": taught}))
    landmark_report.main(
        ["--found", str(tmp_path / "found.json"), "--bench", str(tmp_path / "out"), "--note", "Weak."]
    )
    told = (tmp_path / "out.md").read_text()
    assert "| head, 8 bits | 128 | 21.0 / 25.0 / 40.0 | 21.0 / 25.0 / 40.0 |" in told
    assert "| BM25 | postings | 41.0 / 45.0 / 60.0 |" in told
    assert "| 1 | 2.000 | 0.100 |" in told and "| 1 | 0.500 | 3.000 | 0.200 |" in told
    assert "taught by MiniLM on 4,321 texts" in told and "61 (1)" in told
    assert "nq (n = 7)" in told and told.endswith("Weak.\n")
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["ratios"] == {
        f"landmark_recall5_over_minilm128_{run}_passages": round(0.25 / 0.45, 4) for run in ("frozen", "lora")
    }
    assert kept["runs"]["frozen"]["about"]["data"] == "there"
