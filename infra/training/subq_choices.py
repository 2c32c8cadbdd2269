"""The backbone's choices side by side: same needles and text, equal tokens and size, one change at a time.

    python3 -m infra.training.subq_choices --data DATA --work WORK --out OUT --seconds 320 --jobs 6

Small models (8M parameters, SIZES of infra.training.subq_compare) trained by the recipe's losses on the same
batches, which one pool of processes makes once for all of them; then judged: nats a token of unseen text with
reading and without, and keys of known wording (exact, and whether every gold chunk was read) all in one text, by
length. Each choice is a process of its own, `--jobs` at a time, in the order of CHOICES; OUT/subq-choices.json and
its page are written again after each, and a call that is made again goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from infra.evaluation.haystack import Haystack
from infra.evaluation.passkey import PasskeyTest
from infra.training.side_by_side import run_side_by_side, runs_parser
from infra.training.subq import SubqTrainConfig, SubqTrainer
from infra.training.subq_choices_page import page
from infra.training.subq_compare import SIZES, TINY
from infra.training.subq_data import SubqData, batches
from infra.training.subq_needles import STREAM_CELLS, language_loss, length_of
from infra.training.subq_recipe import recipe_data, recipe_stream
from models.subq.baselines import CHOICES, choice
from models.subq.config import SubqConfig
from models.subq.mixers.fla_pinned import pin
from pipeline.prepare.needle_stream import NeedleBatch, NeedleStreamConfig

FIELDS = ("ids", "at", "targets", "is_answer", "questions", "anonymous")
_WAIT_S = 120.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    given = _parser().parse_args(arguments)
    for folder in (given.work, given.out, given.work / "batches"):
        folder.mkdir(parents=True, exist_ok=True)
    if given.make:
        make_batches(given)
    elif given.choice:
        one(given)
    else:
        everything(given)


def settings(
    given: argparse.Namespace, name: str, vocabulary: int
) -> tuple[SubqConfig, NeedleStreamConfig, SubqTrainConfig]:
    """Shape, data and run of a choice: what differs is what the choice's name says."""
    sizes = replace(TINY if given.tiny else SIZES, vocabulary=vocabulary, near=4, context_tokens=4_096)
    stream = replace(
        recipe_stream(given.seed, ((4_096, given.steps),)), tokens=32_768, targets=8_192, longer=0.0
    )
    run = SubqTrainConfig(
        joined=True, forced_until=0.25, bank=65_536, warmup=40, lr=2e-3, seed=given.seed, save_every=10**6
    )
    if given.tiny:
        sizes = replace(sizes, near=2, context_tokens=512)
        stream = replace(
            stream, tokens=1_024, targets=256, phases=((512, given.steps),), chunk=32, far=3, per_4096=40
        )
        run = replace(run, lr=4e-3, warmup=2, bank=256, muon=False)
    if name == "subq-end-to-end":  # nothing but the loss on tokens tells what to read
        run = replace(run, losses=replace(run.losses, contrastive=0.0), forced_until=0.0, cross=0.0, bank=0)
    if name == "subq-routing-first":
        run = replace(run, routing_first=0.25)
    return choice(name, sizes), stream, run


class SharedBatches(SubqTrainer):
    """Trains on the batches that `make_batches` leaves in a folder."""

    folder = Path()

    def _batches(self) -> Iterator[NeedleBatch]:
        for number in range(self.step, self.stream.batches):
            path = self.folder / f"{number:05d}.npz"
            until = time.monotonic() + _WAIT_S
            while not path.exists():
                if time.monotonic() > until:
                    raise TimeoutError(
                        f"{path} is not there after {_WAIT_S:.0f} s; look at batches.log in --work, or give more "
                        "--makers"
                    )
                time.sleep(0.05)
            with np.load(path) as held:
                yield NeedleBatch(*(held[name] for name in FIELDS))


def make_batches(given: argparse.Namespace) -> None:
    """Write what all choices are trained on, in order; those that are there are left."""
    data = recipe_data(given.data)
    _, stream, _ = settings(given, "subq", data.tokenizer.vocabulary)
    write_batches(data, stream, given.work / "batches", given.makers)


def write_batches(data: SubqData, stream: NeedleStreamConfig, folder: Path, makers: int) -> None:
    """Write all batches of a stream, in order, for `SharedBatches`; those that are there are left."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [at for at in range(stream.batches) if not (folder / f"{at:05d}.npz").exists()]
    made = batches(data, stream, 0, min(makers, len(missing)), missing)
    for number, batch in zip(missing, made, strict=True):
        partial = folder / f".{number:05d}.npz"
        with partial.open("wb") as file:
            np.savez(file, **{name: getattr(batch, name) for name in FIELDS})
        partial.rename(folder / f"{number:05d}.npz")


@torch.no_grad()
def judged(trainer: SubqTrainer, data: SubqData, given: argparse.Namespace) -> dict[str, Any]:
    """Loss of unseen text with reading and without, and a row of keys in one text for each length."""
    model = trainer.model.eval()
    found: dict[str, Any] = {
        "language": language_loss(model, data.tokens, given.device, rows=4 if given.tiny else 32), "rows": [],
    }  # fmt: skip
    lengths = [length_of(text) for text in given.lengths.split(",")]
    size = model.config.chunk
    text = np.resize(data.tokens[: len(data.tokens) // size * size - 13], max(lengths) // size * size)
    test = PasskeyTest(model, Haystack(model, text), data.tokenizer.encode_spans, data.names)
    for length in lengths:
        # all mixers can be asked so, those too that remember without end
        found["rows"].append(test.stream_row(STREAM_CELLS, length, given.keys, given.seed))
    return found


def one(given: argparse.Namespace) -> None:
    """Train and judge one choice."""
    if given.pinned and pin(given.pinned):
        print("fla: one configuration a kernel", flush=True)  # noqa: T201
    if given.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
    train, test = SubqData.load(given.data, "train"), SubqData.load(given.data, "test")
    shape, stream, run = settings(given, given.choice, train.tokenizer.vocabulary)
    trainer = SharedBatches(shape, train, stream, run, given.work / f"state-{given.choice}", given.device)
    trainer.folder = given.work / "batches"
    curve = trainer.run()
    record = {
        "choice": given.choice, "seed": given.seed, "parameters": trainer.model.num_parameters()[0],
        "steps": trainer.step, "tokens": trainer.step * stream.tokens, "train_seconds": round(trainer.seconds, 1),
        "model": shape.to_dict(), "curve": [{k: round(v, 4) for k, v in row.items()} for row in curve[::10]],
        "peak_bytes": torch.cuda.max_memory_allocated() if given.device.startswith("cuda") else 0,
    }  # fmt: skip
    record |= judged(trainer, test, given)
    partial = given.work / f".{given.choice}.partial"
    partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
    partial.replace(_path(given, given.choice))


def everything(given: argparse.Namespace) -> None:
    """All choices that are missing, until --seconds; the summary after each."""
    names = given.choices.split(",")
    unknown = [name for name in names if name not in CHOICES]
    if unknown:
        raise SystemExit(f"--choices: given {', '.join(unknown)}; allowed: {', '.join(CHOICES)}")
    missing = [name for name in names if not _path(given, name).exists()]
    shared = [
        "-m", "infra.training.subq_choices", "--data", given.data, "--work", given.work, "--out", given.out,
        "--device", given.device, "--steps", given.steps, "--seed", given.seed, "--lengths", given.lengths,
        "--keys", given.keys, "--makers", given.makers, *(["--tiny"] if given.tiny else []),
        *(["--pinned", given.pinned] if given.pinned else []),
    ]  # fmt: skip
    base = [str(part) for part in shared]
    # batches come first and stay one of the processes until all are made
    commands = {"batches": [*base, "--make"]} | {name: [*base, "--choice", name] for name in missing}
    codes = run_side_by_side(
        commands, given.work, given.seconds, at_once=given.jobs + 1, on_end=lambda _: summarise(given, names)
    )
    failed = [name for name, code in codes.items() if code]
    summary = summarise(given, names)
    left = [name for name in names if not _path(given, name).exists()]
    print(json.dumps(summary["ratios"]), flush=True)  # noqa: T201
    if failed or left:
        print(f"failed or ended: {failed}; not judged, call again: {left}", flush=True)  # noqa: T201


def summarise(given: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Everything that was judged, as JSON and as a page."""
    paths = [_path(given, name) for name in names]
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    ratios: dict[str, float] = {}
    for run in runs:
        name = run["choice"].replace("-", "_")
        ratios[f"loss_{name}"] = run["language"]["with_retrieval"]
        for row in run["rows"]:
            ratios[f"recall_{name}_{row['length']}"] = row["recall"]
            ratios[f"exact_{name}_{row['length']}"] = row["exact"]
    on_gpu = given.device.startswith("cuda") and torch.cuda.is_available()
    summary = {
        "bench": "subq-choices", "device": torch.cuda.get_device_name() if on_gpu else "cpu", "jobs": given.jobs,
        "runs": runs, "ratios": ratios,
    }  # fmt: skip
    partial = given.out / ".subq-choices.partial"
    partial.write_text(json.dumps(summary, indent=1), encoding="utf-8")
    partial.replace(given.out / "subq-choices.json")
    (given.out / "subq-choices.md").write_text(page(summary), encoding="utf-8")
    return summary


def _path(given: argparse.Namespace, name: str) -> Path:
    return cast(Path, given.work / f"choice-{name}.json")


def _parser() -> argparse.ArgumentParser:
    parser = runs_parser(__doc__, 320.0)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--makers", type=int, default=10, help="processes that make batches")
    parser.add_argument("--steps", type=int, default=600, help="updates of 32,768 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--choices", default=",".join(CHOICES), help="which, in this order")
    parser.add_argument("--lengths", default="32k,256k,1M")
    parser.add_argument("--keys", type=int, default=64, help="in one text")
    parser.add_argument("--pinned", type=Path, help="fla's kernels in one configuration each, written there")
    parser.add_argument("--choice", default="", choices=("", *CHOICES), help="only this, in this process")
    parser.add_argument("--make", action="store_true", help="only the batches, in this process")
    return parser


if __name__ == "__main__":
    main()
