"""pipeline/tasks/qa.py: question files and their splits."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BadData, UsageError
from pipeline.tasks.qa import (
    Question,
    assign_splits,
    read_lines,
    read_passages,
    read_questions,
    test_title_keys,
    title_key,
)

SQUAD = {
    "id": "s1",
    "question": "Who?",
    "answers": ["Ann"],
    "answerable": True,
    "gold_passage_ids": ["p1"],
    "title": "A_B",
}


def write(path: Path, rows: list[object]) -> Path:
    """A JSON Lines file, compressed if its name says so."""
    data = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd") as stream:
            stream.write(data)
    else:
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["squad2.jsonl", "squad2.jsonl.zst"])
def test_plain_and_compressed_files_read_the_same(tmp_path: Path, name: str) -> None:
    """A question comes out whole from either form."""
    question = read_questions(write(tmp_path / name, [SQUAD]))[0]
    assert (question.question_id, question.dataset, question.answers) == ("s1", "squad", ("Ann",))
    assert (question.gold_ids, question.titles) == (("p1",), ("A B",))


def test_hotpot_support_names_the_sentences(tmp_path: Path) -> None:
    """Supporting facts become the sentences themselves; a fact beyond its paragraph is left out."""
    row = {
        "id": "h",
        "question": "q",
        "answers": ["x"],
        "type": "bridge",
        "gold_passage_ids": ["p"],
        "context": [{"passage_id": "p", "title": "T", "sentences": ["One.", "Two."]}],
        "supporting_facts": [["T", 1], ["T", 9]],
    }
    question = read_questions(write(tmp_path / "hotpotqa.jsonl", [row]))[0]
    assert question.support == (("T", "Two."),)
    assert question.titles == ("T",)


def test_an_unknown_file_name_says_what_is_allowed(tmp_path: Path) -> None:
    """The message lists the names that have a reader."""
    with pytest.raises(UsageError, match=r"no reader for 'other'.*squad2"):
        read_questions(tmp_path / "other.jsonl")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path that does not exist is a usage error."""
    with pytest.raises(UsageError, match="does not exist"):
        read_questions(tmp_path / "squad2.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "line 2 is not JSON"),
        ('{"id": 1}', "line 2 lacks"),
        ("[1, 2]", "line 2 is a JSON list; give one object a line"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    """Bad data says where it stands."""
    path = tmp_path / "squad2.jsonl"
    path.write_text(f"{json.dumps(SQUAD)}\n{line}\n")
    with pytest.raises(BadData, match=message):
        read_questions(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("a.jsonl", b'{"id": 1}\n\xff\xfe\n', "is not UTF-8"), ("a.jsonl.zst", b"no frame", "is damaged")],
)
def test_a_file_that_cannot_be_read_as_text_is_bad_data(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    """Bytes of another kind, or a frame that is none, are no traceback."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadData, match=message):
        list(read_lines(path))


def test_titles_that_differ_in_spelling_share_a_key() -> None:
    """Underscores, case and a trailing bracket do not make another title."""
    assert title_key("Steam_engine") == title_key("Steam Engine (machine)") == "steam engine"


@given(
    st.lists(
        st.tuples(st.text(max_size=3), st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=2)),
        max_size=30,
    )
)
def test_no_test_title_is_a_training_title(drawn: list[tuple[str, list[str]]]) -> None:
    """Whatever the questions share, gold titles of test questions are gold titles of no training question."""
    questions = [
        Question(
            question_id=f"{at}{name}",
            dataset="nq",
            text="?",
            answers=("x",),
            answerable=True,
            titles=tuple(titles),
        )
        for at, (name, titles) in enumerate(drawn)
    ]
    split = assign_splits(questions, {}, test_share=0.3, seed=1)
    held_back = test_title_keys(split)
    for question in split:
        if question.split in ("train", "dev"):
            assert not held_back & {title_key(title) for title in question.titles}
    assert split == assign_splits(questions, {}, test_share=0.3, seed=1)


@pytest.mark.data
def test_real_questions_split_without_shared_titles(data_dir: Path) -> None:
    """On the data folder: every set has test and training questions, and no gold passage is shared."""
    data = data_dir
    passages = read_passages(data / "corpus/passages_wiki.jsonl.zst")
    questions = [
        q for name in ("squad2", "nq_open", "hotpotqa") for q in read_questions(data / f"qa/{name}.jsonl.zst")
    ]
    split = assign_splits(questions, passages)
    golds = {
        name: {g for q in split if q.split == name for g in q.gold_ids} for name in ("train", "dev", "test")
    }
    titles = {
        name: {title_key(passages[g].title) for g in found if g in passages} for name, found in golds.items()
    }
    assert len(golds["test"]) > 300
    assert not golds["test"] & (golds["train"] | golds["dev"])
    assert not titles["test"] & (titles["train"] | titles["dev"])
    counts = {(q.dataset, q.split) for q in split}
    assert {(d, s) for d in ("squad", "nq", "hotpot") for s in ("train", "test")} <= counts
