"""Reading apart on a GPU host: choices of the policy in service for GPUs and of simple methods, read both ways.

    python3 -m infra.training.apart_gpu --stage material read --carried carried --reader reader --out state
    python -m infra.training.apart_gpu --stage read --material build/policy/nq --policy models/weights/retriever \\
        --methods hybrid pair --sizes 2 4 6 --budgets --cross 0 --workers 1 --out build/apart   # on a CPU

*material*: the dev and test questions that policies were judged on (`policy_material`, nothing of training);
`--material FOLDER` takes what another run has made. *read*: processes share the questions; each scores its own
with the policy's pair reader, chooses, reads (`apart_rows`), and writes OUT/rows-<worker>.jsonl as it goes, in an
order by hash, so that what is there when the time is over is a fair part. A process that is started again goes on.
`--cross N`: each of the answers that the first N sentences by the pair reader give is also weighed under each of
these sentences, under them together, and without any. *home*: OUT/rows-*.jsonl as pieces of rows.jsonl.gz.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.training.apart_rows import ApartPlan, rows_read
from infra.training.policy_pairs import pair_features, texts_asked
from infra.training.policy_readers import OWN_WORLDS
from infra.training.policy_served import load_served, served_reader
from models.retriever.network import PolicyNetwork
from models.retriever.pair_base import PairRow, PairScorer, pair_columns
from models.retriever.pair_reader import COMBINED, CONFIG, DECODER, SHIPPED_PAIR_READER, load_pair_reader
from models.retriever.storage import load_policy
from models.retriever.table import FEATURES
from pipeline.tasks.material import Material
from pipeline.tasks.reading import Voice, voice_of

DECODER_POLICY = Path(__file__).parents[2] / "models" / "weights" / "retriever-decoder"
CHUNK = 48
"""Questions that are scored, chosen for and read at once."""
PIECE = 15 << 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: the stages in order; or be one process of `read` (--worker)."""
    given = _given(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.worker >= 0:
        _read(given, time.monotonic() + given.seconds)
        return
    until = time.monotonic() + given.seconds
    for stage in given.stage:
        began = time.monotonic()
        if stage == "material":
            _material(given)
        elif stage == "read" and not _run_workers(given, until):
            _say("read did not end well: start it again with --stage read, it goes on")
            raise SystemExit(1)
        elif stage == "home":
            _home(given)
        _say(f"{stage}: {time.monotonic() - began:.0f} s")


def _given(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    plan = ApartPlan()
    parser.add_argument("--stage", nargs="+", choices=("material", "read", "home"), default=["read"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--carried", type=Path, help="what `policy_carry --join` put together")
    parser.add_argument(
        "--reader", type=Path, help="folder of the carried reader (default: gemma-3-270m as sessions load it)"
    )
    parser.add_argument(
        "--material", type=Path, nargs="+", help="folders of material (default: OUT/material)"
    )
    parser.add_argument("--policy", type=Path, default=DECODER_POLICY, help="folder of a saved policy")
    parser.add_argument("--home", type=Path, help="where `home` puts the pieces")
    parser.add_argument("--methods", nargs="+", default=list(plan.methods))
    parser.add_argument("--budgets", type=int, nargs="*", default=list(plan.budgets))
    parser.add_argument("--sizes", type=int, nargs="*", default=list(plan.sizes), help="numbers of sentences")
    parser.add_argument("--biases", type=float, nargs="+", default=list(plan.biases))
    parser.add_argument("--by-two", type=int, default=plan.by_two, help="first sentences also read by two")
    parser.add_argument(
        "--cross", type=int, default=plan.cross, help="first sentences whose answers are crossed"
    )
    parser.add_argument("--most", type=int, default=0, help="questions of a set and split (0: all)")
    parser.add_argument("--seconds", type=float, default=250.0)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--half", action="store_true", help="on a CPU, too, the reader's weights in bf16")
    parser.add_argument("--worker", type=int, default=-1, help="(its own) which process this is")
    return parser.parse_args(arguments)


def _material(given: argparse.Namespace) -> None:
    """Make the dev and test questions' material unless it is there."""
    from infra.training.policy_material import HostMaterialConfig, make

    folder = given.out / "material"
    if given.material or (folder / "manifest.json").exists():
        return
    processes = min(14, max(1, (os.cpu_count() or 1) - 2))
    config = HostMaterialConfig(processes=processes, most=given.most, cache=0, dim=0, judged=1)
    made, projection = make(given.carried, config, given.device)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "projection.npy", projection)
    made.save(folder, {"stage": "material", "judged": 1})
    _say(f"{len(made):,} questions")


def _run_workers(given: argparse.Namespace, until: float) -> bool:
    """Start the processes and wait for them; whether all ended well. One that outlives its time is ended."""
    own = [sys.executable, "-m", "infra.training.apart_gpu", *sys.argv[1:], "--stage", "read"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    left = until - time.monotonic()
    children = [
        subprocess.Popen([*own, "--seconds", f"{left:.0f}", "--worker", str(at)], env=environment)
        for at in range(given.workers)
    ]
    good = True
    for child in children:
        try:
            good &= child.wait(timeout=max(1.0, until + 20 - time.monotonic())) == 0
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(timeout=10)
            good = False
    return good


def _read(given: argparse.Namespace, until: float) -> None:
    """This process's questions, chunk by chunk, written as they come."""
    began = time.monotonic()
    material = _opened(given)
    path = given.out / f"rows-{given.worker}.jsonl"
    known = known_ids(path)
    mine = list(shared_out(material, given.most)[given.worker :: given.workers])
    mine = [row for row in mine if material.questions[row].question_id not in known]
    network = _network(given) if "policy" in given.methods else None
    reader = pair_reader_of(given.policy, given.carried, given.reader, given.device)
    voice = _voice(given)
    plan = ApartPlan(
        methods=tuple(given.methods), budgets=tuple(given.budgets), sizes=tuple(given.sizes),
        biases=tuple(given.biases), by_two=given.by_two, cross=given.cross,
    )  # fmt: skip
    _say(f"process {given.worker}: ready after {time.monotonic() - began:.0f} s, {len(mine)} questions")
    chunk = CHUNK if given.device.startswith("cuda") else 4
    done = 0
    for start in range(0, len(mine), chunk):
        if time.monotonic() > until - 5:
            _say(f"process {given.worker}: {len(mine) - start} questions are left; start read again")
            break
        rows = np.array(mine[start : start + chunk], np.int64)
        part = scored(material.take(rows), reader, second=network is not None)
        with path.open("a", encoding="utf-8") as file:
            for row in rows_read(part, range(len(rows)), plan, voice, network):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        done += len(rows)
    _say(f"process {given.worker}: {done} questions in {time.monotonic() - began:.0f} s")


def known_ids(path: Path) -> set[str]:
    """The questions that a file of rows has; a line that was cut off is taken away."""
    if not path.exists():
        return set()
    whole = path.read_text(encoding="utf-8")
    kept = whole[: whole.rfind("\n") + 1]
    if kept != whole:
        path.write_text(kept, encoding="utf-8")
    return {json.loads(line)["id"] for line in kept.splitlines()}


def shared_out(material: Material, most: int = 0) -> list[int]:
    """The answerable dev and test rows, at most `most` (0: all) of a set and split, in an order by hash.

    Dev questions that the reader was trained on come last: nothing is fitted on them unless it is asked for.
    """

    def place(row: int) -> tuple[bool, bytes]:
        question = material.questions[row]
        last = question.split == "dev" and question.dataset not in OWN_WORLDS
        return last, hashlib.blake2b(question.question_id.encode(), digest_size=8).digest()

    found: list[int] = []
    taken: dict[tuple[str, str], int] = {}
    for row in range(len(material)):
        question = material.questions[row]
        key = question.dataset, question.split
        if question.split == "train" or not question.answers or (most and taken.get(key, 0) >= most):
            continue
        taken[key] = taken.get(key, 0) + 1
        found.append(row)
    return sorted(found, key=place)


def scored(part: Material, reader: PairScorer, *, second: bool) -> Material:
    """The material with the pair reader's features; without its `second` pass, which only policies use, cheaper."""
    width = len(FEATURES)
    features = np.zeros((*part.tables.present.shape, width + 6), np.float32)
    features[..., :width] = part.tables.features[..., :width]
    if second:
        features[..., width:] = pair_features(reader, part, np.arange(len(part)))
    else:
        for at, (question, texts) in enumerate(texts_asked(part, np.arange(len(part)))):
            asked, *others = reader.tokenize([question, *texts])
            first = reader.scores([PairRow(asked, text) for text in others])
            features[at, : len(first), width:] = pair_columns(first, np.full(len(first), np.nan, np.float32))
    return Material(part.questions, replace(part.tables, features=features))


def pair_reader_of(policy: Path, carried: Path | None, base: Path | None, device: str) -> PairScorer:
    """The pair reader that a policy brings (else the shipped one), where words of MiniLM are carried too."""
    from models.retriever.combined_pair import CombinedPairReader, parts_of

    folder = served_reader(policy) or SHIPPED_PAIR_READER
    body = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if carried is None:
        return load_pair_reader(folder, device, base)[0]
    if body.get("kind") != COMBINED:
        return load_served(folder, carried / "minilm", device)
    parts = parts_of(body)
    readers = [
        load_pair_reader(folder / name, device, base)[0]
        if name == DECODER
        else load_served(folder / name, carried / "minilm", device)
        for name in parts
    ]
    return CombinedPairReader(readers, [float(weight) for weight in body["weights"]], parts)


def _opened(given: argparse.Namespace) -> Material:
    folders = given.material or [given.out / "material"]
    return Material.join([Material.load(folder) for folder in folders])


def _network(given: argparse.Namespace) -> PolicyNetwork:
    """The policy for the material's vectors, along the run's directions where it has kept few of them."""
    network, _ = load_policy(given.policy, given.device)
    folder = (given.material or [given.out / "material"])[0]
    path = folder / "projection.npy"
    projection = np.load(path) if path.exists() else np.eye(network.config.dim, dtype=np.float32)
    if projection.shape[0] == projection.shape[1]:
        return network
    from infra.training.policy_stages import put_shipped

    place = given.out / f"policy-{given.worker}"
    put_shipped(given.policy, place, projection)
    return load_policy(place / "shipped-0" / "carried", given.device)[0]


def _voice(given: argparse.Namespace) -> Voice:
    """The reader, from what was carried or as sessions load it."""
    if given.reader is not None:
        from infra.training.policy_voice import open_voice

        return open_voice(given.reader, given.device)
    from models.hf import HfBackbone, HfConfig

    backbone: Any = HfBackbone.load(HfConfig(model="gemma-3-270m", adapter="shipped", device=given.device))
    if given.half:
        for parameter in backbone.model.parameters():
            # the weights alone: rotary frequencies in bf16 would turn far tokens by tenths of a radian
            parameter.data = parameter.data.to(torch.bfloat16)
    return voice_of(backbone, True)


def _home(given: argparse.Namespace) -> None:
    """All rows as pieces that may come home: rows.jsonl.gz.00, .01, …"""
    folder = given.home or given.out / "home"
    folder.mkdir(parents=True, exist_ok=True)
    whole = b"".join(path.read_bytes() for path in sorted(given.out.glob("rows-*.jsonl")))
    packed = gzip.compress(whole, 6)
    for at in range(0, len(packed), PIECE):
        (folder / f"rows.jsonl.gz.{at // PIECE:02d}").write_bytes(packed[at : at + PIECE])
    lines = whole.count(b"\n")
    _say(f"{lines:,} questions, {len(packed) / (1 << 20):.1f} MiB")


def read_rows(pieces: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows of files of lines, or of the pieces that `home` made, in order."""
    plain = [path for path in pieces if path.suffix == ".jsonl"]
    packed = b"".join(path.read_bytes() for path in sorted(pieces) if path not in plain)
    whole = gzip.decompress(packed).decode() if packed else ""
    whole += "".join(path.read_text(encoding="utf-8") for path in plain)
    return [json.loads(line) for line in whole.splitlines()]


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
