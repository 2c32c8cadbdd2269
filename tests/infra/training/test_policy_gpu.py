"""infra/training/policy_gpu.py: each stage in miniature on a CPU, with a tiny random reader and the toy."""

from __future__ import annotations

import argparse
import json
import lzma
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import Gemma3ForCausalLM

from infra.training import policy_gpu, policy_material, policy_work
from infra.training.policy_carry import join, split
from infra.training.policy_collect import collect, unpack
from infra.training.policy_evaluation import Curves
from infra.training.policy_halves import load_scores
from infra.training.policy_material import HostMaterialConfig, picked
from infra.training.policy_pack import main_directions, turn
from infra.training.policy_pairs import with_scores
from infra.training.policy_stages import load_readings, planned, unfold
from infra.training.policy_voice import open_voice
from models.retriever import Choosing, PolicyNetwork, TableBatch, load_policy
from models.retriever.network import as_tensors
from models.retriever.pair_reader import load_pair_reader
from models.retriever.table import ALL_FEATURES
from models.retriever.trust import KINDS
from pipeline.errors import BadData
from pipeline.tasks.material import Material
from pipeline.tasks.qa import Question
from pipeline.tasks.reading import MaterialReader
from rl.episodes import Outcome, Readings, fingerprint
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
    kinds = ("sliding_attention", "full_attention")
    config = tiny.config(max_position_embeddings=512, vocab_size=size, num_hidden_layers=2, layer_types=kinds)
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


LEARNED = ("reinforce", "plain_ppo", "reinforce_without_pair")
NAMES = ("Ann", "Bob", "Cid", "Dee", "Eve", "Fay", "Gil", "Hal")


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """JSON lines, compressed as the data folder's files are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd") as file:
        for row in rows:
            file.write((json.dumps(row) + "\n").encode())


def small_bert(folder: Path, words: list[str]) -> None:
    """A BERT of one layer over whole words, saved as MiniLM is carried."""
    from transformers import BertConfig, BertModel

    vocabulary = {word: at for at, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    save_file(BertModel(config, add_pooling_layer=False).state_dict(), folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def texts(carried: Path) -> Path:
    """Questions of three sets over forty passages, and a small BERT, as `policy_carry` carries them."""
    passages: list[dict[str, object]] = []
    rows: dict[str, list[dict[str, object]]] = {"nq_open": [], "squad2": [], "hotpotqa": [], "musique": []}
    for at in range(36):
        who, other, thing = NAMES[at % 8], NAMES[(at + 3) % 8], f"thing{at}"
        tells = f"{who} keeps the {thing} in box{at}."
        passages.append(
            {"id": f"p{at}", "title": f"House {at}", "text": f"{other} lives here. {tells} It is old."}
        )
        name = ("nq_open", "squad2", "hotpotqa")[at % 3]
        row: dict[str, object] = {
            "id": f"{name}{at}", "question": f"where does {who} keep the {thing}", "answers": [f"box{at}"],
            "gold_passage_ids": [f"p{at}"],
        }  # fmt: skip
        extra: dict[str, dict[str, object]] = {
            "nq_open": {"gold_title": f"House {at}"},
            "squad2": {"title": f"House_{at}", "answerable": True},
            "hotpotqa": {
                "type": "bridge",
                "supporting_facts": [[f"House {at}", 1], [f"House {at}", 2]],
                "context": [
                    {
                        "title": f"House {at}", "passage_id": f"p{at}",
                        "sentences": [f"{other} lives here.", tells, "It is old."],
                    }
                ],
            },
        }  # fmt: skip
        rows[name].append(row | extra[name])
    write_rows(carried / "corpus" / "passages_wiki.jsonl.zst", passages)
    for name, found in rows.items():
        write_rows(carried / "qa" / f"{name}.jsonl.zst", found)
    words = sorted(
        {w for p in passages for w in re.findall(r"\w+", str(p["text"]).lower())} | {"where", "does"}
    )
    small_bert(carried / "minilm", words)
    return carried


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """The script with these arguments; every worker in this process, one after another."""
    own = ["--workers", "1", "--device", "cpu", *arguments]

    def stage_here(given: argparse.Namespace, stage: str, seconds: float) -> bool:
        for at in range(policy_gpu.processes(given, stage)):
            policy_work.WORK[stage](
                argparse.Namespace(**{**vars(given), "worker": at}), time.monotonic() + 600
            )
        return True

    monkeypatch.setattr(policy_gpu, "run_stage", stage_here)
    monkeypatch.setattr(sys, "argv", ["policy_gpu", *own])
    policy_gpu.main()


def test_a_whole_run_makes_material_policies_and_curves_and_goes_on_where_it_stopped(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage in a row; a second start repeats nothing but the loops, which go on; what came home unpacks."""
    out = tmp_path / "state"
    common = (
        "--carried", str(texts), "--out", str(out), "--seeds", "0", "--warm-steps", "6", "--worlds", "0",
        "--iterations", "1", "--width", "16", "--layers", "1", "--budgets", "48", "--biases", "-4", "0",
        "--apart-budgets", "200", "--pair-epochs", "2", "--seconds", "600", "--most", "6",
    )  # fmt: skip
    run(monkeypatch, *common)
    made = Material.load(out / "material")
    splits = {question.split for question in made.questions}
    assert splits == {"train", "dev", "test"}
    held_back = {q.sentences[0][0] for q in made.questions if q.split == "test"}
    assert held_back
    gold = {
        split: {
            question.sentences[at][0]
            for row, question in enumerate(made.questions)
            if question.split == split
            for at in np.flatnonzero(made.tables.labels[row] == 2)
        }
        for split in splits
    }
    assert not gold["train"] & gold["test"]
    assert not gold["train"] & gold["dev"]
    scored = with_scores(made, out / "pairs")
    assert scored.tables.num_features == len(ALL_FEATURES)
    np.testing.assert_array_equal(scored.tables.features[..., :15], made.tables.features)
    assert (scored.tables.features[..., ALL_FEATURES.index("pair_rank")].max(1) == 1).all()

    records = {path.parent.name: json.loads(path.read_text()) for path in out.glob("policies/*/record.json")}
    learned = {f"{kind}{ending}-0" for kind in LEARNED for ending in ("", "_apart")}
    assert set(records) == {"supervised-0", "router-0", "supervised_without_pair-0", *learned}
    assert "warm_loss" not in records["plain_ppo-0"], "it begins with the supervised policy of its seed"
    blind, _ = load_policy(out / "policies" / "reinforce_without_pair-0" / "policy")
    assert blind.config.num_features == 15
    assert load_policy(out / "policies" / "plain_ppo-0" / "policy")[0].config.dim == 32
    assert records["plain_ppo_apart-0"]["reading"] == "apart"

    found = json.loads((out / "evaluation.json").read_text())
    assert set(found["sets"]) == {"nq", "squad", "hotpot"}
    names = {p["name"] for p in found["sets"]["nq"]["test"]}
    assert names >= {"bm25", "hybrid_apart", "pair", "pair_plain_apart", "oracle", "router-0", "plain_ppo-0"}
    assert names >= {"supervised_apart-0", "plain_ppo_apart-0", "plain_ppo_staged-0"}
    assert all(p["tokens"] <= p["budget"] for p in found["sets"]["nq"]["test"] if "_staged" not in p["name"])
    assert {"best_simple_f1_nq", "oracle_f1_nq", "policy_nq"} <= set(found["summary"])
    assert set(found["trust"]) == set(KINDS)
    assert set(found["ways"]) == {"nq", "squad", "hotpot"}
    assert set(found["ways"]["nq"]) == {"dev", "others", "halves", "same", "agreement"}
    again_put = Curves(sets=found["sets"])
    halves = load_scores(again_put, out / "scores.npz")
    assert len(halves["nq"]) == sum(q.split == "test" and q.dataset == "nq" for q in made.questions)

    before = sorted(path.stat().st_mtime for path in out.glob("readings/*.npz"))
    run(monkeypatch, *common, "--stage", "readings")
    run(monkeypatch, *common, "--stage", "reward")
    assert sorted(path.stat().st_mtime for path in out.glob("readings/*.npz")) == before
    again = json.loads((out / "policies" / "plain_ppo-0" / "record.json").read_text())
    assert (records["plain_ppo-0"]["iterations"], again["iterations"]) == (1, 2)

    sizes = collect(out, tmp_path / "home")
    assert sum(sizes.values()) < 64 << 20
    unpack(sorted((tmp_path / "home").iterdir()), tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "scores.npz").is_file()
    reader, about = load_pair_reader(tmp_path / "unpacked" / "pairs" / "whole")
    assert about["fold"] == "whole"
    assert reader.features("where does Ann keep the thing1", ["House 1: Ann keeps the thing1"]).shape == (
        1,
        6,
    )


def test_questions_without_gold_text_in_the_corpus_are_left_out() -> None:
    """They would all become "dev" together or not at all, and nothing among their candidates tells."""
    made = [
        Question(
            question_id=f"q{at}", dataset="nq", text="where?", answers=("box",), answerable=True,
            gold_ids=(), titles=(f"House {at}",) if at % 2 else (), split="train",
        )
        for at in range(200)
    ]  # fmt: skip
    found = picked(made, HostMaterialConfig())
    assert {q.question_id for q in found} == {q.question_id for q in made if q.titles}
    assert 0 < sum(q.split == "dev" for q in found) < 40


def test_a_run_is_refused_whose_dev_questions_cannot_tell() -> None:
    """What is chosen on questions without what tells among their candidates is chosen by luck."""
    made = questions_with_features()
    dev = tuple(replace(q, split="dev") if at % 4 == 0 else q for at, q in enumerate(made.questions))
    told = policy_material.checked(Material(dev, made.tables), least=0.0)
    assert set(told) == {"train", "dev", "test"}
    blind = replace(made.tables, labels=np.zeros_like(made.tables.labels))
    with pytest.raises(ValueError, match=r"allowed: 0\.6 or more"):
        policy_material.checked(Material(dev, blind))


def test_readings_of_any_other_material_are_refused(carried: Path, tmp_path: Path) -> None:
    """Shards of one material do not enter another's readings."""
    made = questions_with_features()
    kept = Readings(None, fingerprint(made))
    kept.add([0], [1], [Outcome(1.0, 0.5, -1.0)])
    kept.save(tmp_path / "readings-000000.npz")
    assert load_readings([tmp_path], Readings(None, fingerprint(made))) == 1
    with pytest.raises(BadData, match="of material"):
        load_readings([tmp_path], Readings(None, "another"))


def test_parts_join_to_the_files_they_were_cut_from(tmp_path: Path) -> None:
    """Each part is full but the last; a missing one is named, not joined over."""
    whole = tmp_path / "whole"
    for name, size in (("a/large", 2_500), ("b", 0), ("c", 10)):
        path = whole / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(np.random.default_rng(size).bytes(size))
    sizes = split(whole, tmp_path, 1_000)
    assert list(sizes.values()) == [1_000, 1_000, 510]
    parts = sorted(tmp_path.glob("part-*"))
    join(parts, tmp_path / "joined")
    for name in ("a/large", "b", "c"):
        assert (tmp_path / "joined" / name).read_bytes() == (whole / name).read_bytes()
    with pytest.raises(FileNotFoundError, match="a/large"):
        join([parts[0], parts[2]], tmp_path / "torn")


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
