"""models/digests.py: a bit that flipped in trained weights is told by name, and what came before is read."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from models import shipped
from models.cache.learned import LearnedWeights
from models.cache.learned_autoencoder import AutoencoderLayer
from models.cache.learned_projection import ProjectionLayer
from models.cache.ranker import Ranker
from models.digests import BESIDE, DIGEST, FILES, check_beside, put_beside
from models.formats import KEY, NewerFormat
from models.hf.config import HfConfig
from models.hf.loading import load
from models.reader_training import add_lora, save_adapter
from models.retriever.pair_reader import SHIPPED_PAIR_READER, load_pair_reader
from models.retriever.storage import SHIPPED, load_policy
from models.subq.checkpoint import load_checkpoint
from tests.models import tiny
from tests.models.test_formats import KINDS

WEIGHTS = sorted(KINDS.keys() - {"trust"})


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_flipped_bit_among_the_weights_is_refused(kind: str, tmp_path: Path) -> None:
    """Wherever it lies: without the digest it would be another number, and load."""
    torch.manual_seed(0)
    draw = random.Random(kind)
    _, save, read = KINDS[kind]
    save(tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    numbers = 8 + int.from_bytes(whole[:8], "little")
    for at in (numbers, len(whole) - 1, *(draw.randrange(numbers, len(whole)) for _ in range(6))):
        data = bytearray(whole)
        data[at] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        with pytest.raises(ValueError, match="differs from its checksum") as told:
            read(tmp_path)
        assert str(path) in str(told.value)
    path.write_bytes(whole)
    read(tmp_path)


@pytest.mark.parametrize("kind", ["policy", "pair reader"])
def test_weights_of_before_digests_are_read(kind: str, tmp_path: Path) -> None:
    """A configuration that notes none; one that notes something else than names is damage."""
    torch.manual_seed(0)
    _, save, read = KINDS[kind]
    save(tmp_path)
    path = tmp_path / "config.json"
    body = json.loads(path.read_text())
    noted = body.pop(FILES)
    assert any(name.endswith(".safetensors") for name in noted)
    path.write_text(json.dumps(body))
    read(tmp_path)
    for wrong in ([], "x", {"../config.json": "0"}, {"absent.safetensors": "0"}):
        path.write_text(json.dumps({**body, FILES: wrong}))
        with pytest.raises(ValueError, match="copy"):
            read(tmp_path)


def test_an_adapter_and_its_model_hold_their_digests_beside(tmp_path: Path) -> None:
    """peft's and transformers' files keep their form; a flipped bit in either is no answer but an error."""
    model = tiny.save(tmp_path / "model")
    config = HfConfig(model=str(model), adapter=str(tmp_path / "adapter"), device="cpu", dtype="float32")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    save_adapter(add_lora(AutoModelForCausalLM.from_pretrained(model), 2, 4.0, 0.0), tmp_path / "adapter")
    identity = load(config).identity
    put_beside(model, ["model.safetensors"])
    assert load(config).identity == identity, "digests are no part of what a model is"
    for folder, name in ((tmp_path / "adapter", "adapter_model.safetensors"), (model, "model.safetensors")):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ValueError, match=rf"{name} is missing or differs from its checksum.*{BESIDE}"):
            load(config)
        (folder / name).write_bytes(whole)
    (tmp_path / "adapter" / BESIDE).unlink()
    assert load(config).identity == identity


def test_digests_beside_of_a_later_version_are_refused(tmp_path: Path) -> None:
    """By name; what is no JSON is damage, and nothing noted is nothing checked."""
    (tmp_path / "a").write_bytes(b"x")
    check_beside(tmp_path)
    put_beside(tmp_path, ["a"])
    check_beside(tmp_path)
    body = json.loads((tmp_path / BESIDE).read_text())
    (tmp_path / BESIDE).write_text(json.dumps(body | {KEY: 2}))
    with pytest.raises(NewerFormat, match="has format 2"):
        check_beside(tmp_path)
    for damaged in ("{", "[]", "{}", json.dumps({FILES: ["a"]})):
        (tmp_path / BESIDE).write_text(damaged)
        with pytest.raises(ValueError, match=BESIDE):
            check_beside(tmp_path)


def test_all_that_is_shipped_holds_digests_and_is_whole() -> None:
    """Every safetensors file under models/weights is covered, and its loader says it is as it was made."""
    load_policy(SHIPPED)
    load_pair_reader(SHIPPED_PAIR_READER)
    load_checkpoint(shipped.SUBQ)
    Ranker.load(shipped.RANKER)
    LearnedWeights.load("autoencoder", AutoencoderLayer, shipped.COMPRESSORS)
    LearnedWeights.load("projection", ProjectionLayer, shipped.COMPRESSORS)
    check_beside(shipped.READER_LORA)
    root = shipped.RANKER.parent
    uncovered = []
    for path in root.rglob("*.safetensors"):
        noted: set[str] = set()
        for name in ("config.json", BESIDE):
            if (path.parent / name).is_file():
                noted |= json.loads((path.parent / name).read_text()).get(FILES, {}).keys()
        with safe_open(str(path), framework="pt") as file:
            if path.name not in noted and DIGEST not in (file.metadata() or {}):
                uncovered.append(str(path.relative_to(root)))
    assert uncovered == []
