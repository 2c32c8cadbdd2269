"""Forms of the forward pass side by side: what decides whether a form is timed, and that none can hold a lease."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from infra.bench import gpu_forward, gpu_forward_ways
from models.kernels.sparse_attention import hopper


def test_a_process_that_waits_for_ever_is_ended_in_its_time() -> None:
    """A kernel that never ends costs its form's limit; what it wrote before is kept."""
    began = time.monotonic()
    code, said = gpu_forward.ended(
        [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"], 3.0
    )
    assert (code, said.strip()) == (None, "begun")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("row", "timed"),
    [
        ({"difference": 0.002}, True),
        ({"difference": 0.02}, False),
        ({"difference": float("nan")}, False),
        ({"error": "not done in its time"}, False),
    ],
    ids=["agrees", "differs", "not-a-number", "failed"],
)
def test_only_a_form_that_agrees_is_timed(row: dict[str, object], timed: bool) -> None:
    """What differs by more than 1%, is not a number or did not end is not timed."""
    assert gpu_forward.passes(row) is timed


def test_a_row_holds_its_rounds_and_their_median_over_the_floor() -> None:
    """The median of the rounds counts, so that a disturbed one decides nothing; a line that was cut off is left."""
    line = {"context": 65_536, "chosen": 8, "way": "2", "floor_ms": 0.1}
    lines = [json.dumps({**line, "ms": ms}) + "\n" for ms in (0.13, 0.30, 0.12)]
    other = json.dumps({**line, "way": "1", "ms": 0.2}) + "\n"
    turns = {"turns": 2, "chosen": 8, "way": "2", "ms": 0.04, "twice_ms": 0.07}
    rows = gpu_forward.rows_of([*lines, other, json.dumps(turns) + "\n", '{"context": 65'])
    assert [(row["ms"], row["over_floor"], row["rounds_ms"]) for row in rows[:2]] == [
        (0.13, 1.3, [0.13, 0.3, 0.12]),
        (0.2, 2.0, [0.2]),
    ]
    assert rows[2] == turns


def test_without_a_device_every_form_is_told_failed_and_nothing_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends with an error and its file still says why each form was not timed."""
    monkeypatch.setattr(gpu_forward, "SELF", (sys.executable, "-c", "raise SystemExit('no device')"))
    monkeypatch.setattr(sys, "argv", ["gpu_forward", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="nothing to time"):
        gpu_forward.main()
    found = json.loads((tmp_path / "forward.json").read_text())
    assert found["rows"] == []
    assert len(found["checks"]) == len(gpu_forward.WAYS) * len(gpu_forward.CHOSEN) + len(gpu_forward.WHY)
    assert all("no device" in row["error"] for row in found["checks"])


@pytest.mark.parametrize("parts", [("softmax",), ("fetching",), ("softmax", "fetching")], ids=str)
def test_what_a_way_leaves_out_is_in_the_kernel_once(parts: tuple[str, ...]) -> None:
    """A copy of the kernel without a part compiles as Python and lacks it; another text is refused."""
    text = Path(hopper.__file__).read_text()
    found = gpu_forward_ways.left_out(text, parts)
    compile(found, "kernel", "exec")
    assert ("k_full.index(stage), k_desc.block_type.nbytes" in found) is ("fetching" not in parts)
    assert ("return s * (scale_log2 + bias), one" in found) is ("softmax" in parts)
    with pytest.raises(ValueError, match="not once"):
        gpu_forward_ways.left_out("", parts)


def test_checks_made_beforehand_are_used_and_their_ways_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--compile leaves what passed; the run after it checks nothing again and times only that."""
    row = "{'way': sys.argv[2], 'chosen': int(sys.argv[3]), 'difference': 0.001}"
    says = f"import sys, json; print(json.dumps({row}))"
    monkeypatch.setattr(gpu_forward, "SELF", (sys.executable, "-c", says))
    monkeypatch.setattr(gpu_forward, "WHY", {})
    monkeypatch.setattr(gpu_forward, "WAYS", {"2": (2, {})})
    monkeypatch.setattr(sys, "argv", ["gpu_forward", "--out", str(tmp_path), "--compile"])
    gpu_forward.main()
    turns = json.dumps({"way": "2", "chosen": 8, "turns": 2, "ms": 0.04, "twice_ms": 0.07}) + "\n"
    times = (
        f"import sys; open(sys.argv[-1] + '/forward.jsonl', 'w').write({turns!r}); "
        "assert sys.argv[2:4] == ['2:8', '2:32']"
    )
    monkeypatch.setattr(gpu_forward, "SELF", (sys.executable, "-c", times))
    monkeypatch.setattr(sys, "argv", ["gpu_forward", "--out", str(tmp_path)])
    gpu_forward.main()
    assert json.loads((tmp_path / "forward.json").read_text())["rows"] == [json.loads(turns)]
    assert "2 turns way 2: 0.04 0.07" in capsys.readouterr().out
