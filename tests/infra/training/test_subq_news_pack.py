"""A news stream as token files: in the order of publication, the test last, nothing of it in both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard

from infra.training.subq_data import SubqData
from infra.training.subq_news_pack import newest, pack_stream
from tests.infra.training.subq_case import small_data


def _source(folder: Path, articles: int = 60) -> Path:
    rows = [json.dumps({"title": f"ba {at}", "text": "do ki lu men " * 20}) for at in range(articles)]
    path = folder / "stream.jsonl.zst"
    path.write_bytes(zstandard.compress("\n".join(rows).encode()))
    return path


def test_the_stream_is_kept_in_order_and_its_end_is_the_test(tmp_path: Path) -> None:
    """Training text is what came just before the test, both read as every text is; no needles' names."""
    small_data().tokenizer.save(tmp_path / "tokenizer.json")
    manifest = pack_stream(_source(tmp_path), tmp_path, tmp_path / "out", train=2_000, test=700)
    train, test = (SubqData.load(tmp_path / "out", part) for part in ("train", "test"))
    assert (len(train.tokens), len(test.tokens)) == (2_000, 700) == (
        manifest["train"]["tokens"], manifest["test"]["tokens"],
    )  # fmt: skip
    assert not train.names and not test.names
    assert "ba 59" in test.tokenizer.decode(test.tokens.tolist())
    told = test.tokenizer.decode([*train.tokens.tolist(), *test.tokens.tolist()])
    places = [told.find(f"ba {at}") for at in range(45, 60)]
    assert places == sorted(places) and -1 not in places


def test_a_stream_that_is_too_short_is_refused(tmp_path: Path) -> None:
    """More test than training is no measure."""
    small_data().tokenizer.save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"test: given 9000; the stream holds \d+ tokens"):
        pack_stream(_source(tmp_path, 20), tmp_path, tmp_path / "out", train=100, test=9_000)


def test_only_the_newest_texts_are_made_tokens_of() -> None:
    """As few as have the characters asked for, in their order; all where they have fewer."""
    texts = ["a" * 10, "b" * 10, "c" * 10]
    assert newest(iter(texts), 11) == texts[1:] and newest(iter(texts), 10) == texts[2:]
    assert newest(iter(texts), 1_000) == texts and newest(iter([]), 5) == []
