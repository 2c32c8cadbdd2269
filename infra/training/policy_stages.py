"""The stages of `policy_gpu`: what is read, trained and judged; plain functions that a CPU runs in miniature.

Imports nothing that a GPU host lacks: torch, transformers, peft, tokenizers, numpy, safetensors, our light parts.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.training.policy_evaluation import LEARNING, Say
from models.retriever.config import RetrieverConfig
from models.retriever.network import PolicyNetwork
from models.retriever.router import train_router
from models.retriever.storage import save_policy
from models.retriever.supervised import SupervisedConfig, train_supervised
from models.retriever.table import FEATURES
from pipeline.tasks.material import Material
from pipeline.tasks.reading import Voice
from rl.episodes import Readings, Request, mask_of, picks_of
from rl.loops import LoopConfig, PolicyLoop
from rl.minimal_sets import mine
from rl.paying import EpisodeConfig
from rl.reward import RewardConfig

ALGORITHMS = ("supervised", "minimal", "router", "reinforce", "plain_ppo")
CHUNK = 64


def planned(material: Material, row: int, most_random: int = 16, seed: int = 0) -> list[Request]:
    """What is read of a training question beforehand: nothing, singles, prefixes, pairs with gold, random sets."""
    tables = material.tables
    here = np.flatnonzero(tables.present[row])
    chance = np.random.default_rng((seed, row))
    masks = {0, *(1 << int(at) for at in here)}
    features = tables.features[row]
    for name in ("bm25", "dense", "fused"):
        order = [int(at) for at in here[np.argsort(-features[here, FEATURES.index(name)], kind="stable")]]
        masks |= {mask_of(order[:count]) for count in (2, 3, 4, 6) if count <= len(order)}
    best = [int(at) for at in here[np.argsort(-features[here, FEATURES.index("fused")], kind="stable")]][:12]
    gold = [int(at) for at in np.flatnonzero(tables.labels[row] > 0)][:4]
    masks |= {mask_of([at, other]) for at in gold for other in best[:6]}
    masks.add(mask_of(gold[:4]))
    for _ in range(most_random if len(best) > 2 else 0):
        count = int(chance.integers(2, min(5, len(best)) + 1))
        masks.add(mask_of(int(at) for at in chance.choice(best, count, replace=False)))
    return [(row, picks_of(mask)) for mask in sorted(masks)]


def read_chunk(material: Material, rows: Sequence[int], readings: Readings, path: Path) -> int:
    """Read what is planned of some rows and write the shard; the number of readings in it."""
    mine_only = Readings(readings, readings.material)
    mine_only.read([request for row in rows for request in planned(material, int(row))])
    mine_only.save(path)
    return len(mine_only)


def load_readings(folders: Iterable[Path], readings: Readings) -> int:
    """All shards of some folders, into `readings`; their number of readings."""
    return sum(readings.load(path) for folder in folders for path in sorted(folder.glob("readings-*.npz")))


def train_one(
    material: Material, rows: np.ndarray[Any, Any], readings: Readings, algorithm: str, seed: int, *,
    out: Path, seconds: float, start: Path | None, device: str, say: Say,
    projection: np.ndarray[Any, Any] | None = None, gamma: float = 0.001, width: int = 128, layers: int = 2,
    warm_steps: int = 1500, questions: int = 64, iterations: int = 1_000_000,
) -> dict[str, Any]:  # fmt: skip
    """One policy of one seed, saved under OUT/<algorithm>-<seed>.

    Goes on from `start`'s checkpoint if there is one; what `start` has finished is only copied.
    """
    began, name = time.monotonic(), f"{algorithm}-{seed}"
    folder = out / name
    finished = None if start is None or algorithm in LEARNING else start / name
    if finished is not None and (finished / "record.json").exists():
        shutil.copytree(finished, folder, dirs_exist_ok=True)
        return dict(json.loads((folder / "record.json").read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tables = material.tables.take(rows)
    here = _Rows(readings, rows)
    config = RetrieverConfig(
        dim=tables.dim, num_features=tables.num_features, width=width, layers=layers, dropout=0.2,
        feature_names=FEATURES if tables.num_features == len(FEATURES) else (),
    )  # fmt: skip
    network = PolicyNetwork(config).to(device)
    record: dict[str, Any] = {"algorithm": algorithm, "seed": seed, "questions": len(rows), "gamma": gamma}
    before = _begun(start, name)
    if algorithm == "router":
        losses = Readings.singles(_table_of(readings, rows), len(rows), tables.num_candidates, "loss")
        known = ~np.isnan(losses)
        routed = replace(tables, present=tables.present & known)
        usable = np.flatnonzero(routed.present.any(1))
        curve = train_router(
            network, routed.take(usable), np.nan_to_num(losses[usable], nan=20.0), steps=warm_steps, seed=seed,
            device=device,
        )  # fmt: skip
        record["loss"] = float(np.mean(curve[-50:]))
    else:
        if before is None:
            wanted = None
            taught = tables
            if algorithm == "minimal":
                sets = mine(tables, Readings(here), starts(material, rows), keep_gold=True)
                wanted, record["sets_found"] = sets.or_labels(tables), sets.found
                taught = replace(tables, needs_all=tables.needs_all | (sets.wanted.sum(1) > 1))
            records = train_supervised(
                network, taught, SupervisedConfig(steps=warm_steps, seed=seed, limit_s=0.5 * seconds),
                wanted=wanted, device=device,
            )  # fmt: skip
            record["warm_loss"] = float(np.mean([each["loss"] for each in records[-50:]]))
        if algorithm in LEARNING:
            loop = PolicyLoop(
                network, tables, Readings(here),
                LoopConfig(
                    algorithm=algorithm, seed=seed, questions=min(questions, len(rows)), group=8, minibatch=2048,
                    episode=EpisodeConfig(reward=RewardConfig(gamma=gamma, gold_weight=0.2)), anchor_weight=0.02,
                ),
                device,
            )  # fmt: skip
            if before is not None:
                loop.restore(before)
            records, alarm = loop.run(
                iterations, limit_s=seconds - (time.monotonic() - began),
                on_step=lambda step: _told(step, loop, folder, say, name),
            )  # fmt: skip
            loop.save(folder / "loop.pt")
            record |= {
                "iterations": loop.iteration,
                "alarm": alarm,
                "curve": records[:: max(1, len(records) // 200)],
            }
    save_policy(unfold(network, projection), folder / "policy", {**_plain(record), "unit": "sentence"})
    save_policy(network, folder / "carried", _plain(record))
    record["seconds"] = round(time.monotonic() - began, 1)
    (folder / "record.json").write_text(json.dumps(record))
    return record


def starts(material: Material, rows: Iterable[int]) -> list[list[int]]:
    """What minimal sets are mined from: labelled candidates and hybrid's best three."""
    out = []
    for row in rows:
        fused = np.where(
            material.tables.present[row], material.tables.features[row, :, FEATURES.index("fused")], -1
        )
        gold = np.flatnonzero(material.tables.labels[row] > 0)[:3]
        out.append(sorted({*map(int, gold), *(int(at) for at in np.argsort(-fused)[:3] if fused[at] >= 0)}))
    return out


def unfold(network: PolicyNetwork, projection: np.ndarray[Any, Any] | None) -> PolicyNetwork:
    """The same policy for the embedder's own vectors: the turning goes into the first layer."""
    if projection is None or projection.shape[0] == projection.shape[1]:
        return network
    wide = PolicyNetwork(replace(network.config, dim=int(projection.shape[0])))
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    weight = state["encode.project.weight"]
    state["encode.project.weight"] = weight @ torch.from_numpy(projection).T.to(weight.dtype)
    wide.load_state_dict(state)
    return wide.eval()


def open_voice(carried: Path, device: str, adapter: str = "reader-lora") -> Voice:
    """The carried reader: cut vocabulary, adapter merged, its own tokenizer."""
    import lzma

    from tokenizers import Tokenizer

    from infra.training.reader_gpu import load_base, start_from, unpack_weights
    from models.reader_training import add_lora

    unpack_weights(carried)
    on_gpu = device.startswith("cuda")
    model: Any = load_base(carried, torch.float32)
    folder = carried / adapter
    if folder.is_dir():
        told = json.loads((folder / "adapter_config.json").read_text())
        model = add_lora(model, told["r"], told["lora_alpha"], 0.0)
        start_from(model, folder / "adapter_model.safetensors")
        model = model.merge_and_unload()
    model = model.to(torch.bfloat16 if on_gpu else torch.float32).to(device).eval()
    vocabulary = np.load(carried / "vocabulary.npy")
    packed = carried / "tokenizer.json.xz"
    tokenizer = Tokenizer.from_str(lzma.decompress(packed.read_bytes()).decode())
    new_id = np.full(max(tokenizer.get_vocab_size(), int(vocabulary.max()) + 1), 3, np.int64)
    new_id[vocabulary] = np.arange(len(vocabulary))
    return Voice(
        model=model,
        encode=lambda text: new_id[tokenizer.encode(text, add_special_tokens=False).ids].tolist(),
        decode=lambda ids: str(tokenizer.decode([int(vocabulary[at]) for at in ids])),
        begin=(int(new_id[2]),),
        device=device,
        form="adapted",
        tokens_per_batch=131072 if on_gpu else 2048,
    )


class _Rows:
    """Some rows of readings of the whole material, numbered from 0."""

    def __init__(self, readings: Readings, rows: Any) -> None:
        self._readings, self._rows = readings, rows

    def read(self, requests: Sequence[Request]) -> Any:
        """The outcomes, in order."""
        return self._readings.read([(int(self._rows[row]), picks) for row, picks in requests])


def _table_of(readings: Readings, rows: np.ndarray[Any, Any]) -> Readings:
    """The singles recorded of some rows, numbered from 0; nothing is read for it."""
    part = Readings(None)
    for at, row in enumerate(rows):
        known = [pick for pick in range(64) if readings.knows(int(row), (pick,))]
        if known:
            outcomes = readings.read([(int(row), (pick,)) for pick in known])
            part.add([at] * len(known), [1 << pick for pick in known], outcomes)
    return part


def _begun(start: Path | None, name: str) -> Path | None:
    path = None if start is None else start / name / "loop.pt"
    return path if path is not None and path.exists() else None


def _told(step: dict[str, float], loop: PolicyLoop, folder: Path, say: Say, name: str) -> None:
    if int(step["iteration"]) % 20 == 0:
        loop.save(folder / "loop.pt")
        shown = {key: float(f"{value:.4g}") for key, value in step.items() if math.isfinite(value)}
        say(f"{name} {json.dumps(shown)}")


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "curve"}
