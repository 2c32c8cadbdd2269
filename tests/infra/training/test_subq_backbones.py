"""Backbones on news and books at once: the same batches for all, losses on both texts, keys told, checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.training import subq_backbones_page
from infra.training.subq_arms import ARMS
from infra.training.subq_backbones import (
    ASKED_SEED,
    METHODS,
    _parser,
    main,
    mixed,
    needle_row,
    ratios_of,
    settings,
)
from infra.training.subq_data import SubqData
from models.subq import SubqModel
from models.subq.baselines import count, method_of
from models.subq.checkpoint import load_checkpoint
from tests.infra.training.token_files import packed

BASE = ["--books", "b", "--news", "n", "--work", "w", "--out", "o"]


def test_backbones_differ_in_mixers_and_reading_alone() -> None:
    """Of equal size within two hundredths, on the same batches; all tokens are targets; gca is told nothing."""
    given = _parser().parse_args(BASE)
    made = {name: settings(given, name, 0, 16_384) for name in METHODS}
    shape, stream, run = made["subq"]
    whole = count(shape)
    assert stream.targets == stream.tokens == 32_768
    for name, (other, data, training) in made.items():
        assert abs(count(other) - whole) < 0.03 * whole and data == stream, name
        assert (training == run) == (name != "gca" and name not in ARMS)
    told = made["gca"][2]
    assert told == replace(
        run, losses=replace(run.losses, contrastive=0.0), forced_until=0.0, cross=0.0, bank=0
    )
    compiled = {
        name: settings(_parser().parse_args([*BASE, "--compiled"]), name, 0, 512)[2] for name in METHODS
    }
    assert {name for name, each in compiled.items() if not each.compiled} == {"mamba-2", "linear-transformer"}


def test_half_of_the_text_is_news(tmp_path: Path) -> None:
    """As many tokens of each; the news are the newest; two tokenizers are refused."""
    books, news = packed(tmp_path / "books"), packed(tmp_path / "news")
    given = _parser().parse_args(["--books", str(books), "--news", str(news), "--work", "w", "--out", "o"])
    data, alone = mixed(given, 3), SubqData.load(news, "train")
    assert len(data.tokens) == 2 * len(alone.tokens)
    assert np.array_equal(data.tokens[: len(alone.tokens)], alone.tokens) and data.grammar is not None
    other = json.loads((news / "tokenizer.json").read_text())
    other["model"]["merges"] = other["model"]["merges"][:-1]
    (news / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match=r"--news: given .* another tokenizer than --books"):
        mixed(given, 3)


def test_each_method_leaves_its_losses_its_keys_and_a_checkpoint(tmp_path: Path) -> None:
    """Batches are made once for all methods of a seed; what is there is not made again; the summary names it."""
    books = packed(tmp_path / "books")
    shutil.copytree(books, tmp_path / "news")
    common = [
        "--books", str(books), "--news", str(tmp_path / "news"), "--work", str(tmp_path / "w"), "--out",
        str(tmp_path / "o"), "--device", "cpu", "--tiny", "--steps", "2", "--makers", "0", "--judged", "2",
        "--asked", "2", "--keep", "1",
    ]  # fmt: skip
    main([*common, "--make", "--seed", "1"])
    for name in ("subq", "no-retrieval", "transformer"):
        main([*common, "--method", name, "--seed", "1"])
        kept = tmp_path / "w" / "checkpoints" / f"{name}-1"
        model, about = load_checkpoint(kept, "cpu", torch.float32)
        assert method_of(model.config) == name and about["about"]["tokens"] == 2_048
        assert (tmp_path / "o" / f"{name}-1" / "config.json").is_file()
    with pytest.raises(SystemExit, match="1"):
        main([*common, "--seeds", "1", "--methods", "subq,no-retrieval,transformer,gca", "--seconds", "0"])
    summary = json.loads((tmp_path / "o" / "subq-backbones.json").read_text())
    assert [run["method"] for run in summary["runs"]] == ["subq", "no-retrieval", "transformer"]
    for run in summary["runs"]:
        assert run["tokens"] == 2_048 and run["books"]["read"]["tokens"] == 1_024
        assert ("unread" in run["news"]) == ("recall" in run["needles"][0]) == (run["method"] == "subq")
        assert ("rare_words" in run["books"]) == (run["method"] == "subq")
        assert {row["wording"] for row in run["needles"]} == {"known", "heldout"}
    wanted = {"ppl_transformer_news", "gain_over_no_retrieval_subq_books", "exact_subq_known_512"}
    assert wanted <= set(summary["ratios"])
    with pytest.raises(SystemExit, match="--methods: given lstm; allowed: subq"):
        main([*common, "--methods", "lstm"])


def test_needles_are_asked_with_what_is_copied(tmp_path: Path) -> None:
    """A row tells what is likeliest by the chances, copies among them; with the gate shut, by the logits."""
    books = packed(tmp_path / "books")
    given = _parser().parse_args(
        ["--books", str(books), "--news", str(books), "--work", "w", "--out", "o", "--device", "cpu", "--tiny",
         "--asked", "1"]
    )  # fmt: skip
    data = replace(SubqData.load(books, "test"), real=())
    torch.manual_seed(0)
    shape = settings(given, "subq-lean-copies", 0, data.tokenizer.vocabulary)[0]
    model = SubqModel(shape).eval().requires_grad_(False)
    assert model.copier is not None
    stream = settings(given, "subq", 0, 1)[1]
    stream = replace(stream, phases=((512, 1),), seed=ASKED_SEED + 512, real=0.0)
    batch = data.stream(stream).batch(0)
    ids, at = torch.from_numpy(batch.ids), torch.from_numpy(batch.at[batch.is_answer])
    shares = []
    for bias in (-50.0, 20.0):
        torch.nn.init.constant_(model.copier.gate.bias, bias)
        row = needle_row(model, data, given, 512, "known")
        out = model(ids)
        said = model.next_logits(out.hidden, model.copied(out, ids)).flatten(0, 1)[at].argmax(-1)
        right = (said == torch.from_numpy(batch.targets[batch.is_answer])).float().mean()
        assert row is not None and row["tokens_right"] == pytest.approx(100 * float(right), abs=0.01)
        shares.append(row["tokens_right"])
    assert shares[0] != shares[1]


def test_a_gain_is_told_seed_by_seed() -> None:
    """The mean of the differences to no retrieval of the same seed, and their spread; one seed has none."""

    def run(method: str, seed: int, loss: float) -> dict[str, object]:
        text = {"read": {"loss": loss}}
        return {"method": method, "seed": seed, "news": text, "books": text, "needles": []}

    runs = [
        *(run("no-retrieval", seed, loss) for seed, loss in ((0, 4.0), (1, 4.2))),
        *(run("subq", seed, loss) for seed, loss in ((0, 3.9), (1, 4.0))),
        run("transformer", 0, 4.1),
    ]
    found = ratios_of(runs)
    assert found["gain_over_no_retrieval_subq_news"] == pytest.approx(0.15)
    assert found["gain_spread_subq_news"] == pytest.approx(0.07071, abs=1e-5)
    assert found["gain_over_no_retrieval_transformer_books"] == pytest.approx(-0.1)
    assert (
        found["gain_spread_transformer_books"] is None
        and "gain_over_no_retrieval_no_retrieval_news" not in found
    )


def test_the_page_pairs_methods_of_a_seed(tmp_path: Path) -> None:
    """Gains by seed with their interval, losses by position and at equal time, keys told; named for the bars."""

    def run(method: str, seed: int, loss: float, seconds: float) -> dict[str, object]:
        text = {"read": {"loss": loss, "by_position": {"512": loss, "1024": loss - 0.1}}}
        if method == "subq":
            text["unread"] = {"loss": loss + 0.02, "by_position": {"512": loss, "1024": loss}}
            text["rare_words"] = {"chosen": 1.2 + 0.1 * seed, "best": 4.0, "by_chance": 1.0, "chunks": 240.0}
        row = {"length": 4_096, "wording": "known", "n": 80, "exact": 10.0, "tokens_right": 50.0}
        curve = [
            {"step": step, "seconds": seconds * step / 40, "language": loss + 1 / step}
            for step in (20, 30, 40)
        ]
        return {
            "method": method, "seed": seed, "news": text, "books": text, "parameters": 9, "train_seconds": seconds,
            "peak_bytes": 2e9, "tokens": 640, "steps": 40, "model": {"context_tokens": 1_024}, "curve": curve,
            "needles": [row | ({"recall": 70.0} if method == "subq" else {})],
        }  # fmt: skip

    runs = [run("subq", seed, 3.9 - 0.1 * seed, 20.0) for seed in (0, 1)]
    runs += [run("no-retrieval", seed, 4.0, 10.0) for seed in (0, 1)]
    summary = {"bench": "subq-backbones", "device": "H", "jobs": 6, "runs": runs, "ratios": {}}
    found = tmp_path / "found.json"
    found.write_text(json.dumps(summary))
    subq_backbones_page.main(["--found", str(found), "--bench", str(tmp_path / "page"), "--commit", "abc"])
    kept = json.loads((tmp_path / "page.json").read_text())
    assert kept["commit"] == "abc" and kept["ratios"]["lm_loss_gain_of_retrieval_news"] == pytest.approx(0.15)
    text = (tmp_path / "page.md").read_text()
    assert "| news | subq | +0.1000, +0.2000 | +0.1500 | -0.4853 to +0.7853 |" in text
    assert "| subq | 3.883 | 75% | 10, 10 |" in text and "| no-retrieval | 4.025 | 100% | 5, 5 |" in text
    assert "| subq | 1.25 / 1.00 / 4.00 | 1.25 / 1.00 / 4.00 |" in text
    assert "| subq, reading switched off | 3.8500 | 3.8500 |" in text
    assert "| subq | 10.0 / 70.0 |" in text and "| no-retrieval | 10.0 |" in text
    lean = [run | {"method": run["method"].replace("subq", "subq-lean-apart")} for run in runs]
    assert subq_backbones_page.named(lean)["lm_loss_gain_of_retrieval_lean_apart_books"] == pytest.approx(
        0.15
    )
    assert "No run has been judged yet" in subq_backbones_page.page(summary | {"runs": []})
