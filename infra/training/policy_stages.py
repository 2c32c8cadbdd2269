"""The stages of `policy_gpu`: what is read, trained and judged; plain functions that a CPU runs in miniature.

Imports nothing that a GPU host lacks: torch, transformers, peft, tokenizers, numpy, safetensors, our light parts.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from infra.training.cards import policy_card
from infra.training.policy_pairs import Say
from models.retriever.config import RetrieverConfig
from models.retriever.network import PolicyNetwork
from models.retriever.router import train_router
from models.retriever.storage import load_policy, save_policy
from models.retriever.supervised import SupervisedConfig, train_supervised
from models.retriever.table import FEATURES, names_for
from pipeline.tasks.material import Material
from rl.episodes import Reader, Readings, Request, mask_of, picks_of
from rl.loops import LoopConfig, PolicyLoop
from rl.minimal_sets import mine
from rl.paying import EpisodeConfig
from rl.reward import RewardConfig

LEARNING = ("reinforce", "plain_ppo")
READINGS = ("together", "apart")
MINED = ("minimal", "picker")
"""Supervised by minimal sufficient sets: mined as ours are, or as Context-Picker's (arXiv 2512.14465)."""
REWARDED = "rewarded"
"""What `PolicyJob.scores` says of pair readers that reward trained."""
MULTI_HOP = ("hotpot", "musique")
"""Sets with few training questions, of two hops and more, that a job may weigh up."""
MADE_TO_ANSWER = math.inf
"""Margin of giving up in training and judging: the reader is made to answer, as the curves count it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyJob:
    """One policy that is trained: `kind` names what it is in the results, `algorithm` how it learns."""

    kind: str
    algorithm: str
    seed: int
    form: Literal["terminal", "stepwise"] = "terminal"
    price: float = 0.0005
    """gamma, or beta in the stepwise form: the price of a token."""
    pair: bool = True
    """Whether it sees the pair reader's features."""
    reading: Literal["together", "apart"] = "together"
    """How what it chooses is read, so what it is paid for."""
    multi_hop: int = 1
    """How often a question of `MULTI_HOP` stands among those that it learns from."""
    scores: str = ""
    """Whose pair features it sees: the label-trained readers', `rewarded` or `longer` (`policy_opened.seen_by`)."""

    @property
    def name(self) -> str:
        """The folder of the policy."""
        return f"{self.kind}-{self.seed}"


def taught_jobs(seeds: Sequence[int], arms: Sequence[str] = ()) -> list[PolicyJob]:
    """Policies that learn from labels, the warm starts: every seed, and one without the pair reader.

    `arms`: every seed over these pair readers' scores too, `supervised_rewarded` and `supervised_longer`.
    """
    return [
        *(PolicyJob(kind="supervised", algorithm="supervised", seed=seed) for seed in seeds),
        PolicyJob(kind="supervised_without_pair", algorithm="supervised", seed=seeds[0], pair=False),
        *(
            PolicyJob(kind=f"supervised_{scores}", algorithm="supervised", seed=seed, scores=scores)
            for scores in arms
            for seed in seeds
        ),
    ]


def routed_jobs(seeds: Sequence[int]) -> list[PolicyJob]:
    """Routers, which learn through the reader's loss of single candidates."""
    return [PolicyJob(kind="router", algorithm="router", seed=seed) for seed in seeds]


def reward_jobs(
    seeds: Sequence[int], prices: Sequence[float] = (), *, together: bool = False, multi_hop: int = 1,
    rewarded: bool = False,
) -> list[PolicyJob]:  # fmt: skip
    """Policies that learn by reward: both algorithms in both readings, every seed; one a reading without pairs.

    `prices`: other prices of a token, PPO read together, the first seed. `together`: none that is read apart.
    `multi_hop` above 1: also `reinforce_hops`, which meets multi-hop questions so often. `rewarded`: first of all
    both algorithms over the scores of pair readers that reward trained.
    """
    first = seeds[0]
    made = [
        PolicyJob(kind=f"{kind}_{REWARDED}", algorithm=kind, seed=seed, scores=REWARDED)
        for kind in LEARNING
        for seed in seeds
        if rewarded
    ]
    for reading, ending in (("together", ""), ("apart", "_apart"))[: 1 if together else 2]:
        told: Any = {"reading": reading}
        made += [
            PolicyJob(kind=f"{kind}{ending}", algorithm=kind, seed=seed, **told)
            for kind in LEARNING
            for seed in seeds
        ]
        blind = f"reinforce_without_pair{ending}"
        made.append(PolicyJob(kind=blind, algorithm="reinforce", seed=first, pair=False, **told))
    if multi_hop > 1:
        made += [
            PolicyJob(kind="reinforce_hops", algorithm="reinforce", seed=seed, multi_hop=multi_hop)
            for seed in seeds
        ]
    return made + [
        PolicyJob(kind=f"plain_ppo_gamma{price:g}", algorithm="plain_ppo", seed=first, price=price)
        for price in prices
    ]


def reward_of(job: PolicyJob) -> RewardConfig:
    """What the job's episodes are paid."""
    if job.form == "stepwise":
        return RewardConfig(form="stepwise", beta=job.price, alpha=0.1, min_loss=0.1, gold_weight=0.2)
    return RewardConfig(gamma=job.price, gold_weight=0.2)


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


def load_readings(folders: Iterable[Path], readings: Readings) -> int:
    """All shards of some folders, into `readings`; their number of readings."""
    return sum(readings.load(path) for folder in folders for path in sorted(folder.glob("readings-*.npz")))


def train_one(
    material: Material, rows: np.ndarray[Any, Any], readings: Readings, job: PolicyJob, *,
    out: Path, seconds: float, device: str, say: Say, projection: np.ndarray[Any, Any] | None = None,
    width: int = 128, layers: int = 2, warm_steps: int = 1500, questions: int = 64,
    iterations: int = 1_000_000, losses: np.ndarray[Any, Any] | None = None, command: str = "",
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One policy of one seed, saved under OUT/<name>; what is there and finished is left, a loop goes on.

    Learning by reward begins with the supervised policy of its seed in OUT where that is there. A router needs
    `losses` [N, K]: the reader's of each candidate alone, NaN where it was not read. Read apart, `material` is that
    of `apart_tables` and `readings` those of an `ApartReader`. `about` is put into the record, the card and the
    policy's configuration (`paid_by`: whose readings it was paid by).
    """
    began, folder = time.monotonic(), out / job.name
    learns = job.algorithm in LEARNING
    if job.multi_hop > 1:
        hops = [row for row in rows if material.questions[row].dataset in MULTI_HOP]
        rows = np.concatenate([rows, *[np.array(hops, rows.dtype)] * (job.multi_hop - 1)])
    if (folder / "record.json").exists() and not learns:
        return dict(json.loads((folder / "record.json").read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(job.seed)
    tables = material.tables.take(rows)
    if not job.pair:
        tables = tables.seen_with(len(FEATURES))
    here = of_rows(readings, rows)
    network = PolicyNetwork(
        RetrieverConfig(
            dim=tables.dim, num_features=tables.num_features, width=width, layers=layers, dropout=0.2,
            feature_names=names_for(tables.num_features),
        )  
    ).to(device)  # fmt: skip
    record = begin_record(job, len(rows)) | dict(about or {})
    warm: list[dict[str, float]] = []
    before = folder / "loop.pt"
    of_scores = f"_{job.scores}" if job.scores else "" if job.pair else "_without_pair"
    taught = out / f"supervised{of_scores}-{job.seed}" / "carried"
    if job.algorithm == "router":
        if losses is None:
            raise ValueError("losses: given none; allowed: those of single readings, for a router")
        record["loss"] = _route(network, tables, losses[rows], warm_steps, job.seed, device)
    elif learns and (before.exists() or (taught / "config.json").exists()):
        if not before.exists():
            network, _ = load_policy(taught, device)
    else:
        wanted, known = None, tables
        if job.algorithm in MINED:
            theirs = job.algorithm == "picker"
            sets = mine(tables, Readings(here), starts(material, rows), keep_gold=not theirs, in_turn=theirs)
            wanted = sets.or_labels(tables)
            record |= {"sets_found": sets.found, "sets": sets.told(tables)}
            known = replace(tables, needs_all=tables.needs_all | (sets.wanted.sum(1) > 1))
        records = warm = train_supervised(
            network, known,
            SupervisedConfig(
                steps=warm_steps, batch=128, seed=job.seed, vector_noise=0.05, weight_decay=0.05,
                limit_s=0.5 * seconds if learns else seconds,
            ),
            wanted=wanted, device=device,
        )  # fmt: skip
        record["warm_loss"] = float(np.mean([each["loss"] for each in records[-50:]]))
        record["steps"] = len(records)
    if learns:
        record |= _learn(
            network, tables, Readings(here), job, before, questions, iterations,
            seconds - (time.monotonic() - began), device, say,
        )  # fmt: skip
    keep_policy(network, record, folder, projection, material, began, warm, command)
    return record


def begin_record(job: PolicyJob, questions: int) -> dict[str, Any]:
    """What a policy's record begins with: its job, and the questions that it learns from."""
    return {**asdict(job), "questions": questions}


def keep_policy(
    network: PolicyNetwork, record: dict[str, Any], folder: Path, projection: np.ndarray[Any, Any] | None,
    material: Material, began: float, warm: Sequence[dict[str, float]] = (), command: str = "",
) -> None:  # fmt: skip
    """Save a policy, as the embedder has it and as it was carried, its card and its record; the record gets the
    seconds since `began`."""
    about = _plain(record) | {
        "unit": "sentence", "embedder": "minilm", "candidates": material.tables.num_candidates,
    }  # fmt: skip
    card = policy_card(about, warm, record.get("curve", ()), command)
    save_policy(unfold(network, projection), folder / "policy", about, card)
    save_policy(network, folder / "carried", _plain(record))
    record["seconds"] = round(time.monotonic() - began, 1)
    (folder / "record.json").write_text(json.dumps(record))


def _route(
    network: PolicyNetwork, tables: Any, losses: np.ndarray[Any, Any], steps: int, seed: int, device: str
) -> float:
    """Train a router on the candidates whose reading alone is recorded; its last loss."""
    known = ~np.isnan(losses)
    routed = replace(tables, present=tables.present & known)
    usable = np.flatnonzero(routed.present.any(1))
    curve = train_router(
        network, routed.take(usable), np.nan_to_num(losses[usable], nan=20.0), steps=steps, seed=seed,
        device=device,
    )  # fmt: skip
    return float(np.mean(curve[-50:]))


def _learn(
    network: PolicyNetwork, tables: Any, readings: Readings, job: PolicyJob, checkpoint: Path, questions: int,
    iterations: int, seconds: float, device: str, say: Say,
) -> dict[str, Any]:  # fmt: skip
    """Learn by reward until the time is over; goes on from the checkpoint if there is one."""
    loop = loop_of(network, tables, readings, job, questions, device)
    if checkpoint.exists():
        loop.restore(checkpoint)
    records, alarm = loop.run(
        iterations, limit_s=seconds, on_step=lambda step: save_and_tell(step, loop, checkpoint, say, job.name)
    )
    loop.save(checkpoint)
    return told_of(loop, records, alarm) | {
        "readings_asked": readings.num_asked, "readings_done": readings.num_read,
    }  # fmt: skip


def loop_of(
    network: PolicyNetwork, tables: Any, readings: Readings, job: PolicyJob, questions: int, device: str
) -> PolicyLoop:
    """How a job learns by reward."""
    return PolicyLoop(
        network, tables, readings,
        LoopConfig(
            algorithm=job.algorithm, seed=job.seed, questions=min(questions, len(tables)), group=8,
            minibatch=1024 if job.algorithm == "plain_ppo" else 4096,
            lr=3e-4 if job.algorithm == "plain_ppo" else 5e-4,
            entropy_weight=0.003, anchor_weight=0.02,
            episode=EpisodeConfig(
                reward=reward_of(job), budget_low=32 if job.reading == "together" else 64,
                budget_high=256 if job.reading == "together" else 448, max_choices=8,
                give_up_margin=MADE_TO_ANSWER,
            ),
        ),
        device,
    )  # fmt: skip


def told_of(loop: PolicyLoop, records: Sequence[dict[str, float]], alarm: Sequence[str]) -> dict[str, Any]:
    """What a record says of learning by reward; its curve thinned to some hundred points."""
    curve = list(records[:: max(1, len(records) // 100)])
    return {"iterations": loop.iteration, "alarm": list(alarm), "curve": curve}


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


def put_shipped(folder: Path, policies: Path, projection: np.ndarray[Any, Any]) -> None:
    """A saved policy as POLICIES/shipped-0, over vectors along the run's main directions; what is there stays.

    Of the vectors it lacks what lies off those directions. It sees the run's own pair reader, not the shipped one.
    """
    target = policies / "shipped-0" / "carried"
    if target.is_dir():
        return
    network, about = load_policy(folder)
    if network.config.dim == projection.shape[0] != projection.shape[1]:
        narrow = PolicyNetwork(replace(network.config, dim=int(projection.shape[1])))
        state = dict(network.state_dict())
        weight = state["encode.project.weight"]
        state["encode.project.weight"] = weight @ torch.from_numpy(projection).to(weight.dtype)
        narrow.load_state_dict(state)
        network = narrow.eval()
    staged = policies / "shipped-0" / f"staged-{time.monotonic_ns()}"
    save_policy(network, staged, about, "")
    try:
        staged.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        # another worker was quicker


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


def of_rows(readings: Readings, rows: Any) -> Reader:
    """A reader of some rows of a material, numbered from 0."""
    return _Rows(readings, rows)


class _Rows:
    """Some rows of readings of the whole material, numbered from 0."""

    def __init__(self, readings: Readings, rows: Any) -> None:
        self._readings, self._rows = readings, rows

    def read(self, requests: Sequence[Request]) -> Any:
        """The outcomes, in order."""
        return self._readings.read([(int(self._rows[row]), picks) for row, picks in requests])


def save_and_tell(step: dict[str, float], loop: PolicyLoop, checkpoint: Path, say: Say, name: str) -> None:
    """Each tenth iteration of a loop: keep it and tell its health."""
    if int(step["iteration"]) % 10 == 0:
        loop.save(checkpoint)
        shown = {key: float(f"{value:.4g}") for key, value in step.items() if math.isfinite(value)}
        say(f"{name} {json.dumps(shown)}")


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "curve"}
