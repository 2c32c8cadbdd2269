"""A tiny reader, triples and choices that can be told by it: what the learners are tried on."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from models.hf import HfConfig
from models.retriever.table import FEATURES, GOLD, TableBatch
from pipeline.prepare.files import write_triples
from pipeline.prepare.triples import Triple
from pipeline.session.prompts import GIVEN_UP
from pipeline.tasks.material import ChoiceQuestion, Material
from tests.models import tiny
from tests.rl.toy import tables

NAMES = ("Ann", "Bob", "Cid", "Dee", "Eve", "Fay")


def reader(folder: Path, gives_up: bool = False, layers: int = 2) -> HfConfig:
    """A decoder with bytes as tokens, saved in `folder`; `gives_up`: with one token for giving up, as Gemma has.

    Half of its `layers` are full ones.
    """
    names = ["<eos>", "<bos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={text: at for at, text in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>", "<bos>"])
    extra = tokenizer.add_tokens([GIVEN_UP]) if gives_up else 0
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    kinds = ("sliding_attention", "full_attention") * (layers // 2)
    made = tiny.config(
        max_position_embeddings=256,
        vocab_size=len(names) + extra,
        num_hidden_layers=layers,
        layer_types=kinds,
    )
    tiny.save(folder / "reader", model_config=made)
    tokenizer.save(str(folder / "reader" / "tokenizer.json"))
    return HfConfig(model=str(folder / "reader"), adapter="none", device="cpu")


def triples(folder: Path, count: int = 160) -> Path:
    """Who has what: told by the sentence, or not told."""
    chance = random.Random(0)
    made = []
    for at in range(count):
        split = "train" if at < 0.85 * count else "dev"
        who, other = chance.sample(NAMES, 2)
        what = chance.choice("abcdefgh") * 3
        common = {"question_id": f"q{at}", "dataset": "toy", "split": split, "question": f"what {who}"}
        told, silent = ("n", "", f"{who} has {what}"), ("n", "", f"{other} has zz")
        made.append(
            Triple(**common, kind="oracle", sentences=(told,), answers=(what,), tells=True, target=f" {what}")
        )
        made.append(
            Triple(
                **common, kind="silent", sentences=(silent,), answers=(what,), tells=False, target=" unknown"
            )
        )
    write_triples(made, folder, {"count": count})
    return folder


def material(folder: Path, count: int = 48, width: int = 4) -> Path:
    """Questions whose telling candidate says who has what; its vector is near the question's (tests/rl/toy.py)."""
    batch = tables(count, width=width)
    features = np.random.default_rng(1).random((*batch.present.shape, len(FEATURES))).astype(np.float32)
    features[..., 0] = batch.features[..., 0]
    batch = TableBatch(**(batch.arrays() | {"features": features}))
    chance = random.Random(1)
    questions = []
    for row in range(count):
        names = chance.sample(NAMES, width)
        gold = int(np.flatnonzero(batch.labels[row] == GOLD)[0])
        size = int(batch.present[row].sum())
        things = [chance.choice("abcdefgh") * 3 if at == gold else "zz" for at in range(size)]
        questions.append(
            ChoiceQuestion(
                question_id=f"q{row}", dataset="toy", split="train" if row < 0.75 * count else "test",
                text=f"what {names[gold]}", answers=(things[gold],), kind="",
                sentences=tuple((f"t{at // 3}", "", f"{names[at]} has {things[at]}") for at in range(size)),
                places=tuple((at // 3, at % 3) for at in range(size)),
            )
        )  # fmt: skip
    made = Material(tuple(questions), batch)
    made.save(folder, {"toy": True})
    return folder
