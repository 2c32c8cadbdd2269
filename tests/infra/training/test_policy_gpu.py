"""infra/training/policy_gpu.py: each stage in miniature on a CPU, with a tiny random reader and the toy."""

from __future__ import annotations

import json
import lzma
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Gemma3ForCausalLM

from infra.training import policy_gpu
from infra.training.policy_pack import main_directions, turn
from infra.training.policy_stages import open_voice, planned, unfold
from models.retriever import Choosing, PolicyNetwork, TableBatch, load_policy
from models.retriever.network import as_tensors
from pipeline.tasks.material import Material
from pipeline.tasks.reading import MaterialReader
from rl.episodes import Readings, fingerprint
from tests.models import tiny
from tests.rl.toy import material, network_config, tables


def questions_with_features() -> Material:
    """Twelve training and eight test questions of the toy, with fifteen features."""
    batch = tables(20, width=5)
    noise = np.random.default_rng(1).random((*batch.present.shape, 15)).astype(np.float32)
    noise[..., 5] = batch.features[..., 0]
    made = material(TableBatch(**(batch.arrays() | {"features": noise})))
    split = [replace(q, split="train" if at < 12 else "test") for at, q in enumerate(made.questions)]
    return Material(tuple(split), made.tables)


def byte_tokenizer() -> Tokenizer:
    """One token a byte; <bos> has Gemma's place, 2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<eos>", "<bos>", "<unk>", *alphabet]
    made = Tokenizer(models.BPE(vocab={text: at for at, text in enumerate(names)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


@pytest.fixture
def carried(tmp_path: Path) -> Path:
    """What `policy_pack` writes, over letters as tokens."""
    torch.manual_seed(0)
    folder = tmp_path / "carried"
    folder.mkdir()
    tokenizer = byte_tokenizer()
    size = tokenizer.get_vocab_size()
    config = tiny.config(max_position_embeddings=512, vocab_size=size)
    state = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in Gemma3ForCausalLM(config).state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(state, folder / "base.safetensors")
    config.save_pretrained(folder)
    made = questions_with_features()
    projection = main_directions(made, 6)
    turn(made, projection).save(folder / "material", {}, int8=True)
    np.save(folder / "projection.npy", projection)
    np.save(folder / "vocabulary.npy", np.arange(size))
    (folder / "tokenizer.json.xz").write_bytes(lzma.compress(tokenizer.to_str().encode()))
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """The script with these arguments, in this process."""
    monkeypatch.setattr(sys, "argv", ["policy_gpu", *arguments])
    policy_gpu.main()


def test_the_stages_follow_each_other_and_go_on_where_they_stopped(
    carried: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readings in shards, policies of every kind, curves with the named figures; a second start repeats nothing."""
    monkeypatch.setattr(policy_gpu, "CHUNK", 6)
    common = ("--carried", str(carried), "--device", "cpu", "--workers", "1")
    first, second, third = (str(tmp_path / name) for name in ("out1", "out2", "out3"))
    run(monkeypatch, "--stage", "readings", *common, "--out", first)
    shards = sorted(Path(first).glob("readings-*.npz"))
    assert [path.name for path in shards] == ["readings-000000.npz", "readings-000006.npz"]
    run(monkeypatch, "--stage", "readings", *common, "--readings", first, "--out", str(tmp_path / "again"))
    assert list((tmp_path / "again").glob("*.npz")) == []

    train = (
        "--readings",
        first,
        "--seeds",
        "0",
        "--warm-steps",
        "12",
        "--width",
        "16",
        "--layers",
        "1",
        "--iterations",
        "2",
        "--seconds",
        "120",
    )
    run(monkeypatch, "--stage", "train", *common, *train, "--out", second)
    records = {path.parent.name: json.loads(path.read_text()) for path in Path(second).glob("*/record.json")}
    assert set(records) == {"supervised-0", "minimal-0", "router-0", "reinforce-0", "plain_ppo-0"}
    run(
        monkeypatch, "--stage", "train", *common, *train, "--policies", second, "--out", str(tmp_path / "on"),
        "--algorithms", "supervised", "plain_ppo",
    )  # fmt: skip
    on = json.loads((tmp_path / "on" / "plain_ppo-0" / "record.json").read_text())
    assert (records["plain_ppo-0"]["iterations"], on["iterations"]) == (2, 4)
    assert "warm_loss" not in on
    wide, _ = load_policy(Path(second) / "plain_ppo-0" / "policy")
    assert wide.config.dim == 8

    run(
        monkeypatch, "--stage", "evaluate", *common, "--readings", first, "--policies", second, "--out", third
    )
    found = json.loads((tmp_path / "out3" / "evaluation.json").read_text())
    assert {p["name"] for p in found["sets"]["toy"]} >= {
        "bm25",
        "hybrid",
        "oracle",
        "router-0",
        "plain_ppo-0",
    }
    assert {"policy_f1_toy", "best_simple_f1_toy", "gap_closed_toy", "tokens_ratio_at_equal_f1"} <= set(
        found["summary"]
    )
    assert all(p["tokens"] <= p["budget"] for p in found["sets"]["toy"])


def test_what_is_planned_holds_every_single_and_no_choice_twice() -> None:
    """Nothing, each candidate alone, and mixtures; each once; the same every time."""
    made = questions_with_features()
    asked = planned(made, 3)
    picks = [pick for _, pick in asked]
    assert len(set(picks)) == len(picks)
    assert () in picks
    assert {(at,) for at in np.flatnonzero(made.tables.present[3])} <= set(picks)
    assert asked == planned(made, 3)


def test_a_policy_trained_on_turned_vectors_serves_the_embedders_own() -> None:
    """Folded back, it gives the same logits; with all directions kept nothing changes at all."""
    made = questions_with_features()
    for dim, tolerance in ((6, 2e-3), (8, 0.0)):
        projection = main_directions(made, dim)
        torch.manual_seed(0)
        network = PolicyNetwork(network_config(dim=dim, num_features=15)).eval()
        rows = np.arange(8)
        narrow = as_tensors(Choosing(turn(made, projection).tables, rows, 90).observe())
        wide = as_tensors(Choosing(made.tables, rows, 90).observe())
        ours, _ = unfold(network, projection)(wide)
        torch.testing.assert_close(ours, network(narrow)[0], atol=tolerance + 1e-6, rtol=tolerance)


def test_the_carried_reader_reads_as_the_whole_one(carried: Path) -> None:
    """Losses of gold answers are those of one row alone; giving up is a margin; readings repeat exactly."""
    made = Material.load(carried / "material")
    voice = open_voice(carried, "cpu")
    assert voice.decode(voice.encode("question one")) == "question one"
    reader = MaterialReader(made, voice)
    asked = [(0, (0, 1)), (1, ()), (2, (2,)), (0, (1,))]
    together = reader.outcomes(asked)
    for request, outcome in zip(asked, together, strict=True):
        (alone,) = reader.outcomes([request])
        np.testing.assert_allclose(outcome, alone, rtol=2e-3, atol=2e-3)
        prompt = [*voice.begin, *voice.encode(made.prompt(*request))]
        target = voice.encode(f" {made.questions[request[0]].answers[0]}\n")
        with torch.no_grad():
            logits = voice.model(torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1].float()
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(target))
        assert outcome[1] == pytest.approx(float(loss), rel=1e-3)
    assert fingerprint(made) == fingerprint(questions_with_features())
    assert len(Readings(None)) == 0
