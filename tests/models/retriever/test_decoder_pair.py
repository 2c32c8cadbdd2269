"""models/retriever/decoder_pair.py: a pair reader over a decoder keeps every pair reader's promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.formats import NewerFormat
from models.hf.cut import VOCABULARY
from models.retriever import pair_reader as pair
from models.retriever.decoder_base import LentWords, digest_of, open_base
from models.retriever.decoder_pair import DecoderPairConfig, DecoderPairReader
from models.retriever.pair_base import PairRow
from models.retriever.pair_reader import load_pair_reader, pair_reader_for, save_pair_reader
from models.retriever.pair_training import PairTexts, PairTrainConfig, backward, draw, train_pairs
from models.retriever.table import ALL_FEATURES, PAIR_FEATURES
from tests.models.retriever import decoder_case, pair_case


def shaken(reader: DecoderPairReader) -> DecoderPairReader:
    """With a head that tells rows apart."""
    torch.manual_seed(3)
    torch.nn.init.normal_(reader.model.head.weight, std=0.5)
    return reader


def rows_of(reader: DecoderPairReader) -> list[PairRow]:
    """Rows of unlike length, with and without a sentence that was read."""
    ids = reader.tokenize(["what ann key", "ann has key", "bob", "cid has map ann has pen bob has hat"])
    return [PairRow(ids[0], text, given) for text in ids[1:] for given in ((), ids[1], ids[3])]


def test_scores_depend_on_neither_order_nor_batch_and_on_what_was_read(tmp_path: Path) -> None:
    """Rows score as alone, in any order and beside longer ones; each of them differs from the others."""
    judge = shaken(decoder_case.reader(tmp_path / "base"))
    rows = rows_of(judge)
    together = judge.scores(rows)
    alone = [float(judge.scores([row])[0]) for row in rows]
    np.testing.assert_allclose(together, alone, atol=2e-5)
    np.testing.assert_allclose(judge.scores(rows[::-1])[::-1], together, atol=2e-5)
    judge.tokens_per_batch = 40
    np.testing.assert_allclose(judge.scores(rows), together, atol=2e-5)
    np.testing.assert_allclose(judge.learn(rows).detach().numpy(), together, atol=2e-5)
    assert len(set(np.round(together, 5))) == len(rows)
    assert judge.scores([]).shape == (0,)
    assert judge.features_of([]) == []
    assert judge.features("what ann key", []).shape == (0, len(PAIR_FEATURES))


def test_the_question_comes_last_so_a_text_s_tokens_do_not_depend_on_it(tmp_path: Path) -> None:
    """Two questions of one candidate share all tokens before "Question:"; padding follows the last token."""
    judge = decoder_case.reader(tmp_path / "base")
    asked, other, text = judge.tokenize(["what ann key", "what bob", "cid has map"])
    ids, last = judge.collate([PairRow(asked, text), PairRow(other, text), PairRow(other, text, text)])
    words = [
        [decoder_case.WORDS[int(at)] for at in row[: int(end) + 1]]
        for row, end in zip(ids, last, strict=True)
    ]
    assert words[0] == ["<bos>", "cid", "has", "map", "\n", "Question", ":", "what", "ann", "key", "\n"]
    assert words[1][:7] == words[0][:7]
    assert words[2][:9] == ["<bos>", "cid", "has", "map", "\n", "cid", "has", "map", "\n"]
    assert ids.shape[1] % 8 == 0
    assert not ids[1, int(last[1]) + 1 :].any()


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_it_learns_which_candidate_tells_and_is_the_same_when_loaded(tune: str, tmp_path: Path) -> None:
    """The loss falls below what chance reaches, held-out questions rank right; saved in 8 bits it scores alike,
    can be saved again, and can be trained on only if it was loaded for that."""
    folder = tmp_path / "base"
    learner = decoder_case.reader(folder, tune=tune)
    asked, texts, tables = pair_case.questions(48, seed=1)
    before = digest_of(learner.model.decoder.state_dict())
    config = PairTrainConfig(epochs=8, questions=8, candidates=4, lr=3e-3, together=4)
    records = train_pairs(learner, tables, PairTexts.of(learner, asked, texts), np.arange(48), config)
    assert records[-1]["loss"] < 0.6 < records[0]["loss"], "chance: ln 5 = 1.6"
    assert digest_of(learner.model.decoder.state_dict()) != before == learner.base.digest

    asked, texts, tables = pair_case.questions(24, seed=2)
    whole = list(zip(asked, texts, strict=True))
    share = np.stack([each[:, PAIR_FEATURES.index("pair_share")] for each in learner.features_of(whole)])
    assert (share.argmax(1) == tables.labels.argmax(1)).mean() > 0.9
    rows = rows_of(learner)

    saved = save_pair_reader(learner, tmp_path / "saved", {"fold": "whole"})
    found, about = load_pair_reader(saved, base=folder)
    assert isinstance(found, DecoderPairReader)
    assert about == {"fold": "whole"}
    again = np.stack([each[:, 1] for each in found.features_of(whole)])
    np.testing.assert_allclose(again, share, atol=0.15)
    copied = save_pair_reader(found, tmp_path / "copied", about, own_words=False)
    twice = load_pair_reader(copied, base=folder)[0]
    np.testing.assert_allclose(twice.scores(rows), found.scores(rows), atol=0.05)
    with pytest.raises(ValueError, match="learns=True"):
        found.tuning()
    on = load_pair_reader(saved, base=folder, learns=True)[0]
    np.testing.assert_allclose(on.scores(rows), found.scores(rows), atol=1e-3)
    config = PairTrainConfig(epochs=1, questions=8, candidates=4, lr=1e-4)
    train_pairs(on, tables, PairTexts.of(on, asked, texts), np.arange(24), config)
    np.testing.assert_allclose(
        load_pair_reader(save_pair_reader(on, tmp_path / "on", {}), base=folder)[0].scores(rows),
        on.scores(rows), atol=0.3 if tune == "lora" else 1.5,  # rows unlike those learned from, 8 bits everywhere
    )  # fmt: skip


def test_the_embedding_is_no_part_of_what_is_saved(tmp_path: Path) -> None:
    """Adapters and head only: a fraction of the decoder."""
    learner = decoder_case.reader(tmp_path / "base")
    learner.tuning()
    saved = save_pair_reader(learner, tmp_path / "saved", {})
    names = set(load_file(saved / pair.WEIGHTS))
    assert {name.split(".")[0] for name in names} == {"layers", "head"}
    assert not (saved / "tokenizer.json").exists()
    assert json.loads((saved / "config.json").read_text())["kind"] == "decoder"


def test_gradients_in_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    """Questions two by two: the loss and the adapters' gradients of all at once; the embedding has none."""
    asked, texts, tables = pair_case.questions(6, seed=4)
    found = []
    for together in (0, 2):
        learner = shaken(decoder_case.reader(tmp_path / "base"))
        ids = PairTexts.of(learner, asked, texts)
        chance = np.random.default_rng(0)
        config = PairTrainConfig(candidates=4)
        examples = [draw(tables, ids, row, config, chance) for row in range(6)]
        tuning = learner.tuning()
        loss, _ = backward(learner, examples, together)
        tuning.gather()
        assert learner.model.decoder.embed_tokens.weight.grad is None
        grads = [p.grad.clone() for params, _ in tuning.groups for p in params if p.grad is not None]
        found.append([loss, *grads])
    assert len(found[0]) > 4
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_another_base_is_refused_naming_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its digest is kept; a cut vocabulary or another dtype of the same layers is the same base.

    Without a base the reader's own is taken.
    """
    folder = decoder_case.base(tmp_path / "base")
    learner = shaken(decoder_case.reader(folder))
    learner.tuning()
    saved = save_pair_reader(learner, tmp_path / "saved", {})
    other = decoder_case.base(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=rf"trained over base \({learner.base.digest}\), given .*other"):
        load_pair_reader(saved, base=other)
    with pytest.raises(ValueError, match="cannot be read"):
        load_pair_reader(saved, base=tmp_path / "none")

    cut = tmp_path / "cut"
    cut.mkdir()
    kept = [at for at, word in enumerate(decoder_case.WORDS) if word not in ("dee", "pen")]
    state = {name: each.to(torch.bfloat16) for name, each in load_file(folder / "model.safetensors").items()}
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][kept].contiguous()
    save_file(state, cut / "base.safetensors")
    told = json.loads((folder / "config.json").read_text()) | {"vocab_size": len(kept)}
    (cut / "config.json").write_text(json.dumps(told))
    np.save(cut / VOCABULARY, np.array(kept))
    decoder_case.tokenizer().save(str(cut / "tokenizer.json"))
    small = load_pair_reader(saved, base=cut)[0]
    assert small.tokenize(["ann has pen"])[0][-1] == 3, "unknown"
    whole = load_pair_reader(saved, base=folder)[0]
    texts = ["ann has key", "bob has map"]
    np.testing.assert_allclose(
        small.features("what key", texts), whole.features("what key", texts), atol=0.05
    )

    policy = tmp_path / "policy"
    (policy / pair.BESIDE).parent.mkdir()
    saved.rename(policy / pair.BESIDE)
    monkeypatch.setattr("models.retriever.decoder_pair.default_folder", lambda: folder)
    assert isinstance(pair_reader_for(policy, len(ALL_FEATURES)), DecoderPairReader)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vectors_of_words_that_a_model_holds_are_not_held_twice(tmp_path: Path, dtype: torch.dtype) -> None:
    """The same scores to the last bit with the embedding lent; other words, or these in fewer bits than it reads
    in, are not taken: then it holds its own."""
    folder = decoder_case.base(tmp_path / "base")
    learner = shaken(decoder_case.reader(folder))
    learner.tuning()
    saved = save_pair_reader(learner, tmp_path / "saved", {})
    plain = load_pair_reader(saved, base=folder)[0]
    held = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    exact = torch.equal(held.to(dtype).float(), held)
    assert exact == (dtype == torch.float32)
    for words, lent in ((held.to(dtype), exact), (held + 1e-3, False), (held[:-1], False)):
        reader = load_pair_reader(saved, base=folder, words=words)[0]
        assert isinstance(reader, DecoderPairReader) and isinstance(plain, DecoderPairReader)
        own = {
            name for name, _ in reader.model.decoder.named_parameters() if name.startswith("embed_tokens.")
        }
        assert (not own) == lent
        if lent:
            assert reader.model.decoder.embed_tokens.words.data_ptr() == words.data_ptr()
        assert reader.model.decoder.config.vocab_size == len(held)
        np.testing.assert_array_equal(reader.scores(rows_of(plain)), plain.scores(rows_of(plain)))


def test_what_is_lent_in_more_bits_reads_as_its_own_in_fewer(tmp_path: Path) -> None:
    """A session in float32 lends to a pair reader in bf16: rows are cast, then scaled, as bf16 ones are."""
    folder = decoder_case.base(tmp_path / "base")
    ids = torch.tensor([[2, 7, 8, 9, 4]])
    embedding = open_base(folder).model.embed_tokens
    lent = LentWords(embedding.weight, torch.bfloat16, embedding.embed_scale)
    assert not list(lent.parameters()) and not lent.state_dict()
    torch.testing.assert_close(lent(ids), embedding.to(torch.bfloat16)(ids), atol=0, rtol=0)


def test_what_it_is_not_made_for_is_refused(tmp_path: Path) -> None:
    """Settings out of range, an unknown kind, another architecture, files of a later version, damage."""
    for wrong in ({"tune": "some"}, {"rank": 0}, {"alpha": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: given"):
            DecoderPairConfig(**wrong)  # type: ignore[arg-type]
    folder = decoder_case.base(tmp_path / "base")
    learner = decoder_case.reader(folder)
    learner.tuning()
    saved = save_pair_reader(learner, tmp_path / "saved", {})
    body = json.loads((saved / "config.json").read_text())
    for changed, message in (
        ({"kind": "tree"}, "kind: given 'tree'; allowed: bert, decoder, dual, encoder, combined"),
        ({"tuned": body["tuned"] | {"rank": 4}}, "cannot be read"),
        ({"tuned": {}, "base": {}}, "cannot be read"),
    ):
        (saved / "config.json").write_text(json.dumps(body | changed))
        with pytest.raises(ValueError, match=message):
            load_pair_reader(saved, base=folder, learns=True)
    (saved / "config.json").write_text(json.dumps(body | {"dysra_format": 9}))
    with pytest.raises(NewerFormat, match="has format 9"):
        load_pair_reader(saved, base=folder)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"model_type": "llama"}))
    with pytest.raises(ValueError, match="'llama'; allowed: gemma3_text"):
        open_base(folder)


def test_a_row_longer_than_the_window_keeps_the_window(tmp_path: Path) -> None:
    """Sliding layers see no further than the base's do, whatever stands beside the row."""
    judge = shaken(decoder_case.reader(tmp_path / "base"))
    question, text = judge.tokenize(["what key", " ".join(["ann has key bob has map"] * 8)])
    long, short = PairRow(question, text), PairRow(question, text[:3])
    both = judge.scores([long, short])
    np.testing.assert_allclose(both, [judge.scores([long])[0], judge.scores([short])[0]], atol=2e-5)
    ids, last = judge.collate([long])
    assert ids.shape[1] > judge.model.decoder.config.sliding_window
    with torch.no_grad():
        plain = judge.model.decoder(
            input_ids=ids[:, : int(last[0]) + 1],
            attention_mask=torch.ones(1, int(last[0]) + 1),
            use_cache=False,
        ).last_hidden_state[:, -1]
        wanted = judge.model.head(torch.nn.functional.rms_norm(plain, plain.shape[-1:]))[0, 0]
    assert float(both[0]) == pytest.approx(float(wanted), abs=2e-5)


def test_norms_of_one_kernel_are_the_base_s(tmp_path: Path) -> None:
    """States and the gradient of every weight are those of transformers' own norms."""
    folder = decoder_case.base(tmp_path / "base")
    plain = open_base(folder).model.requires_grad_(True)
    own = decoder_case.reader(folder).model.decoder.requires_grad_(True)
    assert not any(type(module).__name__ == "Gemma3RMSNorm" for module in own.modules())
    ids = torch.tensor([[2, 7, 8, 9, 4], [2, 9, 7, 5, 6]])
    found, wanted = (model(input_ids=ids, use_cache=False).last_hidden_state for model in (own, plain))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for state in (found, wanted):
        state.square().sum().backward()
    theirs = dict(plain.named_parameters())
    for name, weight in own.named_parameters():
        torch.testing.assert_close(weight.grad, theirs[name].grad, atol=1e-3, rtol=1e-3)


def test_batches_for_learning_cut_rows_where_padding_and_batches_cost_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row once, of like length together; no cut between two widths would cost less."""
    judge = decoder_case.reader(tmp_path / "base")
    chance = np.random.default_rng(0)
    rows = [PairRow((7,) * 3, (8,) * int(chance.integers(1, 90)), (9,) * (40 * (at % 2))) for at in range(60)]
    lengths = judge._lengths(rows)
    assert lengths.tolist() == [len(judge._ids(row)) for row in rows]
    widths = -(-lengths // 8) * 8

    def cost(groups: list[np.ndarray], batch: int) -> int:
        return sum(batch + len(group) * int(widths[group].max()) for group in groups)

    sizes = []
    for batch in (0, 200, 4_000):
        monkeypatch.setattr("models.retriever.pair_base.BATCH_WORTH", batch)
        groups = judge.alike(rows)
        assert sorted(np.concatenate(groups).tolist()) == list(range(60))
        order = np.argsort(-widths, kind="stable")
        for at in range(1, 60):
            assert cost(groups, batch) <= cost([order[:at], order[at:]], batch)
        assert cost(groups, batch) <= cost([order], batch)
        sizes.append(len(groups))
    assert sizes[0] == len(set(widths.tolist())) > sizes[1] > sizes[2] == 1
