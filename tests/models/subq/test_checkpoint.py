"""Models on disk and tokenizers: what comes back is what was kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.subq import checkpoint
from models.subq.checkpoint import load_checkpoint, load_tokenizer, save_checkpoint
from models.subq.tokenizer import SubqTokenizer
from tests.models.subq.small import one_pass, small_model

TEXTS = [
    "The clerk wrote down 40213.",
    "Rain is expected; 17 ferries stay in port.",
    "Ærø – 12°C, “mild”.",
] * 5
TOKENIZER = SubqTokenizer.train(TEXTS, 300)


@pytest.mark.parametrize(("storage", "close"), [("float32", 0.0), ("bfloat16", 1e-2), ("int8", 2e-2)])
def test_model_comes_back(
    tmp_path: Path, storage: str, close: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same logits but for what the storage rounds; tensors larger than a file are cut."""
    monkeypatch.setattr(checkpoint, "PART_BYTES", 8_192)
    model = small_model()
    files = save_checkpoint(model, tmp_path, storage=storage, tokenizer=TOKENIZER, about={"steps": 3})
    assert all(path.stat().st_size < 3 * 8_192 for path in files if path.suffix == ".safetensors")
    assert len(files) > 5
    again, described = load_checkpoint(tmp_path)
    ids = torch.randint(0, 97, (100,))
    expected = one_pass(model, ids)
    error = (one_pass(again, ids) - expected).norm() / expected.norm()
    assert float(error) <= close
    assert described["about"] == {"steps": 3} and again.config == model.config
    assert load_tokenizer(tmp_path).identity == TOKENIZER.identity


def test_damaged_or_unfinished_checkpoint_is_refused(tmp_path: Path) -> None:
    """A changed byte or a missing end is an error that names the file."""
    with pytest.raises(ValueError, match=r"holds no config.json"):
        load_checkpoint(tmp_path)
    part = save_checkpoint(small_model(), tmp_path)[0]
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"model-00000.safetensors is missing or differs from its checksum"):
        load_checkpoint(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_every_text_comes_back_exactly(text: str) -> None:
    """Byte-level: no character is lost or changed, and no text spells the end token."""
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.end_id not in ids


def test_digits_are_tokens_of_their_own() -> None:
    """A key of five digits is five tokens, and text that spells the end token stays text."""
    ids, spans = TOKENIZER.encode_spans("key 40213.")
    assert [spans[at][1] - spans[at][0] for at in range(len(ids))][-6:] == [1] * 6
    assert TOKENIZER.decode(TOKENIZER.encode("<|end|>")) == "<|end|>"


def test_tokenizer_is_trained_and_kept_as_it_is(tmp_path: Path) -> None:
    """The same text gives the same ids; a file that is missing is named."""
    TOKENIZER.save(tmp_path / "tokenizer.json")
    assert SubqTokenizer.load(tmp_path / "tokenizer.json").encode(TEXTS[0]) == TOKENIZER.encode(TEXTS[0])
    assert SubqTokenizer.train(TEXTS, 300).identity == TOKENIZER.identity
    with pytest.raises(ValueError, match="vocabulary: given 200; allowed: 257 or more"):
        SubqTokenizer.train(TEXTS, 200)
    with pytest.raises(ValueError, match=r"other.json does not exist"):
        SubqTokenizer.load(tmp_path / "other.json")
