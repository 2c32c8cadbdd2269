"""One worker against two: a call that was cut off goes on with the run that is missing, and only that."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from infra.training import train_two_gpus, two_gpus_report
from infra.training.backbone_job import BackboneJob
from infra.training.backbone_loop import CURVE
from infra.training.train_two_gpus import COMPARED, ENDED, main


class Launched:
    """Stands in for the launcher: writes the curve of a run, or is cut off in a run of `cut` workers."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.cut = 0
        self.seen: Path | None = None
        """Where the result must tell of this run's steps while it still goes on."""

    def __call__(self, launcher: str, job: BackboneJob, size: int, gpu: bool) -> None:
        self.sizes.append(size)
        job.out.mkdir(parents=True, exist_ok=True)
        row = dict.fromkeys(COMPARED, 2.0) | {"peak_share": 0.0, "peak_bytes": 1e9}
        rows = [
            row | {"step": step, "seconds": 9.0 + step, "tokens_per_s": 100.0 * size}
            for step in range(1, job.loop.steps + 1)
        ]
        if size == self.cut:
            rows = rows[:1]
        (job.out / CURVE).write_text("".join(f"{json.dumps(each)}\n" for each in rows))
        if self.seen is not None:
            wait_for_steps(self.seen, size, len(rows))
        if size == self.cut:
            raise KeyboardInterrupt


def wait_for_steps(path: Path, size: int, steps: int) -> dict[str, Any]:
    """The result as soon as it has so many steps of a run; at most half a minute."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if (
            path.exists()
            and len((body := json.loads(path.read_text()))["curves"].get(str(size), [])) == steps
        ):
            return dict(body)
        time.sleep(0.02)
    raise AssertionError(f"{path} has no {steps} steps of {size} worker(s) after 30 s")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Launched:
    """Every launch is recorded instead of made."""
    found = Launched()
    monkeypatch.setattr(train_two_gpus, "_launch", found)
    return found


def call(folder: Path, *more: str) -> dict[str, Any]:
    """The script over made-up runs of three steps."""
    told = ["--data", str(folder / "data"), "--out", str(folder / "out"), "--work", str(folder / "work")]
    return main([*told, "--device", "cpu", "--launcher", "spawn", "--steps", "3", "--skip", "1", *more])


def test_a_call_that_was_cut_off_does_the_second_run_only(launched: Launched, tmp_path: Path) -> None:
    """The first run's curve and time are taken as they are; the result says that they are of an earlier call."""
    launched.cut = 2
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path)
    assert launched.sizes == [1, 2]
    launched.cut = 0
    found = call(tmp_path)
    assert launched.sizes == [1, 2, 2]
    assert found["kept"] == [1] and found["scaling_efficiency"] == 1.0
    assert found["first_step_s"] == {"1": 10.0, "2": 10.0}
    assert json.loads((tmp_path / "out" / "two_gpus.json").read_text())["steps_compared"] == 3


@pytest.mark.parametrize("more", [("--steps", "4"), ("--accumulate", "4"), ("--eager",)])
def test_a_run_of_other_settings_is_made_again(
    launched: Launched, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """Nothing is compared that was made otherwise; eager and compiled runs stand beside each other."""
    call(tmp_path)
    assert call(tmp_path, *more)["kept"] == []
    assert launched.sizes == [1, 2, 1, 2]
    if more == ("--eager",):
        assert call(tmp_path)["kept"] == [1, 2]


def test_a_run_without_all_of_its_steps_is_none(launched: Launched, tmp_path: Path) -> None:
    """A curve that was cut, or a mark that was, leaves nothing to keep."""
    call(tmp_path)
    one = tmp_path / "work" / "workers-1"
    wanted = json.loads((one / ENDED).read_text())["settings"]
    assert train_two_gpus.ended_run(one, wanted) is not None
    (one / CURVE).write_text((one / CURVE).read_text().split("\n")[0] + "\n")
    assert train_two_gpus.ended_run(one, wanted) is None
    (one / ENDED).write_text('{"settings": ')
    assert train_two_gpus.ended_run(one, wanted) is None
    shutil.rmtree(one)
    assert train_two_gpus.ended_run(one, wanted) is None


def test_steps_are_home_before_a_run_ends(launched: Launched, tmp_path: Path) -> None:
    """While each run goes on the result is written; cut off in the second, it compares the steps that both did."""
    launched.seen, launched.cut = tmp_path / "out" / "two_gpus.json", 2
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path, "--every", "0.05")
    found = json.loads(launched.seen.read_text())
    assert found["ended"] == [1] and found["steps_compared"] == 1
    assert [len(rows) for rows in found["curves"].values()] == [3, 1]
    assert found["loss_apart_most"] == 0.0 and found["scaling_efficiency"] == 1.0
    two_gpus_report.main(["--found", str(launched.seen), "--bench", str(tmp_path / "page")])
    text = (tmp_path / "page.md").read_text()
    assert "**Cut off.** Steps done of 3, by workers: 1: 3, 2: 1." in text
    assert next(line for line in text.splitlines() if line.startswith("| whole run")).endswith(" |  |")


def test_one_run_alone_makes_a_page_without_comparing(launched: Launched, tmp_path: Path) -> None:
    """Cut off in the first run: its speed is told, no efficiency; an earlier call's steps are not this one's."""
    call(tmp_path, "--steps", "4")
    launched.seen, launched.cut = tmp_path / "out" / "two_gpus.json", 1
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path, "--every", "0.05")
    found = json.loads(launched.seen.read_text())
    assert list(found["curves"]) == ["1"] and "scaling_efficiency" not in found and found["ended"] == []
    two_gpus_report.main(["--found", str(launched.seen), "--bench", str(tmp_path / "page")])
    text = (tmp_path / "page.md").read_text()
    assert "| | one |\n" in text and "Scaling" not in text and "1: 1, 2: 0" in text


def test_runs_between_have_their_own_efficiency(launched: Launched, tmp_path: Path) -> None:
    """One, two and four workers, each against one; the page has a column for each and says what two bring."""
    found = call(tmp_path, "--workers", "4", "--accumulate", "4", "--between", "2")
    assert launched.sizes == [1, 2, 4] == found["sizes"]
    assert (
        found["scaling_efficiency"] == found["scaling_efficiency_4"] == found["scaling_efficiency_2"] == 1.0
    )
    assert found["loss_apart_most_of_2"] == 0.0
    two_gpus_report.main(
        ["--found", str(tmp_path / "out" / "two_gpus.json"), "--bench", str(tmp_path / "page")]
    )
    text = (tmp_path / "page.md").read_text()
    assert "| | one | 2 | 4 |" in text and "On 2: 1.000;" in text and "Cut off" not in text
