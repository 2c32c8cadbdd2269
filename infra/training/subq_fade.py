"""What language modelling alone keeps: a trained backbone goes on while the contrastive loss fades away.

    python3 -m infra.training.subq_fade --data DATA --work WORK --out OUT --checkpoint models/weights/subq

Each arm goes on from the same weights for `--steps` updates, `fade` and `kept` with the same batches: in `fade`
the weight of the contrastive term falls to nothing over the first 40% and stays there, `kept` keeps it (what
further training does by itself). `alike` and `namesakes` keep it too and have harder needles (HARDER). Needles in
known wording are asked before and after. Optimizers and the bank of negatives begin anew, so the rate rises again
to a third of the recipe's; nothing is forced in, so the choice lives by what the losses teach it. One process: two
on one GPU have ended in a launch failure. What is done is kept in WORK and OUT, passed over when started again:
fade-SEED.json has the curves, needles-*.json the exact matches, <arm>-SEED-int8 the weights of the arms that
`--bring` names. Arms are judged in 8 bits, as they ship and as the checkpoint stands. The page of it:
infra.training.subq_fade_page.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from infra.training import subq_gpu
from infra.training.subq import CURVE, SubqTrainConfig, SubqTrainer
from infra.training.subq_data import SubqData
from infra.training.subq_needles import run_needles
from infra.training.subq_recipe import recipe_data, recipe_stream, tiny_form
from models.subq import SubqConfig
from models.subq.checkpoint import load_checkpoint, load_tokenizer, save_checkpoint
from models.subq.losses import LossWeights

ARMS = {"fade": (0.0, 0.4), "kept": (1.0, 1.0), "alike": (1.0, 1.0), "namesakes": (1.0, 1.0)}
"""Shares of the run between which the contrastive term fades to nothing, by arm."""
HARDER: dict[str, dict[str, float]] = {
    "alike": {"twins": 0.8, "kinds_alike": 0.8, "alike": 0.7},
    "namesakes": {"twins_alike": 1.0},
}
"""What is harder in an arm: shares that are .5, .5, .4 and 0 in the recipe. Most wrong answers in known wording are
of keys whose chunks were read, told from the needle whose owner shares a word with the asked one. `alike` has more
of both, but seldom in the same needle; in `namesakes` every twin is one."""
CELLS = "known-5,known-10,known-16,known-5-alone,known-16-alone"
BEFORE = "before"
LEAST_S = 20.0
"""An arm that has less than this left is not begun, and says so."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Needles before; then each arm, trained and asked. 0 where all was done, 1 where the time was up."""
    given = _parser().parse_args(arguments)
    if given.steps < 1 and given.train_seconds <= 0:
        raise SystemExit(
            f"--steps, --train-seconds: given {given.steps}, {given.train_seconds:g}; allowed: one above 0"
        )
    until = time.monotonic() + given.seconds
    given.out.mkdir(parents=True, exist_ok=True)
    given.work.mkdir(parents=True, exist_ok=True)
    data = fitting(recipe_data(given.data), given.checkpoint)
    done = _needles(given, BEFORE, given.checkpoint, until)
    for arm in given.arms:
        if until - time.monotonic() < LEAST_S:
            _say(f"{arm}: not begun, the time is up; start again")
            return 1
        folder = go_on(given, arm, data, until)
        done &= folder is not None and _needles(given, arm, folder, until)
    return 0 if done else 1


def fitting(data: SubqData, checkpoint: Path) -> SubqData:
    """The data, where the checkpoint was trained with its tokenizer; ValueError where it was not."""
    ours = load_tokenizer(checkpoint)
    sample = data.tokens[:4096].tolist()
    if ours.vocabulary != data.tokenizer.vocabulary or ours.encode(data.tokenizer.decode(sample)) != (
        data.tokenizer.encode(data.tokenizer.decode(sample))
    ):
        raise ValueError(
            f"--checkpoint {checkpoint} was trained with another tokenizer than --data has; give the run's own "
            "checkpoint, or the data that it was packed with"
        )
    return data


def go_on(given: argparse.Namespace, arm: str, data: SubqData, until: float) -> Path | None:
    """Train an arm on from the checkpoint; the folder of what came of it, None where the time was up before."""
    folder: Path = given.work / f"{arm}-{given.seed}"
    if (folder / "config.json").exists():
        return folder
    trainer = trainer_of(given, arm, data)
    inductor = given.work / "inductor.bin"
    if trainer.config.compiled and inductor.exists():
        torch.compiler.load_cache_artifacts(inductor.read_bytes())
    trainer.run(until - time.monotonic() - LEAST_S)
    if trainer.config.compiled and not inductor.exists() and (saved := torch.compiler.save_cache_artifacts()):
        inductor.write_bytes(saved[0])
    _keep(given, arm, trainer)
    if trainer.progress < 1:
        _say(f"{arm}: {100 * trainer.progress:.0f}% trained, the time is up; start again")
        return None
    about = {
        "arm": arm, "seed": given.seed, "steps": trainer.step, "from": given.checkpoint.name,
        "tokens": trainer.step * trainer.stream.tokens, "seconds": round(trainer.seconds, 1),
        "device": subq_gpu._device(given), "begun_with": load_checkpoint(given.checkpoint)[1]["about"],
    }  # fmt: skip
    # what is judged goes on being judged where it lies: it must be whole before the next call passes it over
    brought = [given.out / f"{folder.name}-int8"] if arm in given.bring else []
    for place in (*brought, folder):
        save_checkpoint(trainer.model, place, tokenizer=data.tokenizer, storage="int8", about=about)
    return folder


def trainer_of(given: argparse.Namespace, arm: str, data: SubqData) -> SubqTrainer:
    """The trainer of an arm: at its saved state, or at the checkpoint's weights."""
    started, _ = load_checkpoint(given.checkpoint)
    model = started.config
    batches = given.steps or 100_000  # the schedule follows the time, where that is over first
    stream = replace(recipe_stream(given.seed + 1_000, ((16_384, batches),)), chunk=model.chunk)
    if arm in HARDER:
        stream = replace(stream, **HARDER[arm])  # type: ignore[arg-type]
    on_gpu = given.device.startswith("cuda")
    config = SubqTrainConfig(
        lr=given.lr, warmup=given.warmup, limit_s=given.train_seconds, joined=True, forced_until=0.0,
        save_every=1_000, compiled=on_gpu and not given.eager, workers=given.workers if on_gpu else 0,
        losses=replace(LossWeights(), contrastive=given.contrastive * LossWeights().contrastive),
        contrastive_until=ARMS[arm], muon=not given.tiny, seed=given.seed,
    )  # fmt: skip
    if given.tiny:
        # the sizes of batches alone: the model is the checkpoint's
        _, stream, config = tiny_form(SubqConfig(vocabulary=model.vocabulary), stream, config)
        length = 16 * model.chunk
        stream = replace(stream, phases=((length, batches),), longest=length, chunk=model.chunk)
    state = given.work / f"state-{arm}-{given.seed}"
    begun = (state / "trainer.pt").exists()
    trainer = SubqTrainer(model, data, stream, config, state, given.device)
    if not begun:
        trainer.model.load_state_dict(started.state_dict())
    return trainer


def _keep(given: argparse.Namespace, arm: str, trainer: SubqTrainer) -> None:
    """Put the arm's curve into OUT/fade-SEED.json."""
    path = given.out / f"fade-{given.seed}.json"
    found: dict[str, Any] = (
        json.loads(path.read_text()) if path.exists() else {"seed": given.seed, "arms": {}}
    )
    lines = (trainer.state_dir / CURVE).read_text(encoding="utf-8").splitlines()
    found["arms"][arm] = {
        "contrastive_until": ARMS[arm], "contrastive": given.contrastive, "steps": trainer.step,
        "seconds": round(trainer.seconds, 1),
        "done": trainer.progress >= 1, "from": given.checkpoint.name, "made_from": trainer._made_from,
        "curve": subq_gpu._thinned([json.loads(line) for line in lines], 100),
    }  # fmt: skip
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    last = found["arms"][arm]["curve"][-1]
    _say(f"{arm}: step {trainer.step}, {trainer.seconds:.0f} s: {json.dumps(last)}")


def _needles(given: argparse.Namespace, arm: str, checkpoint: Path, until: float) -> bool:
    """Needles of a checkpoint under the arm's name; whether all were asked."""
    asked = argparse.Namespace(
        data=given.data, device=given.device, also="", also_from=1 << 62, lengths=given.lengths, out=given.out,
        call_seconds=max(1.0, until - time.monotonic() - 5), trials=given.trials,
        trials_above=given.trials_above, keys=0, seed=given.seed, cells=given.cells,
    )  # fmt: skip
    named = given.work / f"{arm}-{given.seed}"
    if not named.exists():  # its rows go by the folder's name
        named.symlink_to(checkpoint.resolve(), target_is_directory=True)
    run_needles(asked, named, subq_gpu._device(given))
    record = json.loads((given.out / f"needles-{named.name}.json").read_text())
    return bool(record.get("done"))


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="what infra.training.subq_pack wrote")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a trained backbone's folder")
    parser.add_argument(
        "--arms", nargs="+", default=["fade", "kept"], choices=list(ARMS), help="in this order"
    )
    parser.add_argument(
        "--bring",
        nargs="*",
        default=["alike", "namesakes"],
        choices=list(ARMS),
        help="whose weights OUT gets too (32 MB each)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of batches and trials")
    parser.add_argument("--seconds", type=float, default=400.0, help="of everything")
    parser.add_argument(
        "--train-seconds", type=float, default=0.0, help="of an arm, compiling included (0: by --steps)"
    )
    parser.add_argument("--lr", type=float, default=5e-4, help="largest learning rate")
    parser.add_argument("--warmup", type=int, default=80, help="steps until it is reached")
    parser.add_argument("--tiny", action="store_true", help="batches and rate for a model of a try")
    # not by the time: the first arm compiles for a minute, and its schedule would be half over at its second step
    parser.add_argument("--steps", type=int, default=1_200, help="updates of an arm (0: by --train-seconds)")
    parser.add_argument(
        "--contrastive", type=float, default=1.0,
        help="weight of the contrastive term, of the recipe's (a run with a routing stage ends with 0.1 of it)",
    )  # fmt: skip
    parser.add_argument("--lengths", default="16k,64k,256k,1M")
    parser.add_argument("--cells", default=CELLS)
    parser.add_argument("--trials", type=int, default=100, help="a cell up to 1M tokens")
    parser.add_argument("--trials-above", type=int, default=32, help="a cell above 1M tokens, at most")
    parser.add_argument("--workers", type=int, default=8, help="processes that make batches (CUDA)")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--device", default="cuda")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
