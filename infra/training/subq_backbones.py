"""Backbones of equal size on news and books at once, needles among them: losses by position, keys at 4k and 16k.

    python3 -m infra.training.subq_backbones --books BOOKS --news NEWS --work WORK --out OUT --seconds 230

BOOKS is what `infra.training.subq_pack` wrote, NEWS what `infra.training.subq_news_pack` wrote with its tokenizer.
Every method of a seed learns from the same batches: half of the text is news, half books, needles and questions are
written into it as the shipped recipe does (`subq_recipe`), and every token is a target, which the recipe's quarter
would not be. Readers of chunks learn what to read from the needles too (the contrastive term), `gca` from the loss
on tokens alone. Judged on unseen news and unseen books by position, with reading and without, and on questions of
unseen names in unseen text, in the known wording and held out. Seed after seed, methods in the order given; a call
that ended early is made again and goes on with what is missing. WORK/checkpoints/<method>-<seed> are folders for
`dysra evaluate --task needle --method …`; those of --keep come to OUT in 8 bits. --tiny: sizes for a CPU.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, cast

import numpy as np
import torch

from infra.training.side_by_side import read_json, run_side_by_side, runs_parser, tell, write_whole
from infra.training.subq import SubqTrainConfig, SubqTrainer
from infra.training.subq_arms import ARMS, shaped, taught
from infra.training.subq_choices import SharedBatches, write_batches
from infra.training.subq_compare import SIZES, TINY
from infra.training.subq_data import SubqData
from infra.training.subq_lm import LmConfig, judge
from infra.training.subq_measures import measured, questions_of, told_at
from infra.training.subq_reach import rare_words
from infra.training.subq_recipe import recipe_data, recipe_stream
from models.subq.checkpoint import save_checkpoint
from models.subq.config import SubqConfig
from models.subq.losses import LossWeights
from models.subq.mixers.fla_pinned import pin
from models.subq.model import SubqModel
from pipeline.prepare.needle_stream import NeedleStreamConfig

METHODS = ("subq", "no-retrieval", "transformer", "mamba-2", "linear-transformer", "gca", "subq-lean", *ARMS)
COMPILED = ("subq", "subq-lean", "gca", "no-retrieval", "transformer", *ARMS)
"""With --compiled; the others' kernels are Triton's or a scan that torch would compile for minutes."""
TEXTS = ("news", "books")
LENGTHS = (4_096, 16_384)
"""Tokens of the sequences in which needles are asked."""
SPLITS = {"known": "train", "heldout": "held_out"}
ASKED_SEED = 1_000_003
"""Of the questions that are judged: none of training."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    given = _parser().parse_args(arguments)
    for folder in (given.work, given.out):
        folder.mkdir(parents=True, exist_ok=True)
    if given.make:
        stream = settings(given, "subq", given.seed, 1)[1]
        write_batches(mixed(given, given.seed), stream, _batches(given, given.seed), given.makers)
    elif given.method:
        one(given)
    else:
        everything(given)


def settings(
    given: argparse.Namespace, method: str, seed: int, vocabulary: int
) -> tuple[SubqConfig, NeedleStreamConfig, SubqTrainConfig]:
    """Shape, data and run of a method; what differs is mixers, reading, and who is told what to read."""
    sizes = replace(TINY if given.tiny else SIZES, vocabulary=vocabulary, near=4)
    length = 512 if given.tiny else 16_384
    tokens = 1_024 if given.tiny else 32_768
    few: dict[str, Any] = {"chunk": 32, "far": 3, "per_4096": 40} if given.tiny else {}
    stream = replace(
        recipe_stream(seed), phases=((length, given.steps),), tokens=tokens, targets=tokens, longer=0.0,
        longest=length, **few,
    )  # fmt: skip
    run = SubqTrainConfig(
        joined=True, forced_until=0.25, bank=65_536, warmup=30, lr=2e-3, seed=seed, save_every=10**6,
        losses=LossWeights(answers=given.answers, contrastive=0.25), compiled=given.compiled and method in COMPILED,
    )  # fmt: skip
    if given.tiny:
        sizes = replace(sizes, near=2)
        run = replace(run, lr=4e-3, warmup=2, bank=256, muon=False)
    return replace(shaped(method, sizes), context_tokens=length), stream, taught(method, run)


def mixed(given: argparse.Namespace, seed: int) -> SubqData:
    """As many tokens of news as of books, one behind the other; names and wordings are the books'."""
    books, news = recipe_data(given.books), SubqData.load(given.news, "train")
    if books.tokenizer.identity != news.tokenizer.identity:
        raise SystemExit(
            f"--news: given {given.news}, made with another tokenizer than --books {given.books}; pack it with "
            "infra.training.subq_news_pack --tokens-of BOOKS"
        )
    count = min(len(books.tokens), len(news.tokens))
    start = np.random.default_rng(seed).integers(0, len(books.tokens) - count + 1)
    return replace(books, tokens=np.concatenate([news.tokens[-count:], books.tokens[start : start + count]]))


def one(given: argparse.Namespace) -> None:
    """Train and judge one method with one seed; its record in WORK, its checkpoint beside."""
    if given.pinned and pin(given.pinned):
        tell("fla: one configuration a kernel")
    if given.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
    data = mixed(given, given.seed)
    shape, stream, run = settings(given, given.method, given.seed, data.tokenizer.vocabulary)
    name = f"{given.method}-{given.seed}"
    trainer = SharedBatches(shape, data, stream, run, given.work / f"state-{name}", given.device)
    trainer.folder = _batches(given, given.seed)
    curve = trainer.run()
    on_gpu = given.device.startswith("cuda")
    record: dict[str, Any] = {
        "method": given.method, "seed": given.seed, "parameters": trainer.model.num_parameters()[0],
        "steps": trainer.step, "tokens": trainer.step * stream.tokens, "train_seconds": round(trainer.seconds, 1),
        "model": shape.to_dict(), "curve": [_short(rows) for rows in _groups(curve, 20)],
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
    }  # fmt: skip
    model = plain(trainer)
    save_checkpoint(
        model, given.work / "checkpoints" / name, tokenizer=data.tokenizer,
        about={key: record[key] for key in ("method", "seed", "steps", "tokens", "train_seconds")},
    )  # fmt: skip
    if given.seed in given.keep:
        save_checkpoint(model, given.out / name, tokenizer=data.tokenizer, storage="int8", about={"of": name})
    record |= judged(model, given)
    write_whole(_path(given, given.method, given.seed), json.dumps(record))


def plain(trainer: SubqTrainer) -> SubqModel:
    """The trained model without compiled blocks: other shapes would be compiled anew."""
    model = SubqModel(trainer.model.config).to(trainer.device)
    model.load_state_dict(trainer.model.state_dict())
    return model.eval()


def judged(model: SubqModel, given: argparse.Namespace) -> dict[str, Any]:
    """Nats by position on both texts, with reading and without; keys told and found at each length."""
    found: dict[str, Any] = {}
    length = model.config.context_tokens
    for text, folder in (("news", given.news), ("books", given.books)):
        test = SubqData.load(folder, "test")
        config = LmConfig(length=length, judged=given.judged)
        found[text] = {"read": judge(model, test.tokens, config, given.device, True)}
        if model.encoder is not None:
            found[text]["unread"] = judge(model, test.tokens, config, given.device, False)
            found[text]["rare_words"] = rare_words(model.eval(), test.tokens, given.device)
    asked = replace(SubqData.load(given.books, "test"), real=())
    found["needles"] = [
        row
        for size in ((256, 512) if given.tiny else LENGTHS)
        for name in SPLITS
        if (row := needle_row(model.eval(), asked, given, size, name)) is not None
    ]
    return found


@torch.no_grad()
def needle_row(
    model: SubqModel, data: SubqData, given: argparse.Namespace, length: int, name: str
) -> dict[str, Any] | None:
    """Shares of questions answered to the last token (teacher forcing: what greedy decoding writes), and found.

    Each is asked among all other needles of its sequence, some of which share a word of its owner's name.
    None where a sequence has no room for needle and question. What a head copies is in its chances.
    """
    stream = settings(given, "subq", 0, 1)[1]
    try:
        stream = replace(
            stream, phases=((length, given.asked),), seed=ASKED_SEED + length, split=SPLITS[name], real=0.0,
            tokens=max(length, stream.tokens), targets=max(length, stream.tokens),
        )  # fmt: skip
    except ValueError:
        return None
    totals = {"exact": 0.0, "recall": 0.0, "tokens_right": 0.0}
    count = 0
    for number in range(given.asked):
        batch = data.stream(stream).batch(number)
        ids, at, targets, is_answer, questions = (
            torch.from_numpy(each).to(given.device)
            for each in (batch.ids, batch.at, batch.targets, batch.is_answer, batch.questions)
        )
        if not len(questions):
            continue
        on_gpu = given.device.startswith("cuda")
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=on_gpu):
            out = model(ids)
            told = at[is_answer]
            right = told_at(model, out, ids, told).argmax(-1) == targets[is_answer]
        meant = questions_of(questions)
        shares = measured(out, meant, meant.asking, told, right, torch.ones_like(right), ids.numel())
        totals = {key: totals[key] + float(shares[key]) * len(questions) for key in totals}
        count += len(questions)
    if not count:
        return None
    shown = {key: round(100 * value / count, 2) for key, value in totals.items()}
    if model.encoder is None:
        del shown["recall"]
    return {"length": length, "wording": name, "n": count} | shown


def everything(given: argparse.Namespace) -> None:
    """All runs that are missing, until --seconds; the summary after each."""
    todo = [(method, seed) for seed in given.seeds for method in given.methods.split(",")]
    unknown = sorted({method for method, _ in todo} - set(METHODS))
    if unknown:
        raise SystemExit(f"--methods: given {', '.join(unknown)}; allowed: {', '.join(METHODS)}")
    missing = [key for key in todo if not _path(given, *key).exists()]
    shared = [
        "-m", "infra.training.subq_backbones", "--books", given.books, "--news", given.news, "--work", given.work,
        "--out", given.out, "--device", given.device, "--steps", given.steps, "--judged", given.judged,
        "--asked", given.asked, "--answers", given.answers, "--makers", given.makers, "--keep", *given.keep,
        *(["--tiny"] if given.tiny else []), *(["--compiled"] if given.compiled else []),
        *(["--pinned", given.pinned] if given.pinned else []),
    ]  # fmt: skip
    base = [str(part) for part in shared]
    commands: dict[str, list[str]] = {}
    for seed in dict.fromkeys(seed for _, seed in missing):
        commands[f"batches-{seed}"] = [*base, "--make", "--seed", str(seed)]
        commands |= {
            f"{method}-{own}": [*base, "--method", method, "--seed", str(own)]
            for method, own in missing
            if own == seed
        }
    codes = run_side_by_side(
        commands, given.work, given.seconds, at_once=given.jobs + 1, on_end=lambda _: summarise(given, todo)
    )
    summary = summarise(given, todo)
    tell(json.dumps(summary["ratios"]))
    left = [f"{method}-{seed}" for method, seed in todo if not _path(given, method, seed).exists()]
    if left:
        failed = [name for name, code in codes.items() if code]
        tell(f"failed or ended: {failed}; not judged, call again: {left}")
        raise SystemExit(1)


def summarise(given: argparse.Namespace, todo: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Everything that was judged, as JSON that is there whole or as it was before."""
    runs = [row for key in todo if (row := read_json(_path(given, *key))) is not None]
    on_gpu = given.device.startswith("cuda") and torch.cuda.is_available()
    summary = {
        "bench": "subq-backbones", "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "jobs": given.jobs, "ratios": ratios_of(runs), "runs": runs,
    }  # fmt: skip
    write_whole(given.out / "subq-backbones.json", json.dumps(summary))
    return summary


def ratios_of(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Perplexities of each method, what each gains over no retrieval seed by seed, keys told."""
    found: dict[str, Any] = {}
    by = {(run["method"], run["seed"]): run for run in runs}
    methods = list(dict.fromkeys(run["method"] for run in runs))
    for text in TEXTS:
        for method in methods:
            name = method.replace("-", "_")
            losses = {seed: run[text]["read"]["loss"] for (each, seed), run in by.items() if each == method}
            found[f"ppl_{name}_{text}"] = round(math.exp(mean(losses.values())), 3)
            found[f"loss_spread_{name}_{text}"] = _spread(list(losses.values()))
            gains = [
                by["no-retrieval", seed][text]["read"]["loss"] - loss
                for seed, loss in losses.items()
                if method != "no-retrieval" and ("no-retrieval", seed) in by
            ]
            if gains:
                found[f"gain_over_no_retrieval_{name}_{text}"] = round(mean(gains), 5)
                found[f"gain_spread_{name}_{text}"] = _spread(gains)
    for method in methods:
        rows = [row for run in runs if run["method"] == method for row in run["needles"]]
        for length, wording in dict.fromkeys((row["length"], row["wording"]) for row in rows):
            own = [row["exact"] for row in rows if (row["length"], row["wording"]) == (length, wording)]
            found[f"exact_{method.replace('-', '_')}_{wording}_{length}"] = round(mean(own), 2)
    return found


def _spread(values: Sequence[float]) -> float | None:
    return round(stdev(values), 5) if len(values) > 1 else None


def _groups(curve: Sequence[dict[str, float]], size: int) -> list[Sequence[dict[str, float]]]:
    return [curve[at : at + size] for at in range(0, len(curve), size)]


def _short(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The last step of some, its time, and means of what was learned in them."""
    means = {
        key: round(mean(row[key] for row in rows), 4)
        for key in ("language", "answers", "contrastive", "exact", "recall")
    }
    return {"step": rows[-1]["step"], "seconds": round(rows[-1]["seconds"], 1)} | means


def _path(given: argparse.Namespace, method: str, seed: int) -> Path:
    return cast(Path, given.work / f"backbone-{method}-{seed}.json")


def _batches(given: argparse.Namespace, seed: int) -> Path:
    return cast(Path, given.work / f"batches-{seed}")


def _parser() -> argparse.ArgumentParser:
    parser = runs_parser(__doc__, 230.0)
    parser.add_argument("--books", type=Path, required=True)
    parser.add_argument("--news", type=Path, required=True)
    parser.add_argument("--makers", type=int, default=6, help="processes that make a seed's batches")
    parser.add_argument("--answers", type=float, default=0.25, help="weight of answers in the loss (0: none)")
    parser.add_argument("--steps", type=int, default=300, help="updates of 32,768 tokens")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", default=",".join(METHODS[:6]), help="in this order within a seed")
    parser.add_argument("--judged", type=int, default=24, help="unseen sequences of each text")
    parser.add_argument("--asked", type=int, default=6, help="batches of questions of a length and wording")
    parser.add_argument(
        "--keep", type=int, nargs="*", default=[0], help="seeds whose checkpoints come to --out"
    )
    parser.add_argument(
        "--compiled", action="store_true", help="compile blocks that torch compiles in seconds"
    )
    parser.add_argument("--pinned", type=Path, help="fla's kernels in one configuration each, written there")
    parser.add_argument("--method", default="", choices=("", *METHODS), help="only this run, in this process")
    parser.add_argument("--seed", type=int, default=0, help="of --method")
    parser.add_argument("--make", action="store_true", help="only a seed's batches, in this process")
    return parser


if __name__ == "__main__":
    main()
