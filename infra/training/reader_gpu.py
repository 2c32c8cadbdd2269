"""Adapt Gemma-3-270M to read, on a GPU host: several runs side by side on one GPU, each judged when it ends.

    python3 -m infra.training.reader_gpu --carried DIR --out OUT --seconds 300 --runs runs.json

`carried` is what `infra.training.reader_pack` wrote (gguf importable for its dequantisation). `runs.json` is a list
of objects: name, method (base, lora or full) and what differs from the defaults of `DEFAULTS`. Each run writes
OUT/<name>.json (settings, curve, answers by row) as soon as it is judged and, for LoRA, OUT/<name>.safetensors.
Imports only torch, transformers, peft and numpy beside `models`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models.reader_decoding import greedy_answers
from models.reader_training import (
    ReaderTrainConfig,
    ReadingRows,
    add_lora,
    answer_loss,
    collate,
    plan_batches,
    save_adapter,
    train_reader,
)

DEFAULTS: dict[str, Any] = {
    "method": "lora",
    "lr": 8e-4,
    "rank": 32,
    "alpha": 64,
    "dropout": 0.05,
    "steps": 2000,
    "tokens_per_batch": 32768,
    "weight_decay": 0.01,
    "silent_share": 0.3,  # of all rows; or of each set's own, {set: share, "default": share}
    "init": "",  # adapter to go on from, a safetensors file in the carried folder
    "shares": {},  # dataset -> share of its rows an epoch (default 1)
    "seed": 0,
}


def main() -> None:
    """Entry point: start one process a run and wait for them; or be one of them (--run)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--carried", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300, help="training time of a run")
    parser.add_argument(
        "--whole-limit", type=float, default=560, help="seconds after which all runs are ended"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--judged-most", type=int, default=0, help="rows to judge by, for a try (0: all)")
    parser.add_argument(
        "--longest", type=int, default=0, help="judge long prompts (over 1,500 tokens), at most"
    )
    parser.add_argument("--tokens-decoded", type=int, default=98304, help="prompt tokens of a decoded batch")
    parser.add_argument("--run", help="the one run that this process is to do")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    runs = {run["name"]: DEFAULTS | run for run in json.loads(given.runs.read_text())}
    if given.run:
        one_run(runs[given.run], given)
        return
    started = time.monotonic()
    unpack_weights(given.carried)
    _say("weights ready", started)
    logs = {name: (given.carried / f"{name}.log").open("w") for name in runs}
    children = {
        name: subprocess.Popen(
            [sys.executable, "-m", "infra.training.reader_gpu", *sys.argv[1:], "--run", name],
            stdout=logs[name],
            stderr=subprocess.STDOUT,
        )
        for name in runs
    }
    told: dict[str, float] = {}
    while children and time.monotonic() - started < given.whole_limit:
        time.sleep(1)
        for name, child in list(children.items()):
            if child.poll() is not None:
                _say(f"{name} ended with {child.returncode}", started)
                print((given.carried / f"{name}.log").read_text()[-1500:], flush=True)  # noqa: T201
                del children[name]
        if time.monotonic() - told.get("last", 0.0) > 30:
            told["last"] = time.monotonic()
            for name in children:
                lines = (given.carried / f"{name}.log").read_text().splitlines()
                _say(f"{name}: {lines[-1] if lines else ''}", started)
    for name, child in children.items():
        child.kill()
        _say(f"{name} was ended at the limit", started)


def unpack_weights(carried: Path) -> Path:
    """Dequantise the carried weights to a bf16 safetensors file beside them, once."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    target = carried / "base.safetensors"
    if target.exists():
        return target
    kinds = json.loads((carried / "kinds.json").read_text())
    tensors = {}
    with np.load(carried / "weights.npz") as packed:
        for name, kind in kinds.items():
            plain = dequantize(packed[name], GGMLQuantizationType[kind])
            tensors[name] = torch.from_numpy(np.array(plain, np.float32)).to(torch.bfloat16)
    save_file(tensors, target)
    return target


def load_base(carried: Path, dtype: torch.dtype) -> nn.Module:
    """The base model over the cut vocabulary."""
    from safetensors.torch import load_file
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(**json.loads((carried / "config.json").read_text()))
    config._attn_implementation = "sdpa"
    model = Gemma3ForCausalLM(config)
    state = load_file(carried / "base.safetensors")
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"weights do not fit the model: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return cast_weights(model, dtype)


def cast_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with its weights in `dtype`, in place; buffers stay as they are.

    `model.to(torch.bfloat16)` would round the rotary frequencies too, by up to 0.2%: 0.4 rad at 215 tokens.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def start_from(model: nn.Module, path: Path) -> None:
    """Load an adapter's weights into an adapted model; raises RuntimeError where they do not fit."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    state = load_file(path)
    result: Any = set_peft_model_state_dict(model, state)
    loaded = len(state) - len(result.unexpected_keys)
    if result.unexpected_keys or any("lora_" in key for key in result.missing_keys):
        raise RuntimeError(f"{path} does not fit the model: {loaded} of {len(state)} tensors were taken")


def load_rows(path: Path) -> tuple[ReadingRows, dict[str, np.ndarray[Any, Any]]]:
    """The packed rows of a file and their labels (codes, tells, held_out)."""
    with np.load(path) as packed:
        offsets = np.concatenate([[0], np.cumsum(packed["lengths"].astype(np.int64))])
        rows = ReadingRows(packed["tokens"], offsets, packed["answer_starts"].astype(np.int64))
        return rows, {name: packed[name] for name in ("codes", "tells", "held_out")}


def row_chooser(
    labels: dict[str, np.ndarray[Any, Any]], names: list[str], run: dict[str, Any]
) -> Callable[[int], np.ndarray[Any, Any]]:
    """The rows of an epoch: every set's share of its rows, and silent rows up to their share."""
    share = np.array([run["shares"].get(name.split("/")[0], run["shares"].get(name, 1.0)) for name in names])[
        labels["codes"]
    ]
    free = ~labels["held_out"]
    sets = np.array([name.split("/")[0] for name in names])[labels["codes"]]
    tells = labels["tells"]
    wanted: float | dict[str, float] = run["silent_share"]

    def choose(epoch: int) -> np.ndarray[Any, Any]:
        chance = np.random.default_rng(run["seed"] * 1009 + epoch)
        if not isinstance(wanted, dict):
            told, quiet = (
                drawn(rows, chance) for rows in (np.flatnonzero(free & tells), np.flatnonzero(free & ~tells))
            )
            return mixed(told, quiet, wanted, chance)
        parts = []
        for name in sorted(set(sets)):
            rows = drawn(np.flatnonzero(free & (sets == name)), chance)
            part = wanted.get(name, wanted["default"])
            parts.append(mixed(rows[tells[rows]], rows[~tells[rows]], part, chance))
        return np.concatenate(parts)

    def drawn(rows: np.ndarray[Any, Any], chance: np.random.Generator) -> np.ndarray[Any, Any]:
        kept: np.ndarray[Any, Any] = rows[chance.random(len(rows)) < share[rows]]
        return kept

    def mixed(
        told: np.ndarray[Any, Any], quiet: np.ndarray[Any, Any], silent: float, chance: np.random.Generator
    ) -> np.ndarray[Any, Any]:
        return np.concatenate([told, chance.permutation(quiet)[: int(len(told) * silent / (1 - silent))]])

    return choose


def one_run(run: dict[str, Any], given: argparse.Namespace) -> None:
    """Train and judge one run, and write what came of it."""
    started = time.monotonic()
    names = json.loads((given.carried / "names.json").read_text())
    on_gpu = given.device.startswith("cuda")
    torch.manual_seed(run["seed"])
    model = load_base(
        given.carried, torch.float32 if run["method"] == "full" or not on_gpu else torch.bfloat16
    )
    if run["method"] == "lora":
        model = add_lora(model, run["rank"], run["alpha"], run["dropout"])
        if run["init"]:
            start_from(model, given.carried / run["init"])
    model = model.to(given.device)
    record: dict[str, Any] = {"run": run, "device": torch.cuda.get_device_name() if on_gpu else "cpu"}
    if run["method"] != "base":
        rows, labels = load_rows(given.carried / "training.npz")
        config = ReaderTrainConfig(
            steps=run["steps"],
            tokens_per_batch=run["tokens_per_batch"],
            lr=run["lr"],
            weight_decay=run["weight_decay"],
            seed=run["seed"],
            limit_s=given.seconds,
        )
        choose = row_chooser(labels, names["training"], run)
        _say(f"{len(rows):,} rows, {len(choose(0)):,} an epoch", started)
        curve = train_reader(model, rows, config, choose_rows=choose, device=given.device, on_step=_progress)
        dev = np.flatnonzero(labels["held_out"])
        record |= {
            "curve": _thinned(curve),
            "steps": len(curve),
            "tokens": sum(step["tokens"] for step in curve),
            "train_seconds": curve[-1]["seconds"],
            "dev": _dev_loss(model, rows, dev, labels["tells"], given.device),
        }
        if on_gpu:
            record["peak_bytes"] = torch.cuda.max_memory_allocated()
        _say(f"trained {len(curve)} steps; dev {record['dev']}", started)
    if run["method"] == "lora":
        folder = given.carried / f"adapter-{run['name']}"
        save_adapter(model, folder)
        (given.out / f"{run['name']}.safetensors").write_bytes(
            (folder / "adapter_model.safetensors").read_bytes()
        )
        record["adapter_config"] = json.loads((folder / "adapter_config.json").read_text())
        model = model.float().merge_and_unload()  # type: ignore[operator]
    record["judged"] = _judge(model, names, run["method"] == "base", given)
    (given.out / f"{run['name']}.json").write_text(json.dumps(record))
    _say("judged", started)


def _judge(model: nn.Module, names: dict[str, Any], base: bool, given: argparse.Namespace) -> dict[str, Any]:
    """Greedy answers to every judged prompt; where the reader gave up, also what it says when it must answer."""
    rows, _ = load_rows(given.carried / "judged.npz")
    few = judged_rows(rows, given.judged_most, given.longest)
    prompts: list[Any] = [rows.row(at)[: rows.answer_starts[at]] for at in few]
    if base:
        example = np.array(names["example"])
        prompts = [np.concatenate([prompt[:1].astype(np.int64), example, prompt[1:]]) for prompt in prompts]
    options = {"stop_id": names["stop"], "give_up_id": names["give_up"], "device": given.device}
    if given.device.startswith("cuda"):
        model = cast_weights(model, torch.bfloat16)
        torch.cuda.empty_cache()
    started = time.monotonic()
    answers = greedy_answers(model, prompts, tokens_per_batch=given.tokens_decoded, **options)
    gave_up = [at for at, answer in enumerate(answers) if answer.ids[:1] == (names["give_up"],)]
    forced = greedy_answers(
        model,
        [prompts[at] for at in gave_up],
        tokens_per_batch=given.tokens_decoded,
        may_give_up=False,
        **options,
    )
    return {
        "seconds": time.monotonic() - started,
        "rows": few,
        "ids": [list(answer.ids) for answer in answers],
        "margins": [round(answer.margin, 3) for answer in answers],
        "forced": {str(at): list(answer.ids) for at, answer in zip(gave_up, forced, strict=True)},
    }


def judged_rows(rows: ReadingRows, most: int, longest: int) -> list[int]:
    """The first `most` rows (0: all), of which at most `longest` long ones (0: all), spread evenly."""
    found = list(range(min(len(rows), most or len(rows))))
    long = [at for at in found if rows.answer_starts[at] > 1500]
    if longest and len(long) > longest:
        left_out = set(long) - {long[at * len(long) // longest] for at in range(longest)}
        found = [at for at in found if at not in left_out]
    return found


@torch.inference_mode()
def _dev_loss(
    model: nn.Module, rows: ReadingRows, dev: np.ndarray[Any, Any], tells: np.ndarray[Any, Any], device: str
) -> dict[str, float]:
    """Mean loss and share of tokens right on the held-out questions, telling and silent rows apart."""
    model.eval()
    found = {}
    place = torch.device(device)
    for name, chosen in (("telling", dev[tells[dev]]), ("silent", dev[~tells[dev]])):
        losses = []
        for batch in plan_batches(rows.lengths, chosen, 16384, 0) if len(chosen) else []:
            with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda"):
                loss, right = answer_loss(model, collate(rows, batch, place))
            losses.append((loss.item(), right.item(), len(batch)))
        weight = sum(size for _, _, size in losses) or 1
        found[f"{name}_loss"] = round(sum(loss * size for loss, _, size in losses) / weight, 4)
        found[f"{name}_right"] = round(sum(right * size for _, right, size in losses) / weight, 4)
    return found


def _thinned(curve: list[dict[str, float]], most: int = 200) -> list[dict[str, float]]:
    """The curve with at most `most` points, each the mean of its steps."""
    size = max(1, -(-len(curve) // most))
    groups = [curve[at : at + size] for at in range(0, len(curve), size)]
    return [{key: float(np.mean([step[key] for step in group])) for key in group[0]} for group in groups]


def _progress(record: dict[str, float]) -> None:
    if record["step"] % 20 == 0:
        shown = {key: float(f"{value:.4g}") for key, value in record.items()}
        print(json.dumps(shown), flush=True)  # noqa: T201


def _say(what: str, started: float) -> None:
    print(f"[{time.monotonic() - started:6.1f} s] {what}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
