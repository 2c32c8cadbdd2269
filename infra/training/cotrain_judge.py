"""What a run of `infra.training.cotrain_gpu` is worth: its marks on dev questions, then the one they name on test.

Dev questions choose after how many updates a run should have stopped, none included, by what an episode pays: F1
made to answer less the price of the tokens read, the mean over the sets. Test questions are read at that mark and,
as `last`, after all updates. The shipped reader was trained on most dev questions, so they favour leaving it alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from infra.evaluation.policy_judge import choose, judge
from infra.training.cotrain_rows import Notes
from infra.training.cotrain_runs import Mark
from models.hf.adapter import adapter_folder
from models.hf.config import HfConfig
from models.retriever.storage import load_policy
from pipeline.tasks.material import Material
from rl.episodes import OutcomeReader, Readings

LAST = "last"
"""The policy's own choice after all updates, whatever dev questions say."""


class Judge:
    """Reads choices of one material by whichever adapter, and remembers what it read."""

    def __init__(self, material: Material, reader: HfConfig, device: str) -> None:
        self.material, self._reader, self._device = material, reader, device
        self._readings: dict[Path | None, Readings] = {}

    def figures(self, mark: Mark, rows: Any, method: str, budget: int) -> tuple[dict[str, Any], list[float]]:
        """Figures of a choice over some rows, and F1 made to answer, question by question."""
        part = self.material.take(rows)
        network, _ = load_policy(mark.policy, self._device)
        chosen = choose(part, method, budget, network=network, device=self._device)
        found, scores = judge(part, rows, chosen, self._of(mark.adapter))
        return found, [round(float(f1), 4) for f1 in scores]

    def _of(self, adapter: Path | None) -> Readings:
        if adapter not in self._readings:
            from models.hf import HfBackbone
            from pipeline.tasks.reading import MaterialReader, voice_of

            config = self._reader if adapter is None else replace(self._reader, adapter=str(adapter))
            voice = voice_of(HfBackbone.load(config), adapter_folder(config) is not None)
            reader = MaterialReader(self.material, voice, want_loss=False)
            self._readings[adapter] = Readings(OutcomeReader(reader))
        return self._readings[adapter]


def judge_run(given: argparse.Namespace, reader: HfConfig, marks: Sequence[Mark], notes: Notes) -> None:
    """Note what every mark is worth on dev, which one is taken, and its points on test: those not noted yet."""
    judge_of = Judge(Material.load(given.work / "material"), reader, given.device)
    known = notes.rows()
    worth = {row["mark"]["step"]: row["mark"]["paid"] for row in known if "mark" in row}
    if len(marks) > 1:  # else there is nothing to choose
        for mark in marks:
            if mark.step not in worth:
                found = _on_dev(judge_of, mark, given)
                notes.add(mark=found)
                worth[mark.step] = found["paid"]
    taken = best(marks, worth)
    if not any("chosen" in row for row in known):
        notes.add(chosen=taken.step)
    judged = {(row["set"], row["point"]) for row in known if "point" in row}
    for mark, name, method, budget in points_of(taken, marks[-1], given.budgets):
        for dataset in sets_of(judge_of.material):
            rows = judge_of.material.rows("test", dataset, answerable=True)
            if (dataset, f"{name}_{budget}") in judged or not len(rows):
                continue
            figures, scores = judge_of.figures(mark, rows, method, budget)
            notes.add(set=dataset, point=f"{name}_{budget}", figures=figures, scores=scores)


def points_of(taken: Mark, last: Mark, budgets: Sequence[int]) -> list[tuple[Mark, str, str, int]]:
    """(mark, name, method, budget), what is asked for first: if the time is up, the rest is missing."""
    first = [(taken, "policy", "policy", budget) for budget in budgets]
    first += [(last, LAST, "policy", budget) for budget in budgets]
    first.append((taken, "oracle", "oracle", max(budgets)))
    return first + [(taken, method, method, budget) for budget in budgets for method in ("hybrid", "filled")]


def best(marks: Sequence[Mark], worth: dict[int, float]) -> Mark:
    """The mark that dev questions pay most; of equal ones the earliest; the only one where there is no other."""
    return max(marks, key=lambda mark: (worth.get(mark.step, 0.0), -mark.step))


def sets_of(material: Material) -> list[str]:
    """The sets of a material by name."""
    return sorted({question.dataset for question in material.questions})


def _on_dev(judge_of: Judge, mark: Mark, given: argparse.Namespace) -> dict[str, Any]:
    """A mark's own choices on dev questions: what they pay (mean of the sets), F1 and tokens by set."""
    by_set = {}
    for dataset in sets_of(judge_of.material):
        rows = judge_of.material.rows("dev", dataset, answerable=True)
        if len(rows):
            figures, _ = judge_of.figures(mark, rows, "policy", given.budget)
            by_set[dataset] = [figures["forced_f1"], figures["tokens"]]
    if not by_set:
        raise ValueError(
            "the material has no dev question with an answer; make it with some, or give --marks 0"
        )
    paid = mean(f1 / 100 - given.gamma * tokens for f1, tokens in by_set.values())
    return {"step": mark.step, "paid": round(paid, 5), "by_set": by_set}
