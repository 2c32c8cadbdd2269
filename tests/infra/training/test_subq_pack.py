"""Token files: words encoded once give the tokenizer's ids; an ended call goes on to the same files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.training import subq_pack
from infra.training.subq_data import SubqData
from infra.training.subq_encode import WordEncoder, encoded
from models.subq.tokenizer import SubqTokenizer
from tests.infra.training.subq_case import SYLLABLES

TEXT = "The clerk wrote 40213, didn't he?\nRain  is due;\n\n\tferries stay (in port). Café — naïve\xa0x… 東京\r\n"
TOKENIZER = SubqTokenizer.train([TEXT * 20], 400)
WORDS = (
    "the",
    "Rain",
    "'s",
    "n't",
    "12",
    "7",
    ",",
    ").",
    "<|end|>",
    "é",
    "東京",
    "\u0301",
    "🙂",
    "_",
    "-",
    "\x00",
)
SPACES = (
    " ", "  ", "\n", "\n\n", "\t", "\r\n", "\xa0", "\u2003", "\u3000", "\x85", "\x1c", "\u180e", "\u200b",
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(st.sampled_from(WORDS + SPACES), max_size=24), later=st.text(max_size=20))
def test_words_encoded_once_are_the_tokenizers_ids(parts: list[str], later: str) -> None:
    """Whatever white space stands between them, in texts that come one after another."""
    texts = ["".join(parts), later, "".join(parts) + later, ""]
    for text, found in zip(texts, encoded(TOKENIZER, texts, at_once=2), strict=True):
        assert found.dtype == np.uint16 and found.tolist() == TOKENIZER.encode(text)


def test_a_word_that_is_known_is_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second text of the same words asks the tokenizer nothing."""
    encoder = WordEncoder(TOKENIZER)
    (first,) = encoder.encode([TEXT])
    monkeypatch.setattr(TOKENIZER, "encode_many", None)
    assert [ids.tolist() for ids in encoder.encode([TEXT, ""])] == [first.tolist(), []]


def test_too_many_ids_are_refused() -> None:
    """Files hold 16 bits an id."""

    class Wide(SubqTokenizer):
        vocabulary = 70_000  # type: ignore[assignment]

    with pytest.raises(ValueError, match="vocabulary: given 70000; allowed: 65536 at most"):
        WordEncoder(Wide(TOKENIZER._tokenizer))


def _sources(folder: Path) -> Path:
    """Files as DYSRA_DATA has them, of made-up words."""
    rng = random.Random(0)
    known = ["".join(rng.choices(SYLLABLES, k=rng.randint(2, 3))) for _ in range(300)]

    def text(words: int) -> str:
        return " ".join(rng.choices(known, k=words)) + "."

    files: dict[str, list[dict[str, object]]] = {
        "pretrain/gutenberg": [{"text": text(3_000)} for _ in range(10)],
        "longdoc/scisumm": [{"title": "Of words", "text": text(400)}],
        "corpus/passages_wiki": [
            {"id": f"p{at}", "title": f"Title {at}", "text": f"{text(40)} The code of Alder {at} is {40_000 + at}."}
            for at in range(40)
        ],
        "qa/squad2": [],
        "qa/nq_open": [],
    }  # fmt: skip
    for name, rows in files.items():
        path = folder / f"{name}.jsonl.zst"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))
    return folder


def _packed(data: Path, out: Path) -> dict[str, object]:
    return subq_pack.pack(data, out, vocabulary=500, share=1.0, newswire_articles=20, seed=0)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_an_ended_call_goes_on_and_leaves_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended in any stage: what was whole is not made again, and every byte is that of an undisturbed call; other
    arguments begin anew; there is no manifest before all is there."""
    data = _sources(tmp_path / "data")
    manifest = _packed(data, tmp_path / "whole")
    expected = _bytes(tmp_path / "whole")
    assert json.loads(expected["manifest.json"]) == json.loads(json.dumps(manifest))
    assert set(expected) == {
        "tokenizer.json", "names.json", "real.json.xz", "train-000.bin.xz", "test-000.bin.xz", "manifest.json",
    }  # fmt: skip
    loaded = SubqData.load(tmp_path / "whole", "train")
    texts = subq_pack.read_texts(data, 1.0, 20, 0)["train"]
    ids = [each for text in texts for each in [*loaded.tokenizer.encode(text), 0]]
    assert loaded.tokens.tolist() == ids

    class Ended(Exception):
        pass

    made: list[str] = []

    def ending(name: str, at: str) -> Callable[..., object]:
        whole = getattr(subq_pack, name)

        def stage(*given: object) -> object:
            made.append(f"{name} {given[-1]}" if name == "write_tokens" else name)
            if made[-1] == at:
                raise Ended
            return whole(*given)

        return stage

    out = tmp_path / "again"
    for at in ("owner_words", "real_questions", "write_tokens train", "write_tokens test", ""):
        with monkeypatch.context() as patched:
            for name in ("owner_words", "real_questions", "write_tokens"):
                patched.setattr(subq_pack, name, ending(name, at))
            if at:
                with pytest.raises(Ended):
                    _packed(data, out)
                assert not (out / "manifest.json").exists()
            else:
                _packed(data, out)
    assert _bytes(out) == expected
    stages = ("owner_words", "real_questions", "write_tokens train", "write_tokens test")
    assert [made.count(stage) for stage in stages] == [2, 2, 2, 2]
    (out / "packing.json").write_text(
        json.dumps({"settings": {}, "done": {"names": None, "tokenizer": None}}), encoding="utf-8"
    )
    (out / "names.json").write_text("of other arguments", encoding="utf-8")
    _packed(data, out)
    assert _bytes(out) == expected
