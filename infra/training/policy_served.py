"""The policy in service as it serves: over the scores of its own pair reader, judged beside a run's policies.

`policy_gpu --shipped FOLDER` judges a saved policy as shipped-0. Its pair reader is the one that sessions would
load for it (`pair-reader` in the folder or beside it); its scores of dev and test questions are kept in
OUT/pairs_shipped. Without that reader the policy sees the run's own, which it never learned with. `pack.sh served`
makes a part of both: --shipped PART/retriever. Scored beforehand, by itself, as soon as there is material:

    python3 -m infra.training.policy_served --out /tmp/work/policy --policy PART/retriever --carried /tmp/carried
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from infra.training.policy_pairs import pair_features
from models.digests import FILES, check_files
from models.retriever.pair_base import PairScorer, from_eight_bits
from models.retriever.pair_reader import (
    BERT,
    BESIDE,
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    PairModel,
    PairReader,
    from_minilm,
    load_pair_reader,
)
from models.retriever.pair_taught import WORDS
from models.retriever.table import FEATURES
from pipeline.tasks.material import Material

PLACE = "pairs_shipped"
SCORES = "scores.npz"


def served_reader(policy: Path) -> Path | None:
    """The folder of the pair reader that a policy's folder brings, in it or beside it; None where there is none."""
    places = (policy / BESIDE, policy.parent / BESIDE)
    return next((folder for folder in places if (folder / CONFIG).is_file()), None)


def load_served(folder: Path, minilm: Path, device: str) -> PairScorer:
    """A pair reader over MiniLM; where it leaves words to MiniLM's wheel, they come from the folder `minilm`.

    On a GPU host there is no wheel but MiniLM in half precision: words differ by 2^-11 of their size at most.
    """
    body = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if body.get("kind", BERT) != BERT or "minilm_words" not in body:
        return load_pair_reader(folder, device)[0]
    check_files(folder, body.get(FILES))
    model = PairModel(body["model"])
    words = from_minilm(minilm).model.state_dict()[WORDS]
    model.load_state_dict(from_eight_bits(load_file(folder / WEIGHTS)) | {WORDS: words})
    return PairReader(model, Tokenizer.from_file(str(minilm / TOKENIZER)), device)


def as_served(
    material: Material, policy: Path, out: Path, minilm: Path, device: str, say: Callable[[str], None]
) -> Material | None:
    """The material with the served pair reader's features on dev and test questions; None where it is not at hand.

    Scored once: OUT/pairs_shipped/scores.npz.
    """
    folder = served_reader(policy)
    if folder is None:
        say(f"{policy} brings no pair reader: it is judged over the run's own")
        return None
    path = out / PLACE / SCORES
    rows = np.setdiff1d(np.arange(len(material)), material.rows("train"))
    if not path.exists():
        began = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = pair_features(load_served(folder, minilm, device), material, rows)
        part = path.with_suffix(".part.npz")
        np.savez(part, rows=rows, columns=columns)
        part.replace(path)
        served = path.parent / "served"
        served.mkdir(exist_ok=True)
        (served / CONFIG).write_text((folder / CONFIG).read_text(encoding="utf-8"), encoding="utf-8")
        took = time.monotonic() - began
        say(f"the pair reader of the policy in service scored {len(rows):,} questions in {took:.0f} s")
    width = len(FEATURES)
    with np.load(path) as packed:
        if not np.array_equal(packed["rows"], rows):
            raise ValueError(f"{path} is of another material; remove it")
        columns = packed["columns"]
    features = np.zeros((*material.tables.present.shape, width + columns.shape[-1]), np.float32)
    features[..., :width] = material.tables.features[..., :width]
    features[rows, :, width:] = columns
    return Material(material.questions, replace(material.tables, features=features))


def scored_by_own(out: Path) -> bool:
    """Whether the policy in service was judged over its own pair reader, in a run or in what came home of it."""
    return (out / PLACE / "served" / CONFIG).exists()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a run that has its material")
    parser.add_argument(
        "--policy", type=Path, required=True, help="a saved policy with its pair reader beside it"
    )
    parser.add_argument("--carried", type=Path, required=True, help="where MiniLM lies (minilm)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()

    def say(what: str) -> None:
        print(what, flush=True)  # noqa: T201

    material = Material.load(given.out / "material")
    if as_served(material, given.policy, given.out, given.carried / "minilm", given.device, say) is None:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
