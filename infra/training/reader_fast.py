"""Train one reader on packed rows in fixed shapes, on one GPU, and choose its best moment by dev F1.

    python3 -m infra.training.reader_fast --reader /tmp/reader --rows rows --runs runs.json --run near16 \\
        --out OUT --work WORK --seconds 270

`rows` is what `reader_hard` or `reader_folds` wrote. The learning rate follows the clock, so that a run that shares
its device ends as one that has it alone; of a run with `tokens` it follows these, and the clock only where that is
ahead, so that a slow device ends at a low rate too. Writes OUT/<run>.json (settings, curve, dev scores) and
WORK/<run> (an adapter as peft reads it, or `weights.safetensors` of full tuning).
"""

from __future__ import annotations

import argparse
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infra.training.reader_fast_run import FastRun, done_at, rate_at, read_runs
from infra.training.reader_gpu import load_base, row_chooser
from infra.training.reader_rows import Coder
from models.reader_decoding import greedy_answers
from models.reader_lowrank import LowRank, MasterWeights
from models.reader_packed import PackedReader, choose_attention, pack_loss
from models.reader_packs import Pack, make_pack, plan_packs
from models.reader_training import Ints, ReadingRows
from models.shipped import READER_LORA
from pipeline.session.prompts import parse_answer
from pipeline.tasks.scores import answer_f1

GIVE_UP_MARGIN = 1.5
"""Sessions give up only above this margin (docs/reader.md), so dev answers are judged by it."""


def load_packed_rows(path: Path) -> tuple[ReadingRows, dict[str, Any]]:
    """The rows of a file and their labels (codes, tells, held_out, avoid)."""
    with np.load(path) as packed:
        offsets = np.concatenate([[0], np.cumsum(packed["lengths"])]).astype(np.int64)
        rows = ReadingRows(packed["tokens"], offsets, packed["answer_starts"])
        return rows, {name: packed[name] for name in ("codes", "tells", "held_out", "avoid")}


class Average:
    """The mean of parameters over the end of a run; empty before it begins."""

    def __init__(self) -> None:
        self.num, self._mean = 0, list[Tensor]()

    @torch.no_grad()
    def add(self, parameters: Sequence[Tensor]) -> None:
        """Count the parameters as they are now."""
        self.num += 1
        if not self._mean:
            self._mean = [parameter.detach().clone() for parameter in parameters]
            return
        torch._foreach_lerp_(self._mean, [parameter.detach() for parameter in parameters], 1 / self.num)

    @torch.no_grad()
    def exchange(self, parameters: Sequence[Tensor]) -> None:
        """Put the mean into the parameters, and what they were in its place."""
        for parameter, mean in zip(parameters, self._mean, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(kept)


def open_reader(run: FastRun, folder: Path, device: str) -> tuple[nn.Module, LowRank | MasterWeights]:
    """The base model with what is trained of it."""
    on_gpu = device.startswith("cuda")
    model = load_base(folder, torch.bfloat16 if on_gpu else torch.float32).to(device)
    if run.method == "full":
        return model, MasterWeights(model)
    low = LowRank(model, rank=run.rank, alpha=run.alpha, seed=run.seed)
    if run.init:
        kept = low.start_from(READER_LORA)
        _say(f"from the shipped adapter, cut to rank {run.rank}: {kept:.3f} of its squared norm")
    return model, low


def train(
    model: nn.Module,
    trained: LowRank | MasterWeights,
    packs: Iterator[Pack],
    run: FastRun,
    seconds: float,
    device: str,
    on_dev: Callable[[float], None] | None = None,
    average: Average | None = None,
) -> dict[str, Any]:
    """Train for so many seconds, or the run's tokens; `on_dev(done)` is called at the run's `dev_at`.

    `average` counts the weights of the run's end. Returns the curve and the pace. The clock
    starts after the first step, which compiles. Raises RuntimeError if the loss stops being a number.
    """
    on_gpu = device.startswith("cuda")
    attention, attend = choose_attention(device)
    reader = PackedReader(model, attend=attend, compiled=on_gpu)
    parameters = trained.parameters()
    optimizer = torch.optim.AdamW(
        parameters, lr=run.lr, betas=(0.9, 0.98), weight_decay=run.weight_decay, fused=on_gpu
    )
    dev_left = sorted(run.dev_at) if on_dev else []
    curve: list[dict[str, float]] = []
    held: list[dict[str, Tensor]] = []
    tokens = run.rows * run.length
    compile_began = time.monotonic()
    started, dev_seconds, step = compile_began, 0.0, 0
    for pack in packs:
        done = done_at(run, step, time.monotonic() - started, seconds) if step else 0.0
        while dev_left and on_dev and done >= dev_left[0]:
            began = time.monotonic()
            on_dev(dev_left.pop(0))
            dev_seconds += time.monotonic() - began
        if done >= 1:
            break
        model.train()
        shown = _backward(reader, pack, run.contrast)
        trained.gather()
        shown["gradient"] = nn.utils.clip_grad_norm_(parameters, run.clip)
        rate = rate_at(run, done)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        trained.merge()
        if average is not None and done >= 1 - run.average:
            average.add(parameters)
        held.append(shown)
        if step == 0:
            _wait(device)
            started = time.monotonic()
        step += 1
        if len(held) == 20:
            curve.append(_point(held, step, rate, time.monotonic() - started))
            held = []
            if not math.isfinite(curve[-1]["loss"]):
                raise RuntimeError(
                    f"the loss is {curve[-1]['loss']} at step {step}; lower lr (given {run.lr})"
                )
            if len(curve) % 5 == 0:
                _say(json.dumps({name: float(f"{value:.4g}") for name, value in curve[-1].items()}))
    if held:
        curve.append(_point(held, step, rate, time.monotonic() - started))
    for at in dev_left:
        assert on_dev is not None
        on_dev(at)
    whole = time.monotonic() - started
    return {
        "curve": curve,
        "steps": step,
        "tokens": step * tokens,
        "ended_by": "tokens" if run.tokens and step * tokens >= run.tokens else "clock",
        "train_seconds": whole,
        "dev_seconds": dev_seconds,
        "first_step_seconds": started - compile_began,
        "tokens_per_second": (step - 1) * tokens / max(1e-9, whole - dev_seconds),
        "attention": attention,
        "compiled": reader.compiled,
        "compile_failure": reader.failure,
    }


def prefetched(
    rows: ReadingRows,
    labels: dict[str, Any],
    choose: Callable[[int], Ints],
    run: FastRun,
    device: str,
    ahead: int = 8,
) -> Iterator[Pack]:
    """Packs of epoch after epoch, made by a thread some steps ahead."""
    made: queue.Queue[Pack | BaseException] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def work() -> None:
        try:
            for epoch in range(1 << 20):
                for pack in plan_packs(rows, choose(epoch), run.shape, run.seed * 1000 + epoch):
                    ready = make_pack(rows, pack, run.shape, labels["avoid"])
                    while not stopped.is_set():
                        try:
                            made.put(ready, timeout=0.5)
                            break
                        except queue.Full:
                            continue
                    if stopped.is_set():
                        return
        except BaseException as error:
            made.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            found = made.get(timeout=120)
            if isinstance(found, BaseException):
                raise found
            yield found.to(device)
    finally:
        stopped.set()
        thread.join(timeout=5)


def dev_scores(
    model: nn.Module,
    rows: ReadingRows,
    about: Sequence[Sequence[Any]],
    coder: Coder,
    device: str,
    tokens_per_batch: int = 131072,
    forced: bool = False,
) -> dict[str, float]:
    """F1 (percent) by kind of context and by set, as sessions answer; "score": the mean over all that tell.

    With `forced` as it answers when it must, as policies are paid.
    """
    prompts: list[list[int]] = [rows.row(at)[: rows.answer_starts[at]].tolist() for at in range(len(rows))]
    answers = greedy_answers(
        model,
        prompts,
        stop_id=coder.stop,
        give_up_id=coder.give_up,
        may_give_up=False,
        max_new_tokens=12,
        tokens_per_batch=tokens_per_batch,
        device=device,
    )
    found: dict[str, list[float]] = {}
    for answer, (_, dataset, kind, tells, golds, *_) in zip(answers, about, strict=True):
        gave_up = answer.margin > GIVE_UP_MARGIN
        if not golds or not tells:
            found.setdefault("gave_up_rightly", []).append(float(gave_up))
            continue
        f1 = 0.0 if gave_up and not forced else answer_f1(parse_answer(coder.text(answer.ids)).text, golds)
        found.setdefault("gave_up_wrongly", []).append(float(gave_up))
        for name in ("score", kind, dataset):
            found.setdefault(name, []).append(f1)
    return {name: round(100 * float(np.mean(values)), 2) for name, values in sorted(found.items())}


def one_run(
    run: FastRun, reader: Path, rows_folder: Path, out: Path, work: Path, seconds: float, device: str
) -> None:
    """Train, keep the best moment by dev score, and write it."""
    torch.manual_seed(run.seed)
    torch.set_float32_matmul_precision("high")
    names = json.loads((rows_folder / "names.json").read_text())
    rows, labels = load_packed_rows(rows_folder / "training.npz")
    fits = rows.lengths <= run.length
    labels["held_out"] = ~fits
    dev_rows, _ = load_packed_rows(rows_folder / "dev.npz")
    about = json.loads((rows_folder / "dev.json").read_text())
    coder = Coder(reader)
    model, trained = open_reader(run, reader, device)
    choose = row_chooser(labels, names["training"], {**asdict(run), "shares": run.shares})
    _say(f"{len(rows):,} rows, {len(choose(0)):,} an epoch, {len(dev_rows):,} dev rows")
    scores: list[dict[str, float]] = []
    best: list[Tensor] = []

    def on_dev(done: float, averaged: bool = False) -> None:
        found = dev_scores(model, dev_rows, about, coder, device, forced=run.forced)
        scores.append({"done": done, "averaged": float(averaged), **found})
        _say(f"dev at {done}{' averaged' * averaged}: {found}")
        if found.get("score", 0.0) >= max(each.get("score", 0.0) for each in scores):
            best[:] = [parameter.detach().clone() for parameter in trained.parameters()]

    packs = prefetched(rows, labels, choose, run, device)
    average = Average() if run.average else None
    looks = on_dev if len(dev_rows) and run.dev_at else None
    record = train(model, trained, packs, run, seconds, device, looks, average)
    if average is not None and average.num > 1:
        # weights that still move about are read as their mean; without dev rows the mean is what is kept
        average.exchange(trained.parameters())
        trained.merge()
        if looks is not None:
            on_dev(1.0, averaged=True)
    if best:
        with torch.no_grad():
            for parameter, kept in zip(trained.parameters(), best, strict=True):
                parameter.copy_(kept)
        trained.merge()
    if scores:
        place = max(range(len(scores)), key=lambda at: (scores[at].get("score", 0.0), at))
        record["kept"] = {name: scores[place][name] for name in ("done", "averaged")}
    folder = work / run.name
    if isinstance(trained, LowRank):
        trained.save(folder, base="gemma-3-270m")
    else:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters()}
        save_file(state, folder / "weights.safetensors", metadata={"format": "pt"})
    record |= {"run": asdict(run), "dev": scores, "rows": len(rows), "an_epoch": len(choose(0))}
    record["device"] = torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"
    if device.startswith("cuda"):
        record["peak_bytes"] = torch.cuda.max_memory_allocated()
    (out / f"{run.name}.json").write_text(json.dumps(record))
    _say(
        f"{run.name}: {record['steps']} steps, {record['tokens_per_second']:.0f} tokens/s, {record['attention']}"
    )


def warm(reader: Path, out: Path, run: FastRun, device: str, steps: int = 8) -> None:
    """Compile for the others (torch keeps what it compiled) and tell the pace, plain and compiled."""
    model, trained = open_reader(run, reader, device)
    chance = np.random.default_rng(0)
    size = len(np.load(reader / "vocabulary.npy"))
    pairs = [(chance.integers(4, size, int(n)).tolist(), [5, 6, 7]) for n in chance.integers(60, 260, 400)]
    rows = ReadingRows.of(pairs)
    plan = plan_packs(rows, np.arange(len(rows)), run.shape, 0)[:2]
    packs = [make_pack(rows, pack, run.shape).to(device) for pack in plan]
    attention, attend = choose_attention(device)
    found: dict[str, Any] = {"attention": attention, "tokens_a_step": run.rows * run.length}
    for compiled in (False, True):
        packed = PackedReader(model, attend=attend, compiled=compiled and device.startswith("cuda"))
        times: list[float] = []
        for at in range(steps):
            began = time.monotonic()
            _backward(packed, packs[at % len(packs)], run.contrast)
            trained.gather()
            _wait(device)
            times.append(time.monotonic() - began)
        name = "compiled" if packed.compiled else "plain"
        found[f"{name}_first_s"], found[f"{name}_step_s"] = times[0], float(np.median(times[2:]))
        found["compile_failure"] = packed.failure
    (out / "reader-speed.json").write_text(json.dumps(found))
    _say(json.dumps(found))


def _backward(reader: PackedReader, pack: Pack, contrast: float) -> dict[str, Tensor]:
    """A pack's gradients; uncompiled from then on where the compiler fails, forward or backward."""
    try:
        loss, shown = pack_loss(reader, pack, contrast)
        loss.backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        # a compiler's error can be of any kind; what is wrong with the model itself fails again here
        if not reader.compiled:
            raise
        reader.fall_back(error)
        reader.model.zero_grad(set_to_none=True)
        return _backward(reader, pack, contrast)
    return shown


def _point(held: Sequence[dict[str, Tensor]], step: int, rate: float, seconds: float) -> dict[str, float]:
    point = {name: float(torch.stack([each[name] for each in held]).mean()) for name in held[0]}
    return {"step": float(step), "lr": rate, "seconds": seconds, **point}


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _say(what: str) -> None:
    print(what, flush=True)  # noqa: T201


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("reader", "rows", "runs", "out", "work"):
        parser.add_argument(f"--{name}", type=Path, required=name != "rows")
    parser.add_argument("--run", help="name of the run")
    parser.add_argument("--seconds", type=float, default=270)
    parser.add_argument("--known", type=float, default=1.0, help="share of the questions that it is given")
    parser.add_argument("--warm", action="store_true", help="compile and tell the pace only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)
    runs = {run.name: run for run in read_runs(given.runs)}
    if given.run not in runs:
        raise SystemExit(f"--run: given {given.run}; allowed: {', '.join(runs)}")
    if given.warm:
        warm(given.reader, given.out, runs[given.run], given.device)
        return
    run = runs[given.run].knowing(given.known)
    one_run(run, given.reader, given.rows, given.out, given.work, given.seconds, given.device)


if __name__ == "__main__":
    main()
