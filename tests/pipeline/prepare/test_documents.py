"""Streams as sequential chunks in time order, and shards that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.subq.tokenizer import SubqTokenizer
from pipeline.errors import BadData, UsageError
from pipeline.prepare.documents import Document, in_order, read_documents, sequential_chunks
from pipeline.prepare.labels import GOLD, HARD, HOLDS, labels_of
from pipeline.prepare.shards import begin, finish, note_of, write_shard
from pipeline.tasks.qa import Question, SourceText

TOKENIZER = SubqTokenizer.train(["the harbour of Aster, 1998 and 2004: naïve café"], 300)


@given(st.text())
def test_tokenizer_gives_every_text_back(text: str) -> None:
    """Byte-level: nothing is unknown, nothing is lost, and the end token is no text."""
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.end_id not in ids


def document(line: int, stream: str = "s", published: str = "") -> Document:
    """A text by its line."""
    return Document(doc_id=str(line), stream=stream, published=published, text=f"t{line}", line=line)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(1, 9), max_size=12)), max_size=12))
def test_chunks_hold_every_token_once_and_join_no_two_streams(rows: list[tuple[str, list[int]]]) -> None:
    """Joined again they are the texts in their order, each with its end."""
    rows = sorted(rows, key=lambda row: row[0])
    documents = [document(at, stream) for at, (stream, _) in enumerate(rows)]
    chunks = list(sequential_chunks(documents, [ids for _, ids in rows], 0, 5))
    for stream in "ab":
        joined = [i for chunk in chunks if chunk["stream"] == stream for i in chunk["ids"]]
        assert joined == [i for name, ids in rows if name == stream for i in (*ids, 0)]
        assert all(len(chunk["ids"]) == 5 for chunk in [c for c in chunks if c["stream"] == stream][:-1])
    assert [chunk["ordinal"] for chunk in chunks] == list(range(len(chunks)))


def test_newest_share_of_each_stream_is_held_out() -> None:
    """Order is by stream and time, texts without a time keep their order; held-out text has chunks of its own."""
    times = ["2024-03", "2024-01", "", "2024-02"]
    order = in_order([document(at, "s", time) for at, time in enumerate(times)] + [document(4, "a")], 0.25)
    assert order.lines == (4, 2, 1, 3, 0)
    assert order.held_out == {0}
    some = [document(at, "s", times[at]) for at in (3, 0)]
    chunks = list(sequential_chunks(some, [[1], [2]], 9, 8, order.held_out))
    assert [(chunk["split"], chunk["ids"], chunk["first"]) for chunk in chunks] == [
        ("train", [1, 9], "2024-02"), ("test", [2, 9], "2024-03"),
    ]  # fmt: skip


def test_documents_take_their_stream_or_their_source(tmp_path: Path) -> None:
    """Deletions are no text; a line without a text is named."""
    path = tmp_path / "news.jsonl"
    rows = [
        {"id": "a", "title": "T", "text": "x", "source": "Daily Courier", "published": "2024-01-01"},
        {"id": "b", "deleted": True}, {"id": "c", "text": "y", "stream": "own"}, {"text": "z"},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(read_documents(path))
    assert [(d.doc_id, d.stream, d.text) for d in found] == [
        ("a", "daily-courier", "T\nx"), ("c", "own", "y"), ("news-3", "news", "z"),
    ]  # fmt: skip
    path.write_text('{"id": "a"}\n')
    with pytest.raises(BadData, match="line 1"):
        list(read_documents(path))


def test_labels_tell_gold_from_holding_from_looking_alike() -> None:
    """Golds come first whether found or not, then texts with an answer string, then the best of the rest."""
    told = {"g": "Falk opened it", "h": "Falk was there", "x": "nobody", "y": "no one", "z": "none"}
    texts = {at: SourceText(text_id=at, title="", text=body) for at, body in told.items()}
    question = Question(
        question_id="q", dataset="d", text="who", answers=("Falk",), answerable=True, gold_ids=("g",)
    )
    found = [texts[at] for at in ("x", "h", "y", "z")]
    rows = list(labels_of(question, [texts["g"]], found, hard=2))
    assert [(row["text_id"], row["label"], row["rank"]) for row in rows] == [
        ("g", GOLD, -1), ("h", HOLDS, 1), ("x", HARD, 0), ("y", HARD, 2),
    ]  # fmt: skip


def test_damaged_or_missing_shard_is_known(tmp_path: Path) -> None:
    """A note counts only with the file it was written for; a manifest only when every shard is whole."""
    begin(tmp_path, {"seed": 0})
    note = write_shard(tmp_path, "a.parquet", pa.table({"x": [1, 2]}))
    assert note_of(tmp_path, "a.parquet") == note
    with pytest.raises(UsageError, match=r"b\.parquet"):
        finish(tmp_path, {}, ["a.parquet", "b.parquet"])
    (tmp_path / "a.parquet").write_bytes(b"cut")
    assert note_of(tmp_path, "a.parquet") is None
    begin(tmp_path, {"seed": 0})
    with pytest.raises(UsageError, match="other settings"):
        begin(tmp_path, {"seed": 1})
