"""Files of trained models say which form they have: a later one is refused by name, one that says none is read."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models import landmark_mixer
from models.cache import learned, ranker
from models.cache.learned_autoencoder import AutoencoderLayer
from models.formats import KEY, NewerFormat, check_format
from models.hf import landmark_head
from models.landmark_mixer import LandmarkMixer, MixerConfig
from models.retriever import pair_reader, storage, trust, trust_files
from models.retriever.network import PolicyNetwork
from models.subq import checkpoint
from tests.models import tiny
from tests.models.cache.test_learned import trained
from tests.models.cache.test_ranker import untrained
from tests.models.retriever.pair_case import reader
from tests.models.retriever.test_network import network_config
from tests.models.subq.small import small_model

_TRUST = trust.Combination(("whole",), (1.0,), 0.0)
KINDS: dict[str, tuple[Any, Callable[[Path], object], Callable[[Path], object]]] = {
    "policy": (
        storage,
        lambda folder: storage.save_policy(PolicyNetwork(network_config()), folder, {}),
        storage.load_policy,
    ),
    "pair reader": (
        pair_reader,
        lambda folder: pair_reader.save_pair_reader(reader(), folder, {}),
        pair_reader.load_pair_reader,
    ),
    "trust": (
        trust_files,
        lambda folder: trust_files.put_trust(folder, _TRUST, 0.5, None, 15),
        lambda folder: trust_files.trust_beside(folder, 15),
    ),
    "subq": (
        checkpoint,
        lambda folder: checkpoint.save_checkpoint(small_model(), folder),
        checkpoint.load_checkpoint,
    ),
    "compressor": (
        learned,
        lambda folder: trained(folder, "autoencoder"),
        lambda folder: learned.LearnedWeights.load("autoencoder", AutoencoderLayer, folder),
    ),
    "ranker": (ranker, lambda folder: untrained().save(folder), ranker.Ranker.load),
    "landmark head": (
        landmark_head,
        lambda folder: landmark_head.new_head(tiny.backbone(), landmark=8).save(folder),
        landmark_head.LandmarkHead.load,
    ),
    "landmark mixer": (
        landmark_mixer,
        lambda folder: LandmarkMixer(MixerConfig(width=8, layers=(0, 1), inner=8, heads=2, depth=1)).save(
            folder
        ),
        LandmarkMixer.load,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_a_later_version_is_refused_by_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not read as if it held what this version knows; what was written before formats were kept is read."""
    torch.manual_seed(0)
    module, save, load = KINDS[kind]
    save(tmp_path)
    load(tmp_path)
    monkeypatch.setattr(module, "FORMAT", 2)
    save(tmp_path)
    with pytest.raises(NewerFormat, match=r"has format 2; this DySRA reads up to 1: upgrade DySRA"):
        load(tmp_path)
    monkeypatch.setattr(module, "KEY", "nothing")  # as earlier versions wrote it
    save(tmp_path)
    monkeypatch.undo()
    load(tmp_path)


@pytest.mark.parametrize("found", ["", "-1", 0, 1.5, "2.0", [1]])
def test_what_is_no_format_is_damage(found: object) -> None:
    """And told as such, with what is allowed."""
    with pytest.raises(ValueError, match="allowed: 1 to 1"):
        check_format({KEY: found}, Path("config.json"))
    for body in ({}, {KEY: "1"}, {KEY: 1}, [], None):
        assert check_format(body, Path("config.json")) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_a_value_error(kind: str, tmp_path: Path) -> None:
    """A bit flipped or an end cut off is refused and named in one line, or changes a number: nothing else
    is raised, for who serves catches just that and goes on with what is at hand."""
    torch.manual_seed(0)
    draw = random.Random(kind)
    _, save, load = KINDS[kind]
    save(tmp_path)
    whole = {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".md"
    }
    refused = 0
    for turn in range(60):
        path = draw.choice(list(whole))
        data = bytearray(whole[path])
        at = draw.randrange(min(len(data), 2_000))  # where the names and shapes are
        if turn % 6 == 5:
            del data[at:]
        else:
            data[at] ^= 1 << draw.randrange(8)
        path.write_bytes(data if turn else b"[]")
        try:
            load(tmp_path)
        except ValueError as error:
            refused += 1
            assert str(tmp_path) in str(error)
        path.write_bytes(whole[path])
    load(tmp_path)
    assert refused > 20
