"""A policy on disk: weights in safetensors, its configuration and training in JSON, a card that a person reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from models.digests import FILES, check_files, digests_of
from models.formats import FORMAT, KEY, NewerFormat, check_format, first_line
from models.retriever.config import RetrieverConfig
from models.retriever.files import put_json, put_weights
from models.retriever.network import PolicyNetwork
from models.retriever.table import TableBatch

SHIPPED = Path(__file__).parents[1] / "weights" / "retriever"
"""The policy that comes with the project; absent where none has beaten the simple methods yet."""
DECODER_POLICY = "retriever-decoder"
"""The name of the folder beside it of the policy for sessions with a GPU."""
WEIGHTS, CONFIG, CARD = "policy.safetensors", "config.json", "README.md"


def save_policy(network: PolicyNetwork, folder: Path, about: Mapping[str, Any], card: str = "") -> Path:
    """Write a policy; `about` says how it was trained and how it is to be used (`unit`, `embedder`, `stop_bias`).

    Each file is written beside its place and renamed, the configuration last, so a reader never sees half a policy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    put_weights(state, folder / WEIGHTS)
    (folder / CARD).write_text(card or _card(network, about), encoding="utf-8")
    body = {
        KEY: FORMAT, "network": asdict(network.config), FILES: digests_of(folder, [WEIGHTS]), "about": dict(about),
    }  # fmt: skip
    put_json(body, folder / CONFIG)
    return folder


def load_policy(folder: Path, device: torch.device | str = "cpu") -> tuple[PolicyNetwork, dict[str, Any]]:
    """A saved policy, ready to choose, and what it says about itself; ValueError names what does not fit."""
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"policy: given {folder}; allowed: a folder with {CONFIG} and {WEIGHTS}, "
            "as `dysra train-retriever` writes"
        )
    try:
        body = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        check_format(body, folder / CONFIG)
        check_files(folder, body.get(FILES))
        fields = dict(body["network"])
        fields["feature_names"] = tuple(fields.get("feature_names", ()))
        network = PolicyNetwork(RetrieverConfig(**fields))
        network.load_state_dict(load_file(folder / WEIGHTS))
        about = dict(body["about"])
    except NewerFormat:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"policy: {folder} cannot be read: {first_line(error)}") from None
    network.to(device).eval()
    return network, about


def load_policy_for(
    folder: Path, tables: TableBatch, device: torch.device | str = "cpu"
) -> tuple[PolicyNetwork, dict[str, Any]]:
    """`load_policy` of one that can choose from these tables; ValueError where it knows other vectors, or more
    features."""
    network, about = load_policy(folder, device)
    if network.config.dim != tables.dim:
        raise ValueError(f"{folder} knows vectors of {network.config.dim}, the material has {tables.dim}")
    if network.config.num_features > tables.num_features:
        raise ValueError(
            f"{folder} knows {network.config.num_features} features, the material has {tables.num_features}"
        )
    return network, about


def _card(network: PolicyNetwork, about: Mapping[str, Any]) -> str:
    weights = sum(parameter.numel() for parameter in network.parameters())
    rows = "\n".join(f"| {name} | {value} |" for name, value in about.items())
    return (
        "# Retriever policy\n\nChooses which sentences a reader is given for a question, one at a time, and when "
        f"to stop (docs/policy.md). {weights:,} weights; its vectors come from the embedder named below, and its "
        f"features from `pipeline/candidate_features.py`.\n\n| what | value |\n| --- | --- |\n{rows}\n"
    )


def shipped_policy() -> Path | None:
    """The folder of the shipped policy: beside the code, or, for a job whose uploaded working directory leaves
    weights out, under $DYSRA_CACHE/weights (`make weights` copies it there). None where it is in neither."""
    return _shipped(SHIPPED.name)


def decoder_policy() -> Path | None:
    """The same of the policy over pair readers that need a GPU, which brings them (`session.policy: decoder`)."""
    return _shipped(DECODER_POLICY)


def _shipped(name: str) -> Path | None:
    cache = Path(os.environ.get("DYSRA_CACHE") or Path.home() / ".cache" / "dysra")
    places = (SHIPPED.with_name(name), cache / "weights" / name)
    return next((folder for folder in places if (folder / CONFIG).is_file()), None)
