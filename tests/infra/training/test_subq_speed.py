"""What streaming costs by length: rows that say what was read, and how a token's time grows."""

from __future__ import annotations

import json
from pathlib import Path

from infra.training.subq_pack import write_tokens
from infra.training.subq_speed import main, ratios_of
from models.subq import SubqModel
from models.subq.checkpoint import save_checkpoint
from tests.infra.training.subq_case import MODEL, small_data


def test_a_row_for_every_length(tmp_path: Path) -> None:
    """Lengths in order, also beyond the text; landmarks grow with the stream, the state beside it is bounded."""
    data, folder = small_data(), tmp_path / "data"
    folder.mkdir()
    write_tokens(data.tokens[:3_000], folder, "test")
    data.tokenizer.save(folder / "tokenizer.json")
    (folder / "names.json").write_text(json.dumps({"train": [], "test": []}))
    save_checkpoint(SubqModel(MODEL), tmp_path / "model", tokenizer=data.tokenizer, storage="int8")
    main(["--data", str(folder), "--checkpoint", str(tmp_path / "model"), "--out", str(tmp_path), "--device", "cpu",
          "--lengths", "32k,8k"])  # fmt: skip
    rows = json.loads((tmp_path / "subq-speed.json").read_text())["rows"]
    assert [row["length"] for row in rows] == [8_192, 32_768]
    assert rows[1]["landmarks_bytes"] >= 3 * rows[0]["landmarks_bytes"]
    # what waits for the upper half is cut back only now and then
    assert rows[1]["state_bytes"] < 2 * rows[0]["state_bytes"]
    assert all(row["token_ms"] > 0 and row["ask_ms"] > 0 for row in rows)


def test_growth_is_from_the_shortest_to_the_longest() -> None:
    """The named figures are of the first and the last row."""
    rows = [{"token_ms": ms, "state_bytes": size} for ms, size in ((2.0, 10), (9.0, 10), (3.0, 12))]
    assert ratios_of(rows) == {
        "subq_token_ms_longest_over_shortest": 1.5, "subq_state_bytes_longest_over_shortest": 1.2,
    }  # fmt: skip
