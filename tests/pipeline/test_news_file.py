"""News files of every form, whole, unsorted, damaged."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.article import ArticleLimits, parse_record
from pipeline.errors import BadData, UsageError
from pipeline.news_file import lines_in_time_order, parse_line, read_lines, survey

LIMITS = ArticleLimits()


def news(number: int, day: int = 1, **fields: Any) -> dict[str, Any]:
    """One line of a news file."""
    return {
        "id": f"a-{number}",
        "published": f"2025-01-{day:02d}T00:00:00Z",
        "source": "The Wire",
        "title": "Rain",
        "text": "Rain fell.",
        "topics": ["weather"],
        **fields,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the form that the suffix names."""
    text = "".join(json.dumps(row, default=str) + "\n" for row in rows).encode()
    if path.suffix == ".zst":
        half = len(text) // 2
        # Two frames one after the other are one file, as `cat a.zst b.zst` makes it.
        text = zstandard.compress(text[:half]) + zstandard.compress(text[half:])
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(text)
    return path


@pytest.mark.parametrize("name", ["news.jsonl", "news.jsonl.zst", "news.parquet"])
def test_every_form_gives_the_same_articles(tmp_path: Path, name: str) -> None:
    """JSON lines, zstd of several frames and Parquet read alike."""
    rows = [news(number, day=1 + number) for number in range(9)]
    path = write(tmp_path / name, rows)

    entries = [parse_line(number, line, LIMITS) for number, line in read_lines(path)]

    assert [entry.number for entry in entries] == list(range(1, 10))
    assert [entry.article_id for entry in entries] == [row["id"] for row in rows]
    assert {entry.kind for entry in entries} == {"article"}
    assert (survey(path).num_lines, survey(path).in_order) == (9, True)


def test_parquet_timestamps_and_extra_columns_are_read(tmp_path: Path) -> None:
    """A timestamp column is a time, and columns that are no field of an article are left out."""
    row = news(1, published=datetime(2025, 1, 1, 12, tzinfo=UTC), mood="calm")
    path = write(tmp_path / "news.parquet", [row])

    (entry,) = (parse_line(number, line, LIMITS) for number, line in read_lines(path))

    assert entry.kind == "article"
    assert entry.time_ms == 1_735_732_800_000
    assert b"mood" not in (entry.value or b"")


def test_blank_lines_and_byte_order_mark_are_no_lines(tmp_path: Path) -> None:
    """Line numbers are those an editor shows; a missing last newline loses nothing."""
    path = tmp_path / "news.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(news(1)).encode() + b"\r\n\n  \n" + json.dumps(news(2)).encode()
    )

    assert [(number, parse_line(number, line, LIMITS).article_id) for number, line in read_lines(path)] == [
        (1, "a-1"),
        (4, "a-2"),
    ]


@given(days=st.lists(st.one_of(st.none(), st.integers(1, 28)), max_size=30))
def test_unsorted_file_comes_in_time_order_and_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, days: list[int | None]
) -> None:
    """Dated lines ascend in time, equal times keep the file's order, and an undated line stays behind its line."""
    path = tmp_path_factory.mktemp("n") / "news.jsonl"
    rows = [news(n, day=day or 1, **({} if day else {"published": None})) for n, day in enumerate(days)]
    write(path, rows)

    found = survey(path)
    numbers = [number for number, _ in lines_in_time_order(path, found)]

    dated = [(days[number - 1], number) for number in numbers if days[number - 1]]
    assert sorted(numbers) == list(range(1, len(days) + 1))
    assert dated == sorted(dated)  # type: ignore[type-var]
    assert found.in_order == (numbers == sorted(numbers) and dated == sorted(dated))  # type: ignore[type-var]
    assert found.num_undated == days.count(None)


def test_update_is_placed_by_the_time_it_became_known(tmp_path: Path) -> None:
    """A correction of day 3 to an article of day 1 comes behind the news of day 2."""
    rows = [news(1), news(1, updated="2025-01-03T00:00:00Z"), news(2, day=2)]
    path = write(tmp_path / "news.jsonl", rows)

    assert [number for number, _ in lines_in_time_order(path, survey(path))] == [1, 3, 2]


def test_withdrawal_is_a_null_value_on_its_stream() -> None:
    """A line that says deleted becomes the deletion that ingest reads back."""
    line = json.dumps({"id": "a-1", "deleted": True, "stream": "wire", "updated": "2025-01-02"}).encode()

    entry = parse_line(7, line, LIMITS)

    assert (entry.kind, entry.value, entry.stream, entry.time_ms) == (
        "deletion",
        None,
        "wire",
        1_735_776_000_000,
    )
    assert parse_record(entry.key, entry.value).id == "a-1"
    for broken in ({"id": "a-1", "deleted": True}, {"deleted": True, "stream": "wire"}):
        assert parse_line(7, json.dumps(broken).encode(), LIMITS).detail.startswith("line 7: missing_field")


def test_undated_article_is_named_so_unless_a_date_is_given() -> None:
    """A null date is no error of the file; with a date it is an article like any other."""
    line = json.dumps(news(1, published=None)).encode()
    now = datetime(2025, 5, 5, tzinfo=UTC)

    assert parse_line(1, line, LIMITS).kind == "undated"
    assert parse_line(1, line, LIMITS, undated=now).time_ms == 1_746_403_200_000


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b"{", "line 3: not JSON"),
        (b"[1]", "line 3: not a JSON object"),
        (b'{"published": "2025-01-01"}', "line 3: missing_field: 'id' is missing"),
        (b"\xff\xfe", "line 3: not JSON"),
    ],
)
def test_bad_line_is_named_by_number_and_cause(line: bytes, detail: str) -> None:
    """What cannot be an article says where it is and what is wrong, and keeps its bytes."""
    entry = parse_line(3, line, LIMITS)

    assert entry.kind == "bad"
    assert entry.detail.startswith(detail)
    assert entry.value == line


def test_stream_of_the_command_replaces_the_lines_own() -> None:
    """--stream puts articles and withdrawals on one stream."""
    article = parse_line(1, json.dumps(news(1, stream="own")).encode(), LIMITS, stream="mine")
    deletion = parse_line(2, b'{"id":"a","deleted":true,"stream":"own"}', LIMITS, stream="mine")

    assert (article.stream, deletion.stream) == ("mine", "mine")
    assert json.loads(article.value or b"")["stream"] == "mine"


def test_cut_off_and_damaged_files_are_bad_data(tmp_path: Path) -> None:
    """A zstd file without its end or with flipped bytes, and a broken Parquet file, are not read as whole."""
    whole = write(tmp_path / "news.jsonl.zst", [news(n, text=str(n) * 300) for n in range(200)]).read_bytes()
    cut = tmp_path / "cut.zst"
    cut.write_bytes(whole[:-20])
    damaged = tmp_path / "damaged.zst"
    damaged.write_bytes(whole[:40] + b"\x00" * 40 + whole[80:])
    parquet = tmp_path / "bad.parquet"
    parquet.write_bytes(b"PAR1" + b"x" * 100)

    for path, cause in ((cut, "cut off"), (damaged, "damaged"), (parquet, "cannot be read as Parquet")):
        with pytest.raises(BadData, match=cause):
            list(read_lines(path))


def test_absent_file_and_folder_are_wrong_use(tmp_path: Path) -> None:
    """No file there: the path is named."""
    with pytest.raises(UsageError, match=r"there is no file .*nothing\.jsonl"):
        list(read_lines(tmp_path / "nothing.jsonl"))
    with pytest.raises(UsageError, match="is a folder"):
        list(read_lines(tmp_path))
