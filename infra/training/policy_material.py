"""Material made on a GPU host: every question's candidates, labels, features and vectors in about a minute.

    python3 -m infra.training.policy_material --carried carried --out carried/material

What `policy_data` makes on a workplace, for many more questions: BM25, cutting and features in processes, vectors
(MiniLM, half precision) on the device, each passage's in one go, so the search is BM25 and the embedder over the
whole corpus. Questions are split by titles over all sets together; `--dev` of the training questions (by a hash of
their first gold title) are kept for choosing STOP's bias.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from infra.training.policy_carry import CORPUS, SETS
from infra.training.policy_pack import main_directions, turn
from models.retriever.table import CandidateTable, TableBatch
from pipeline.candidate_features import Unit, embedded_text, features, preselect
from pipeline.prepare.pools import TextIndex
from pipeline.tasks.choices import needs_all, units_of
from pipeline.tasks.contexts import Candidate, candidates
from pipeline.tasks.material import ChoiceQuestion, Material
from pipeline.tasks.qa import (
    Question,
    SourceText,
    assign_splits,
    read_passages,
    read_questions,
    test_title_keys,
    title_key,
)

REACH = 100
MOST_TRAIN = {"hotpot": 2500}
MOST_TEST = {"nq": 400, "squad": 400, "hotpot": 300}


@dataclass(frozen=True, kw_only=True, slots=True)
class HostMaterialConfig:
    """How material is made there."""

    passages: int = field(default=12, metadata={"help": "texts of the search that are cut into candidates"})
    candidates: int = field(default=48, metadata={"help": "candidates of a question, 2 to 64"})
    dev: float = field(default=0.08, metadata={"help": "share of training questions kept for choosing"})
    dim: int = field(default=128, metadata={"help": "directions of the vectors that are kept (0: all)"})
    most: int = field(default=0, metadata={"help": "questions of a set and split, at most (0: as built in)"})
    processes: int = field(default=14, metadata={"help": "of BM25, cutting and features"})
    seed: int = field(default=0, metadata={"help": "which questions are taken"})


class _Shared:
    """What worker processes inherit when they are forked."""

    index: TextIndex
    texts: dict[str, SourceText]
    held_back: frozenset[str]
    config: HostMaterialConfig
    count: Any


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--carried", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, entry in HostMaterialConfig.__dataclass_fields__.items():
        parser.add_argument(
            f"--{name}", type=type(entry.default), default=entry.default, help=entry.metadata["help"]
        )
    given = parser.parse_args()
    config = HostMaterialConfig(
        **{name: getattr(given, name) for name in HostMaterialConfig.__dataclass_fields__}
    )
    if (given.out / "manifest.json").exists():
        _say(f"{given.out} is there")
        return
    began = time.monotonic()
    made, projection = make(given.carried, config, given.device)
    made.save(given.out, {"sets": SETS, "seconds": round(time.monotonic() - began, 1)})
    np.save(given.out / "projection.npy", projection.astype(np.float32))
    _say(f"{given.out}: {len(made):,} questions in {time.monotonic() - began:.0f} s")


def make(carried: Path, config: HostMaterialConfig, device: str) -> tuple[Material, npt.NDArray[np.float32]]:
    """The material, its vectors along their main directions, and those directions [D, dim]."""
    began = time.monotonic()
    texts = read_passages(carried / "corpus" / f"{CORPUS}.jsonl.zst")
    every = [q for name in SETS for q in read_questions(carried / "qa" / f"{name}.jsonl.zst")]
    every = assign_splits(every, texts)
    shared = _Shared
    shared.texts, shared.held_back, shared.config = texts, test_title_keys(every), config
    shared.index, shared.count = TextIndex(list(texts.values())), _counter(carried)
    questions = picked(every, config)
    _say(f"{time.monotonic() - began:.0f} s: {len(texts):,} passages indexed, {len(questions):,} questions")
    # forked before the device is touched: a process that has a CUDA context must not be
    with multiprocessing.get_context("fork").Pool(config.processes) as pool:
        lexical = pool.map_async(_lexical, questions, chunksize=32)
        encode = Encoder(carried / "minilm", device)
        names = list(texts)
        passages = encode([f"{texts[name].title}\n{texts[name].text}" for name in names])
        asked = encode([question.text for question in questions])
        dense = _nearest(asked, passages, REACH, device)
        _say(f"{time.monotonic() - began:.0f} s: passages and questions embedded")
        jobs = [
            (question, fused([found, [names[at] for at in near]], 2 * config.passages))
            for question, found, near in zip(questions, lexical.get(), dense, strict=True)
        ]
        cuts = [each for each in pool.map(_cut, jobs, chunksize=16) if each is not None]
        distinct = list(dict.fromkeys(embedded_text(unit) for _, _, units in cuts for unit in units))
        vectors, row_of = encode(distinct), {text: at for at, text in enumerate(distinct)}
        place = {question.question_id: at for at, question in enumerate(questions)}
        _say(f"{time.monotonic() - began:.0f} s: {len(distinct):,} candidates embedded")
        own = [vectors[[row_of[embedded_text(unit)] for unit in units]] for _, _, units in cuts]
        near_to = [
            rows.astype(np.float32) @ asked[place[made.question_id]].astype(np.float32)
            for (made, _, _), rows in zip(cuts, own, strict=True)
        ]
        described = pool.starmap(
            _describe,
            [(made.text, units, cosine) for (made, _, units), cosine in zip(cuts, near_to, strict=True)],
            chunksize=32,
        )
    tables = [
        CandidateTable(
            query=asked[place[made.question_id]],
            vectors=rows,
            features=columns,
            tokens=np.array([unit.num_tokens for unit in units], np.int64),
            groups=np.array([unit.rank for unit in units], np.int64),
            heads=np.array([unit.head_tokens for unit in units], np.int64),
            labels=np.array([unit.label for unit in units], np.int8),
            needs_all=need,
        )
        for (made, need, units), rows, columns in zip(cuts, own, described, strict=True)
    ]
    whole = Material(tuple(made for made, _, _ in cuts), TableBatch.stack(tables))
    projection = main_directions(whole, config.dim)
    return turn(whole, projection), projection


def picked(questions: Sequence[Question], config: HostMaterialConfig) -> list[Question]:
    """The answerable questions of a run by a hash of their ids; some of training become "dev", by title.

    A question whose gold text the corpus lacks has no title, and is left out: nothing among its candidates tells.
    """
    order = sorted(questions, key=lambda q: _hash(f"{config.seed}:{q.question_id}"))
    found: list[Question] = []
    taken: dict[tuple[str, str], int] = {}
    for question in order:
        if not question.answerable or not question.titles or question.split not in ("train", "dev", "test"):
            continue
        split = question.split
        if split == "train" and _hash(f"dev:{title_key(question.titles[0])}") < config.dev * 2.0**56:
            split = "dev"
        most = (MOST_TEST if split == "test" else MOST_TRAIN).get(question.dataset, 1 << 30)
        most = min(most, config.most) if config.most else most
        key = (question.dataset, split)
        if taken.get(key, 0) < most:
            taken[key] = taken.get(key, 0) + 1
            found.append(replace(question, split=split))
    return found


class Encoder:
    """Unit vectors of texts by the carried MiniLM, mean pooled; float16. [N, 384]"""

    def __init__(self, folder: Path, device: str) -> None:
        from models.retriever.pair_reader import from_minilm

        self._reader, self._device = from_minilm(folder, device), device

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float16]:
        on_gpu = self._device.startswith("cuda")
        ids = [each[:254] for each in self._reader.tokenize(texts)]
        out = np.zeros((len(texts), self._reader.model.sizes["hidden_size"]), np.float16)
        order = np.argsort([len(each) for each in ids], kind="stable")
        size = 2048 if on_gpu else 32
        bert = self._reader.model.bert
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch, mask = self._padded([ids[at] for at in chosen])
            with torch.autocast("cuda" if on_gpu else "cpu", torch.float16, enabled=on_gpu):
                hidden = bert(input_ids=batch, attention_mask=mask).last_hidden_state.float()
            weight = mask[..., None].float()
            mean = torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)
            out[chosen] = mean.half().cpu().numpy()
        return out

    def _padded(self, ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = 2 + max(map(len, ids))
        first, last = self._reader.ends
        batch = np.zeros((len(ids), width), np.int64)
        mask = np.zeros((len(ids), width), np.int64)
        for at, each in enumerate(ids):
            batch[at, : len(each) + 2] = [first, *each, last]
            mask[at, : len(each) + 2] = 1
        return torch.from_numpy(batch).to(self._device), torch.from_numpy(mask).to(self._device)


def fused(rankings: Sequence[Sequence[str]], most: int) -> list[str]:
    """The best ids by reciprocal rank fusion, as `HybridPool` has it."""
    score: dict[str, float] = {}
    for ranking in rankings:
        for at, name in enumerate(ranking):
            score[name] = score.get(name, 0.0) + 1 / (60 + at)
    return sorted(score, key=lambda name: -score[name])[:most]


def _nearest(
    asked: npt.NDArray[np.float16], passages: npt.NDArray[np.float16], most: int, device: str
) -> npt.NDArray[np.int64]:
    """The places of the nearest passages of each question, best first. [N, most]"""
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    whole = torch.from_numpy(passages).to(device, dtype)
    found = [
        (torch.from_numpy(asked[at : at + 256]).to(device, dtype) @ whole.T)
        .topk(min(most, len(whole)), dim=1)
        .indices.cpu()
        for at in range(0, len(asked), 256)
    ]
    return np.asarray(torch.cat(found).numpy(), np.int64)


def _lexical(question: Question) -> list[str]:
    return [text.text_id for text in _Shared.index.top(question.text, REACH)]


def _cut(job: tuple[Question, list[str]]) -> tuple[ChoiceQuestion, bool, list[Unit]] | None:
    """A question's candidates within its texts; training reads nothing under a test question's title."""
    question, names = job
    config = _Shared.config
    texts = [_Shared.texts[name] for name in names]
    if question.split != "test":
        texts = [text for text in texts if title_key(text.title) not in _Shared.held_back]
    choices: list[Candidate] = candidates(texts[: config.passages])
    if len(choices) < 2:
        return None
    units = units_of(question, choices, _Shared.count)
    kept = preselect(question.text, units, config.candidates)
    units, choices = [units[at] for at in kept], [choices[at] for at in kept]
    made = ChoiceQuestion(
        question_id=question.question_id,
        dataset=question.dataset,
        split=question.split,
        text=question.text,
        answers=question.answers,
        kind=question.kind,
        sentences=tuple((choice.source.title, choice.source.date, choice.text) for choice in choices),
        places=tuple(choice.place for choice in choices),
    )
    return made, needs_all(question), units


def _describe(question: str, units: Sequence[Unit], cosine: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return features(question, units, cosine)


def _counter(carried: Path) -> Any:
    """Counts tokens as the carried tokenizer of the reader makes them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(lzma.decompress((carried / "tokenizer.json.xz").read_bytes()).decode())
    known: dict[str, int] = {}

    def count(text: str) -> int:
        if text not in known:
            known[text] = len(tokenizer.encode(text, add_special_tokens=False).ids)
        return known[text]

    return count


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")


def _say(what: str) -> None:
    print(what, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
