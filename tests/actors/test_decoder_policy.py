"""`session.policy: decoder`: the policy for sessions with a GPU is whole, is itself, and answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import structlog

from actors.session_host import chooser_of
from models.digests import digests_of
from models.retriever.pair_pins import PINS, check_pins, pins_of, reads_by_decoder
from models.retriever.pair_reader import BESIDE, SHIPPED_PAIR_READER
from models.retriever.storage import DECODER_POLICY, SHIPPED, decoder_policy, load_policy
from models.retriever.table import ALL_FEATURES
from pipeline.errors import UsageError
from pipeline.session import SessionConfig
from pipeline.session.chooser import HybridChooser
from pipeline.session.policy_chooser import PolicyChooser
from tests.models.retriever import decoder_case
from tests.pipeline.session.support import ShardLibrary, ask_parts

FOLDER = SHIPPED.with_name(DECODER_POLICY)
CONFIG = SessionConfig(policy="decoder")
TRAINED_WITH = {
    "decoder/pair_reader.safetensors": "9dd4cd099674ee7224aa13ded1f4d86a57ac81cf71d74f0b71a750ea33d0cd10",
    "minilm/pair_reader.safetensors": "0d325caa1870cb60ebeba3065754421a510ea6e0d27041f9f157201f0ed95640",
}
GEMMA = "76a04d60acca89bc"
"""The digest of Gemma-3-270M's weights (models/retriever/decoder_base.py)."""


def no_vectors(texts: Sequence[str]) -> None:
    """An embedder that is not there."""


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped folder, copied to where the code looks for it."""
    monkeypatch.setattr("models.retriever.storage.SHIPPED", tmp_path / SHIPPED.name)
    shutil.copytree(FOLDER, tmp_path / DECODER_POLICY)
    return tmp_path / DECODER_POLICY


def test_its_columns_are_those_that_it_was_trained_on() -> None:
    """Names and order of the features, both readers byte by byte, their weights, the base, and STOP's bias."""
    network, about = load_policy(FOLDER)
    assert network.config.feature_names == ALL_FEATURES
    pair = FOLDER / BESIDE
    assert {
        n: digests_of((pair / n).parent, [Path(n).name])[Path(n).name] for n in TRAINED_WITH
    } == TRAINED_WITH
    body = json.loads((pair / "config.json").read_text())
    assert body["weights"] == pytest.approx([0.52628, 0.33790], abs=1e-5)
    assert json.loads((pair / "decoder" / "config.json").read_text())["base"]["digest"] == GEMMA
    assert about[PINS] == pins_of(pair) and len(about[PINS]) == 3
    assert (about["stop_bias"], about["reading"], about["embedder"]) == (-4.0, "together", "minilm")
    assert reads_by_decoder(pair) and not reads_by_decoder(SHIPPED_PAIR_READER)


def test_another_pair_reader_in_its_place_is_refused(copied: Path) -> None:
    """It would load and make as many columns, of other meaning: told by name, in sessions and by hand."""
    about = load_policy(copied)[1]
    check_pins(about, copied / BESIDE, copied)
    check_pins({}, copied / BESIDE)  # a policy of before they were noted
    path = copied / BESIDE / "config.json"
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | {"weights": [0.4, 0.4]}))
    noted, given = about[PINS]["config.json"][:12], pins_of(copied / BESIDE)["config.json"][:12]
    with pytest.raises(
        ValueError,
        match=rf"{BESIDE} is not the one that {copied} was trained with \(config\.json is {given}, ",
    ) as told:
        check_pins(about, copied / BESIDE, copied)
    assert f"trained with {noted})" in str(told.value)
    with pytest.raises(UsageError, match=r"session\.policy: decoder cannot serve.*trained with"):
        chooser_of(CONFIG, no_vectors)


@pytest.mark.parametrize("name", ["policy.safetensors", "pair-reader/decoder/pair_reader.safetensors"])
def test_a_damaged_file_is_refused_at_the_start(copied: Path, name: str) -> None:
    """One flipped bit, before any question; the error names the file."""
    data = bytearray((copied / name).read_bytes())
    data[-9] ^= 4
    (copied / name).write_bytes(data)
    with pytest.raises(UsageError, match=r"differs from its checksum") as told:
        chooser_of(CONFIG, no_vectors)
    assert name in str(told.value)


def test_over_another_backbone_it_is_refused(tmp_path: Path) -> None:
    """Adapters of Gemma-3-270M over other weights would score at random; a hub's name cannot be looked at."""
    other = decoder_case.base(tmp_path / "other")
    with pytest.raises(UsageError, match=rf"trained over gemma-3-270m \({GEMMA}\), given {other}"):
        chooser_of(CONFIG, no_vectors, str(other))
    with pytest.raises(UsageError, match=r"backbone\.model 'some/decoder' is none"):
        chooser_of(CONFIG, no_vectors, "some/decoder")


def test_what_forbids_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switched-off pair readers, and a place without its folder; nothing else serves in silence."""
    with pytest.raises(UsageError, match=r"session\.pair_reader is off"):
        chooser_of(replace(CONFIG, pair_reader=False), no_vectors)
    monkeypatch.setattr("models.retriever.storage.SHIPPED", tmp_path / SHIPPED.name)
    monkeypatch.setenv("DYSRA_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="not installed here"):
        chooser_of(CONFIG, no_vectors)
    (tmp_path / "weights").mkdir()
    shutil.copytree(FOLDER, tmp_path / "weights" / DECODER_POLICY)
    assert decoder_policy() == tmp_path / "weights" / DECODER_POLICY


def test_a_pointer_leads_to_it_and_back(tmp_path: Path) -> None:
    """Promoted as any other policy, with the pointer's bias, and rolled back; it is asked to load nothing yet."""
    now, pointer = [0.0], tmp_path / "champion.json"
    chooser = PolicyChooser(pointer, no_vectors, HybridChooser(), poll_s=5.0, clock=lambda: now[0])
    for folder in (FOLDER, SHIPPED, FOLDER):
        pointer.write_text(json.dumps({"folder": str(folder), "stop_bias": -1.0, "reading": "together"}))
        now[0] += 6.0
        assert (chooser.reading, chooser.serving) == ("together", folder)


@pytest.mark.model
@pytest.mark.slow
def test_a_question_is_answered_through_it(tmp_path: Path) -> None:
    """The real readers, one warning of what they cost here, the telling sentence read first and alone."""
    from models.embed import load_embedder
    from models.hf import HfBackbone, HfConfig
    from tests.pipeline.session.test_asking import ask, done, read_ids
    from tests.pipeline.session.test_retractions_gemma import NEWS, QUESTION

    embedder = load_embedder("minilm")
    backbone = HfBackbone.load(HfConfig(device="cpu"))

    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.asarray(embedder.encode(list(texts)), np.float32)

    with structlog.testing.capture_logs() as logs:
        chooser = chooser_of(CONFIG, embed, backbone.config.model, str(backbone.device))
    told = [row for row in logs if row["log_level"] == "warning"]
    assert [row["event"] for row in told] == ["policy_without_gpu"]
    assert "36 s of processor time" in told[0]["cost"]
    assert isinstance(chooser, PolicyChooser) and chooser.serving == FOLDER
    shelf = ShardLibrary(tmp_path)
    try:
        shelf.add(*NEWS)
        parts = replace(ask_parts(shelf), backbone=backbone, chooser=chooser, adapted=True)
        events = ask(parts, QUESTION)
    finally:
        shelf.close()
    assert "Odile Marsh" in done(events)["text"]
    assert read_ids(events) == {"n1"}
